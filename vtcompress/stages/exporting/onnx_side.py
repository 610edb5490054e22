"""The ONNX side of an export: the graphs are checked against both models, and timed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import VtcompressError
from compressor.plan.plan import Plan
from export.artifact import artifact as artifacts
from export.artifact.manifest import tool_versions
from export.checks import bench as timing
from export.checks import loss, memory, stored
from export.checks.bfloat16 import missing_kernels, open_for_checks
from export.checks.fidelity import Recording
from export.checks.kept_places import with_places
from export.checks.known.answers import KnownAnswers
from export.checks.onnx_checker import check_graphs
from export.graphs.spec import GraphSpec
from export.report.questions import Question, chosen_places
from export.results.answers import Answers, scored
from export.results.bench import BenchReport
from export.results.fidelity import FidelityReport
from export.results.footprint import Footprint
from export.results.loss_report import LossReport
from export.results.rewrite import RewriteReport
from export.runtime.runtime import Runtime
from vtcompress.stages.exporting.job import Job
from vtcompress.stages.exporting.known_answers import (
    known_answers,
    known_without_decoder,
    with_rounding,
    write_known,
)
from vtcompress.stages.exporting.torch_side import Written
from vtcompress.stages.float16 import keep_wide_nodes
from vtcompress.stages.plan import predicted
from vtcompress.stages.validate import (
    check_fidelity,
    fidelity_limits,
    for_answers,
    loss_limits,
    validation_name,
)

if TYPE_CHECKING:
    from export.checks.by_layer.reference import Reference

Fields = dict[str, Any]
"""Fields of a manifest, by name."""


def onnx_side(
    job: Job,
    written: Written,
    rewrite: RewriteReport | None,
    second: LossReport | None,
    folder: Path,
) -> Fields:
    """Check the written graphs against both models, and time them.

    Args:
        job: the export.
        written: the torch side's graphs and reference.
        rewrite: outcome of comparing the rewritten model with the original; None: not compared.
        second: outcome of the second check, where it was run before the graphs were made.
        folder: the artifact under construction.

    Returns:
        The fields of its manifest.
    """
    from compressor.decoder.by_layer import cannot_part
    from export.writer.passes.order import pass_words

    recipe, plan, graphs = job.recipe, written.plan, written.graphs
    ranges, first, known = None, None, None
    with job.peaks.of("checks"):
        if written.reference is not None:
            if recipe.export.dtype == "float16":
                job.progress.say("looking for values that float16 cannot hold")
            ranges = keep_wide_nodes(recipe, job.range_samples, folder, graphs, plan, written.form)
        checker = check_graphs(folder, graphs)
        if written.by_layer is not None:
            first = _by_layer(job, written, written.by_layer, folder)
        if written.reference is not None:
            # A method of its own: its session is gone before timing loads both decoders.
            first, second, known = _both_checks(job, written, written.reference, folder)
        else:
            known = known_without_decoder(job, written, folder)
        selftest = write_known(job, written, folder, known)
    bfloat16 = recipe.export.dtype == "bfloat16"
    missing = missing_kernels(folder, graphs) if bfloat16 else ()
    timed = job.rounds and not bfloat16
    healed = recipe.healed_file(None, None)
    return {
        "tools": tool_versions(plan.model),
        "model": plan.model,
        "model_digest": plan.model_digest,
        "image_token": written.form.token,
        "picture_steps": written.form.steps,
        "picture_text": written.form.text,
        "steps_beside_others": written.form.steps_beside_others,
        "dtype": recipe.export.dtype,
        "logits": recipe.export.logits,
        "graphs": graphs,
        "predicted": predicted(plan, recipe.export.dtype, job.limits(plan)),
        "checker": checker,
        "fidelity": first,
        "loss": second,
        "rewrite": rewrite,
        "quantization": written.quantization,
        "healed": None if healed is None else healed.healed,
        "healed_digest": "" if healed is None else healed.digest,
        "unhealed_loss": written.unhealed,
        "ranges": ranges,
        "missing_kernels": missing,
        "streamed": job.stream,
        "unparted": cannot_part(plan) if job.stream else "",
        "selftest": selftest,
        "passes": pass_words(graphs, recipe.export),
        "measured": _times(job, folder, graphs, plan) if timed else None,
        "memory": _footprint(job, folder, graphs, plan) if timed else None,
        "peak_memory_bytes": max(job.peaks.highest, artifacts.peak_memory_bytes()),
        "peak_memory_by_stage": job.peaks.bytes_by_stage,
    }


def _by_layer(job: Job, written: Written, reference: "Reference", folder: Path) -> FidelityReport:
    from export.checks.by_layer.check import compare_by_layer

    job.progress.say("checking export fidelity by layer")
    limits = job.limits(written.plan)
    return compare_by_layer(
        reference,
        folder,
        written.graphs,
        job.recipe.export.dtype,
        written.plan,
        fidelity_limits(job.recipe),
        limits.max_context if limits else None,
        job.progress,
    )


def _both_checks(
    job: Job, written: Written, reference: Recording, folder: Path
) -> tuple[FidelityReport, LossReport | None, KnownAnswers | None]:
    recipe, plan, original = job.recipe, written.plan, written.original
    job.progress.say("checking export fidelity")
    session = open_for_checks(folder, written.graphs, recipe.export.dtype)
    first = check_fidelity(session, written.graphs, plan, reference, recipe)
    known = known_answers(job, written, folder, session)
    rounds = known is not None and recipe.export.weights != "float"
    if original is None and not rounds:
        return first, None, known
    session = for_answers(session, folder, written.graphs, recipe.export)
    if known is not None and rounds:
        known = with_rounding(written, folder, session, known)
    if original is None:
        return first, None, known
    runtime = Runtime.on_session(session, folder, plan.model, written.form)
    answers = loss.measure_answers(runtime, job.samples, original.max_new_tokens, job.progress)
    original, answers = (scored(job.samples, each, job.score) for each in (original, answers))
    _store(job, folder, runtime, original, answers)
    limits, name = loss_limits(recipe), validation_name(recipe)
    compared = loss.compare_scored(job.samples, original, answers, limits, name, job.score)
    return first, compared, known


def _store(job: Job, folder: Path, runtime: Runtime, original: Answers, answers: Answers) -> None:
    """Write samples and answers; pictures, and what is kept of them, as far as the recipe keeps pictures."""
    pairs = zip(job.samples, original.answers, answers.answers, strict=True)
    graded = job.score.graded
    shown = chosen_places([Question.of(asked, a, b, graded=graded) for asked, a, b in pairs])
    keep = job.recipe.validation.keep_pictures
    stored.store_original(folder, job.samples, original, keep, shown)
    if keep != "none":
        answers = with_places(runtime, job.samples, answers, shown)
    stored.write_answers(folder / stored.COMPRESSED_FILE, answers)


def _times(job: Job, folder: Path, graphs: Sequence[GraphSpec], plan: Plan) -> BenchReport | None:
    limits, text = job.limits(plan), plan.workload.text
    if limits is not None:  # the prompt and a decode step must fit
        text = min(text, limits.max_context - limits.visual_tokens - 1)
    if text < 1:
        job.progress.say("times are not in the report: no room for a decode step in max_context")
        return None
    with job.peaks.of("timing"):
        return timing.bench(
            folder,
            graphs,
            plan.model,
            text=text,
            rounds=job.rounds,
            threads=job.threads,
            progress=job.progress,
        )


def _footprint(job: Job, folder: Path, graphs: Sequence[GraphSpec], plan: Plan) -> Footprint | None:
    job.progress.say("measuring memory")
    try:
        return memory.measure_memory(folder, graphs, plan.model)
    except VtcompressError as failure:  # a figure less is no reason to lose the artifact
        job.progress.say(f"memory is not in the report: {failure}")
        return None
