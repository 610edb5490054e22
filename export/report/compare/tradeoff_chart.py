"""Draws a comparison: accuracy against speed, one named point an artifact, Pareto fronts marked."""

from markupsafe import Markup

from export.report.charts.decoder import WIDTH
from export.report.compare.comparison import Axis, Comparison, Kind
from export.report.text.scale import Ruler, nice_ticks
from export.report.text.svg import element, line, picture, text

LEFT, RIGHT, TOP, BOTTOM = 40.0, 348.0, 30.0, 232.0
HEIGHT = 272.0
LEGEND: dict[Kind, str] = {
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


def tradeoff_chart(comparison: Comparison) -> Markup | None:
    """Return the plot; None if there is no figure of accuracy that all artifacts have."""
    accuracy = comparison.accuracy
    if accuracy is None:
        return None
    # The original itself: no faster, and every answer kept.
    speeds = nice_ticks(min(1.0, *comparison.speed.values), max(comparison.speed.values), 6)
    rights = nice_ticks(min(1.0, *accuracy.values), max(1.0, *accuracy.values), 5)
    across, up = Ruler(LEFT, RIGHT - LEFT, speeds), Ruler(BOTTOM, TOP - BOTTOM, rights)
    points = [
        (across.place(a), up.place(b))
        for a, b in zip(comparison.speed.values, accuracy.values, strict=True)
    ]
    x, y = across.place(1.0), up.place(1.0)
    parts = [
        text(0, 12, accuracy.title, "strong"),
        *across.rules(TOP, BOTTOM, BOTTOM + 13, " x"),
        *(line(LEFT, up.place(v), RIGHT, up.place(v), "rule") for v in rights),
        *(text(LEFT - 4, up.place(v) + 3, f"{100 * v:.4g}%", "small", "end") for v in rights),
        text(RIGHT, BOTTOM + 27, comparison.speed.title, "strong", "end"),
        *(_steps([points[place] for place in front]) for front in comparison.fronts),
        line(x - 4, y - 4, x + 4, y + 4, "whisker"),
        line(x - 4, y + 4, x + 4, y - 4, "whisker"),
        text(x + 7, y - 6, "original", "small halo"),
    ]
    for place, (entry, point) in enumerate(zip(comparison.entries, points, strict=True)):
        kind = "point-front" if place in comparison.front else "point"
        parts.append(_point(entry.visual, *point, kind))
    parts += _labels(points, [entry.name for entry in comparison.entries], (x, y))
    legend = _legend(comparison)
    height = HEIGHT + 14 if legend else HEIGHT
    words, title = _words(comparison, accuracy), "Accuracy against speed"
    return picture("tradeoff", WIDTH, height, title, words, [*parts, *legend])


def _steps(front: list[tuple[float, float]]) -> Markup:
    """Return a front's line, down and then right: between two points nothing is known to be reachable."""
    corners: list[tuple[float, float]] = []
    for a, b in sorted(front):
        corners += [(corners[-1][0], b), (a, b)] if corners else [(a, b)]
    steps = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    return element("polyline", points=steps, class_="front")


def _point(visual: Kind, x: float, y: float, class_: str) -> Markup:
    """Return an artifact's point: round, square behind an exit, a diamond where gates decide."""
    if visual == "stay":
        return element("circle", cx=x, cy=y, r=5.0, class_=class_)
    if visual == "leave":
        corners = ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5))
    else:
        corners = ((0.0, -6.5), (6.5, 0.0), (0.0, 6.5), (-6.5, 0.0))
    points = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)
    return element("polygon", points=points, class_=class_)


def _legend(comparison: Comparison) -> list[Markup]:
    """Return what the shapes of points mean; nothing if all artifacts are of one kind."""
    kinds = {entry.visual for entry in comparison.entries}
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
    """Return the artifacts' names beside their points, each where it covers nothing that is there already."""
    groups: list[tuple[float, float, list[str]]] = []
    for (x, y), name in zip(points, names, strict=True):
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


def _words(comparison: Comparison, accuracy: Axis) -> str:
    rows = zip(comparison.entries, comparison.speed.values, accuracy.values, strict=True)
    points = "; ".join(
        f"{e.name}: {a:.2f} times, {b:.1%}"
        f"{'' if e.visual == 'stay' else f', visual tokens {e.visual}'}"
        for e, a, b in rows
    )
    fronts = "; ".join(
        ", ".join(comparison.entries[place].name for place in front) for front in comparison.fronts
    )
    return f"{points}. Not beaten by any other of their model, data and machine: {fronts}."
