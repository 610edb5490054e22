"""The stage that measures what visual tokens do in each layer."""

from pathlib import Path
from typing import TYPE_CHECKING

from compressor.calibration.resume import Task
from compressor.disk.files import made_parent
from compressor.disk.locks import exclusive
from compressor.errors import ProfileError, VtcompressError
from compressor.facts import ModelFacts
from compressor.plan.plan import Plan
from compressor.planner import (
    measures_needed,
    measures_of,
    plan_recipe,
)
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import Recipe
from export.artifact.places import check_file
from vtcompress.console import shown
from vtcompress.shipped import PathLike
from vtcompress.stages.checks.prompts import Asked
from vtcompress.stages.checks.recipe import check_digest, check_recipe
from vtcompress.stages.checks.rewrite import check_rewrite
from vtcompress.stages.inputs import (
    calibration_samples,
    load_model,
    require_recipe,
    source_paths,
)

if TYPE_CHECKING:
    from compressor.families import LoadedModel


def calibration_task(recipe: Recipe, facts: ModelFacts, model_digest: str) -> Task:
    """Return what a calibration of the recipe's data measures; loads no weights."""
    gated = recipe.gated
    return Task.of(
        facts,
        model_digest,
        calibration_samples(recipe),
        recipe.calibrate.data.name if recipe.calibrate.data else "",
        measures_of(recipe.methods),
        gate_layers=gated.gate_layers(facts.decoder.layers) if gated else (),
        gates_digest=gated.gate_file(facts, model_digest).digest if gated else "",
    )


def drop_foreign(path: Path, task: Task) -> None:
    """Remove a calibration that was left by a run on another model or other data."""
    try:
        task.go_on(path)
    except ProfileError:
        path.unlink()


def run_calibration(
    model: "LoadedModel",
    recipe: Recipe,
    task: Task,
    path: Path,
    progress: Progress,
    *,
    anew: bool = False,
) -> Profile:
    """Calibrate a loaded model on the recipe's data; the profile grows at `path`.

    Args:
        model: the original.
        recipe: names methods and gates.
        task: the recipe's `calibration_task`.
        path: the profile's file, which is continued.
        progress: shows the samples.
        anew: replace the profile instead.
    """
    from compressor.calibration.run import ask_gates_again, calibrate
    from compressor.chosen_rows import load_front_weights
    from compressor.decoder.weights import load_gates

    gates = None
    if recipe.gated is not None:
        gates = load_gates(recipe.gate_file(model.facts, model.digest), task.gate_layers)
    profile = calibrate(model, task, path, gates=gates, anew=anew, progress=progress)
    if gates is None:
        return profile
    # Only now is known what the gates will read: the states that the other methods leave.
    chosen = plan_recipe(recipe, model.facts, model.digest, profile)
    if chosen.gates is not None and chosen.gates_see() != profile.gates_under:
        front = load_front_weights(recipe.methods)
        profile = ask_gates_again(model, task.samples, profile, chosen, gates, progress, front)
        profile.save(path)
    return profile


def draw(profile: Profile, plan: Plan, base: Path) -> None:
    """Draw a profile as PNG and SVG, with the layers marked that a method chose."""
    from compressor.calibration.plot import draw_profile

    draw_profile(profile, plan, base)


def wants_calibration(recipe: Recipe) -> bool:
    """Whether methods choose by calibration, or gates can be counted on data that is given."""
    counted = recipe.gated is not None and recipe.calibrate.data is not None
    return counted or bool(measures_needed(recipe.methods))


def calibrate(
    recipe: Recipe,
    output: PathLike,
    *,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> Profile:
    """Measure the recipe's model on its calibration data; a profile at `output` is continued.

    Also draws `output` without its suffix as PNG and SVG, with the layers that the recipe would freeze.

    Args:
        recipe: names model and data.
        output: file of the profile. One of the same model, with these samples or some of them, is continued.
        overwrite: start anew, whatever the profile there holds.
        progress: shows the samples.

    Raises:
        VtcompressError: model or data cannot be used, or `output` holds another profile, was not written by
            this tool, or is being written by another run.
    """
    require_recipe(recipe)
    progress = shown(progress)
    output = Path(output)
    base = output.with_suffix("")
    drawings = tuple(base.with_name(base.name + suffix) for suffix in (".png", ".svg"))
    if output in drawings:
        raise VtcompressError(
            f"{output}: is where the profile is drawn; give `output` {base.name}.json"
        )

    def check() -> None:
        check_file(output, "profile", sources=source_paths(recipe))
        for path in drawings:
            check_file(path, "drawing")

    check()
    with made_parent(output), exclusive(output):
        check()
        asked = [Asked(calibration_samples(recipe))]
        facts = check_recipe(recipe, asked=asked, progress=progress)
        digest = check_digest(recipe, facts)
        task = calibration_task(recipe, facts, digest)
        if not overwrite:
            task.go_on(output)
        model = load_model(recipe, progress, digest)
        check_rewrite(model, calibration=task.samples)
        profile = run_calibration(model, recipe, task, output, progress, anew=overwrite)
        chosen = plan_recipe(recipe, model.facts, model.digest, profile)
        draw(profile, chosen, base)
    return profile
