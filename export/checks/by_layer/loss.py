"""Compression loss of a model that is never in memory: both models on all questions, a layer at a time.

The original is the rewritten model with nothing cut, at the original's own image size. The compressed model
computes in float32 with the numbers that the artifact's whole numbers stand for; that the graphs compute the
same is the other check.

Limitations:
    - Answers are not generated: common prefixes and equal answers are not known, and some right answers
      may stay undecided; see `export.checks.by_layer.forced`.
    - For plans whose decoder can be run a layer at a time: `compressor.decoder.by_layer.cannot_part`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from compressor.compressed import CompressedModel, plain
from compressor.disk.array_file import ArrayFile
from compressor.families import LoadedModel
from compressor.families.known import family_that_read
from compressor.progress import Progress
from compressor.samples.questions import Sample
from compressor.schema.sections import ExportSection
from export.checks.by_layer.questions import AllQuestions
from export.checks.by_layer.reference import layers_as_stored
from export.checks.loss import Pair, kl_rows

STATES = "states"
"""How names of folders for states begin."""


def pairs_by_layer(
    model: LoadedModel,
    small: CompressedModel,
    settings: ExportSection,
    samples: Sequence[Sample],
    longest: int,
    folder: Path,
    progress: Progress,
) -> list[Pair]:
    """Return what both models make of every sample.

    Args:
        model: the original; its decoder's large weights are stand-ins.
        small: made of it.
        settings: how the artifact stores the compressed model's weights.
        samples: what is asked.
        longest: tokens at which an answer is cut.
        folder: in which a folder of states is made, and removed.
        progress: shows prompts, layers and the time left.

    Raises:
        DataError: a picture cannot be read, or a prompt does not fit the model.
        ModelError: weights cannot be read any more.
    """
    original = plain(_at_its_own_size(model))
    sides = {
        "original": (original, layers_as_stored(original, ExportSection())),
        "compressed": (small, layers_as_stored(small, settings)),
    }
    with TemporaryDirectory(prefix=STATES, dir=folder) as name:
        logits = ArrayFile(Path(name) / "logits")
        before, after = (
            AllQuestions(one, layers, longest, Path(name) / STATES, logits).ask(
                samples, progress, side
            )
            for side, (one, layers) in sides.items()
        )
        found = []
        for first, second in zip(before, after, strict=True):
            p, q = logits.read(first.logits)[None], logits.read(second.logits)[None]
            scores = None
            if first.right is not None and second.right is not None:
                scores = float(first.right), float(second.right)
            agrees = bool(p.argmax() == q.argmax())
            found.append(Pair(kl=float(kl_rows(p, q)[0]), agrees=agrees, scores=scores))
    return found


def _at_its_own_size(model: LoadedModel) -> LoadedModel:
    """Return a model that takes pictures at the size that it was published for."""
    if model.processor is model.native_processor:
        return model
    vision = family_that_read(model.facts).vision(
        model.original.config, image_size=model.native_facts.image_size, source=model.original
    )
    return replace(model, facts=model.native_facts, processor=model.native_processor, vision=vision)
