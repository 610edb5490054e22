"""Draws models as points, accuracy against speed, each with its name; lines may join some of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from export.report.charts.decoder import WIDTH
from export.report.text.scale import Ruler, nice_ticks
from export.report.text.svg import element, line, picture, text
from export.results.intervals import Interval
from export.results.sweep import Leaves

LEFT, RIGHT, TOP, BOTTOM = 40.0, 348.0, 30.0, 232.0
HEIGHT = 272.0
LEGEND: dict[Leaves, str] = {
    "stay": "stay",
    "leave": "leave at an exit",
    "may leave": "may leave at gates",
}
# Points nearer to each other than this share one label.
NEAR = 9.0
# A longer name is cut in its middle; a letter of a label takes about so much.
LONGEST_NAME, LETTER = 24, 5.9
# Base lines of labels that are tried, from the point's height; those further off are tied to it by a line.
DOWN = (3, *(3 + side * 11 * step for step in range(1, 9) for side in (1, -1)))
NEAR_LINE = 15.0


@dataclass(frozen=True)
class Axis:
    """What one direction of the plot shows.

    Attributes:
        title: with the unit.
        values: one for each point, in order; higher is better.
        intervals: upwards, of each value; None: of that none is drawn. Empty: of none.
    """

    title: str
    values: tuple[float, ...]
    intervals: tuple[Interval | None, ...] = ()


@dataclass(frozen=True)
class Mark:
    """How a point is drawn.

    Attributes:
        name: beside it; empty: none.
        visual: what becomes of visual rows; chooses the shape.
        class_: its style: `point`, `point-front` for one that no other beats, `point-baseline`.
    """

    name: str
    visual: Leaves
    class_: str = "point"


def points_chart(
    key: str,
    marks: Sequence[Mark],
    speed: Axis,
    accuracy: Axis,
    description: str,
    *,
    original: float = 1.0,
    joined: Sequence[Sequence[int]] = (),
    stepped: Sequence[Sequence[int]] = (),
) -> Markup:
    """Return the plot.

    Args:
        key: distinguishes it from other drawings of its page.
        marks: of the points.
        speed: of the points, rightwards; the original stands at 1.
        accuracy: of the points, upwards, shares.
        description: what is to be seen, for people who do not see it.
        original: accuracy of the original.
        joined: points that one line goes through, by their places.
        stepped: points that one line of steps goes through: between two nothing is known to be reachable.
    """
    speeds = nice_ticks(min(1.0, *speed.values), max(1.0, *speed.values), 6)
    ends = [end for interval in accuracy.intervals if interval for end in interval]
    reached = (original, *accuracy.values, *ends)
    rights = nice_ticks(min(reached), max(reached), 5)
    across, up = Ruler(LEFT, RIGHT - LEFT, speeds), Ruler(BOTTOM, TOP - BOTTOM, rights)
    points = [
        (across.place(a), up.place(b)) for a, b in zip(speed.values, accuracy.values, strict=True)
    ]
    x, y = across.place(1.0), up.place(original)
    parts = [
        text(0, 12, accuracy.title, "strong"),
        *across.rules(TOP, BOTTOM, BOTTOM + 13, " x"),
        *(line(LEFT, up.place(v), RIGHT, up.place(v), "rule") for v in rights),
        *(text(LEFT - 4, up.place(v) + 3, f"{100 * v:.4g}%", "small", "end") for v in rights),
        text(RIGHT, BOTTOM + 27, speed.title, "strong", "end"),
        *(_line([points[i] for i in run], marks[run[0]].class_) for run in joined),
        *(_steps([points[place] for place in front]) for front in stepped),
        *_whiskers(points, accuracy, up),
        line(x - 4, y - 4, x + 4, y + 4, "whisker"),
        line(x - 4, y + 4, x + 4, y - 4, "whisker"),
        text(x + 7, y - 6, "original", "small halo"),
        *(_point(m.visual, *at, m.class_) for m, at in zip(marks, points, strict=True)),
        *_labels(points, [mark.name for mark in marks], (x, y)),
    ]
    legend = _legend(marks)
    height = HEIGHT + 14 if legend else HEIGHT
    return picture(key, WIDTH, height, "Accuracy against speed", description, [*parts, *legend])


def _whiskers(points: list[tuple[float, float]], accuracy: Axis, up: Ruler) -> list[Markup]:
    """Return a thin line upwards over the interval of each value that has one."""
    return [
        line(x, up.place(interval[0]), x, up.place(interval[1]), "whisker-thin")
        for (x, _), interval in zip(points, accuracy.intervals, strict=False)
        if interval is not None
    ]


def _line(points: list[tuple[float, float]], class_: str) -> Markup:
    """Return a line through points, from the slowest to the fastest."""
    steps = " ".join(f"{a:.1f},{b:.1f}" for a, b in sorted(points))
    return element("polyline", points=steps, class_=f"joined {class_}-line")


def _steps(front: list[tuple[float, float]]) -> Markup:
    """Return a front's line, down and then right: between two points nothing is known to be reachable."""
    corners: list[tuple[float, float]] = []
    for a, b in sorted(front):
        corners += [(corners[-1][0], b), (a, b)] if corners else [(a, b)]
    steps = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    return element("polyline", points=steps, class_="front")


def _point(visual: Leaves, x: float, y: float, class_: str) -> Markup:
    """Return an artifact's point: round, square behind an exit, a diamond where gates decide."""
    if visual == "stay":
        return element("circle", cx=x, cy=y, r=5.0, class_=class_)
    if visual == "leave":
        corners = ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5))
    else:
        corners = ((0.0, -6.5), (6.5, 0.0), (0.0, 6.5), (-6.5, 0.0))
    points = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)
    return element("polygon", points=points, class_=class_)


def _legend(marks: Sequence[Mark]) -> list[Markup]:
    """Return what the shapes of points mean; nothing if all are of one kind."""
    kinds = {mark.visual for mark in marks}
    if len(kinds) == 1:
        return []
    parts, x = [text(0, HEIGHT + 7, "visual tokens", "small")], 70.0
    for kind, words in LEGEND.items():
        if kind in kinds:
            parts += [_point(kind, x, HEIGHT + 4, "point"), text(x + 9, HEIGHT + 7, words, "small")]
            x += 26 + 4.4 * len(words)
    return parts


def _labels(
    points: list[tuple[float, float]], names: list[str], original: tuple[float, float]
) -> list[Markup]:
    """Return names beside their points, each where it covers nothing that is there already."""
    groups: list[tuple[float, float, list[str]]] = []
    for (x, y), name in zip(points, names, strict=True):
        if not name:
            continue
        near = (of for a, b, of in groups if abs(a - x) < NEAR and abs(b - y) < NEAR)
        if (group := next(near, None)) is None:
            groups.append((x, y, group := []))
        group.append(_short(name))
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    taken.append((original[0] - 4, original[1] - 14, original[0] + 45, original[1] + 4))
    parts = []
    for x, y, found in groups:
        words = ", ".join(found)
        if len(found) > 1 and len(words) > 2 * LONGEST_NAME:
            words = f"{found[0]} and {len(found) - 1} more"
        wide = LETTER * len(words)
        # Where the words begin, on which side of the point, and the box that they take.
        places = []
        for b in (y + down for down in DOWN):
            places.append((x + 8, b, "start", (x + 8, b - 9, x + 8 + wide, b + 2)))
            places.append((x - 8, b, "end", (x - 8 - wide, b - 9, x - 8, b + 2)))
        fits = [p for p in places if p[3][0] >= 0 and p[3][2] <= WIDTH and TOP < p[1] < BOTTOM]
        free = (p for p in fits if not any(_meet(p[3], other) for other in taken))
        a, b, anchor, box = next(free, (fits or places)[0])
        taken.append(box)
        if abs(b - y) > NEAR_LINE:
            parts.append(line(x, y, a, b - 3, "whisker-thin"))
        parts.append(text(a, b, words, "halo strong", anchor))
    return parts


def _short(name: str) -> str:
    """Return a name that fits beside a point; the table has it whole."""
    half = (LONGEST_NAME - 1) // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
