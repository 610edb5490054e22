"""What of a recipe an export from a compressed folder does not read."""

from pathlib import Path

from export.backends.torch_device import ON_CPU
from vtcompress.stages.exporting.job import Job
from vtcompress.stages.inputs import note_in_vain


def note_without_effect(job: Job, source: Path, made_of: str, *, original_too: bool) -> None:
    """Say what of the export's settings is not read, as the folder has it or the original is not.

    Args:
        job: the export.
        source: what `compress` wrote.
        made_of: name of the model that it was made of.
        original_too: whether the original is loaded as well.
    """
    recipe, progress = job.recipe, job.progress
    section, gated = recipe.model, recipe.gated
    given = {
        "model.id": None if section.id == made_of else section.id,
        "model.revision": section.revision,
        "model.trust_remote_code": section.trust_remote_code or None,
        "device": None if job.device == ON_CPU else job.device,
    }
    for key, value in given.items():
        if value is not None and not original_too:
            why = "without validation data the original of a folder is not loaded"
            note_in_vain(key, value, why, progress)
    if gated is not None and gated.gates is not None and gated.gates.parent != source.absolute():
        why = f"{source} has its gates"
        note_in_vain(f"compress.{gated.name}.gates", gated.gates, why, progress)
