"""The stage that makes a plan of a recipe and a profile."""

from compressor.plan.cost import BYTES, predict, predicted_speedup
from compressor.plan.plan import Plan
from compressor.planner import plan_recipe
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import Recipe
from export.artifact.manifest import Predicted
from export.graphs.limits import Limits, buffer_bytes, limits_of_original
from vtcompress.console import shown
from vtcompress.shipped import PathLike
from vtcompress.stages.checks.forecast import forecast_words
from vtcompress.stages.checks.recipe import check_digest, check_recipe
from vtcompress.stages.inputs import (
    model_facts,
    model_folder,
    note_unread_data,
    open_profile,
    require_compress,
    require_recipe,
)


def plan(
    recipe: Recipe,
    profile: Profile | PathLike | None = None,
    *,
    progress: Progress | bool | None = None,
) -> Plan:
    """Decide what visual rows do in each layer; loads no weights.

    Args:
        recipe: names the model and the methods.
        profile: an earlier calibration's profile or its file; needed where methods choose by it.
        progress: prints what is read.

    Raises:
        VtcompressError: the model is not supported, or the methods cannot be applied; all reasons.
    """
    require_recipe(recipe)
    require_compress("planning")
    progress = shown(progress)
    measured, name = open_profile(profile)
    note_unread_data(recipe, "a plan is made from a profile", progress)
    facts = check_recipe(recipe, measured, planned=True, progress=progress)
    progress.say(f"reading the weights of {recipe.model.id} for their digest")
    digest = check_digest(recipe, facts, measured, name)
    # Read again: the weights of a hub id are here now, and tell whether embedding and head are one.
    facts = model_facts(recipe)
    progress.say(forecast_words(recipe, model_folder(recipe), facts))
    return plan_recipe(recipe, facts, digest, measured)


def predicted(plan: Plan, dtype: str, limits: Limits | None = None) -> Predicted:
    """Return the figures that a plan predicts for its workload; `limits` are those of fixed caches."""
    buffers = {}
    if limits is not None:
        size = BYTES[dtype]
        whole = limits_of_original(limits, plan.model)
        buffers["kv_buffer_bytes_original"] = buffer_bytes(plan.naive(), whole, size)
        buffers["kv_buffer_bytes"] = buffer_bytes(plan, limits, size)
    before, after = predict(plan.naive()), predict(plan)
    return Predicted(
        images=plan.workload.images,
        visual=plan.visual,
        text=plan.workload.text,
        flops_original=before.flops,
        flops=after.flops,
        speedup=predicted_speedup(plan),
        kv_bytes_original=before.kv_bytes(dtype),
        kv_bytes=after.kv_bytes(dtype),
        **buffers,
    )
