"""From an image file to the pixel values that the vision graph takes, with Pillow and numpy alone.

The steps and their order are those of transformers' own Pillow image processors
(`CLIPImageProcessorPil`, `SiglipImageProcessorPil`, `LlavaImageProcessorPil`, transformers 5):
colours to RGB, pad to a square (LLaVA), resize, centre crop, rescale, normalise. The results are
equal bit for bit, except for 16-bit grey and for images whose resized form is over `MAX_PIXELS`.

Letters: C = 3 channels (red, green, blue); H, W = height and width of the model's input, in pixels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compressor.disk.model_json import read_json_object
from compressor.errors import DataError, ModelError
from compressor.samples.pictures import MAX_PIXELS, load_image, to_rgb

MAX_SIDE = 4096
"""Largest height or width of a model's input, in pixels."""

_CLIP_DEFAULTS: Mapping[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_pad": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_SIGLIP_DEFAULTS: Mapping[str, Any] = {
    **_CLIP_DEFAULTS,
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "crop_size": None,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
# What each of transformers' processors does where the saved configuration is silent. Its Llava
# class alone pads to a square by do_pad; in the others it completes a batch and needs pad_size.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "CLIPImageProcessor": _CLIP_DEFAULTS,
    "SiglipImageProcessor": _SIGLIP_DEFAULTS,
    "LlavaImageProcessor": _CLIP_DEFAULTS,
}
_PADS_TO_SQUARE = "LlavaImageProcessor"


@dataclass(frozen=True)
class ImageProcessor:
    """What a model does to an image before its vision tower; made by `from_folder`.

    Attributes:
        resize: length in pixels of the shorter edge, or (height, width), or None for no resize.
        resample: Pillow's filter for the resize.
        crop: (height, width) of the centre crop in pixels, or None; what lies outside
            the image is black.
        square_colour: colour (0..255 a channel) of the border that makes an image square before the
            resize, or None for no such border.
        scale: factor on the 8-bit values, or None.
        mean: subtracted from each channel after scaling, or None together with `std`.
        std: divides each channel after that.
    """

    resize: int | tuple[int, int] | None
    resample: Image.Resampling
    crop: tuple[int, int] | None
    square_colour: tuple[int, int, int] | None
    scale: float | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        """Return the processor saved in a model folder or artifact.

        Read as transformers 5 does: the section `image_processor` of `processor_config.json`, else
        `preprocessor_config.json`.

        Raises:
            ModelError: neither file is there or readable, or the configuration is not supported;
                every problem is named.
        """
        nested = path / "processor_config.json"
        if nested.is_file():
            section = read_json_object(nested).get("image_processor")
            if isinstance(section, dict):
                return cls.from_config(section, f"{nested}: image_processor")
        older = path / "preprocessor_config.json"
        if older.is_file():
            return cls.from_config(read_json_object(older), str(older))
        problem = (
            f"{path}: no image processor found: neither processor_config.json with a section "
            "image_processor nor preprocessor_config.json; save the processor with the model "
            "(processor.save_pretrained)"
        )
        raise ModelError([problem])

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Self:
        """Return the processor that a saved configuration describes.

        Keys that transformers ignores too are ignored. `do_convert_rgb` makes no difference here: a
        tower with three input channels can take nothing else, so images are always converted.

        Args:
            config: the saved keys and values; a missing or null one has the class's default.
            where: names the configuration in errors.

        Raises:
            ModelError: an unknown processor class or unsupported options, all named together.
        """
        return cls(**_Options(config, where).read())

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of every result, in pixels."""
        if self.crop is not None:
            return self.crop
        if isinstance(self.resize, tuple):
            return self.resize
        # Without a crop, `from_config` takes a shorter edge only if images are made square first.
        edge = self.resize or 0
        return edge, edge

    def __call__(self, image: Image.Image | str | Path) -> NDArray[np.float32]:
        """Return the pixel values of one image, [C, H, W] float32, contiguous.

        A path goes through `load_image`. An image is taken as it is: the caller has turned it
        upright and chosen its frame.

        Raises:
            DataError: the image cannot be read or is too large.
        """
        if not isinstance(image, Image.Image):
            image = load_image(image)
        rgb = to_rgb(image, "image")
        if self.square_colour is not None:
            rgb = _pad_to_square(rgb, self.square_colour)
        pixels = np.asarray(self._resized_and_cropped(rgb))  # [H, W, C]
        table = self._table()  # [C, 256]
        return np.stack([table[channel][pixels[..., channel]] for channel in range(3)])

    def _resized_and_cropped(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        new_width, new_height = _new_size(self.resize, width, height)
        crop_height, crop_width = self.crop or (new_height, new_width)
        # Floor division also where the crop is larger, as in transformers: the odd row goes first.
        left, top = (new_width - crop_width) // 2, (new_height - crop_height) // 2
        part = (0, 0, new_width, new_height)
        if new_width * new_height > MAX_PIXELS:
            # A 1 x 20,000 image has a shorter edge of 1: resize only what the crop keeps.
            right, bottom = left + crop_width, top + crop_height
            part = (max(left, 0), max(top, 0), min(right, new_width), min(bottom, new_height))
            image = _resize_part(image, (new_width, new_height), part, self.resample)
        elif self.resize is not None:
            image = image.resize((new_width, new_height), self.resample)
        if self.crop is None:
            return image
        left, top = left - part[0], top - part[1]
        return image.crop((left, top, left + crop_width, top + crop_height))

    def _table(self) -> NDArray[np.float32]:
        """Value of each 8-bit level, [C, 256]: rescaled in float64 and normalised in float32."""
        levels = np.arange(256, dtype=np.float64)
        if self.scale is not None:
            levels = levels * self.scale
        values = np.tile(levels.astype(np.float32), (3, 1))
        if self.mean is not None and self.std is not None:
            mean = np.array(self.mean, dtype=np.float32)[:, None]
            std = np.array(self.std, dtype=np.float32)[:, None]
            values = (values - mean) / std
        return values


def _pad_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
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


def _new_size(resize: int | tuple[int, int] | None, width: int, height: int) -> tuple[int, int]:
    """(width, height) after the resize; the longer edge is rounded down as transformers does."""
    if resize is None:
        return width, height
    if isinstance(resize, tuple):
        return resize[1], resize[0]
    longer = int(resize * max(width, height) / min(width, height))
    return (resize, longer) if width <= height else (longer, resize)


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


class _Options:
    """Reads a saved configuration and collects everything that is wrong with it."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._where = where
        self._config = config
        self._problems: list[str] = []
        self._kind = self._processor_class()
        self._defaults = _DEFAULTS[self._kind]

    def read(self) -> dict[str, Any]:
        """Return the fields of `ImageProcessor`."""
        self._refuse_unsupported()
        to_square = self._kind == _PADS_TO_SQUARE and self._flag("do_pad")
        resize = self._resize() if self._flag("do_resize") else None
        crop = self._crop() if self._flag("do_center_crop") else None
        scale = self._positive("rescale_factor") if self._flag("do_rescale") else None
        mean = self._triple("image_mean") if to_square or self._flag("do_normalize") else None
        std = self._triple("image_std") if self._flag("do_normalize") else None
        if std is not None and 0 in std:
            self._problem("image_std", "a channel is divided by zero")
        if to_square and mean is not None and not all(0 <= value <= 1 for value in mean):
            self._problem("image_mean", "is the border's colour with do_pad, so it must be in 0..1")
        if crop is None and (resize is None or (isinstance(resize, int) and not to_square)):
            self._problem(
                "size", "gives images of different sizes without a crop, which a graph cannot take"
            )
        resample = self._resample()
        if self._problems:
            raise ModelError(self._problems)
        border = mean if to_square else None
        return {
            "resize": resize,
            "resample": resample,
            "crop": crop,
            "square_colour": tuple(int(value * 255) for value in border) if border else None,
            "scale": scale,
            "mean": mean if std is not None else None,
            "std": std,
        }

    def _processor_class(self) -> str:
        name = self._config.get("image_processor_type") or self._config.get(
            "feature_extractor_type"
        )
        if not isinstance(name, str):
            raise ModelError([f"{self._where}: no image_processor_type; save the processor again"])
        plain = (
            name.removesuffix("Fast")
            .removesuffix("Pil")
            .replace("FeatureExtractor", "ImageProcessor")
        )
        if plain not in _DEFAULTS:
            known = ", ".join(_DEFAULTS)
            raise ModelError(
                [f"{self._where}: image_processor_type: {name} is not supported; {known} are"]
            )
        return plain

    def _refuse_unsupported(self) -> None:
        if (
            self._kind != _PADS_TO_SQUARE
            and self._config.get("do_pad")
            and self._config.get("pad_size")
        ):
            self._problem("pad_size", "padding to a fixed size is not supported")
        if self._config.get("use_square_size"):
            self._problem("use_square_size", "is not supported; write size as height and width")
        for key in ("data_format", "input_data_format"):
            if self._config.get(key) not in (None, "channels_first"):
                self._problem(key, "only channels_first is supported")

    def _problem(self, key: str, what: str) -> None:
        found = self._config.get(key, self._defaults.get(key))
        self._problems.append(f"{self._where}: {key}: {found!r}: {what}")

    def _value(self, key: str) -> Any:
        value = self._config.get(key)
        return self._defaults.get(key) if value is None else value

    def _flag(self, key: str) -> bool:
        value = self._value(key)
        if not isinstance(value, bool):
            self._problem(key, "must be true or false")
        return bool(value)

    def _resize(self) -> int | tuple[int, int] | None:
        size = self._value("size")
        if _is_side(size):
            square = self._flag("default_to_square")
            return (int(size), int(size)) if square else int(size)
        if (
            isinstance(size, Mapping)
            and set(size) == {"shortest_edge"}
            and _is_side(size["shortest_edge"])
        ):
            return int(size["shortest_edge"])
        return self._height_width("size", "or shortest_edge ")

    def _crop(self) -> tuple[int, int] | None:
        return self._height_width("crop_size", "")

    def _height_width(self, key: str, also: str) -> tuple[int, int] | None:
        size = self._value(key)
        if _is_side(size):
            return int(size), int(size)
        if isinstance(size, Mapping) and set(size) == {"height", "width"}:
            size = (size["height"], size["width"])
        if isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_side, size)):
            return int(size[0]), int(size[1])
        self._problem(key, f"only height and width {also}in 1..{MAX_SIDE} pixels are supported")
        return None

    def _positive(self, key: str) -> float | None:
        value = self._value(key)
        if _is_number(value) and value > 0:
            return float(value)
        self._problem(key, "must be a number above 0")
        return None

    def _triple(self, key: str) -> tuple[float, float, float] | None:
        value = self._value(key)
        values = [value] * 3 if _is_number(value) else value
        if isinstance(values, list | tuple) and len(values) == 3 and all(map(_is_number, values)):
            return float(values[0]), float(values[1]), float(values[2])
        self._problem(key, "must be one number or three, for red, green and blue")
        return None

    def _resample(self) -> Image.Resampling:
        value = self._value("resample")
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and value in set(Image.Resampling)
        ):
            return Image.Resampling(value)
        allowed = ", ".join(
            f"{filter_.value} ({filter_.name.lower()})" for filter_ in Image.Resampling
        )
        self._problem("resample", f"is no filter; allowed are {allowed}")
        return Image.Resampling.BICUBIC


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
