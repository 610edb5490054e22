"""From an image file to what the model takes of it: pixel values, and text; with Pillow and numpy alone.

Runs the steps of `compressor.families.pictures`, which a family gave; it knows no model and no processor.

Letters: C = 3 channels (red, green, blue); H, W = height and width of the model's input, in pixels.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, assert_never

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compressor.arrangement import Arrangement, Unpadded, cells_kept
from compressor.errors import DataError, ModelError
from compressor.families.pictures.processors import steps_in
from compressor.families.pictures.sizes import (
    cell_grid,
    cell_step,
    most_tiles,
    output_size,
    tile_count,
    tile_grid,
)
from compressor.families.pictures.steps import (
    CellStep,
    Crop,
    CutTiles,
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
from compressor.families.pictures.text import PictureForm, text_of
from compressor.samples.layout import Pictured, VisualRows
from compressor.samples.pictures import (
    MAX_PIXELS,
    Pictures,
    load_image,
    pictures_of,
    read_picture,
    to_rgb,
)
from export.runtime.picture_limits import check_made, check_steps
from export.session.session import Session, look


@dataclass(frozen=True)
class SeenPicture:
    """One picture as a model takes it.

    Attributes:
        pixels: [tiles, C, H, W] float32, contiguous.
        rows: visual rows of it, as many as `text` has image tokens.
        text: what stands for it in the prompt.
        grid: rows and columns of its tiles; a last tile beyond them shows the whole picture.
        cells: rows and columns of its visual rows; None: those of every picture of the model.
        arrangement: of which rows of its tiles its own are made; None: they are its own.
        beside_others: the same picture where the prompt has several, or why it cannot be read there; None: it
            is the same then.
    """

    pixels: NDArray[np.float32]
    rows: int
    text: str
    grid: tuple[int, int] = (1, 1)
    cells: tuple[int, int] | None = None
    arrangement: Arrangement | None = None
    beside_others: "SeenPicture | DataError | None" = None

    def rows_kept(self, kept: int, of: int) -> int:
        """Return how many of its rows the decoder gets, if `kept` of as many of a tile."""

        def among(rows: int) -> int:
            return cells_kept(rows, kept, of)

        if self.arrangement is not None:
            return self.arrangement.rows_kept(among)
        return len(self.pixels) * among(self.rows // len(self.pixels))


def looked_at(pictures: Pictures, processor: "ImageProcessor") -> tuple[SeenPicture, ...]:
    """Return a prompt's pictures as the model takes them.

    Raises:
        DataError: one cannot be read.
    """
    names, seen = [], []
    for i, one in enumerate(pictures_of(pictures)):
        names.append(str(one) if isinstance(one, str | os.PathLike) else f"images[{i}]")
        image = read_picture(one, names[i])
        try:
            seen.append(processor(image))
        except DataError as error:
            raise _named(error, names[i]) from error
    return of_one_prompt(seen, names)


def of_one_prompt(
    seen: Sequence[SeenPicture], names: Sequence[str] = ()
) -> tuple[SeenPicture, ...]:
    """Return pictures as they are read in one prompt: some models read each of several otherwise.

    Args:
        seen: the pictures.
        names: what errors call them; none: `image`.

    Raises:
        DataError: one of several cannot be read beside others.
    """
    if len(seen) < 2:
        return tuple(seen)
    found = []
    for one, name in zip(seen, names or ["image"] * len(seen), strict=True):
        if isinstance(one.beside_others, DataError):
            raise _named(one.beside_others, name)
        found.append(one.beside_others or one)
    return tuple(found)


def _named(error: DataError, name: str) -> DataError:
    """Return what is wrong with a picture that the error calls `image`, by its name."""
    return DataError(f"{name}: {line.removeprefix('image: ')}" for line in error.problems)


def rows_of(session: Session, seen: Sequence[SeenPicture]) -> VisualRows:
    """Return the visual rows of pictures, at least one; see `look`."""
    return look(session, [Pictured(one.pixels, one.rows, one.arrangement) for one in seen])


@dataclass(frozen=True)
class ImageProcessor:
    """What a model does to an image before its vision tower, and to the prompt.

    Attributes:
        steps: in their order.
        form: how the model takes pictures.
        tile_rows: visual rows of a tile.
        arrangement: how rows of tiles become those of a picture; None: they are.

    Raises:
        ModelError: the steps cannot be run; see `output_size`.
    """

    steps: PictureSteps
    form: PictureForm = field(default=PictureForm(token=""))
    tile_rows: int = 1
    arrangement: Unpadded | None = None

    def __post_init__(self) -> None:
        output_size(self.steps)
        check_steps(self.steps, _values(self.steps))

    @classmethod
    def of_artifact(
        cls, form: PictureForm, folder: Path, tile_rows: int, arrangement: Unpadded | None = None
    ) -> Self:
        """Return what runs an artifact's steps.

        Args:
            form: that its manifest holds.
            folder: of the files of its processor, which tell the steps of older artifacts.
            tile_rows: visual rows of a tile.
            arrangement: how they become those of a picture; None: they are.

        Raises:
            ModelError: the files are not there or not readable, or the steps cannot be run.
        """
        steps = steps_in(folder) if form.steps is None else form.steps
        return cls(steps, form, tile_rows, arrangement)

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of every result, in pixels; None: each picture has its own."""
        return output_size(self.steps)

    @property
    def cell(self) -> int | None:
        """Side of the square that one visual token shows, where each picture has its own size."""
        step = cell_step(self.steps)
        return step.cell if step else None

    def __call__(self, image: Image.Image | str | Path) -> SeenPicture:
        """Return one image as the model takes it.

        A path goes through `load_image`. An image is taken as it is: the caller has turned it
        upright and chosen its frame.

        Raises:
            DataError: the image cannot be read or is too large.
        """
        if not isinstance(image, Image.Image):
            image = load_image(image)
        image = to_rgb(image, "image")
        grid = tile_grid(self.steps, image.height, image.width)
        cells = cell_grid(self.steps, image.height, image.width)
        whole = (0, 0) if cells is None else cells
        side = self.cell or 0
        tile = math.prod(self.size or (0, 0))
        check_made(max(math.prod(whole) * side**2, tile_count(grid) * tile))
        arranged = self._arranged(image.height, image.width)
        rows = self._rows(grid, cells, arranged)
        tiles = _pictured(image, self.steps, grid)
        levels = np.stack([np.asarray(tile) for tile in tiles])  # [tiles, H, W, C]
        values = _values(self.steps)  # [C, 256]
        pixels = np.stack([values[c][levels[..., c]] for c in range(3)], axis=1)
        text, others = text_of(self.form, rows, grid), self.beside_others
        beside: SeenPicture | DataError | None = None
        if others is not None:
            try:
                beside = others(image)
            except DataError as error:  # which matters if another picture comes
                beside = error
        return SeenPicture(pixels, rows, text, grid, cells, arranged, beside)

    @property
    def beside_others(self) -> "ImageProcessor | None":
        """What is done to each of several pictures of a prompt; None: the same."""
        steps = self.form.steps_beside_others
        if steps is None:
            return None
        form = self.form.model_copy(update={"steps": steps, "steps_beside_others": None})
        return replace(self, steps=steps, form=form)

    def text(self, height: int, width: int) -> str:
        """Return what stands in the prompt for a picture of so many pixels.

        Raises:
            DataError: the model does not take it.
        """
        grid = tile_grid(self.steps, height, width)
        cells = cell_grid(self.steps, height, width)
        rows = self._rows(grid, cells, self._arranged(height, width))
        return text_of(self.form, rows, grid)

    def _arranged(self, height: int, width: int) -> Arrangement | None:
        if self.arrangement is None:
            return None
        if most_tiles(self.steps) == 1:
            return self.arrangement.of_whole()
        return self.arrangement.of_tiles(height, width, tile_grid(self.steps, height, width))

    def _rows(
        self, grid: tuple[int, int], cells: tuple[int, int] | None, arranged: Arrangement | None
    ) -> int:
        if arranged is not None:
            return arranged.rows
        return tile_count(grid) * self.tile_rows if cells is None else cells[0] * cells[1]


def _pictured(
    image: Image.Image, steps: Sequence[PictureStep], grid: tuple[int, int]
) -> list[Image.Image]:
    """Run the steps that change the picture; return its tiles."""
    tiles = [image]
    for step, following in zip(steps, (*steps[1:], None), strict=False):
        if isinstance(step, TileByAspect | CutTiles | FitTiles):
            tiles = _tiles(tiles[0], step, grid)
        else:
            tiles = [_changed(tile, step, following) for tile in tiles]
    return tiles


def _changed(image: Image.Image, step: PictureStep, following: PictureStep | None) -> Image.Image:
    """Run one step on a picture or a tile of it."""
    match step:
        case PadToSquare():
            return _padded(image, step.colour)
        case Resize():
            return image.resize(step.size[::-1], _filter(step))
        case ResizeToCells() | FitToCells():
            rows, columns = step.grid(image.height, image.width)
            return image.resize((columns * step.cell, rows * step.cell), _filter(step))
        case ResizeShorter():
            return _resized(image, step, following if isinstance(following, Crop) else None)
        case Crop():
            height, width = step.size
            # Floor division also where the crop is larger, as in transformers: the odd row goes first.
            left, top = (image.width - width) // 2, (image.height - height) // 2
            return image.crop((left, top, left + width, top + height))
        case ResizeLonger():
            return image.resize(step.sides(image.height, image.width)[::-1], _filter(step))
        case TileByAspect() | CutTiles() | FitTiles() | Rescale() | Normalise():
            return image
        case _:
            assert_never(step)


def _tiles(
    image: Image.Image, step: TileByAspect | CutTiles | FitTiles, grid: tuple[int, int]
) -> list[Image.Image]:
    """Return the tiles of a picture row by row, and the whole behind several, or in front."""
    (height, width), (rows, columns) = step.size, grid
    if isinstance(step, FitTiles):
        high, wide = step.sides(image.height, image.width, grid)
        large = Image.new("RGB", (columns * width, rows * height))
        corner = ((large.width - wide) // 2, (large.height - high) // 2)
        large.paste(image.resize((wide, high), _filter(step)), corner)
    else:
        large = image.resize((columns * width, rows * height), _filter(step))
    tiles = [
        large.crop((x * width, y * height, (x + 1) * width, (y + 1) * height))
        for y in range(rows)
        for x in range(columns)
    ]
    if isinstance(step, FitTiles):
        return [image.resize((width, height), _filter(step)), *tiles]
    if len(tiles) == 1:
        return tiles
    whole = large if isinstance(step, CutTiles) else image
    return [*tiles, whole.resize((width, height), _filter(step))]


def _values(steps: Sequence[PictureStep]) -> NDArray[np.float32]:
    """Return what the steps on values make of each 8-bit level, [C, 256]."""
    values = np.tile(np.arange(256, dtype=np.float32), (3, 1))
    with np.errstate(all="ignore"):  # what is no number then is refused
        return _changed_values(values, steps)


def _changed_values(
    values: NDArray[np.float32], steps: Sequence[PictureStep]
) -> NDArray[np.float32]:
    for step in steps:
        match step:
            case Rescale():
                values = (values.astype(np.float64) * step.factor).astype(np.float32)
            case Normalise():
                mean, std = (np.array(v, dtype=np.float32)[:, None] for v in (step.mean, step.std))
                values = (values - mean) / std
            case PadToSquare() | Resize() | ResizeShorter() | ResizeLonger():
                pass
            case ResizeToCells() | FitToCells():
                pass
            case Crop() | TileByAspect() | CutTiles() | FitTiles():
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


def _filter(
    step: Resize | ResizeShorter | ResizeLonger | CellStep | TileByAspect | CutTiles | FitTiles,
) -> Image.Resampling:
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
