"""Options that the commands share: which recipe, and what overrides it."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vtcompress.cli.kinds import READ

if TYPE_CHECKING:
    from compressor.recipe import Recipe

Command = Callable[..., Any]


RECIPE_HELP = "Recipe file, or name of a shipped recipe."


def model_options(command: Command) -> Command:
    """Options that name a recipe and its model, and override any key."""
    return with_options(
        _model_options(command), click.option("--recipe", required=True, help=RECIPE_HELP)
    )


def _model_options(command: Command) -> Command:
    return with_options(
        command,
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
    return model_options(_calibration_options(command))


def recipes_options(command: Command) -> Command:
    """Options of `recipe_options` for several recipes."""
    return with_options(
        _model_options(_calibration_options(command)),
        click.option(
            "--recipe", required=True, multiple=True, help=f"{RECIPE_HELP} May be repeated."
        ),
    )


def _calibration_options(command: Command) -> Command:
    return with_options(
        command,
        click.option(
            "--data", type=READ, help="Calibration questions (jsonl); overrides the recipe."
        ),
        click.option("--samples", type=click.IntRange(min=1), help="How many of them."),
        click.option(
            "--gates",
            type=READ,
            help="Weights of a method's gates or routers (safetensors); overrides the recipe.",
        ),
        click.option("--seed", type=click.IntRange(min=0), help="Which of them are drawn."),
    )


def with_options(command: Command, *options: Callable[[Command], Command]) -> Command:
    """Return a command with options added, in the order in which its help lists them."""
    for option in reversed(options):
        command = option(command)
    return command


score_option = click.option(
    "--score",
    metavar="NAME",
    help="What makes an answer right: exact, contains, normalized, vqa, anls, python:module.function.",
)


def files_read(options: Mapping[str, Any], *others: Path | None) -> list[Path]:
    """Return the files that a command reads beside those that its recipes name: the recipes and others."""
    recipes = options["recipe"]
    named = [*map(Path, [recipes] if isinstance(recipes, str) else recipes), *others]
    return [path for path in named if path is not None and path.exists()]


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return the values that `--set` gives, by dotted key."""
    from compressor.schema.yaml_text import parse_value

    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise click.BadParameter(f"{setting!r} is not KEY=VALUE", param_hint="--set")
        if (key := key.strip()) in values:
            raise click.UsageError(f"--set {key} is given twice; give it once")
        values[key] = parse_value(text)
    return values


KEYS = {
    "model": "model.id",
    "revision": "model.revision",
    "trust_remote_code": "model.trust_remote_code",
    "data": "calibrate.data",
    "samples": "calibrate.samples",
    "seed": "calibrate.seed",
    "dtype": "export.dtype",
    "weights": "export.weights",
    "block": "export.block",
    "validate_data": "validate.data",
    "validate_samples": "validate.samples",
    "score": "validate.score",
}
"""The recipe's keys that options say, by the option's parameter."""

GATES = "compress.*.gates"
"""The key of `gates`, whatever the method is called."""


def _leaves(settings: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield the keys that values are set for, also inside of mappings; places of entries left out."""
    for key, value in settings.items():
        name = re.sub(r"^compress\[\d+\]", "compress", f"{above}{key}")
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name


def read_over(over: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values that `--over` gives, lists by dotted key."""
    from compressor.schema.yaml_text import parse_value

    values: dict[str, list[Any]] = {}
    for given in over:
        key, equals, text = given.partition("=")
        if not equals:
            raise click.BadParameter(f"{given!r} is not KEY=VALUE,VALUE...", param_hint="--over")
        if (key := key.strip()) in values:
            raise click.UsageError(f"--over {key} is given twice; give all its values in one")
        found = parse_value(f"[{text}]")
        if not isinstance(found, tuple | list):
            raise click.BadParameter(
                f"{text!r} is no list of values, such as 0.75,0.5", param_hint="--over"
            )
        values[key] = list(found)
    return values


def read_recipe(options: Mapping[str, Any]) -> "Recipe":
    """Load the recipe that the options name, and override it."""
    from vtcompress.shipped import load_recipe

    values, gates = _overrides(options)
    recipe = load_recipe(options["recipe"]).override(values, source="command line")
    return recipe if gates is None else recipe.with_gates(gates)


def read_recipes(options: Mapping[str, Any]) -> "list[Recipe]":
    """Load the recipes that the options name, and override in each what it has."""
    from vtcompress.shipped import load_recipe
    from vtcompress.stages.sweeping.points import concerns

    values, gates = _overrides(options)
    recipes = [load_recipe(name) for name in options["recipe"]]
    none = {key for key in values if not any(concerns(key, recipe) for recipe in recipes)}
    gated = any(recipe.gated is not None for recipe in recipes)
    return [
        changed if gates is None or (gated and changed.gated is None) else changed.with_gates(gates)
        for recipe in recipes
        for changed in [
            recipe.override(
                {k: v for k, v in values.items() if k in none or concerns(k, recipe)},
                source="command line",
            )
        ]
    ]


def _overrides(options: Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """Return the values by dotted key, and the gates, that options put in place of a recipe's."""
    settings = read_settings(options["settings"])
    given = {
        name: value
        for name in (*KEYS, "gates")
        if (value := options.get(name)) is not None and value is not False  # 0 was given
    }
    for key in _leaves(settings):
        for name in given:
            if fnmatch(key, KEYS.get(name, GATES)):
                flag = name.replace("_", "-")
                raise click.UsageError(f"--{flag} and --set {key} say the same; give one of them")
    gates = given.pop("gates", None)
    return {KEYS[name]: value for name, value in given.items()} | settings, gates
