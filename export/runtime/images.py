"""From an image file to the pixel values that the vision graph takes, with Pillow and numpy alone.

Runs the steps of `compressor.families.picture_steps`, which a family gave; no model and no processor is known
here.

Letters: C = 3 channels (red, green, blue); H, W = height and width of the model's input, in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, assert_never

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compressor.errors import DataError, ModelError
from compressor.families.image_processors import steps_in
from compressor.families.picture_steps import (
    Crop,
    Normalise,
    PadToSquare,
    PictureStep,
    PictureSteps,
    Rescale,
    Resize,
    ResizeShorter,
    output_size,
)
from compressor.samples.pictures import MAX_PIXELS, load_image, to_rgb


@dataclass(frozen=True)
class ImageProcessor:
    """What a model does to an image before its vision tower.

    Attributes:
        steps: in their order.

    Raises:
        ModelError: the steps cannot be run; see `output_size`.
    """

    steps: PictureSteps

    def __post_init__(self) -> None:
        output_size(self.steps)

    @classmethod
    def of_artifact(cls, steps: PictureSteps | None, folder: Path) -> Self:
        """Return what runs an artifact's steps.

        Args:
            steps: that its manifest holds; None: it is older and holds none.
            folder: of the files of its processor, which tell the steps of older artifacts.

        Raises:
            ModelError: the files are not there or not readable, or the steps cannot be run.
        """
        return cls(steps_in(folder) if steps is None else steps)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of every result, in pixels."""
        return output_size(self.steps)

    def __call__(self, image: Image.Image | str | Path) -> NDArray[np.float32]:
        """Return the pixel values of one image, [C, H, W] float32, contiguous.

        A path goes through `load_image`. An image is taken as it is: the caller has turned it
        upright and chosen its frame.

        Raises:
            DataError: the image cannot be read or is too large.
        """
        if not isinstance(image, Image.Image):
            image = load_image(image)
        pixels = np.asarray(_pictured(to_rgb(image, "image"), self.steps))  # [H, W, C]
        values = _values(self.steps)  # [C, 256]
        return np.stack([values[channel][pixels[..., channel]] for channel in range(3)])


def _pictured(image: Image.Image, steps: Sequence[PictureStep]) -> Image.Image:
    """Run the steps that change the picture."""
    for step, following in zip(steps, (*steps[1:], None), strict=False):
        match step:
            case PadToSquare():
                image = _padded(image, step.colour)
            case Resize():
                image = image.resize(step.size[::-1], _filter(step))
            case ResizeShorter():
                image = _resized(image, step, following if isinstance(following, Crop) else None)
            case Crop():
                height, width = step.size
                # Floor division also where the crop is larger, as in transformers: the odd row goes first.
                left, top = (image.width - width) // 2, (image.height - height) // 2
                image = image.crop((left, top, left + width, top + height))
            case Rescale() | Normalise():
                pass
            case _:
                assert_never(step)
    return image


def _values(steps: Sequence[PictureStep]) -> NDArray[np.float32]:
    """Return what the steps on values make of each 8-bit level, [C, 256]."""
    values = np.tile(np.arange(256, dtype=np.float32), (3, 1))
    for step in steps:
        match step:
            case Rescale():
                values = (values.astype(np.float64) * step.factor).astype(np.float32)
            case Normalise():
                mean, std = (np.array(v, dtype=np.float32)[:, None] for v in (step.mean, step.std))
                values = (values - mean) / std
            case PadToSquare() | Resize() | ResizeShorter() | Crop():
                pass
            case _:
                assert_never(step)
    return values


def _padded(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    if side * side > MAX_PIXELS:
        size = (
            f"{width} x {height} pixels, padded to a square as this model does, are {side * side}"
        )
        raise DataError([f"image: {size}; {MAX_PIXELS} are allowed: crop it or make it smaller"])
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _resized(image: Image.Image, step: ResizeShorter, crop: Crop | None) -> Image.Image:
    """Resize a picture, or if it would be too large only what the crop behind keeps of it."""
    longer = int(step.edge * max(image.size) / min(image.size))  # rounded as transformers does
    size = (step.edge, longer) if image.width <= image.height else (longer, step.edge)
    if crop is None or step.edge * longer <= MAX_PIXELS:
        return image.resize(size, _filter(step))
    # A 1 x 20,000 image has a shorter edge of 1.
    kept = min(size[0], crop.size[1]), min(size[1], crop.size[0])
    left, top = (size[0] - kept[0]) // 2, (size[1] - kept[1]) // 2
    return _resize_part(image, size, (left, top, left + kept[0], top + kept[1]), _filter(step))


def _filter(step: Resize | ResizeShorter) -> Image.Resampling:
    """Return Pillow's filter of a name; it gains some with the years."""
    try:
        return Image.Resampling[step.resample.upper()]
    except KeyError:
        problem = f"picture steps: {step.step}: {step.resample}: this Pillow has no such filter: upgrade it"
        raise ModelError([problem]) from None


def _resize_part(
    image: Image.Image,
    size: tuple[int, int],
    part: tuple[int, int, int, int],
    resample: Image.Resampling,
) -> Image.Image:
    """Return `image.resize(size).crop(part)` without ever holding the whole resized image.

    Only for enlarging, which is all that can lead from an allowed image beyond `MAX_PIXELS`.
    Pillow takes the source box in single precision, so the source is first cut to the pixels that
    the filter can reach, which keeps the box's coordinates small.
    """
    steps = (image.width / size[0], image.height / size[1])
    low, high = [], []
    for axis, length in enumerate(image.size):
        reach = math.ceil(3 * max(1.0, steps[axis])) + 1  # Lanczos, the widest filter, reaches 3
        low.append(max(0, math.floor(part[axis] * steps[axis]) - reach))
        high.append(min(length, math.ceil(part[axis + 2] * steps[axis]) + reach))
    source = image.crop((low[0], low[1], high[0], high[1]))
    left, top = (max(0.0, part[axis] * steps[axis] - low[axis]) for axis in (0, 1))
    right, bottom = (
        min(float(length), part[axis + 2] * steps[axis] - low[axis])
        for axis, length in enumerate(source.size)
    )
    # Rows first and columns after, as Pillow does when it enlarges; left alone it would choose the
    # order by the smaller size, and each pass rounds to 8 bits.
    width, height = part[2] - part[0], part[3] - part[1]
    rows = source.resize((width, source.height), resample, box=(left, 0, right, source.height))
    return rows.resize((width, height), resample, box=(0, top, width, bottom))
