"""The command that looks at the machine: `doctor`."""

import click

from vtcompress.cli.backend_options import OneOfBackends
from vtcompress.console import Output


@click.command()
@click.option("--need", type=OneOfBackends(), help="Exit with 1 if this backend cannot run here.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    help="That a library may take to answer.",
)
@click.pass_obj
def doctor(out: Output, /, need: str | None, seconds: float) -> None:
    """Tell what is installed, what can build engines and run here, and what closes each gap."""
    from export.machine.doctor import examine
    from vtcompress.cli import brief
    from vtcompress.cli.show_doctor import show_diagnosis

    found = examine(seconds)
    show_diagnosis(out, found)
    brief.diagnosed(out, found)
    out.result(found.model_dump(mode="json"))
    if need is not None:
        found.require(need)
