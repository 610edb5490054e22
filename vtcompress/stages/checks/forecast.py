"""What an export will need of a machine: said before it starts, and refused where it cannot fit."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from compressor.errors import VtcompressError
from compressor.facts import DecoderDims, ModelFacts
from compressor.plan.cost import BYTES
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.samples.questions import Sample
from compressor.schema.sections import ExportSection
from export.machine.available import available_bytes
from vtcompress.stages.build import engine_targets

FLOAT32 = 4

# Graphs without weights, tokenizer, plots and small pictures take less.
SMALL_FILES_BYTES = 64 << 20

# Measured, and on the low side, because what is refused here cannot be tried: docs/performance.md.
LIBRARIES_BYTES = 600_000_000
"""Resident memory of an export beside its weights."""

COPIES = {"float32": 1.0, "bfloat16": 1.0, "float16": 1.8}
"""How many times what is in memory at once is held there in float32, by the dtype of the graphs."""

STREAMED_VISION = 1.2
"""Likewise of the vision part, which a streamed export has in memory beside no layer."""

TEMPLATE_ROWS = 64
"""Of a prompt beside its pictures and its words."""


class Forecast(NamedTuple):
    """What an export needs, in bytes.

    Attributes:
        disk: of the artifact.
        memory: resident at the peak.
    """

    disk: int
    memory: int

    @property
    def words(self) -> str:
        """Return both in one sentence."""
        return f"about {_gb(self.disk)} of disk and {_gb(self.memory)} of memory"


def forecast(
    recipe: Recipe,
    source: Path,
    facts: ModelFacts,
    *,
    stream: bool,
    samples: Sequence[Sample] = (),
) -> Forecast:
    """Return what an export of a model folder will need.

    Args:
        recipe: its settings.
        source: the folder of the weights.
        facts: of the model.
        stream: weights are copied one at a time.
        samples: that both models are asked.
    """
    numbers = numbers_in(source, facts.dtype)
    if (healed := recipe.healed_file(None, None)) is not None:  # beside the original's
        numbers += healed.numbers(facts.decoder.hidden, facts.decoder.intermediate)
    elif recipe.heal.trained_in_the_run:
        numbers += facts.decoder.layers * _of_a_layer(facts.decoder)
    disk = bytes_of_weights(recipe.export, numbers) * (1 + len(engine_targets(recipe)))
    copies = COPIES[recipe.export.dtype]
    held = copies * numbers
    if stream:
        held = _held_streaming(numbers, facts.decoder, copies, asked=bool(samples))
        # States are gone before weights are written.
        disk = max(disk, states_bytes(samples, facts))
    elif recipe.validation.keep_pictures == "all":
        pictures = {path for sample in samples for path in sample.images}
        disk += sum(path.stat().st_size for path in pictures)
    return Forecast(disk + SMALL_FILES_BYTES, LIBRARIES_BYTES + int(FLOAT32 * held))


def states_bytes(samples: Sequence[Sample], facts: ModelFacts) -> int:
    """Return about what states of questions take between two layers, and what both models say of them."""
    dims, rows = facts.decoder, 0
    for sample in samples:
        # A byte of a question is a token at most.
        words = sum(len(text.encode()) for text in (sample.question, *sample.answers))
        rows += words + TEMPLATE_ROWS
        rows += len(sample.images) * facts.picture_rows * (1 + dims.deepstack)
    return FLOAT32 * (rows * dims.hidden + 2 * len(samples) * dims.vocab)


def numbers_in(source: Path, dtype: str) -> int:
    """Return about how many numbers the weight files of a folder hold, of which `dtype` is the usual one."""
    return sum(path.stat().st_size for path in source.glob("*.safetensors")) // BYTES[dtype]


def bytes_of_weights(settings: ExportSection, numbers: int) -> int:
    """Return about what so many weights of a model take in an artifact: floats, and any whole numbers too."""
    floats = numbers * BYTES[settings.dtype]
    if settings.block_size is None:
        return floats
    scales = floats // settings.block_size
    return floats + scales + numbers // (1 if settings.weights == "int8" else 2)


def check_memory(needs: Forecast, recipe: Recipe, *, stream: bool, progress: Progress) -> None:
    """Say what an export will need, and refuse to start what memory cannot hold.

    Raises:
        VtcompressError: less is available.
    """
    free = available_bytes()
    told = "" if free is None else f"; {_gb(free)} of memory are available"
    progress.say(f"the export needs {needs.words}{told}")
    if free is not None and needs.memory > free:
        remedy = "run it where there is more"
        if not stream:
            remedy = f"export with `stream`, the model is never in memory then, or {remedy}"
        raise VtcompressError(
            f"{recipe.model.id}: the export needs about {_gb(needs.memory)} of memory, {_gb(free)} are "
            f"available: {remedy}"
        )


def forecast_words(recipe: Recipe, source: Path, facts: ModelFacts) -> str:
    """Return what an export of a model folder would need, in memory and streamed."""
    whole, streamed = (forecast(recipe, source, facts, stream=stream) for stream in (False, True))
    return f"an export needs {whole.words}, streamed {_gb(streamed.memory)} of memory"


def smaller(settings: ExportSection) -> str:
    """Return by which settings an artifact would be smaller; empty: by none."""
    return "a smaller export.dtype, such as float16" if settings.dtype == "float32" else ""


def _held_streaming(numbers: int, dims: DecoderDims, copies: float, *, asked: bool) -> float:
    """Return how many numbers are in memory at once where weights stream.

    They are the vision part, or one layer's; where questions are asked, both in float32.
    """
    layer = _of_a_layer(dims)
    table = dims.vocab * dims.hidden
    tables = table if dims.tied_embeddings else 2 * table
    vision = numbers - dims.layers * layer - tables
    both = vision + max(layer, table) if asked else 0
    return max(STREAMED_VISION * vision, copies * layer, copies * table, both)


def _of_a_layer(dims: DecoderDims) -> int:
    """Return how many numbers the matrices of a layer hold."""
    attention = dims.hidden * 2 * (dims.query_width + dims.kv_width)
    return attention + 3 * dims.hidden * dims.intermediate


def _gb(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
