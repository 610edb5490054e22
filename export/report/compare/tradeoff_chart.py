"""Draws a comparison: accuracy against speed, one named point an artifact, Pareto fronts marked."""

from markupsafe import Markup

from export.report.charts.points import Axis, Mark, points_chart
from export.report.compare.comparison import Comparison


def tradeoff_chart(comparison: Comparison) -> Markup | None:
    """Return the plot; None if there is no figure of accuracy that all artifacts have."""
    accuracy = comparison.accuracy
    if accuracy is None:
        return None
    marks = [
        Mark(entry.name, entry.visual, "point-front" if place in comparison.front else "point")
        for place, entry in enumerate(comparison.entries)
    ]
    words = _words(comparison, accuracy)
    return points_chart(
        "tradeoff", marks, comparison.speed, accuracy, words, stepped=comparison.fronts
    )


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
