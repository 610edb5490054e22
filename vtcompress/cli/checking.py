"""The commands that check an artifact again, `validate`, `selftest`, or time it, `bench`; and `costs`."""

from pathlib import Path
from typing import Any

import click

from export.backends.checked_on import CHECKED_ON
from export.backends.registry import precisions
from export.backends.torch_device import ON_CPU, check_device
from vtcompress.cli.backend_options import (
    OneOfBackends,
    device_option,
    gpu_option,
    precision_option,
)
from vtcompress.cli.kinds import FILE, FOLDER
from vtcompress.cli.options import model_options, read_recipe, read_settings, score_option
from vtcompress.console import Output
from vtcompress.terminal import say


class ThresholdMissedError(Exception):
    """A check ran and missed a threshold; what it is was printed already."""


def raise_if_missed(failures: tuple[str, ...]) -> None:
    """Print which thresholds were missed, and end the command with their exit code."""
    if failures:
        for line in failures:
            say(f"missed: {line}", err=True)
        raise ThresholdMissedError


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option(
    "--data",
    type=FILE,
    help="The artifact's own questions (jsonl), for their pictures; others need --model.",
)
@click.option(
    "--model", help="The original, hub id or folder: measure it and export fidelity anew."
)
@click.option(
    "--gates", type=FILE, help="Weights of gates or routers, if the plan has any; with --model."
)
@click.option(
    "--weights", type=FILE, help="A projector's weights, if the plan has one; with --model."
)
@click.option(
    "--healed", type=FILE, help="What heal wrote, if the artifact has healed weights; with --model."
)
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Let the repository of --model run its own Python code.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Judge by another limit, e.g. --set validate.loss.min_agreement=0.9; may be repeated.",
)
@score_option
@click.option(
    "--backend",
    type=OneOfBackends(),
    help="Compare this backend with ONNX Runtime on the CPU instead; without --model, --gates.",
)
@precision_option
@gpu_option("Number of the backend's GPU; with --backend.")
@device_option
@click.option("--threads", type=click.IntRange(min=1), help="Of one operator.")
@click.pass_obj
def validate(
    out: Output,
    /,
    artifact: Path,
    data: Path | None,
    model: str | None,
    gates: Path | None,
    weights: Path | None,
    healed: Path | None,
    trust_remote_code: bool,
    settings: tuple[str, ...],
    score: str | None,
    backend: str | None,
    precision: str,
    gpu: int,
    device: str,
    threads: int | None,
) -> None:
    """Check an artifact against the original's stored answers, or against the original itself."""
    import vtcompress
    from compressor.plan.plan import Plan
    from export.artifact.artifact import PLAN_FILE, Artifact
    from export.checks.stored import why_unmeasured
    from vtcompress.cli import brief, show
    from vtcompress.stages.validate_backend import validate_backend

    limits = read_settings(settings)
    if backend is not None:
        check_device(device)  # what the number of a GPU was once is told as such
        files = any(one is not None for one in (model, gates, weights, healed))
        if files or trust_remote_code or device != ON_CPU:
            raise click.UsageError(
                "--backend needs no original: leave out --model, --gates, --weights, --healed, "
                "--trust-remote-code, --device"
            )
        parity = validate_backend(
            artifact,
            backend,
            data=data,
            precision=precision,
            threads=threads,
            gpu=gpu,
            limits=limits,
            score=score,
            progress=out,
        )
        held = Artifact.open(artifact, verify=False).manifest.loss
        show.show_parity(out, parity, "" if parity.loss else why_unmeasured(artifact, held))
        brief.compared_backend(out, parity)
        out.result(parity.model_dump(mode="json"))
        raise_if_missed(parity.failures)
        return
    if precision != precisions()[0] or gpu:
        raise click.UsageError(
            "--precision and --gpu say how a backend runs; they go with --backend"
        )
    if trust_remote_code and model is None:
        raise click.UsageError(
            "--trust-remote-code is for the repository of --model; give it as well"
        )
    for option, given in (("--gates", gates), ("--weights", weights), ("--healed", healed)):
        if given is not None and model is None:
            raise click.UsageError(f"{option} are read with --model alone; give it as well")
    outcome = vtcompress.validate(
        artifact,
        data=data,
        model=model,
        gates=gates,
        weights=weights,
        healed=healed,
        limits=limits,
        score=score,
        threads=threads,
        trust_remote_code=trust_remote_code,
        device=device,
        progress=out,
    )
    if outcome.rewrite is not None:
        show.show_rewrite(out, outcome.rewrite)
    held = Artifact.open(artifact, verify=False).manifest.loss
    why = "" if outcome.loss else why_unmeasured(artifact, held)
    chosen = Plan.load(artifact / PLAN_FILE)
    show.show_validation(out, outcome.fidelity, outcome.loss, chosen, why)
    brief.checked(out, outcome.fidelity, outcome.loss)
    out.result(
        {
            "fidelity": outcome.fidelity and outcome.fidelity.model_dump(mode="json"),
            "loss": outcome.loss and outcome.loss.model_dump(mode="json"),
            "rewrite": outcome.rewrite and outcome.rewrite.model_dump(mode="json"),
            "verdict": outcome.verdict,
        }
    )
    raise_if_missed(outcome.failures)


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option(
    "--backend", type=OneOfBackends(), default=CHECKED_ON.name, help="What runs the graphs."
)
@precision_option
@click.option("--threads", type=click.IntRange(min=1), help="Of one operator.")
@gpu_option("Number of the GPU, where one is used.")
@click.option(
    "--locate",
    is_flag=True,
    help="Find the layer where states part, by graphs that give these too.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Judge by another limit, e.g. --set validate.fidelity.max_abs=0.01; may be repeated.",
)
@click.option("--no-verify", is_flag=True, help="Do not compare the files' sha256 first.")
@click.pass_obj
def selftest(
    out: Output,
    /,
    artifact: Path,
    backend: str,
    precision: str,
    threads: int | None,
    gpu: int,
    locate: bool,
    settings: tuple[str, ...],
    no_verify: bool,
) -> int:
    """Compare this device with the known answers in an artifact: which part of it is wrong, if any.

    Needs neither the original nor pictures. The exit code is 3 where a part is wrong.
    """
    import vtcompress
    from vtcompress.cli import show

    if no_verify:
        out.say("files are not verified")
    report = vtcompress.selftest(
        artifact,
        backend=backend,
        precision=precision,
        threads=threads,
        gpu=gpu,
        verify=not no_verify,
        locate=locate,
        limits=read_settings(settings),
        progress=out,
    )
    show.show_selftest(out, report)
    out.result(report.model_dump(mode="json") | {"first_wrong": report.first_wrong})
    if report.failures:
        raise ThresholdMissedError
    return 0


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option("--images", type=click.IntRange(min=1), default=1, help="In the prompt.")
@click.option("--text", type=click.IntRange(min=1), help="Text rows; default: the plan's.")
@click.option("--rounds", type=click.IntRange(min=1), default=15, help="How often each is timed.")
@click.option("--threads", type=click.IntRange(min=1), default=1, help="Of one operator.")
@click.pass_obj
def bench(
    out: Output, /, artifact: Path, images: int, text: int | None, rounds: int, threads: int
) -> None:
    """Time the compressed decoder beside the original one, in one process and in turns."""
    import vtcompress
    from compressor.plan.plan import Plan
    from export.artifact.artifact import PLAN_FILE, Artifact
    from vtcompress.cli import brief, show

    report = vtcompress.bench(
        artifact, images=images, text=text, rounds=rounds, threads=threads, progress=out
    )
    dtype = Artifact.open(artifact, verify=False).manifest.dtype
    show.show_bench(out, report, Plan.load(artifact / PLAN_FILE), dtype)
    brief.timed(out, report)
    out.result(report.model_dump(mode="json"))


@click.command()
@model_options
@click.option("--output", type=FILE, default="costs.json", help="Costs to write.")
@click.option(
    "--text",
    type=click.IntRange(min=1),
    default=64,
    help="Text tokens of the calls that are timed.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, help="Of one operator.")
@click.option(
    "--overwrite", is_flag=True, help="Measure anew, whatever the costs at --output hold."
)
@click.pass_obj
def costs(
    out: Output, /, output: Path, text: int, threads: int, overwrite: bool, **options: Any
) -> None:
    """Measure what this machine takes for layers of the model's dimensions, for `plan --costs`.

    Random weights, a few layers at a time, in ONNX Runtime on the CPU; the model's own are not read.
    """
    import vtcompress
    from vtcompress.cli import show

    found = vtcompress.costs(
        read_recipe(options),
        output,
        text=text,
        threads=threads,
        overwrite=overwrite,
        progress=out,
    )
    show.show_costs(out, found)
    out.always(f"costs: {output}")
    out.result(found.model_dump(mode="json"))
