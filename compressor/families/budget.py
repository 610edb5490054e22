"""The recipe's budget for pictures: what it changes in a processor, and whether there is room for it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from compressor.errors import ModelError
from compressor.facts import ModelFacts
from compressor.families.base import Family
from compressor.schema.sections import ImageSection

TEXT_ROWS = 1
"""Of a prompt at least, behind its pictures."""


def kept_budget(
    family: Family, budget: ImageSection, saved: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return what a budget changes in an image processor's values.

    Raises:
        ModelError: the family or the processor keeps no such budget, or not exactly.
    """
    if odd := [f"image.{key}" for key in budget.given if key not in family.budget_keys]:
        takes = family.budget_words()
        remedy = f"it takes {takes}" if takes else "their size is set by export.image_size"
        raise ModelError(
            [f"{', '.join(odd)}: is nothing for pictures of the family {family.name!r}; {remedy}"]
        )
    return family.within(budget, saved) if budget.given else {}


def check_budget_fits(
    family: Family,
    facts: ModelFacts,
    budget: ImageSection,
    saved: Mapping[str, Any],
    context: int | None = None,
) -> None:
    """Refuse a budget of which a picture may have more rows than there is room for.

    Args:
        family: of the model.
        facts: within the budget.
        budget: that the recipe gives; nothing of it: the model has its own.
        saved: what the image processor's file holds, without the budget.
        context: the recipe's `export.profiles.max_context`; None: as many as the decoder has positions.

    Raises:
        ModelError: names both figures and the largest such budget that fits.
    """
    positions = facts.decoder.max_positions
    room = f"the decoder has {positions} positions"
    if context is not None and context < positions:
        positions, room = context, f"export.profiles.max_context is {context}"
    most = positions - TEXT_ROWS
    if not budget.given or not saved or facts.picture_rows <= most:
        return
    asked = _words(budget)
    fitting = (
        one for one in _smaller(budget, facts, most) if _rows(family, facts, one, saved) <= most
    )
    fit = next(fitting, None)
    remedy = "leave it out" if fit is None else f"take {_words(fit)} or less"
    raise ModelError(
        [
            f"{asked}: a picture has up to {facts.picture_rows} visual tokens, but {room}, and a prompt ends "
            f"with text; {remedy}"
        ]
    )


def _words(budget: ImageSection) -> str:
    return " and ".join(f"image.{key}={getattr(budget, key)}" for key in budget.given)


def _rows(
    family: Family, facts: ModelFacts, budget: ImageSection, saved: Mapping[str, Any]
) -> float:
    """Return how many rows a picture has at most; infinitely many: there is no such budget."""
    try:
        changed = family.within(budget, saved)
        return family.with_pictures(facts, {**saved, **changed}).picture_rows
    except ModelError:
        return math.inf


def _smaller(budget: ImageSection, facts: ModelFacts, most: int) -> Iterator[ImageSection]:
    """Yield budgets of the same keys, the largest first."""
    cell = facts.cell or 1
    if budget.max_tiles is not None:
        for tiles in range(budget.max_tiles - 1, 0, -1):
            yield ImageSection(max_tiles=tiles)
    elif budget.max_pixels is not None:
        # A very oblong picture has more cells than its pixels alone would give.
        for cells in range(min(most, budget.max_pixels // cell**2), 0, -1):
            yield ImageSection(max_pixels=cells * cell**2)
    elif budget.height is not None and budget.width is not None:
        high, wide = -(-budget.height // cell), -(-budget.width // cell)
        for rows in range(high - 1, 0, -1):
            yield ImageSection(height=rows * cell, width=max(1, rows * wide // high) * cell)
