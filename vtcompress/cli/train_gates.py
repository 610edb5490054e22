"""The command that trains gates."""

from pathlib import Path
from typing import Any

import click

from vtcompress.cli.backend_options import device_option
from vtcompress.cli.options import model_options, read_recipe
from vtcompress.cli.paths import FILE
from vtcompress.console import Output


@click.command("train-gates")
@model_options
@click.option(
    "--data",
    type=FILE,
    required=True,
    help="Questions with pictures and answers (jsonl) to learn from.",
)
@click.option("--validate-data", type=FILE, help="Held-out questions (jsonl) for the report.")
@click.option("--validate-samples", type=click.IntRange(min=1), help="How many of them.")
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

    own = {"validate_data": validate_data, "validate_samples": validate_samples}
    report = vtcompress.train_gates(
        read_recipe(options | own), data, output, device=device, overwrite=overwrite, progress=out
    )
    show_gates(out, report)
    out.always(f"written: {output}, its report as .json beside it")
    out.result(report.model_dump(mode="json"))
