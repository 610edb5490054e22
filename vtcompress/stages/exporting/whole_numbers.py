"""What it loses to store the decoder's matrices in whole numbers: two torch models beside each other."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compressor.families.pictures.text import PictureForm
from compressor.schema.sections import ExportSection
from export.checks import fidelity, loss
from export.results.quantization import QuantizationLoss, QuantizationReport
from export.runtime.runtime import Runtime
from export.session.arrays import Array
from vtcompress.stages.exporting.job import Job
from vtcompress.stages.validate import record_torch, validation_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compressor.compressed import CompressedModel


def measure_quantization(
    job: Job,
    models: "Mapping[str, CompressedModel]",
    reference: fidelity.Recording,
    folder: Path,
    form: PictureForm,
) -> QuantizationReport | None:
    """Compare next tokens after the validation questions, else in the calls of the fidelity check.

    Args:
        job: the export; its recipe stores weights in whole numbers.
        models: the compressed model with `float` weights, and the one with `whole` numbers for them.
        reference: what the second gave in the calls of the fidelity check.
        folder: the artifact under construction, for its tokenizer.
        form: how the model takes pictures.
    """
    from export.backends.torch_model import TorchSession

    settings, facts = job.recipe.export, models["float"].plan.model
    if job.samples:
        source = f"{len(job.samples)} questions of {validation_name(job.recipe)}"

        def logits(name: str) -> Array:
            runtime = Runtime.on_session(TorchSession(models[name]), folder, facts, form)
            label = f"next tokens with {name} weights"
            return loss.measure_answers(runtime, job.samples, 1, job.progress, label).logits

        before, after = logits("float"), logits("whole")
    else:
        source = "made-up calls of the fidelity check"
        floats = record_torch(models["float"], job.limits(models["float"].plan))
        # What gates or a choice of rows decide may differ, and so may how many rows there are.
        before, after = _next_tokens(floats), _next_tokens(reference)
    kl = loss.kl_rows(before, after)
    measured = QuantizationLoss(
        source=source,
        rows=len(kl),
        kl=float(kl.mean()),
        kl_worst=float(kl.max()),
        agreement=float((before.argmax(axis=1) == after.argmax(axis=1)).mean()),
        largest=float(np.abs(before - after).max()),
    )
    return stored_in_whole_numbers(models["float"], settings, measured)


def stored_in_whole_numbers(
    small: "CompressedModel", settings: ExportSection, measured: QuantizationLoss | None
) -> QuantizationReport | None:
    """Return how an export stores a compressed model's matrices, with what that loses; None: as floats."""
    import torch

    from compressor.decoder.quantization import matrix_bytes

    if settings.weights == "float" or settings.block_size is None:
        return None
    dtype = getattr(torch, settings.dtype)
    floats, stored = matrix_bytes(small.decoder, settings.weights, settings.block_size, dtype)
    return QuantizationReport(
        weights=settings.weights,
        block=settings.block_size,
        float_bytes=floats,
        stored_bytes=stored,
        loss=measured,
    )


def _next_tokens(recording: fidelity.Recording) -> Array:
    """Return the logits [n, vocab] of a recording's calls of the decoder."""
    found = (
        array
        for call, array in recording.outputs.items()
        if ": " in call and not call.endswith(": embed")
    )
    return np.concatenate([array.reshape(-1, array.shape[-1]) for array in found])
