"""The pages of a search, beside its `front.json` and its plans."""

from pathlib import Path

from compressor.disk.files import write_text
from compressor.search.results import SearchReport
from export.report.render.html import html
from export.report.render.markdown import markdown
from export.report.search.page import (
    CHART_FILE,
    PAGE_FILE,
    SUMS_FILE,
    TEXT_FILE,
    additivity_chart,
    search_chart,
    search_document,
)
from export.report.text.svg import standalone


def write_pages(folder: Path, report: SearchReport) -> None:
    """Write page, text and plots of a search into its folder."""
    document = search_document(report)
    write_text(folder / TEXT_FILE, markdown(document))
    write_text(folder / PAGE_FILE, html(document))
    charts = {CHART_FILE: search_chart(report), SUMS_FILE: additivity_chart(report)}
    for name, chart in charts.items():
        if chart is not None:
            write_text(folder / name, standalone(chart))
