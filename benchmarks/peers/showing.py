"""What was measured of contenders, as rows of a Markdown table and as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.interleaved import Ratio
from benchmarks.peers.contenders import Contender
from benchmarks.peers.measuring import Row

OURS, OTHERS = "#0b5394", "#999999"
NONE = "-"


def ratio_cell(found: Ratio | None) -> str:
    """Return a ratio of least times, and the 10th and 90th percentile of rounds."""
    return NONE if found is None else f"{found.of_least:.2f} ({found.low:.2f} to {found.high:.2f})"


def head(calls: Sequence[str], reference: str) -> str:
    """Return the table's head.

    Args:
        calls: that are timed.
        reference: what all are timed beside.
    """
    ratios = [f"{call}, {reference} / it" for call in calls]
    times = [f"{call}, ms" for call in calls]
    more = ("GFLOP/s", "MB", "MB to run it", "export s", "export MB", "logits")
    cells = ["contender", *ratios, *times, *more]
    return f"{_row(cells)}\n{'|---' * len(cells)}|"


def line(row: Row, calls: Sequence[str]) -> str:
    """Return one contender's line of the table."""
    times = [_milliseconds(row.seconds.get(call)) for call in calls]
    return _row(
        [
            row.name,
            *(ratio_cell(row.ratios.get(call)) for call in calls),
            *times,
            NONE if row.rate is None else f"{row.rate / 1e9:.0f}",
            f"{row.size / 1e6:,.0f}",
            f"{row.run_peak / 1e6:,.0f}",
            f"{row.export_seconds:.0f}",
            f"{row.export_peak / 1e6:,.0f}",
            f"{row.apart:.0e}" if row.apart else "0",
        ]
    )


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.1f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plot(rows: Mapping[Contender, Row], calls: Sequence[str], file: Path) -> None:
    """Draw the ratios of all calls, ours in colour, with the spread of rounds."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.34 * len(rows) + 1.2), layout="constrained")
    names = [row.name for row in rows.values()]
    colours = [OTHERS if c.plan is None else OURS for c in rows]
    for axes, call in zip(figure.subplots(1, len(calls), sharey=True), calls, strict=True):
        found = [row.ratios.get(call, Ratio(0.0, 0.0, 0.0, 0.0)) for row in rows.values()]
        spread = [
            [max(0.0, r.of_least - r.low) for r in found],
            [max(0.0, r.high - r.of_least) for r in found],
        ]
        axes.barh(names, [r.of_least for r in found], xerr=spread, color=colours, ecolor="#333333")
        axes.axvline(1, color="#333333", linewidth=0.8)
        axes.set(xlabel=f"{call}: time of {names[0]} / its own")
    figure.axes[0].invert_yaxis()
    with mpl.rc_context({"svg.hashsalt": "vtcompress"}):
        figure.savefig(file, metadata={"Date": None})
