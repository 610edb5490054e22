"""A comparison of artifacts as one document, in the style of the report."""

from compressor.version import __version__
from export.report.compare.comparison import Comparison, comparison_table
from export.report.compare.tradeoff_chart import tradeoff_chart
from export.report.document import Block, Bullets, Chart, Document, Section, Words
from export.report.render.html import html


def html_comparison(comparison: Comparison) -> str:
    """Return the whole page."""
    return html(comparison_document(comparison))


def comparison_document(comparison: Comparison) -> Document:
    """Return notes, plot and table."""
    chart, groups = tradeoff_chart(comparison), len(comparison.groups)
    plot: Block = Words("No plot: there is no figure of accuracy that all artifacts have.")
    if chart is not None:
        same, fronts = "", ""
        if groups > 1:
            same = "of the same model, data and machine "
            fronts = f", one for each of {groups} groups; figures of two groups say nothing about each other"
        caption = (
            f"Up and right is better. Filled points on a line: no other artifact {same}is better in both "
            f"(Pareto front{fronts}). The cross is the original model."
        )
        plot = Chart(chart, caption)
    notes = [Bullets(comparison.notes, bad=True)] if comparison.notes else []
    sections = (
        Section("notes", "Notes", "", notes),
        Section("plot", "Plot", "Accuracy against speed", [plot]),
        Section("table", "Figures", "Figures", [comparison_table(comparison)]),
    )
    title = f"{len(comparison.entries)} artifacts compared"
    return Document(title, "", sections, f"vtcompress {__version__}.")
