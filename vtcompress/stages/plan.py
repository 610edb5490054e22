"""The stages that make a plan of a recipe and a profile, and that measure what its layers take."""

from pathlib import Path
from typing import Any

from compressor.facts import ModelFacts
from compressor.generation.settings import check_positions
from compressor.plan.cost import BYTES, predict, predicted_speedup
from compressor.plan.measured_cost import MeasuredCosts
from compressor.plan.plan import Plan
from compressor.planner import plan_recipe
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.schema.arguments import check_threads, check_whole
from export.artifact.manifest import Predicted
from export.artifact.places import check_file
from export.backends.checked_on import CHECKED_ON
from export.backends.registry import check_dtype
from export.graphs.limits import Limits, buffer_bytes, limits_of_original
from export.results.bench import ms_words, speed_words
from vtcompress.console import shown
from vtcompress.shipped import PathLike
from vtcompress.stages.checks.forecast import forecast_words, numbers_in
from vtcompress.stages.checks.forecast_time import export_time_words
from vtcompress.stages.checks.recipe import check_digest, check_recipe
from vtcompress.stages.inputs import (
    model_facts,
    model_folder,
    note_unread_data,
    open_profile,
    require_compress,
    require_recipe,
    require_runtime,
    source_paths,
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
    folder = model_folder(recipe)
    progress.say(forecast_words(recipe, folder, facts))
    progress.say(export_time_words(facts, numbers_in(folder, facts.dtype)))
    return plan_recipe(recipe, facts, digest, measured)


def costs(
    recipe: Recipe,
    output: PathLike,
    *,
    text: int = 64,
    threads: int = 1,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> MeasuredCosts:
    """Measure what this machine takes for decoder layers of the recipe's model; its weights are not read.

    Layers of its dimensions, on random weights, run in ONNX Runtime on the CPU, doing what words of plans
    say; what comes of it predicts the time of any plan's prefill (`MeasuredCosts.seconds`). Costs at `output`
    that were measured of this model, machine and ONNX Runtime are returned as they are.

    Args:
        recipe: names the model; its `export` section says dtype and weights.
        output: file of the costs.
        text: T of the calls that are timed.
        threads: of one operator.
        overwrite: measure anew, whatever lies there.
        progress: shows graphs and rounds.

    Raises:
        VtcompressError: no such model, a dtype that ONNX Runtime cannot run, or `output` was not written by
            this tool.
    """
    require_recipe(recipe)
    progress, output = shown(progress), Path(output)
    check_threads(threads)
    check_whole("text", text, 1)
    require_compress("measuring costs")
    require_runtime("measuring costs")
    settings = recipe.export
    check_dtype(CHECKED_ON.name, settings.dtype)
    check_file(output, "costs", sources=source_paths(recipe))
    facts = model_facts(recipe)
    check_positions(facts.largest_rows + text, 1, facts.decoder.max_positions)
    from export.checks.costs.here import measured_on
    from export.checks.costs.measure import measure_costs

    if output.exists() and not overwrite:
        known = MeasuredCosts.load(output)
        if known.measured_on == measured_on(threads) and not known.why_not(facts, settings):
            progress.say(f"{output}: was measured here before, and is used as it is")
            return known
    found = measure_costs(facts, settings, text=text, threads=threads, progress=progress)
    found.save(output)
    return found


def open_costs(path: Path, recipe: Recipe, facts: ModelFacts, progress: Progress) -> MeasuredCosts:
    """Return measured costs that speak of a model; say whose times they are where that is not this machine.

    Raises:
        PlanError: they cannot be read, or are another model's or dtype's.
    """
    measured = MeasuredCosts.load(path)
    measured.check_fits(facts, recipe.export, str(path))
    from export.checks.costs.here import measured_on

    there, here = measured.measured_on, measured_on(measured.measured_on.threads)
    if there != here:
        progress.say(f"note: {path}: times of {there.words}; this machine has {here.words}")
    return measured


def predicted_time(measured: MeasuredCosts, plan: Plan) -> dict[str, Any]:
    """Return what `time_words` says, as JSON."""
    return {
        "seconds_original": measured.seconds(plan.naive()),
        "seconds": measured.seconds(plan),
        "speedup": measured.speedup(plan),
        "measured_on": measured.measured_on.model_dump(mode="json"),
    }


def time_words(measured: MeasuredCosts, plan: Plan) -> str:
    """Return the predicted time of a plan's prefill beside the naive original's."""
    before, after = (ms_words(1e3 * measured.seconds(one)) for one in (plan.naive(), plan))
    words = speed_words(measured.speedup(plan))
    return f"{before} -> {after} ms ({words}; {measured.measured_on.words})"


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
