"""Axes of drawings: round numbers along them, and where a value stands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from export.report.text.svg import line, text

# A range that is this small beside its ends, or ends that are this near to zero, are one point.
NO_SPAN, TINY = 1e-9, 1e-30


@dataclass(frozen=True)
class Ruler:
    """Values along an axis.

    Attributes:
        start: place of the axis' low end.
        length: of the axis; negative: towards lower places, as upwards in a drawing.
        ticks: values that are marked, the first at the low end and the last at the high end.
        logarithmic: whether equal steps are equal ratios.
    """

    start: float
    length: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Return where a value stands."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + self.length * (value - low) / (high - low)

    def rules(self, top: float, bottom: float, y: float, unit: str = "") -> list[Markup]:
        """Return a line for every tick of a horizontal axis, and its value with the base line `y`."""
        parts = []
        for value in self.ticks:
            x = self.place(value)
            words = text(x, y, f"{value:g}{unit}", "small", "middle" if x else "start")
            parts += [line(x, top, x, bottom, "rule"), words]
        return parts


def nice_ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Return at most `most` + 1 round numbers from at or below `low` to at or above `high`."""
    span, size = high - low, max(abs(low), abs(high))
    if span < NO_SPAN * size or size < TINY:
        span = size if size >= TINY else 1.0
    rough = span / most
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(m * base for m in (1, 2, 2.5, 5, 10, 20) if m * base >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return tuple(float(f"{i * step:.12g}") for i in range(first, last + 1))


def decades(values: Sequence[float]) -> tuple[int, int]:
    """Return the exponents of ten around positive values, the first below all of them."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return (low - 1 if min(values) <= 10.0**low else low), max(high, low + 1)
