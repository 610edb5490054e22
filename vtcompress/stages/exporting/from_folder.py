"""What of a recipe an export from a compressed folder does not read."""

from pathlib import Path

from compressor.progress import Progress
from compressor.recipe import Recipe
from vtcompress.stages.inputs import note_in_vain


def note_without_effect(
    recipe: Recipe, source: Path, made_of: str, original_too: bool, progress: Progress
) -> None:
    """Say what of the recipe is not read, as the folder has it or the original is not.

    Args:
        recipe: of the export.
        source: what `compress` wrote.
        made_of: name of the model that it was made of.
        original_too: whether the original is loaded as well.
        progress: prints it.
    """
    section, gated = recipe.model, recipe.gated
    given = {
        "model.id": None if section.id == made_of else section.id,
        "model.revision": section.revision,
        "model.trust_remote_code": section.trust_remote_code or None,
    }
    for key, value in given.items():
        if value is not None and not original_too:
            why = "without validation data the original of a folder is not loaded"
            note_in_vain(key, value, why, progress)
    if gated is not None and gated.gates is not None and gated.gates.parent != source.absolute():
        why = f"{source} has its gates"
        note_in_vain(f"compress.{gated.name}.gates", gated.gates, why, progress)
