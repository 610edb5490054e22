"""Runs a recipe's own prompts through float16 graphs, so that their values are seen as they occur."""

from collections.abc import Sequence
from pathlib import Path

from compressor.families.pictures.text import PictureForm
from compressor.plan.plan import Plan
from compressor.recipe import Recipe
from compressor.samples.questions import Sample
from export.checks import fidelity
from export.checks.float16 import Prompts, keep_wide
from export.graphs.limits import cache_limits
from export.graphs.spec import GraphSpec
from export.results.float16 import Float16Ranges
from export.runtime.runtime import Runtime
from export.session.session import Session
from vtcompress.stages.inputs import calibration_samples

MOST_PROMPTS = 8
"""Samples of the recipe's data that are run."""


def range_samples(recipe: Recipe, validation: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return the samples that float16 graphs are run on: the first for calibration, else for validation.

    None for other dtypes, and where the recipe names no data.

    Raises:
        DataError: the calibration data cannot be used.
    """
    if recipe.export.dtype != "float16":
        return ()
    samples = calibration_samples(recipe) if recipe.calibrate.data else validation
    return tuple(samples[:MOST_PROMPTS])


def keep_wide_nodes(
    recipe: Recipe,
    samples: Sequence[Sample],
    folder: Path,
    graphs: Sequence[GraphSpec],
    plan: Plan,
    form: PictureForm,
) -> Float16Ranges | None:
    """Put nodes of an artifact's float16 graphs in float32 where prompts need it; None for other dtypes.

    Without samples the calls of the fidelity check are run.

    Raises:
        VtcompressError: values do not fit into float16 where they must.
    """
    if recipe.export.dtype != "float16":
        return None

    def ask(session: Session) -> None:
        runtime = Runtime.on_session(session, folder, plan.model, form)
        asked = [(sample.question, sample.images) for sample in samples]
        for _ in runtime.answers(asked, max_new_tokens=1, generation_config=False):
            pass

    def check(session: Session) -> None:
        caches = cache_limits(recipe.export, plan.model, plan.rows_kept)
        fidelity.record(session, plan, room=caches.max_context if caches else None)

    data = recipe.calibrate.data or recipe.validation.data
    prompts = Prompts(check, fidelity.PROMPTS, "made-up prompts of the fidelity check")
    if samples and data is not None:
        prompts = Prompts(ask, len(samples), f"prompts of {data.name}")
    return keep_wide(folder, graphs, prompts)
