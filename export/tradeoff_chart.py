"""Draws a comparison: accuracy against speed, one point an artifact, the Pareto front marked."""

from markupsafe import Markup

from export.compare import Axis, Comparison, Kind
from export.decoder_picture import WIDTH
from export.svg import element, line, nice_ticks, picture, text

LEFT, RIGHT, TOP, BOTTOM = 40.0, 348.0, 30.0, 232.0
HEIGHT = 272.0
LEGEND: dict[Kind, str] = {
    "stay": "stay",
    "leave": "leave at an exit",
    "may leave": "may leave at gates",
}
# Points nearer to each other than this share one label.
NEAR = 9.0


def tradeoff_chart(comparison: Comparison) -> Markup | None:
    """Return the plot; None if there is no figure of accuracy that all artifacts have."""
    accuracy = comparison.accuracy
    if accuracy is None:
        return None
    # The original itself: no faster, and every answer kept.
    speeds = nice_ticks(min(1.0, *comparison.speed.values), max(comparison.speed.values), 6)
    rights = nice_ticks(min(1.0, *accuracy.values), max(1.0, *accuracy.values), 5)

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - speeds[0]) / (speeds[-1] - speeds[0])

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - rights[0]) / (rights[-1] - rights[0])

    parts = [text(0, 12, accuracy.title, "strong")]
    for value in speeds:
        parts += [
            line(x(value), TOP, x(value), BOTTOM, "rule"),
            text(x(value), BOTTOM + 13, f"{value:g} x", "small", "middle"),
        ]
    for value in rights:
        parts += [
            line(LEFT, y(value), RIGHT, y(value), "rule"),
            text(LEFT - 4, y(value) + 3, _share(value), "small", "end"),
        ]
    points = [(x(a), y(b)) for a, b in zip(comparison.speed.values, accuracy.values, strict=True)]
    # Down and then right: between two points of the front nothing is known to be reachable.
    corners: list[tuple[float, float]] = []
    for a, b in sorted(points[i] for i in comparison.front):
        corners += [(corners[-1][0], b), (a, b)] if corners else [(a, b)]
    steps = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    parts += [
        text(RIGHT, BOTTOM + 27, comparison.speed.title, "strong", "end"),
        element("polyline", points=steps, class_="front"),
        *_cross(x(1.0), y(1.0)),
    ]
    for place, (a, b) in enumerate(points):
        kind = "point-front" if place in comparison.front else "point"
        parts.append(_point(comparison.entries[place].visual, a, b, kind))
    parts += _labels(points)
    legend = _legend(comparison)
    return picture(
        "tradeoff",
        WIDTH,
        HEIGHT + 14 if legend else HEIGHT,
        "Accuracy against speed",
        _words(comparison, accuracy),
        [*parts, *legend],
    )


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


def _cross(x: float, y: float) -> list[Markup]:
    return [
        line(x - 4, y - 4, x + 4, y + 4, "whisker"),
        line(x - 4, y + 4, x + 4, y - 4, "whisker"),
        text(x + 7, y - 6, "original", "small halo"),
    ]


def _labels(points: list[tuple[float, float]]) -> list[Markup]:
    """Return the artifacts' numbers beside their points; neighbours share one label."""
    groups: list[tuple[float, float, list[str]]] = []
    for number, (x, y) in enumerate(points, start=1):
        near = (g for g in groups if abs(g[0] - x) < NEAR and abs(g[1] - y) < NEAR)
        group = next(near, None)
        if group is None:
            groups.append((x, y, [str(number)]))
        else:
            group[2].append(str(number))
    return [
        text(x - 8 if x > RIGHT - 20 else x + 8, y + 13, ", ".join(n), "halo strong",
             "end" if x > RIGHT - 20 else "start")
        for x, y, n in groups
    ]  # fmt: skip


def _words(comparison: Comparison, accuracy: Axis) -> str:
    rows = zip(comparison.entries, comparison.speed.values, accuracy.values, strict=True)
    points = "; ".join(
        f"{e.number} {e.name}: {a:.2f} times, {b:.1%}"
        f"{'' if e.visual == 'stay' else f', visual tokens {e.visual}'}"
        for e, a, b in rows
    )
    front = ", ".join(str(place + 1) for place in comparison.front)
    return f"{points}. Not beaten by any other: {front}."


def _share(value: float) -> str:
    return f"{100 * value:.4g}%"
