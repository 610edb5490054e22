"""The commands that train: `heal`, `train-gates`, `train-parts`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from compressor.contract.healing import HEALABLE, Healable, HealTraining
from compressor.contract.learned import PartTraining
from vtcompress.cli.backend_options import device_option
from vtcompress.cli.kinds import FILE, READ, Finite
from vtcompress.cli.options import Command, model_options, read_recipe, score_option, with_options
from vtcompress.console import Output

USUAL = HealTraining()

data_option = click.option(
    "--data",
    type=FILE,
    required=True,
    help="Questions with pictures and answers (jsonl) to learn from.",
)


def course_options(rate: float | None, otherwise: str = "") -> Callable[[Command], Command]:
    """Return what adds the options of a training's course.

    Args:
        rate: usual learning rate; None: another says it.
        otherwise: how the help of that option goes on.
    """

    def add(command: Command) -> Command:
        return with_options(
            command,
            click.option(
                "--steps",
                type=click.IntRange(min=1),
                help=f"Updates; left out without --minutes: {PartTraining().steps}.",
            ),
            click.option("--batch", type=click.IntRange(min=1), default=4, help="Prompts of each."),
            click.option(
                "--learning-rate",
                type=Finite(min=0, min_open=True),
                default=rate,
                help=f"Largest step, as a share of each tensor's size{otherwise}.",
            ),
            click.option("--seed", type=click.IntRange(min=0), default=0, help="Of what is drawn."),
            click.option(
                "--minutes",
                type=Finite(min=0, min_open=True),
                help="Instead of --steps: train so long; the report says how many steps that were.",
            ),
            click.option(
                "--profile", type=READ, help="Of a calibration, where methods choose by it."
            ),
        )

    return add


def _given(steps: int | None) -> dict[str, int]:
    return {} if steps is None else {"steps": steps}


@click.command("train-gates")
@model_options
@data_option
@click.option("--validate-data", type=FILE, help="Held-out questions (jsonl) for the report.")
@click.option("--validate-samples", type=click.IntRange(min=1), help="How many of them.")
@score_option
@click.option(
    "--output",
    type=FILE,
    default="gates.safetensors",
    help="Gates to write; the report beside them.",
)
@device_option
@click.option("--overwrite", is_flag=True, help="Replace what vtcompress wrote at --output.")
@click.pass_obj
def train_gates(
    out: Output,
    /,
    data: Path,
    validate_data: Path | None,
    validate_samples: int | None,
    score: str | None,
    output: Path,
    device: str,
    overwrite: bool,
    **options: Any,
) -> None:
    """Train DyVTE's gates on your own questions; a stopped run goes on where it was.

    Steps, batch, learning rate and seed are the recipe's, e.g. --set compress.dyvte.train.steps=500.
    """
    import vtcompress
    from vtcompress.stages.gates.report import show_gates

    own = {
        "validate_data": validate_data,
        "validate_samples": validate_samples,
        "score": score,
    }
    report = vtcompress.train_gates(
        read_recipe(options | own), data, output, device=device, overwrite=overwrite, progress=out
    )
    show_gates(out, report)
    out.always(f"written: {output}, its report as .json beside it")
    out.result(report.model_dump(mode="json"))


@click.command("train-parts")
@model_options
@data_option
@click.option("--output", type=FILE, required=True, help="File to write (.safetensors).")
@course_options(None, "; left out: the method's own")
@device_option
@click.option("--overwrite", is_flag=True, help="Replace what vtcompress wrote at --output.")
@click.pass_obj
def train_parts(
    out: Output,
    /,
    data: Path,
    output: Path,
    steps: int | None,
    batch: int,
    learning_rate: float | None,
    seed: int,
    minutes: float | None,
    profile: Path | None,
    device: str,
    overwrite: bool,
    **options: Any,
) -> None:
    """Train a method's routers or projector towards the original's answers; a stopped run goes on.

    Nothing else of the model changes. Trained is the entry of the recipe that names no file of them yet.
    """
    import vtcompress
    from vtcompress.stages.parts.report import show_parts

    report = vtcompress.train_parts(
        read_recipe(options),
        data,
        output,
        train=PartTraining(**_given(steps), batch=batch, learning_rate=learning_rate, seed=seed),
        minutes=minutes,
        profile=profile,
        device=device,
        overwrite=overwrite,
        progress=out,
    )
    show_parts(out, report)
    out.always(f"written: {output}, its report as .json beside it")
    out.result(report.model_dump(mode="json"))


@click.command()
@model_options
@click.option(
    "--data",
    type=FILE,
    required=True,
    help="Questions with pictures (jsonl) to learn from; without an answer, by the original's own.",
)
@click.option("--validate-data", type=FILE, help="Held-out questions (jsonl): not to learn from.")
@click.option("--output", type=FILE, required=True, help="File to write (.safetensors).")
@click.option(
    "--train",
    "learn",
    type=click.Choice(HEALABLE),
    multiple=True,
    help="What is trained; may be repeated. Left out: all of it.",
)
@click.option(
    "--rank", type=click.IntRange(min=1), default=USUAL.rank, help="Of updates of low rank."
)
@course_options(USUAL.learning_rate)
@click.option("--plan", type=READ, help="A plan to heal; left out: the recipe's methods make it.")
@device_option
@click.option("--overwrite", is_flag=True, help="Replace what vtcompress wrote at --output.")
@click.pass_obj
def heal(
    out: Output,
    /,
    data: Path,
    validate_data: Path | None,
    output: Path,
    learn: tuple[Healable, ...],
    rank: int,
    steps: int | None,
    batch: int,
    learning_rate: float,
    seed: int,
    minutes: float | None,
    profile: Path | None,
    plan: Path | None,
    device: str,
    overwrite: bool,
    **options: Any,
) -> None:
    """Train some of a compressed decoder towards the original's answers; a stopped run goes on.

    Give the file to an export with the same recipe: --set heal.file=FILE.
    """
    import vtcompress
    from vtcompress.stages.healing.report import show_heal

    report = vtcompress.heal(
        read_recipe(options | {"validate_data": validate_data}),
        data,
        output,
        train=HealTraining(
            learn=learn or HEALABLE,
            rank=rank,
            **_given(steps),
            batch=batch,
            learning_rate=learning_rate,
            seed=seed,
        ),
        minutes=minutes,
        profile=profile,
        plan=plan,
        device=device,
        overwrite=overwrite,
        progress=out,
    )
    show_heal(out, report)
    out.always(f"written: {output}, its report as .json beside it")
    out.result(report.model_dump(mode="json"))
