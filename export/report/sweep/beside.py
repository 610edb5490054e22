"""What every method keeps at the predicted speeds of the plans that a search found."""

from collections.abc import Iterable
from math import log

from export.report.document import Table
from export.results.loss_report import percent
from export.results.sweep import SweepPoint, SweepReport, accuracy

APART = 0.08
"""By how much of a predicted speed two points may differ that are called as fast."""
ALIKE = 0.01
"""From this difference on a cell has its own speed."""
MOST_SPEEDS, STEP = 8, 0.05
"""Speeds of a table, those at which most methods stand, and by how much two of them differ at least."""


def beside_table(report: SweepReport) -> Table | None:
    """Return right answers at the speeds of a search's plans, a row a method; None: no search made any."""
    rows: dict[str, list[SweepPoint]] = {}
    for point in (point for point in report.points if not point.searched):
        name = point.series + ", baseline" * point.baseline
        rows.setdefault(name, []).append(point)
    searched = sorted((p for p in report.points if p.searched), key=lambda p: p.predicted)
    shown = [p for p in _most_met(searched, rows.values()) if p.predicted > 1 + ALIKE]
    if not shown:
        return None
    found = [(shown[0].series, *(_right(point) for point in shown))]
    for name, points in rows.items():
        cells = tuple(_cell(beside(points, one.predicted), one.predicted) for one in shown)
        if any(cell != "-" for cell in cells):
            found.append((name, *cells))
    columns = ("method", *(f"{point.predicted:.2f} x" for point in shown))
    return Table("Right answers at the same predicted speeds", columns, found)


def beside(points: Iterable[SweepPoint], speed: float) -> SweepPoint | None:
    """Return the point that is predicted nearest to a speed; None: none is near enough."""
    near = [p for p in points if _apart(p, speed) <= log(1 + APART)]
    return min(near, key=lambda p: (_apart(p, speed), -accuracy(p.loss.overall)), default=None)


def _apart(point: SweepPoint, speed: float) -> float:
    return abs(log(point.predicted / speed))


def _most_met(searched: list[SweepPoint], rows: Iterable[list[SweepPoint]]) -> list[SweepPoint]:
    """Return the search's points at whose speeds most methods stand, by rising speed."""
    series = list(rows)
    met = {
        point.name: sum(beside(points, point.predicted) is not None for points in series)
        for point in searched
    }
    most: list[SweepPoint] = []
    for point in sorted(searched, key=lambda point: -met[point.name]):
        alike = any(_apart(point, other.predicted) < log(1 + STEP) for other in most)
        if met[point.name] and not alike and len(most) < MOST_SPEEDS:
            most.append(point)
    return [point for point in searched if point in most]


def _right(point: SweepPoint) -> str:
    return percent(accuracy(point.loss.overall))


def _cell(point: SweepPoint | None, speed: float) -> str:
    if point is None:
        return "-"
    own = f" ({point.predicted:.2f} x)" if _apart(point, speed) > log(1 + ALIKE) else ""
    return f"{_right(point)}{own}"
