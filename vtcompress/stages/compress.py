"""The stage that cuts a model in memory, and writes it as a folder."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.disk.mistaken import mistaken
from compressor.errors import ArtifactError, RecipeError
from compressor.plan.plan import Plan
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import Recipe, dump_recipe
from compressor.schema.sections import ExportSection
from export.artifact import staging
from export.artifact.artifact import PLAN_FILE, PROFILE_FILE, RECIPE_FILE, write_file_list
from vtcompress.console import shown
from vtcompress.shipped import PathLike
from vtcompress.stages.calibrate import draw
from vtcompress.stages.checks.prompts import check_recipe_prompts
from vtcompress.stages.checks.recipe import (
    check_made_by,
    check_plan_facts,
    check_plan_weights,
    digest_of_plan,
    note_changed,
)
from vtcompress.stages.checks.rewrite import check_rewrite
from vtcompress.stages.inputs import (
    load_model,
    model_facts,
    model_folder,
    note_unread_data,
    open_profile,
    read_files,
    require_compress,
    require_recipe,
    source_paths,
)

if TYPE_CHECKING:
    from compressor.chosen_rows import FrontWeights
    from compressor.compressed import CompressedModel
    from compressor.decoder.weights import LoadedGates
    from compressor.families import LoadedModel


def compress_for_export(
    model: "LoadedModel",
    plan: Plan,
    recipe: Recipe,
    gates: "LoadedGates | None" = None,
    front: "FrontWeights | None" = None,
) -> "CompressedModel":
    """Apply a plan to a loaded model, with the logits and the healed weights that the recipe asks for.

    Raises:
        RoutersError: see `with_routers`.
        PlanError: healed weights are of another model or plan.
    """
    from compressor.compressed import compress
    from compressor.training.healing import heal

    model = with_routers(model, plan, recipe)
    front = None if front is None else front.beside(model.embedding)
    small = compress(model, plan, logits=recipe.export.logits, gates=gates, front=front)
    healed = recipe.healed_file(model.digest, plan.work_digest)
    if healed is None:
        return small
    near, changes = model.embedding.device, healed.tensors()
    return heal(small, model.tensors, {name: change.to(near) for name, change in changes.items()})


def as_stored(small: "CompressedModel", settings: ExportSection) -> "CompressedModel":
    """Return a compressed model with the weights that an export's settings store, to compute with in torch.

    Where weights are float that is the model itself.
    """
    if settings.block_size is None:
        return small
    import torch

    from compressor.decoder.quantization import quantized_decoder

    dtype = getattr(torch, settings.dtype)
    made = quantized_decoder(small.decoder, settings.weights, settings.block_size, dtype)
    return replace(small, decoder=made)


def load_plan_gates(plan: Plan, recipe: Recipe, model: "LoadedModel") -> "LoadedGates | None":
    """Load the gates of the recipe that a plan asks for; None if it has no gates.

    Raises:
        GatesError: the recipe names none, or they do not fit the model.
    """
    from compressor.decoder.weights import load_gates

    if plan.gates is None:
        return None
    return load_gates(recipe.gate_file(model.facts, model.digest), plan.gates.candidates)


def with_routers(model: "LoadedModel", plan: Plan, recipe: Recipe) -> "LoadedModel":
    """Return a model with the recipe's routers among its tensors, where a plan asks for some.

    Raises:
        RoutersError: the recipe names none, or they do not fit the model.
    """
    from compressor.decoder.weights import load_routers

    layers = tuple(plan.runs())
    file = recipe.router_file(model.facts, model.digest, layers) if layers else None
    if file is None:
        return model
    near, found = model.embedding.device, load_routers(file, layers)
    found = {name: tensor.to(near) for name, tensor in found.items()}
    return replace(model, tensors={**model.tensors, **found})


def load_weights_in_front(plan: Plan, recipe: Recipe) -> "FrontWeights":
    """Load the weights of the recipe that a plan's choice in front of the decoder reads, if it reads any.

    Raises:
        PlanError: the recipe names none, or they cannot be read.
        ArtifactError: the plan was made with others.
    """
    from compressor.chosen_rows import load_front_weights

    by = "" if plan.front is None else plan.front.by
    found = load_front_weights(m for m in recipe.methods if m.name == by)
    plan.check_front_weights(found.digest)
    return found


def refuse_healed(recipe: Recipe, why: str) -> None:
    """Refuse a recipe with healed weights where they have no place.

    Raises:
        RecipeError: says why.
    """
    if recipe.heal.given:
        remedy = "set it to null, or export from the recipe's model"
        raise RecipeError([f"{recipe.heal.given}: {why}; {remedy}"])


def write_inputs(folder: Path, recipe: Recipe, plan: Plan, profile: Profile | None) -> None:
    """Write what a result was made from: recipe, plan, and profile with its plots."""
    (folder / RECIPE_FILE).write_text(dump_recipe(recipe, portable=True), encoding="utf-8")
    plan.save(folder / PLAN_FILE)
    if profile is not None:
        profile.save(folder / PROFILE_FILE)
        draw(profile, plan, folder / "profile")


def compress(
    recipe: Recipe,
    plan: Plan,
    output: PathLike,
    *,
    profile: Profile | PathLike | None = None,
    overwrite: bool = False,
    sources: Iterable[PathLike] = (),
    progress: Progress | bool | None = None,
) -> Path:
    """Write the compressed model as a folder that `load_compressed` and `export` read.

    Args:
        recipe: names the model.
        plan: a plan for this model.
        output: folder to write.
        profile: stored beside the plan.
        overwrite: replace what this tool wrote at `output`.
        sources: files that recipe, plan and profile were read from; no folder that holds one is replaced.
        progress: shows stages.

    Raises:
        VtcompressError: plan or profile are of another model, or the folder cannot be written.
    """
    require_recipe(recipe)
    refuse_healed(recipe, "a compressed folder holds the original's weights")
    progress = shown(progress)
    measured, name = open_profile(profile)
    note_unread_data(recipe, "the plan is made already", progress)
    output = Path(output)
    needs: dict[str, Any] = {
        "overwrite": overwrite,
        "sources": (*source_paths(recipe), *read_files(sources, profile)),
    }
    staging.check_place(output, **needs)
    check_recipe_prompts(recipe, (), progress)
    facts = model_facts(recipe)
    check_plan_weights(plan, recipe, facts, None)
    check_plan_facts(plan, facts)
    check_made_by(plan, recipe, measured)
    note_changed(plan, "the plan", progress)
    weights = model_folder(recipe).glob("*.safetensors")
    needs["needed_bytes"] = sum(path.stat().st_size for path in weights)
    staging.check_place(output, **needs)
    digest = digest_of_plan(plan, recipe, facts)
    if measured is not None:
        measured.check_belongs(name, model_digest=digest)
    model = load_model(recipe, progress, digest)
    from compressor.compressed import save_compressed

    gates, front = load_plan_gates(plan, recipe, model), load_weights_in_front(plan, recipe)
    # Refuses what weights alone tell before anything is written.
    compress_for_export(model, plan, recipe, gates, front)
    check_rewrite(model)
    with staging.staged(output, **needs) as folder:
        save_compressed(with_routers(model, plan, recipe), plan, folder, gates, front)
        write_inputs(folder, recipe, plan, measured)
        write_file_list(folder)
    return output


def load_compressed(
    folder: PathLike, *, progress: Progress | bool | None = None
) -> "CompressedModel":
    """Load what `compress` wrote, in float32.

    Raises:
        VtcompressError: files are missing or broken.
    """
    if (problem := mistaken(Path(folder), "compressed")) is not None:
        raise ArtifactError([problem])
    require_compress("loading a compressed model")
    from compressor.compressed import load_compressed as load

    shown(progress).say(f"loading {folder}")
    return load(Path(folder))
