"""How large pictures get that are resized to whole cells: within bounds of pixels, or all to one size."""

import math
from collections.abc import Mapping
from typing import Any

from compressor.errors import ModelError
from compressor.facts import ModelFacts
from compressor.families.image_processors import allowed_pixels, fixed_size
from compressor.families.picture_steps import MAX_SIDE, PictureStep, ResizeToCells
from compressor.schema.sections import ImageSection


def with_cells(facts: ModelFacts, saved: Mapping[str, Any]) -> ModelFacts:
    """Return facts with what an image processor tells of pictures; see `Family.with_pictures`."""
    cell, grid, tokens = facts.cell or 1, None, 0
    least, most = allowed_pixels(saved)
    if (size := fixed_size(saved)) is not None:
        if not any(side % cell for side in size):
            grid = size[0] // cell, size[1] // cell
            tokens = math.prod(grid)
    elif 1 <= least <= most:
        step = ResizeToCells(cell=cell, least=least, most=most, resample="bicubic")
        tokens = step.most_cells
    if not tokens:  # told with the image processor's file
        return facts
    side = math.isqrt(tokens) * cell
    return facts.model_copy(
        update={"visual_tokens": tokens, "token_grid": grid, "image_size": side}
    )


def cells_within(
    budget: ImageSection, saved: Mapping[str, Any], first: PictureStep | None
) -> Mapping[str, Any]:
    """Return what a budget changes in the values of an image processor; see `Family.within`.

    Args:
        budget: with `max_pixels`, or with `height` and `width`.
        saved: what the image processor's file holds.
        first: what it does first to a picture; None: it is not known.
    """
    least, _ = allowed_pixels(saved)
    if budget.max_pixels is None:
        sides = {key: getattr(budget, key) for key in ("height", "width")}
        cell = first.cell if isinstance(first, ResizeToCells) else 1
        size: dict[str, Any] = sides
        problems = [line for key, side in sides.items() for line in _side_problems(key, side, cell)]
    else:
        size, problems = {"shortest_edge": least, "longest_edge": budget.max_pixels}, []
        if budget.max_pixels < least:
            problems = [
                f"image.max_pixels: {budget.max_pixels} is less than the {least} pixels that the model's "
                f"image processor gives a picture at least; take {least} or more"
            ]
    if problems:
        raise ModelError(problems)
    # Older files say it by keys of their own, which count more than `size`.
    return {"size": size, "min_pixels": None, "max_pixels": None}


def _side_problems(key: str, side: int, cell: int) -> list[str]:
    """Return a line if an edge of all pictures is not made of whole cells."""
    most = MAX_SIDE // cell * cell
    nearest = [n for n in (side // cell * cell, -(-side // cell) * cell) if 0 < n <= most] or [most]
    if side in nearest:
        return []
    return [
        f"image.{key}: {side} cannot be kept exactly: a visual token shows {cell} x {cell} pixels; take "
        f"{' or '.join(map(str, nearest))}"
    ]
