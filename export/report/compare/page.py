"""A comparison of artifacts as one HTML file, in the style of the report."""

from compressor.version import __version__
from export.report.compare.comparison import Comparison, columns, comparison_rows
from export.report.compare.tradeoff_chart import tradeoff_chart
from export.report.pages.html_report import render


def html_comparison(comparison: Comparison) -> str:
    """Return the whole page."""
    return render(
        "compare.html.j2",
        entries=comparison.entries,
        groups=len(comparison.groups),
        notes=comparison.notes,
        chart=tradeoff_chart(comparison),
        columns=columns(comparison),
        rows=comparison_rows(comparison),
        version=__version__,
    )
