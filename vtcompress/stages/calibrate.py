"""The stage that measures what visual tokens do in each layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.calibration.resume import Task
from compressor.disk.files import made_parent
from compressor.disk.locks import exclusive
from compressor.errors import ProfileError, RecipeError, VtcompressError
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
from compressor.samples.shard import Shard
from compressor.schema.values import RunDType
from export.artifact.places import check_file, resolved
from export.backends.torch_device import ON_CPU, check_device, whole_float32
from vtcompress.console import shown
from vtcompress.shipped import PathLike
from vtcompress.stages.checks.prompts import Asked
from vtcompress.stages.checks.recipe import check_digest, check_recipe
from vtcompress.stages.checks.rewrite import check_rewrite
from vtcompress.stages.inputs import (
    calibration_samples,
    check_streamed,
    load_model,
    refuse_searched,
    require_recipe,
    source_paths,
)

if TYPE_CHECKING:
    from compressor.families import LoadedModel


NOT_COMPARED = (
    "streaming: the rewritten model is not compared with the original, which is not in memory"
)


def calibration_task(
    recipe: Recipe,
    facts: ModelFacts,
    model_digest: str,
    shard: Shard | None = None,
    dtype: RunDType = "float32",
) -> Task:
    """Return what a calibration of the recipe's data, or of a shard of it, measures; loads no weights."""
    gated = recipe.gated
    return Task.of(
        facts,
        model_digest,
        calibration_samples(recipe),
        recipe.calibrate.data.name if recipe.calibrate.data else "",
        measures_of(recipe.methods),
        gate_layers=gated.gate_layers(facts.decoder.layers) if gated else (),
        gates_digest=gated.gate_file(facts, model_digest).digest if gated else "",
        dtype=dtype,
        shard=shard,
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
    if gates is None or task.shard is not None:
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
    shard: str | None = None,
    device: str = ON_CPU,
    stream: bool = False,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> Profile:
    """Measure the recipe's model on its calibration data; a profile at `output` is continued.

    Also draws `output` without its suffix as PNG and SVG, with the layers that the recipe would freeze. A
    shard is not drawn, as nothing is chosen by it alone.

    Args:
        recipe: names model and data.
        output: file of the profile. One of the same model, with these samples or some of them, is continued.
        shard: `3/8` measures the third of eight shares of the samples alone; `merge_profiles` makes one
            profile of all eight. None: all samples.
        device: where the original runs: `cpu`, a GPU as torch names it, or `auto`: a GPU that it fits, else
            several with layers that are left over in the CPU's memory, else the CPU. Over several it is
            measured as with `stream`. It runs in the recipe's `model.dtype`.
        stream: read each layer's weights from the model's files when it runs, so that one layer's, embedding
            and head are in memory; the profile is the same, to the bit. States of the samples lie beside
            `output` meanwhile, so that each layer is read once for as many samples as half of the free disk
            holds; a killed run goes on from them. What is rewritten is then not compared with the original,
            which would have to be in memory.
        overwrite: start anew, whatever the profile there holds.
        progress: shows the samples.

    Raises:
        VtcompressError: model, data or device cannot be used, or `output` holds another profile, was not
            written by this tool, or is being written by another run.
    """
    require_recipe(recipe)
    refuse_searched(recipe, "a calibration serves methods that choose by it")
    progress = shown(progress)
    output = Path(output)
    base = output.with_suffix("")
    drawings = tuple(base.with_name(base.name + suffix) for suffix in (".png", ".svg"))
    if output in drawings:
        raise VtcompressError(
            f"{output}: is where the profile is drawn; give `output` {base.name}.json"
        )

    check_device(device)
    if stream:
        check_streamed(device)
    part = None if shard is None else Shard.parse(shard)
    if part is not None and recipe.gated is not None and len(recipe.methods) > 1:
        problem = (
            f"compress.{recipe.gated.name}: gates are asked once more behind the other methods' cuts, which "
            "all samples choose, so that no share of them is calibrated alone; leave `shard` out"
        )
        raise RecipeError([problem])
    drawn = drawings if part is None else ()

    def check() -> None:
        check_file(output, "profile", sources=source_paths(recipe))
        for path in drawn:
            check_file(path, "drawing")

    check()
    with made_parent(output), exclusive(output):
        check()
        samples = calibration_samples(recipe)
        if part is not None:
            part.check_has_some(len(samples))
        facts = check_recipe(recipe, asked=[Asked(samples)], progress=progress)
        digest = check_digest(recipe, facts)
        dtype = recipe.model.dtype
        task = calibration_task(recipe, facts, digest, part, dtype)
        if not overwrite:
            task.go_on(output)
        with whole_float32(device):
            model = load_model(
                recipe, progress, digest, dtype=dtype, device=device, outline=stream, several=True
            )
            if stream:
                progress.say(f"note: {NOT_COMPARED}")
                model = model.with_ends()
            else:
                check_rewrite(model, calibration=task.samples, progress=progress)
            profile = run_calibration(model, recipe, task, output, progress, anew=overwrite)
        if part is None:
            draw(profile, plan_recipe(recipe, model.facts, model.digest, profile), base)
    return profile


def merge_profiles(
    shards: Sequence[PathLike],
    output: PathLike,
    *,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> Profile:
    """Make one profile of all shards of a calibration, the very one that a run over all samples writes.

    Args:
        shards: profiles that `calibrate` wrote with `shard`, in any order.
        output: file of the profile.
        overwrite: replace a profile there.
        progress: shows the shards that are read.

    Raises:
        VtcompressError: shards cannot be read, are not finished, do not belong to each other, are there twice
            or missing; or `output` exists, is one of them, or was not written by this tool.
    """
    from compressor.calibration.merge import merged

    progress = shown(progress)
    output, paths = Path(output), [Path(path) for path in shards]
    if any(resolved(path) == resolved(output) for path in paths):
        raise VtcompressError(f"{output}: is one of the shards; choose another `output`")
    check_file(output, "profile", overwrite=overwrite)
    problems: list[str] = []
    found = []
    for path in progress.track(paths, "reading shards", len(paths)):
        try:
            found.append((path, Profile.load(path)))
        except ProfileError as error:
            problems += error.problems
    if problems:
        raise ProfileError(problems)
    profile = merged(found)
    with made_parent(output), exclusive(output):
        check_file(output, "profile", overwrite=overwrite)
        profile.save(output)
    return profile
