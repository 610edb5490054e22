"""What a plan loses with the original's weights, beside what it loses with healed ones."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.families.pictures.text import PictureForm
from export.checks import loss
from export.results.answers import Answers
from export.results.loss_report import LossLimits, LossReport
from export.runtime.runtime import Runtime
from vtcompress.stages.exporting.job import Job
from vtcompress.stages.validate import validation_name

if TYPE_CHECKING:
    from compressor.compressed import CompressedModel


def loss_before_healing(
    job: Job,
    small: "CompressedModel",
    original: Answers | None,
    folder: Path,
    form: PictureForm,
) -> LossReport | None:
    """Answer the validation questions in torch with the weights that were not healed.

    Args:
        job: the export.
        small: the compressed model.
        original: answers of the original model; None without validation data.
        folder: the artifact under construction, for its tokenizer.
        form: how the model takes pictures.

    Returns:
        Without limits; None: nothing was healed, or there is no validation data.
    """
    from export.backends.torch_model import TorchSession

    if small.unhealed is None or original is None:
        return None
    before = replace(small, decoder=small.unhealed, unhealed=None)
    runtime = Runtime.on_session(TorchSession(before), folder, small.facts, form)
    label = "answers before healing"
    tokens = original.max_new_tokens
    answers = loss.measure_answers(runtime, job.samples, tokens, job.progress, label)
    name = validation_name(job.recipe)
    return loss.compare(job.samples, original, answers, LossLimits(), name, job.score)
