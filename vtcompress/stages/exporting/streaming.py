"""What an export cannot do while the model is not in memory."""

from compressor.errors import RecipeError
from compressor.planner import measures_needed
from compressor.recipe import Recipe
from compressor.samples.scores import EXACT
from vtcompress.shipped import PathLike
from vtcompress.stages.build import engine_targets
from vtcompress.stages.calibrate import wants_calibration


def not_run(recipe: Recipe) -> str:
    """Return what an export leaves out, and what it measures otherwise."""
    asked = recipe.validation.data is not None
    forced = ", and compression loss is measured by layer, right answers forced" if asked else ""
    return (
        "streaming: the model is not in memory, so the rewritten model is not compared with the original, "
        f"and times are not measured{forced}"
    )


def check_stream(
    recipe: Recipe, *, known: bool, compressed: PathLike | None, rounds: int | None
) -> None:
    """Refuse what needs a model in memory.

    Args:
        recipe: of the export.
        known: a plan or a profile is given.
        compressed: a folder to start from; None: the original.
        rounds: how often calls are to be timed; None: not asked for.

    Raises:
        RecipeError: all that was asked for and cannot be done.
    """
    problems = []
    if compressed is not None:
        problems.append(
            f"stream: {compressed}: weights are streamed from the original's own files; leave `compressed` "
            "out, or export it without `stream`"
        )
    elif not known and recipe.searched is not None:
        problems.append(
            f"stream: compress.{recipe.searched.name}: a search runs the model: run `vtcompress search` "
            "where it fits, and give a `plan` that it wrote"
        )
    elif not known and wants_calibration(recipe):
        problems.append(
            f"stream: {_why_calibrated(recipe)}, and calibration runs the model: give a `profile` or a "
            "`plan` that was made where it fits, or export without `stream`"
        )
    section = recipe.validation
    if section.data is not None and section.score != EXACT.name:
        problems.append(
            f"stream: validate.score: {section.score}: answers are forced, not generated, and tell `exact` "
            "alone: set it to exact, or export without `stream`"
        )
    if recipe.heal.given:
        problems.append(
            f"stream: {recipe.heal.given}: healed weights are made of the original's in memory: "
            "set it to null, or export without `stream`"
        )
    if rounds:
        problems.append(
            f"stream: bench_rounds: {rounds}: timing runs the model: leave it out and run "
            "`vtcompress bench` on the artifact, or export without `stream`"
        )
    if targets := engine_targets(recipe):
        names = ", ".join(target.name for target in targets)
        problems.append(
            f"stream: export.targets: {names}: an engine is built with the model in memory: leave it out "
            "and run `vtcompress build` on the artifact, or export without `stream`"
        )
    if problems:
        raise RecipeError(problems)


def _why_calibrated(recipe: Recipe) -> str:
    if recipe.gated is not None and recipe.calibrate.data is not None:
        return f"compress.{recipe.gated.name}: gates are counted on calibrate.data"
    needed = measures_needed(recipe.methods)
    return f"the recipe's methods choose by calibration ({', '.join(needed)})"
