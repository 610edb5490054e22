"""The command that looks at the machine, and how what it finds looks to a person: `doctor`."""

import click

from export.backends.checked_on import CHECKED_ON
from export.machine.diagnosis import Diagnosis
from vtcompress.cli.backend_options import OneOfBackends
from vtcompress.cli.kinds import Finite
from vtcompress.console import Output

PACKAGE_COLUMNS = ("package", "version")
BACKEND_COLUMNS = ("backend", "found", "builds engines", "runs")


@click.command()
@click.option("--need", type=OneOfBackends(), help="Exit with 1 if this backend cannot run here.")
@click.option(
    "--seconds",
    type=Finite(min=0, min_open=True),
    default=60.0,
    help="That a library may take to answer.",
)
@click.pass_obj
def doctor(out: Output, /, need: str | None, seconds: float) -> None:
    """Tell what is installed, what can build engines and run here, and what closes each gap."""
    from export.machine.doctor import examine
    from vtcompress.cli import brief

    diagnosis = examine(seconds)
    show_diagnosis(out, diagnosis)
    brief.diagnosed(out, diagnosis)
    out.result(diagnosis.model_dump(mode="json"))
    if need is not None:
        diagnosis.require(need)


def package_rows(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """Return one row a package."""
    return [
        (p.name, " ".join(filter(None, (p.version or "-", p.words)))) for p in diagnosis.packages
    ]


def backend_rows(diagnosis: Diagnosis) -> list[tuple[str, str, str, str]]:
    """Return one row a backend."""
    words = {True: "yes", False: "no", None: "needs none"}
    return [(a.backend, a.words, words[a.builds], words[a.runs]) for a in diagnosis.abilities]


def gpu_words(diagnosis: Diagnosis) -> str:
    """Return driver and GPUs in a line."""
    if not diagnosis.gpus:
        return f"GPU: none found; NVIDIA driver: {diagnosis.driver or 'not found'}"
    names = ", ".join(f"{g.name} ({g.capability or 'capability unknown'})" for g in diagnosis.gpus)
    return f"GPU: {names}; NVIDIA driver: {diagnosis.driver or 'version unknown'}"


def provider_words(diagnosis: Diagnosis) -> str:
    """Return the reference's providers: those that it lists, and those that sessions got."""
    if not diagnosis.providers:
        return f"{CHECKED_ON.title}: no providers"
    active = ", ".join(diagnosis.active) or "none"
    return f"{CHECKED_ON.title} lists {', '.join(diagnosis.providers)}; sessions ran on {active}"


def remedy_lines(diagnosis: Diagnosis) -> list[str]:
    """Return what is missing and what to do, a line each."""
    lines = [f"{gap.problem}\n    {gap.remedy}" for gap in diagnosis.gaps]
    lines += [f"{a.backend}: {a.words}\n    {a.remedy}" for a in diagnosis.abilities if a.remedy]
    return lines


def show_diagnosis(out: Output, diagnosis: Diagnosis) -> None:
    """Print everything, gaps last."""
    out.line(f"Python {diagnosis.python}, {diagnosis.system}")
    out.line(gpu_words(diagnosis))
    out.line(provider_words(diagnosis))
    out.table("Packages", PACKAGE_COLUMNS, package_rows(diagnosis))
    out.table("Backends", BACKEND_COLUMNS, backend_rows(diagnosis))
    if lines := remedy_lines(diagnosis):
        out.line("Gaps, and what closes them (none matters for backends that you do not use):")
        for line in lines:
            out.line(f"  {line}")
