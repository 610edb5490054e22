"""Runs a recipe's own prompts through float16 graphs, so that `export.overflow` sees values as they occur."""

from collections.abc import Sequence
from pathlib import Path

from compressor.calibration.data import Sample
from compressor.plan import Plan
from compressor.recipe import Recipe
from export.graphs import GraphSpec
from export.limits import cache_limits
from export.overflow import Float16Ranges, Prompts, keep_wide
from export.parity import fidelity
from export.runtime import Runtime
from export.sessions import Session
from vtcompress.inputs import calibration_samples

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
    found = calibration_samples(recipe) if recipe.calibrate.data else validation
    return tuple(found[:MOST_PROMPTS])


def keep_wide_nodes(
    recipe: Recipe,
    samples: Sequence[Sample],
    folder: Path,
    graphs: Sequence[GraphSpec],
    plan: Plan,
    image_token: str,
) -> Float16Ranges | None:
    """Put nodes of an artifact's float16 graphs in float32 where prompts need it; None for other dtypes.

    Without samples the calls of the fidelity check are run.

    Raises:
        VtcompressError: values do not fit into float16 where they must.
    """
    if recipe.export.dtype != "float16":
        return None

    def ask(session: Session) -> None:
        runtime = Runtime.on_session(session, folder, plan.model, image_token)
        asked = [(sample.question, sample.images) for sample in samples]
        for _ in runtime.answers(asked, max_new_tokens=1, generation_config=False):
            pass

    def check(session: Session) -> None:
        caches = cache_limits(recipe.export, plan.model)
        fidelity.record(session, plan, room=caches.max_context if caches else None)

    data = recipe.calibrate.data or recipe.validation.data
    prompts = Prompts(check, fidelity.PROMPTS, "made-up prompts of the fidelity check")
    if samples and data is not None:
        prompts = Prompts(ask, len(samples), f"prompts of {data.name}")
    return keep_wide(folder, graphs, prompts)
