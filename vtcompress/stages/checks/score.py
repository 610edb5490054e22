"""What scores the answers to held-out questions, settled before a model runs."""

from collections.abc import Sequence

from compressor.errors import VtcompressError
from compressor.recipe import Recipe
from compressor.samples.questions import Sample
from compressor.samples.scores import EXACT, Score, find_score
from compressor.schema.values import OWN_SCORE
from export.artifact.artifact import Artifact


def checked_score(recipe: Recipe, samples: Sequence[Sample]) -> Score:
    """Return what scores the answers to a recipe's validation data; see `compressor.samples.scores`.

    Where there is no data, no module of the user's own is imported.

    Raises:
        RecipeError: there is no such score.
        DataError: the samples cannot be scored by it.
    """
    if not samples:
        return EXACT
    score = find_score(recipe.validation.score)
    score.check(samples)
    return score


def artifact_score(
    artifact: Artifact, recipe: Recipe, asked: str | None, unmeasured: str = ""
) -> Score:
    """Return what scores answers of an artifact that is checked again: what it was validated by.

    Args:
        artifact: that is checked.
        recipe: its own.
        asked: name of another score; None: the artifact's.
        unmeasured: why no answers will be compared; empty if they will.

    Raises:
        RecipeError: there is no such score.
        VtcompressError: the artifact names a function of somebody's own, which only who checks can ask for;
            or a score is asked for, and no answers will be compared.
    """
    if unmeasured:
        if asked is not None:
            raise VtcompressError(f"score: compression loss is not measured: {unmeasured}")
        return EXACT
    loss = artifact.manifest.loss
    name = recipe.validation.score if loss is None else loss.score
    if asked is not None:
        name = recipe.override({"validate.score": asked}, source="score").validation.score
    elif name.startswith(OWN_SCORE):
        raise VtcompressError(
            f"{artifact.folder}: its answers were scored by {name}, and no artifact can have code run; to "
            f"have it run, or for another one, give `score`"
        )
    return find_score(name)
