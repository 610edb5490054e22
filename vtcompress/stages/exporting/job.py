"""What both halves of an export read."""

from dataclasses import dataclass

from compressor.plan.cost import BYTES
from compressor.plan.plan import Plan
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.samples.questions import Sample
from compressor.schema.sections import ExportSection
from export.graphs.limits import Limits, cache_limits


@dataclass(frozen=True)
class Job:
    """One export.

    Attributes:
        recipe: names model, methods, data and the artifact's settings.
        rounds: how often each call is timed; 0 for none.
        threads: how many one operator has while timing.
        progress: shows stages and loops.
        samples: validation data.
        range_samples: prompts that float16 graphs are run on.
        stream: weights go from the original's files to the artifact's one at a time; nothing is run.
    """

    recipe: Recipe
    rounds: int
    threads: int
    progress: Progress
    samples: tuple[Sample, ...]
    range_samples: tuple[Sample, ...]
    stream: bool = False

    def limits(self, plan: Plan) -> Limits | None:
        """Return the limits of a plan's fixed caches; None: they grow."""
        return cache_limits(self.recipe.export, plan.model, plan.rows_kept)


def bytes_of_weights(settings: ExportSection, numbers: int) -> int:
    """Return about what so many weights of a model take in an artifact: floats, and any whole numbers too."""
    floats = numbers * BYTES[settings.dtype]
    if settings.block_size is None:
        return floats
    scales = floats // settings.block_size
    return floats + scales + numbers // (1 if settings.weights == "int8" else 2)
