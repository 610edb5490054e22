"""The second check of an export whose model is never in memory."""

from pathlib import Path
from typing import TYPE_CHECKING

from export.checks.loss import judged
from export.results.loss_report import LossReport
from vtcompress.stages.exporting.job import Job
from vtcompress.stages.validate import loss_limits, validation_name

if TYPE_CHECKING:
    from compressor.compressed import CompressedModel
    from compressor.families import LoadedModel


def measure_loss(
    job: Job, model: "LoadedModel", small: "CompressedModel", folder: Path
) -> LossReport | None:
    """Ask both models the validation questions, layer by layer.

    Args:
        job: the export.
        model: the original, not in memory.
        small: made of it.
        folder: the artifact under construction; states lie in a folder of it meanwhile, so that the next run
            finds and removes what a killed one left of them.

    Returns:
        What compression lost; None: nothing is asked, or the plan's layers cannot be run one at a time.

    Raises:
        VtcompressError: see `pairs_by_layer`.
    """
    from compressor.decoder.by_layer import cannot_part
    from export.checks.by_layer.loss import pairs_by_layer

    recipe = job.recipe
    if not job.samples:
        return None
    if why := cannot_part(small.plan):
        job.progress.say(
            f"compression loss is not measured: {why}, so that layers cannot be run by themselves"
        )
        return None
    job.progress.say("measuring compression loss by layer")
    tokens = recipe.validation.max_new_tokens
    with job.peaks.of("measuring compression loss"):
        pairs = pairs_by_layer(
            model, small, recipe.export, job.samples, tokens, folder, job.progress
        )
    report = judged(job.samples, pairs, loss_limits(recipe), validation_name(recipe))
    return report.model_copy(update={"by_layer": recipe.export.weights})
