"""What a model does to a picture before its vision tower, as data: steps, in their order.

A family gives them (`Family.picture_steps`), the manifest holds them, `export.runtime.images` runs them. A
new kind of step is a class here, its place in `PictureStep` and `output_size`, and a case there.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias, assert_never

from pydantic import Field, model_validator

from compressor.errors import ModelError
from compressor.facts import Facts

MAX_SIDE = 4096
"""Largest height or width that a step may ask for, in pixels."""

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Level = Annotated[int, Field(ge=0, le=255)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Filter = Literal[
    "nearest", "lanczos", "bilinear", "bicubic", "box", "hamming", "mks2013", "mks2021"
]


class PadToSquare(Facts):
    """Lays the picture on a square of its longer edge; of an odd border the smaller half is in front.

    Attributes:
        colour: of the border: red, green, blue.
    """

    step: Literal["pad_to_square"] = "pad_to_square"
    colour: tuple[Level, Level, Level]


class Resize(Facts):
    """Makes the picture of one size.

    Attributes:
        size: height and width in pixels.
        resample: Pillow's filter.
    """

    step: Literal["resize"] = "resize"
    size: tuple[Side, Side]
    resample: Filter


class ResizeShorter(Facts):
    """Makes the shorter edge of one length and keeps proportions; the longer edge is rounded down.

    Attributes:
        edge: length in pixels.
        resample: Pillow's filter.
    """

    step: Literal["resize_shorter"] = "resize_shorter"
    edge: Side
    resample: Filter


class Crop(Facts):
    """Cuts out the middle; what lies outside the picture is black.

    Attributes:
        size: height and width in pixels.
    """

    step: Literal["crop"] = "crop"
    size: tuple[Side, Side]


class Rescale(Facts):
    """Multiplies values in float64; the product is rounded to float32."""

    step: Literal["rescale"] = "rescale"
    factor: Number


class Normalise(Facts):
    """Subtracts a mean and divides by a deviation, in float32; one of each for red, green and blue."""

    step: Literal["normalise"] = "normalise"
    mean: tuple[Number, Number, Number]
    std: tuple[Number, Number, Number]

    @model_validator(mode="after")
    def _divisible(self) -> "Normalise":
        if 0 in self.std:
            raise ValueError("std: a channel is divided by zero")
        return self


PictureStep: TypeAlias = Annotated[
    PadToSquare | Resize | ResizeShorter | Crop | Rescale | Normalise, Field(discriminator="step")
]
PictureSteps: TypeAlias = tuple[PictureStep, ...]


def output_size(steps: Sequence[PictureStep]) -> tuple[int, int]:
    """Return (H, W), in pixels, of every picture that went through steps.

    Raises:
        ModelError: pictures of different sizes come out, which a graph cannot take, or a step that changes
            the picture stands behind one that changes its values.
    """
    size: tuple[int, int] | None = None
    square = values = False
    for step, following in zip(steps, (*steps[1:], None), strict=False):
        if values and not isinstance(step, Rescale | Normalise):
            raise ModelError([f"picture steps: {step.step}: stands behind the steps on values"])
        match step:
            case PadToSquare():
                square, size = True, size and (max(size), max(size))
            case ResizeShorter():
                size = (step.edge, step.edge) if square else None
                # Else a long line becomes a picture that no memory holds.
                if size is None and not isinstance(following, Crop):
                    break
            case Resize() | Crop():
                size, square = step.size, step.size[0] == step.size[1]
            case Rescale() | Normalise():
                values = True
            case _:
                assert_never(step)
    if size is None:
        problem = "picture steps: give pictures of different sizes, which a graph cannot take"
        raise ModelError([problem])
    return size
