"""Draws losses of plans as wholes over the sums of what their changes lose alone."""

from collections.abc import Sequence

from markupsafe import Markup

from export.report.charts.decoder import WIDTH
from export.report.text.scale import Ruler, decades
from export.report.text.svg import element, line, picture, text

LEFT, RIGHT, TOP, BOTTOM = 40.0, 348.0, 30.0, 232.0
HEIGHT = 272.0
POINT = 4.0


def sums_chart(
    key: str, sums: Sequence[float], wholes: Sequence[float], styles: Sequence[str], unit: str
) -> Markup | None:
    """Return the plot, both ways logarithmic and alike; on the diagonal, losses add up.

    None where no plan has both losses above 0.

    Args:
        key: distinguishes it from other drawings of its page.
        sums: of each plan, of its changes alone.
        wholes: of each plan as a whole.
        styles: of each plan's point, as `points.Mark.class_`.
        unit: of all losses.
    """
    shown = [point for point in zip(sums, wholes, styles, strict=True) if min(point[:2]) > 0]
    if not shown:
        return None
    low, high = decades([value for point in shown for value in point[:2]])
    ticks = tuple(10.0**exponent for exponent in range(low, high + 1))
    across = Ruler(LEFT, RIGHT - LEFT, ticks, logarithmic=True)
    up = Ruler(BOTTOM, TOP - BOTTOM, ticks, logarithmic=True)
    parts = [
        text(0, 12, f"loss of the plan as a whole, {unit}", "strong"),
        *across.rules(TOP, BOTTOM, BOTTOM + 13),
        *(line(LEFT, up.place(value), RIGHT, up.place(value), "rule") for value in ticks),
        *(text(LEFT - 4, up.place(v) + 3, f"{v:g}", "small", "end") for v in ticks),
        text(RIGHT, BOTTOM + 27, f"sum of its changes alone, {unit}", "strong", "end"),
        line(LEFT, BOTTOM, RIGHT, TOP, "whisker-thin"),
        *(
            element("circle", cx=across.place(x), cy=up.place(y), r=POINT, class_=style)
            for x, y, style in shown
        ),
    ]
    said = "; ".join(f"{x:.3g} alone, {y:.3g} as a whole" for x, y, _ in shown)
    words = f"On the diagonal losses add up; above it a plan loses more. Plans: {said}."
    return picture(key, WIDTH, HEIGHT, "Losses of plans over sums of single losses", words, parts)
