"""The commands that show what was done: `report` of one artifact, `compare` of several."""

from pathlib import Path

import click

from compressor.files import write_text
from vtcompress.console import Output

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option("--html", type=FILE, help="Write the report as one self-contained HTML file as well.")
@click.option("--no-verify", is_flag=True, help="Do not compare the files' sha256 first.")
@click.pass_obj
def report(out: Output, /, artifact: Path, html: Path | None, no_verify: bool) -> None:
    """Show what was done to a model, gained and lost; as Markdown, HTML, or figures with --json."""
    from export.html_report import html_report
    from export.report import markdown_report
    from export.report_data import figures
    from vtcompress.reporting import read_report

    if no_verify:
        out.say("files are not verified")
    data = read_report(artifact, verify=not no_verify)
    out.line(markdown_report(data).rstrip("\n"))
    out.result(figures(data))
    if html is not None:
        write_text(html, html_report(data))
        out.say(f"written: {html}")


COMMANDS = (report,)
