"""The commands that show what was done: `report` of one artifact, `compare` of several."""

from pathlib import Path

import click

from compressor.disk.files import write_text
from compressor.errors import VtcompressError
from vtcompress.cli.kinds import FILE, FOLDER
from vtcompress.console import Output


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option("--html", type=FILE, help="Write the report as one self-contained HTML file as well.")
@click.option("--no-verify", is_flag=True, help="Do not compare the files' sha256 first.")
@click.pass_obj
def report(out: Output, /, artifact: Path, html: Path | None, no_verify: bool) -> None:
    """Show what was done to a model, gained and lost; as Markdown, HTML, or figures with --json."""
    from export.artifact.places import check_file
    from export.report.data import figures
    from export.report.pages.report import html_report, markdown_report
    from vtcompress.stages.report import read_report

    if html is not None:
        check_file(html, "page")
    if no_verify:
        out.say("files are not verified")
    data = read_report(artifact, verify=not no_verify)
    out.always(markdown_report(data).rstrip("\n"))
    out.result(figures(data))
    if html is not None:
        write_text(html, html_report(data))
        out.say(f"written: {html}")


@click.command()
@click.argument("artifacts", type=FOLDER, nargs=-1, required=True)
@click.option("--html", type=FILE, help="Write table and plot as one self-contained HTML file.")
@click.option(
    "--plot",
    type=FILE,
    metavar="BASE",
    help="Write the plot of accuracy against speed as BASE.svg.",
)
@click.pass_obj
def compare(
    out: Output, /, artifacts: tuple[Path, ...], html: Path | None, plot: Path | None
) -> None:
    """Put artifacts side by side: figures in one table, accuracy against speed in one plot."""
    from export.artifact.places import check_file
    from export.report.compare.comparison import (
        compare_artifacts,
        comparison_figures,
        comparison_table,
    )
    from export.report.compare.page import html_comparison
    from export.report.compare.tradeoff_chart import tradeoff_chart
    from export.report.text.svg import standalone
    from vtcompress.cli import brief, show

    path = None if plot is None else plot.with_name(f"{plot.name.removesuffix('.svg')}.svg")
    if html is not None:
        check_file(html, "page")
    if path is not None:
        check_file(path, "drawing")
    comparison = compare_artifacts(artifacts)
    drawing = None if plot is None else tradeoff_chart(comparison)
    if plot is not None and drawing is None:
        raise VtcompressError(
            f"{plot}: nothing to plot: compression loss was not run for all artifacts; export them "
            "with --validate-data"
        )
    show.show_blocks(out, [comparison_table(comparison)])
    for note in comparison.notes:
        out.line(f"note: {note}")
    brief.compared(out, comparison)
    out.result(comparison_figures(comparison))
    if html is not None:
        write_text(html, html_comparison(comparison))
        out.say(f"written: {html}")
    if path is not None and drawing is not None:
        write_text(path, standalone(drawing))
        out.say(f"written: {path}")
