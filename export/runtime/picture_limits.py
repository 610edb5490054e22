"""How much may be made of one picture, and of which values: refused before memory is taken for it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compressor.errors import DataError, ModelError
from compressor.families.pictures.steps import PictureStep

MAX_STEPS = 30
"""Steps of a picture; known processors have fewer than ten."""
MAX_VALUE = 10_000.0
"""Of a pixel as the vision tower gets it; known ones are below ten."""
MAX_RESULT = 32_000_000
"""Pixels that are made of one picture, in all of its tiles; the models that are supported take 13 million."""


def check_steps(steps: Sequence[PictureStep], values: NDArray[np.float32]) -> None:
    """Refuse steps that no picture goes through.

    Args:
        steps: in their order.
        values: [C, 256] what they make of each level.

    Raises:
        ModelError: there are too many, or they make what is no number.
    """
    if len(steps) > MAX_STEPS:
        found = f"{len(steps)} are more than the {MAX_STEPS} that a picture goes through"
        raise ModelError([f"picture steps: {found}; save the model's processor again"])
    if not (np.isfinite(values).all() and np.abs(values).max() <= MAX_VALUE):
        problem = f"make of a picture what is no number, or beyond {MAX_VALUE:,.0f}"
        raise ModelError(
            [f"picture steps: {problem}: correct image_std, image_mean or rescale_factor"]
        )


def check_made(pixels: int) -> None:
    """Refuse a picture of which more pixels would be made than any model takes.

    Raises:
        DataError: says how many.
    """
    if pixels > MAX_RESULT:
        problem = f"{pixels:,} pixels would be made of it, and {MAX_RESULT:,} are allowed"
        raise DataError([f"image: {problem}: make it smaller, or correct the processor's sizes"])
