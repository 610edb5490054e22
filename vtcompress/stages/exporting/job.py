"""What both halves of an export read."""

from dataclasses import dataclass, field

from compressor.plan.plan import Plan
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.samples.questions import Sample
from compressor.samples.scores import Score
from export.backends.torch_device import ON_CPU
from export.graphs.limits import Limits, cache_limits
from export.machine.stage_peaks import StagePeaks


@dataclass(frozen=True)
class Job:
    """One export.

    Attributes:
        recipe: names model, methods, data and the artifact's settings.
        rounds: how often each call is timed; 0 for none.
        threads: how many one operator has while timing.
        progress: shows stages and loops.
        samples: validation data.
        score: scores answers to it.
        range_samples: prompts that float16 graphs are run on.
        stream: weights go from the original's files to the artifact's one at a time, and layers run so.
        device: where the original runs.
        peaks: notes the memory of stages.
    """

    recipe: Recipe
    rounds: int
    threads: int
    progress: Progress
    samples: tuple[Sample, ...]
    score: Score
    range_samples: tuple[Sample, ...]
    stream: bool = False
    device: str = ON_CPU
    peaks: StagePeaks = field(default_factory=StagePeaks)

    def limits(self, plan: Plan) -> Limits | None:
        """Return the limits of a plan's fixed caches; None: they grow."""
        return cache_limits(self.recipe.export, plan.model, plan.rows_kept)
