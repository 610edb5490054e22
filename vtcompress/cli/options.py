"""Options that the commands share: which recipe, and what overrides it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vtcompress.cli.paths import FILE

if TYPE_CHECKING:
    from compressor.recipe import Recipe

Command = Callable[..., Any]


def model_options(command: Command) -> Command:
    """Options that name a recipe and its model, and override any key."""
    return _with(
        command,
        click.option("--recipe", required=True, help="Recipe file, or name of a shipped recipe."),
        click.option("--model", help="Hub id or local folder; overrides the recipe."),
        click.option("--revision", help="Revision of a hub model."),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Override any key, e.g. --set export.logits=all; may be repeated.",
        ),
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Let the model's repository run its own Python code.",
        ),
    )


def recipe_options(command: Command) -> Command:
    """Options that name a recipe and override it, calibration and gates too."""
    command = _with(
        command,
        click.option(
            "--data", type=FILE, help="Calibration questions (jsonl); overrides the recipe."
        ),
        click.option("--samples", type=click.IntRange(min=1), help="How many of them."),
        click.option(
            "--gates",
            type=FILE,
            help="Weights of a method's gates (safetensors); overrides the recipe.",
        ),
        click.option("--seed", type=click.IntRange(min=0), help="Which of them are drawn."),
    )
    return model_options(command)


def _with(command: Command, *options: Callable[[Command], Command]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def files_read(options: Mapping[str, Any], *others: Path | None) -> list[Path]:
    """Return the files that a command reads beside those that its recipe names: the recipe and others."""
    named = [Path(options["recipe"]), *others]
    return [path for path in named if path is not None and path.exists()]


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return the values that `--set` gives, by dotted key."""
    from compressor.schema.yaml_text import parse_value

    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise click.BadParameter(f"{setting!r} is not KEY=VALUE", param_hint="--set")
        values[key.strip()] = parse_value(text)
    return values


def read_recipe(options: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> "Recipe":
    """Load the recipe that the options name, and override it."""
    from vtcompress.shipped import load_recipe

    given = {
        "model.id": options["model"],
        "model.revision": options["revision"],
        "model.trust_remote_code": options["trust_remote_code"] or None,
        "calibrate.data": options.get("data"),
        "calibrate.samples": options.get("samples"),
        "calibrate.seed": options.get("seed"),
        **(more or {}),
    }
    values = {key: value for key, value in given.items() if value is not None}
    values |= read_settings(options["settings"])
    recipe = load_recipe(options["recipe"]).override(values, source="command line")
    gates = options.get("gates")
    return recipe if gates is None else recipe.with_gates(gates)
