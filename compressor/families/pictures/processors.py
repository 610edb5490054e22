"""What transformers' image processors do, read from their saved configuration as steps; no torch here.

The steps and their order are those of transformers' own Pillow image processors
(`CLIPImageProcessorPil`, `SiglipImageProcessorPil`, `LlavaImageProcessorPil`, `GotOcr2ImageProcessorPil`,
`Idefics3ImageProcessorPil`, `SmolVLMImageProcessorPil`, `LlavaNextImageProcessorPil`,
`LlavaOnevisionImageProcessorPil`, `Qwen2VLImageProcessorPil`, `PaddleOCRVLImageProcessorPil`,
`PixtralImageProcessorPil`, transformers 5): colours to RGB, cut into tiles (GotOcr2; LLaVA-NeXT and
OneVision, in one of several sizes; Idefics3 and SmolVLM, behind a resize), pad to a square (LLaVA), resize,
centre crop, rescale, normalise; patches (Qwen2VL, PaddleOCRVL) and borders of a batch (Pixtral) are left
out. The results are equal bit for bit, except for 16-bit grey and for images whose resized form is over
`MAX_PIXELS`.

Families call `saved_steps` at export. Artifacts that were made before their manifest held steps are read by
`steps_in` when they are loaded.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from PIL import Image

from compressor.disk.model_json import read_json_object
from compressor.errors import ModelError
from compressor.families.pictures.defaults import (
    DEFAULTS,
    FROM_CELL,
    PADS_TO_SQUARE,
    SEVERAL_UNCUT,
    TO_CELLS,
    TO_FRAME,
)
from compressor.families.pictures.steps import (
    MAX_SIDE,
    MAX_TILES,
    Crop,
    CutTiles,
    Filter,
    FitTiles,
    FitToCells,
    Normalise,
    PadToSquare,
    PictureStep,
    PictureSteps,
    Rescale,
    Resize,
    ResizeLonger,
    ResizeShorter,
    ResizeToCells,
    TileByAspect,
)

FILTERS = {
    known.value: cast("Filter", known.name.lower())
    for known in Image.Resampling
    if known.name.lower() in get_args(Filter)
}
"""Filters by the numbers that Pillow and saved configurations have for them."""


def steps_in(folder: Path) -> PictureSteps:
    """Return the steps of the processor saved in a model folder or artifact.

    Raises:
        ModelError: as `image_section` and `saved_steps`.
    """
    return saved_steps(*image_section(folder))


def image_section(folder: Path) -> tuple[Mapping[str, Any], str]:
    """Return what the image processor saved in a model folder or artifact holds, and where that stands.

    Read as transformers 5 does: the section `image_processor` of `processor_config.json`, else
    `preprocessor_config.json`.

    Raises:
        ModelError: neither file is there or readable.
    """
    nested = folder / "processor_config.json"
    if nested.is_file():
        section = read_json_object(nested).get("image_processor")
        if isinstance(section, dict):
            return section, f"{nested}: image_processor"
    older = folder / "preprocessor_config.json"
    if older.is_file():
        return read_json_object(older), str(older)
    problem = (
        f"{folder}: no image processor found: neither processor_config.json with a section "
        "image_processor nor preprocessor_config.json; save the processor with the model "
        "(processor.save_pretrained)"
    )
    raise ModelError([problem])


def saved_steps(config: Mapping[str, Any], where: str) -> PictureSteps:
    """Return the steps that a saved configuration describes.

    Keys that transformers ignores too are ignored. `do_convert_rgb` makes no difference here: a
    tower with three input channels can take nothing else, so images are always converted.

    Args:
        config: the saved keys and values; a missing or null one has the class's default.
        where: names the configuration in errors.

    Raises:
        ModelError: an unknown processor class or unsupported options, all named together.
    """
    return _Options(config, where).read()


def values_of(images: Any) -> dict[str, Any]:
    """Return an image processor's values, as its file would hold them.

    Args:
        images: of transformers.
    """
    values: dict[str, Any] = json.loads(images.to_json_string())
    return values


def fixed_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width of every picture, where a processor of cells is told them; None: it is not.

    Args:
        config: saved keys and values of a `Qwen2VLImageProcessor`.
    """
    size = config.get("size")
    if not (isinstance(size, Mapping) and set(size) == {"height", "width"}):
        return None
    height, width = size["height"], size["width"]
    return (height, width) if _is_side(height) and _is_side(width) else None


OLDER_PIXELS = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
"""Older names of how many pixels a picture has at least and at most; they go before the newer ones."""


def steps_beside_others(config: Mapping[str, Any], where: str) -> PictureSteps:
    """Return the steps for each of several pictures of a `LlavaOnevisionImageProcessor`; none is cut.

    Args:
        config: as in `saved_steps`.
        where: likewise.

    Raises:
        ModelError: as `saved_steps`.
    """
    steps = saved_steps(config, where)
    return _Options(config, where).on_a_square(steps)


def several_steps(config: Mapping[str, Any], where: str) -> PictureSteps | None:
    """Return the steps for each of several pictures, of whatever processor; None: those of one picture.

    Args:
        config: as in `saved_steps`.
        where: likewise.

    Raises:
        ModelError: as `saved_steps`.
    """
    return steps_beside_others(config, where) if _plain_class(config) == SEVERAL_UNCUT else None


def allowed_pixels(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many pixels a picture has at least and at most, where it keeps proportions; 0: no number.

    Args:
        config: saved keys and values of a processor that resizes to whole cells.
    """
    default = DEFAULTS.get(_plain_class(config), DEFAULTS[TO_CELLS[0]])["size"]
    size = config.get("size") or default
    named = dict(size) if isinstance(size, Mapping) else {}
    for key, older in OLDER_PIXELS.items():
        if config.get(older) is not None:
            named[key] = config[older]
    least, most = (value if type(value := named.get(key)) is int else 0 for key in OLDER_PIXELS)
    return least, most


def size_keys(config: Mapping[str, Any]) -> str:
    """Return which of a processor's keys set how large its pictures or tiles are, for errors.

    Args:
        config: as in `saved_steps`.
    """
    kind = _plain_class(config)
    named = {**DEFAULTS.get(kind, {}), **{k: v for k, v in config.items() if v is not None}}
    keys = ("max_image_size",) if "max_image_size" in named else ("size", "crop_size")
    return " and ".join(key for key in keys if named.get(key) is not None)


def _plain_class(config: Mapping[str, Any]) -> str:
    """Name of an image processor's class without what tells its backend; empty: none is named."""
    name = config.get("image_processor_type") or config.get("feature_extractor_type")
    if not isinstance(name, str):
        return ""
    return (
        name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    )


class _Options:
    """Reads a saved configuration and collects everything that is wrong with it."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._where = where
        self._config = config
        self._problems: list[str] = []
        self._kind = self._processor_class()
        self._defaults = DEFAULTS[self._kind]

    def read(self) -> PictureSteps:
        """Return the steps."""
        self._refuse_unsupported()
        to_square = self._kind == PADS_TO_SQUARE and self._flag("do_pad")
        fits = "image_grid_pinpoints" in self._defaults
        by_longest = "max_image_size" in self._defaults
        cells = self._cells()
        if self._problems and cells is None and self._kind in (*TO_CELLS, TO_FRAME):
            # Else more is said, of keys that such a class does not go by.
            raise ModelError(dict.fromkeys(self._problems))
        by_size = self._flag("do_resize") and not by_longest and not fits and cells is None
        resize = self._resize() if by_size else None
        crop = self._crop() if self._flag("do_center_crop") and not fits else None
        scale = self._positive("rescale_factor") if self._flag("do_rescale") else None
        mean = self._triple("image_mean") if to_square or self._flag("do_normalize") else None
        std = self._triple("image_std") if self._flag("do_normalize") else None
        if std is not None and 0 in std:
            self._problem("image_std", "a channel is divided by zero")
        if to_square and mean is not None and not all(0 <= value <= 1 for value in mean):
            self._problem("image_mean", "is the border's colour with do_pad, so it must be in 0..1")
        known = by_longest or fits or cells is not None or crop is not None
        if not known and (resize is None or (isinstance(resize, int) and not to_square)):
            self._problem(
                "size", "gives images of different sizes without a crop, which a graph cannot take"
            )
        resample = self._resample()
        tiles = self._tiles(resample) if "crop_to_patches" in self._defaults else None
        cut = self._cut(resample) if by_longest else ()
        fitted = self._fitted(resample) if fits else None
        if self._problems:
            raise ModelError(dict.fromkeys(self._problems))
        changes: tuple[PictureStep | None, ...] = (
            PadToSquare(colour=_levels(mean)) if to_square and mean else None,
            *cut,
            cells or tiles or fitted or _resized(resize, resample),
            Crop(size=crop) if crop else None,
            Rescale(factor=scale) if scale else None,
            Normalise(mean=mean, std=std) if mean and std else None,
        )
        return tuple(step for step in changes if step is not None)

    def on_a_square(self, steps: PictureSteps) -> PictureSteps:
        """Return the steps with the picture laid on a square of the mean colour in place of tiles."""
        mean = self._triple("image_mean") or (0.0, 0.0, 0.0)
        if not all(0 <= value <= 1 for value in mean):
            self._problem(
                "image_mean", "is the border's colour of several pictures, so it must be in 0..1"
            )
            raise ModelError(self._problems)
        (step,) = (step for step in steps if isinstance(step, FitTiles))
        square = (PadToSquare(colour=_levels(mean)), Resize(size=step.size, resample=step.resample))
        return (*square, *(step for step in steps if isinstance(step, Rescale | Normalise)))

    def _processor_class(self) -> str:
        plain = _plain_class(self._config)
        if not plain:
            raise ModelError([f"{self._where}: no image_processor_type; save the processor again"])
        if plain not in DEFAULTS:
            known, named = ", ".join(DEFAULTS), self._config.get("image_processor_type") or plain
            raise ModelError(
                [f"{self._where}: image_processor_type: {named} is not supported; {known} are"]
            )
        return plain

    def _refuse_unsupported(self) -> None:
        if (
            self._kind != PADS_TO_SQUARE
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

    def _cells(self) -> PictureStep | None:
        """Return the step that resizes to whole cells; None: it is not done."""
        if self._kind not in (*TO_CELLS, TO_FRAME) or not self._flag("do_resize"):
            return None
        if self._kind == TO_FRAME:
            return self._frame()
        patch, merge = (self._value(key) for key in ("patch_size", "merge_size"))
        if not (_is_side(patch) and _is_side(merge) and _is_side(patch * merge)):
            self._problem(
                "patch_size", f"and merge_size must be numbers with a product of 1..{MAX_SIDE}"
            )
            return None
        if (size := fixed_size(self._config)) is not None:
            if any(side % (patch * merge) for side in size):
                self._problem("size", f"must be multiples of the cells of {patch * merge} pixels")
            return Resize(size=size, resample=self._resample())
        least, most = allowed_pixels(self._config)
        if not 1 <= least <= most:
            older = [key for key in OLDER_PIXELS.values() if self._config.get(key) is not None]
            for key in older or ["size"]:
                self._problem(
                    key, "of least and most pixels the least is 1 or more, and the most no less"
                )
            return None
        resample = self._resample()
        return ResizeToCells(
            cell=patch * merge,
            least=least,
            most=most,
            resample=resample,
            from_cell=self._kind == FROM_CELL,
        )

    def _frame(self) -> PictureStep | None:
        """Return the step that makes pictures fit into a frame, in whole cells."""
        size, sides = self._value("size"), self._height_width("patch_size", "")
        if isinstance(size, Mapping) and set(size) == {"longest_edge"}:
            edge = self._longest("size")
            frame: tuple[int, int] | None = (edge, edge)
        else:
            frame = self._height_width("size", "or longest_edge ")
        if sides and sides[0] != sides[1]:
            self._problem("patch_size", "height and width must be equal")
        if not sides or not frame:
            return None
        return FitToCells(cell=sides[0], size=frame, resample=self._resample())

    def _tiles(self, resample: Filter) -> PictureStep | None:
        """Return the step that cuts a picture; None: it is not cut."""
        cut, least, most = (
            self._flag("crop_to_patches"),
            *map(self._count, ("min_patches", "max_patches")),
        )
        if not cut or most == 1:
            return None
        size = self._resize()  # whatever do_resize says
        if not isinstance(size, tuple):
            self._problem("size", "tiles need a height and a width")
        elif least > most:
            self._problem("min_patches", f"must be {most} or less, as max_patches is")
        else:
            return TileByAspect(size=size, least=least, most=most, resample=resample)
        return None

    def _fitted(self, resample: Filter) -> PictureStep | None:
        """Return the step that cuts a picture in one of several sizes; None: something is wrong with it."""
        size = self._resize()
        edges = {*((size, size) if isinstance(size, int) else size or ())}
        # Each tile is resized and cropped again, which must change nothing.
        if self._value("crop_size") is not None:
            edges |= {*(self._crop() or ())}
        if len(edges) > 1:
            self._problem("crop_size", "must be the square that size is: tiles have both sizes")
        sizes = self._value("image_grid_pinpoints")
        pairs = [tuple(one) for one in sizes] if _are_lists(sizes) else []
        edge = min(edges, default=1)
        whole = all(
            len(one) == 2 and all(_is_side(s) and s % edge == 0 for s in one) for one in pairs
        )
        if not pairs or not whole:
            self._problem(
                "image_grid_pinpoints",
                f"must be pairs of heights and widths, multiples of {edge}, up to {MAX_SIDE} pixels",
            )
        if self._problems:
            return None
        return FitTiles(size=(edge, edge), sizes=tuple(pairs), resample=resample)

    def _cut(self, resample: Filter) -> tuple[PictureStep, ...]:
        """Return the steps that bring the longer edge to a length and make squares of what comes out."""
        longest, edge = (self._longest(key) for key in ("size", "max_image_size"))
        resizes, splits = self._flag("do_resize"), self._flag("do_image_splitting")
        if splits and not resizes:
            self._problem("do_resize", "a large picture would become any number of tiles")
        first = ResizeLonger(edge=longest, resample=resample)
        second = (
            CutTiles(edge=edge, resample=resample)
            if splits
            else Resize(size=(edge, edge), resample=resample)
        )
        return (first, second) if resizes else (second,)

    def _longest(self, key: str) -> int:
        size = self._value(key)
        if isinstance(size, Mapping) and set(size) == {"longest_edge"}:
            edge = size["longest_edge"]
            if _is_side(edge):
                return int(edge)
        self._problem(key, f"only longest_edge in 1..{MAX_SIDE} pixels is supported")
        return 1

    def _count(self, key: str) -> int:
        value = self._value(key)
        if type(value) is int and 1 <= value <= MAX_TILES:
            return value
        self._problem(key, f"must be a number of tiles, 1 to {MAX_TILES}")
        return 1

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

    def _resample(self) -> Filter:
        value = self._value("resample")
        if isinstance(value, int) and not isinstance(value, bool) and value in FILTERS:
            return FILTERS[value]
        allowed = ", ".join(f"{number} ({name})" for number, name in FILTERS.items())
        self._problem("resample", f"is no filter; allowed are {allowed}")
        return "bicubic"


def _resized(size: int | tuple[int, int] | None, resample: Filter) -> PictureStep | None:
    if isinstance(size, int):
        return ResizeShorter(edge=size, resample=resample)
    return Resize(size=size, resample=resample) if size else None


def _levels(colour: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (int(value * 255) for value in colour)
    return red, green, blue


def _are_lists(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, list | tuple) for one in value)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
