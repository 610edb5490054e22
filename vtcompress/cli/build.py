"""What an artifact is made into, from the artifact alone: engines, and folders for stock clients."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from export.backends.tensorrt.targets import TARGETS
from export.clients.registry import CLIENTS
from vtcompress.cli.backend_options import gpu_option
from vtcompress.cli.checking import raise_if_missed
from vtcompress.cli.kinds import FOLDER
from vtcompress.console import Output

if TYPE_CHECKING:
    from export.artifact.engine_set import OpenedSet
    from export.backends.tensorrt.build import EnginePlan
    from export.clients.pack_file import PackFile

COUNT = click.IntRange(min=1)


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option("--target", type=click.Choice(tuple(TARGETS)), required=True, help="Which TensorRT.")
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    metavar="SM",
    help="tensorrt-rtx only: GPUs that the engines serve, such as SM86; may be repeated. Default: SM86.",
)
@click.option("--max-batch", type=COUNT, help="Prompts of one call.")
@click.option("--max-images", type=COUNT, help="Pictures of one call.")
@click.option("--max-text", type=COUNT, help="Text rows of one call.")
@click.option("--max-context", type=COUNT, help="Visual and text rows of a conversation.")
@click.option("--with-baseline", is_flag=True, help="Build the original decoder too, to time both.")
@gpu_option("Number of the GPU; tensorrt only.")
@click.option("--overwrite", is_flag=True, help="Replace the engines of this kind that are there.")
@click.option(
    "--dry-run", is_flag=True, help="Print sizes and the vendor's commands; build nothing."
)
@click.pass_obj
def build(
    out: Output,
    /,
    artifact: Path,
    target: str,
    capabilities: tuple[str, ...],
    with_baseline: bool,
    gpu: int,
    overwrite: bool,
    dry_run: bool,
    **limits: int | None,
) -> None:
    """Build TensorRT engines of an artifact; needs neither torch nor transformers.

    Sizes that are not given are those of the artifact's recipe, or fit the model. tensorrt-rtx builds ahead
    of time, without a GPU; tensorrt builds on the GPU that will run the engines.
    """
    from export.backends.tensorrt.build import build_engines, plan_engines
    from vtcompress.stages.build import as_json

    plan = plan_engines(
        artifact,
        target,
        limits={name: value for name, value in limits.items() if value is not None},
        capabilities=capabilities,
        baseline=with_baseline,
        gpu=gpu,
        dry=dry_run,
        progress=out,
    )
    # The vendor's commands are what a dry run is for; else whoever asks for more sees them.
    _show_plan(out, plan, commands=dry_run or out.verbosity > 0)
    if dry_run:
        out.line("nothing was built")
        out.result({"plan": as_json(plan), "engines": None})
        return
    built = build_engines(plan, overwrite=overwrite)
    _show_set(out, built)
    document = built.facts.model_dump(mode="json")
    out.result({"plan": as_json(plan), "engines": document})


def _show_plan(out: Output, plan: "EnginePlan", *, commands: bool) -> None:
    from export.backends.tensorrt.trtexec import command_line

    rows = [
        (
            spec.name,
            profile.name,
            axis,
            f"{profile.least[axis]}",
            f"{profile.typical[axis]}",
            f"{profile.most[axis]}",
        )
        for spec, profiles in plan.profiles
        for profile in profiles
        for axis in profile.most
    ]
    columns = ("engine", "profile", "axis", "least", "typical", "most")
    out.table(f"Engines for {', '.join(plan.capabilities)}", columns, rows)
    if not commands:
        return
    out.line(f"the same with {plan.target.tool}, which comes with the vendor's archive:")
    for arguments in plan.commands().values():
        out.line(f"  {command_line(arguments)}")
        out.brief(command_line(arguments))
    for graph, reason in plan.without_command().items():
        out.line(f"  {graph}: none, because {reason}")


def _show_set(out: Output, built: "OpenedSet") -> None:
    rows = [
        (entry.file, f"{entry.size / 2**20:,.1f}", f"{entry.seconds:,.1f}")
        for entry in built.facts.engines
    ]
    out.table("Built", ("engine", "MiB", "seconds"), rows)
    out.line(TARGETS[built.facts.target].proof(built.facts.device))
    out.always(f"written: {built.folder}")


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option(
    "--for", "client", type=click.Choice(tuple(CLIENTS)), required=True, help="Which stock client."
)
@click.option("--output", type=FOLDER, required=True, help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace what vtcompress wrote there.")
@click.option("--no-check", is_flag=True, help="Do not ask the client and the runtime the same.")
@click.pass_obj
def pack(
    out: Output, /, artifact: Path, client: str, output: Path, overwrite: bool, no_check: bool
) -> None:
    """Write the folder that a stock client loads, and check it in that client where it is installed.

    What the client cannot do is refused before anything is written. The check asks five questions, and ends
    with exit code 3 where the client's token ids, pixels or answers are not the runtime's.
    """
    import vtcompress

    packed = vtcompress.pack(
        artifact, client, output, overwrite=overwrite, check=not no_check, progress=out
    )
    _show_pack(out, packed)
    out.always(f"written: {output}")
    out.result(packed.model_dump(mode="json", include={"client", "artifact", "files", "check"}))
    if differs := ", ".join(packed.check.differs):
        what = f"gives other {differs} than the runtime"
        if packed.check.failed:
            what = f"fails on it ({packed.check.failed})"
        problem = f"{output}: {client} {what}; do not use this folder"
        raise_if_missed((problem,))


def _show_pack(out: Output, packed: "PackFile") -> None:
    check = packed.check
    if check.not_run:
        out.always(f"not checked: {check.not_run}")
    if check.not_run or check.failed:
        return
    words = {None: "not told", True: "equal", False: "DIFFER"}
    rows = [
        (
            row.question,
            words[row.token_ids],
            words[row.pixels_equal] + (f" ({row.pixels:.1g})" if row.pixels else ""),
            row.wanted,
            row.found,
        )
        for row in check.answers
    ]
    out.table(
        f"{packed.client} beside the runtime",
        ("question", "token ids", "pixels", "the runtime's answer", "the client's"),
        rows,
    )
    equal = sum(row.wanted == row.found for row in check.answers)
    empty = sum(not row.wanted for row in check.answers)
    beside = (
        f", {empty} of them empty; an artifact that holds questions asks those" if empty else ""
    )
    out.always(f"checked: {equal} of {len(check.answers)} answers are equal{beside}")
