"""What a model does to a picture before its vision tower, as data: steps, in their order.

A family gives them (`Family.picture_steps`), the manifest holds them, `export.runtime.images` runs them. A
new kind of step is a class here, its place in `PictureStep` and `output_size`, and a case there.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias, assert_never

from pydantic import Field, model_validator

from compressor.errors import ModelError
from compressor.facts import Facts

MAX_SIDE = 4096
"""Largest height or width that a step may ask for, in pixels."""

MAX_TILES = 256
"""Most tiles that a step may cut a picture into."""

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
TileCount = Annotated[int, Field(ge=1, le=MAX_TILES)]
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


class ResizeLonger(Facts):
    """Makes the longer edge of one length and keeps proportions; the other is rounded down, then up to even.

    Attributes:
        edge: length in pixels; smaller pictures are enlarged.
        resample: Pillow's filter.
    """

    step: Literal["resize_longer"] = "resize_longer"
    edge: Side
    resample: Filter

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that a picture of so many pixels gets."""
        # In these operations, as transformers computes it: rounding decides.
        aspect = width / height
        other = int(self.edge / aspect) if width >= height else int(self.edge * aspect)
        other = max(other + other % 2, 1)
        return (other, self.edge) if width >= height else (self.edge, other)


class Crop(Facts):
    """Cuts out the middle; what lies outside the picture is black.

    Attributes:
        size: height and width in pixels.
    """

    step: Literal["crop"] = "crop"
    size: tuple[Side, Side]


class TileByAspect(Facts):
    """Cuts the picture, made as large as the grid whose proportions are nearest its own, into equal tiles.

    Tiles come row by row; behind several of them comes the whole picture, as large as one. Of grids that are
    equally near the largest is taken whose tiles have less than twice as many pixels as the picture.

    Attributes:
        size: height and width of a tile in pixels.
        least: tiles of a grid.
        most: tiles of a grid.
        resample: Pillow's filter.
    """

    step: Literal["tile_by_aspect"] = "tile_by_aspect"
    size: tuple[Side, Side]
    least: TileCount
    most: TileCount
    resample: Filter

    @model_validator(mode="after")
    def _ordered(self) -> "TileByAspect":
        if self.least > self.most:
            raise ValueError(f"least: {self.least} tiles are more than the most, {self.most}")
        return self

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of tiles of a picture of so many pixels."""
        sides = range(1, self.most + 1)
        grids = [(w, h) for w in sides for h in sides if self.least <= w * h <= self.most]
        best, nearest = (1, 1), math.inf
        for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
            off = abs(width / height - columns / rows)
            # In this order and these operations, as transformers computes it: ties are decided by rounding.
            roomy = width * height > 0.5 * self.size[0] * self.size[1] * columns * rows
            if off < nearest or (off == nearest and roomy):
                best, nearest = (columns, rows), off
        return best[1], best[0]


class CutTiles(Facts):
    """Makes both edges multiples of a tile's, the longer one first, and cuts the picture into such squares.

    Tiles come row by row; behind several of them comes the whole picture, so enlarged, as large as one.

    Attributes:
        edge: of a tile in pixels.
        resample: Pillow's filter.
    """

    step: Literal["cut_tiles"] = "cut_tiles"
    edge: Side
    resample: Filter

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a tile in pixels."""
        return self.edge, self.edge

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of tiles of a picture of so many pixels."""
        aspect = width / height
        if width >= height:
            columns = math.ceil(width / self.edge)
            return math.ceil(int(columns * self.edge / aspect) / self.edge), columns
        rows = math.ceil(height / self.edge)
        return rows, math.ceil(int(rows * self.edge * aspect) / self.edge)


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
    PadToSquare
    | Resize
    | ResizeShorter
    | ResizeLonger
    | Crop
    | TileByAspect
    | CutTiles
    | Rescale
    | Normalise,
    Field(discriminator="step"),
]
PictureSteps: TypeAlias = tuple[PictureStep, ...]


def output_size(steps: Sequence[PictureStep]) -> tuple[int, int]:
    """Return (H, W), in pixels, of every picture, or tile of one, that went through steps.

    Raises:
        ModelError: pictures of different sizes come out, which a graph cannot take, a step that changes the
            picture stands behind one that changes its values, or one that makes tiles stands where it cannot,
            or makes more than `MAX_TILES`.
    """
    size: tuple[int, int] | None = None
    square = values = False
    for step, following in zip(steps, (*steps[1:], None), strict=False):
        if values and not isinstance(step, Rescale | Normalise):
            raise ModelError([f"picture steps: {step.step}: stands behind the steps on values"])
        match step:
            case PadToSquare():
                square, size = True, size and (max(size), max(size))
            case ResizeShorter() | ResizeLonger():
                size = (step.edge, step.edge) if square else None
                by_shorter = isinstance(step, ResizeShorter)
                # Else a long line becomes a picture that no memory holds.
                if size is None and by_shorter and not isinstance(following, Crop):
                    break
            case Resize() | Crop() | TileByAspect() | CutTiles():
                size, square = step.size, step.size[0] == step.size[1]
            case Rescale() | Normalise():
                values = True
            case _:
                assert_never(step)
    if size is None:
        problem = "picture steps: give pictures of different sizes, which a graph cannot take"
        raise ModelError([problem])
    if problem := _tile_problem(steps):
        raise ModelError([f"picture steps: {problem}"])
    return size


def _tile_problem(steps: Sequence[PictureStep]) -> str:
    """Return what is wrong with the step that makes tiles."""
    for step in steps:
        if isinstance(step, TileByAspect) and step is not steps[0]:
            return f"{step.step}: does not stand first"
        # Else the grid of a large picture would have no end.
        if isinstance(step, CutTiles) and not (
            isinstance(steps[0], ResizeLonger) and step in steps[1:2]
        ):
            return f"{step.step}: does not stand second, behind resize_longer"
    most = most_tiles(steps)
    if most > MAX_TILES + 1:
        return f"up to {most} tiles of a picture; {MAX_TILES} and the whole are allowed"
    return ""


def tile_grid(steps: Sequence[PictureStep], height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of tiles that a picture of so many pixels is cut into."""
    for step in steps:
        match step:
            case ResizeLonger():
                height, width = step.sides(height, width)
            case TileByAspect() | CutTiles():
                return step.grid(height, width)
            case _:
                break
    return 1, 1


def tile_count(grid: tuple[int, int]) -> int:
    """Return how many tiles a picture becomes; behind several of a grid comes the whole picture."""
    cells = grid[0] * grid[1]
    return cells if cells == 1 else cells + 1


def most_tiles(steps: Sequence[PictureStep]) -> int:
    """Return how many tiles a picture becomes at most."""
    for step, before in zip(steps, (None, *steps), strict=False):
        match step, before:
            case TileByAspect(), _:
                return tile_count((1, step.most))
            case CutTiles(), ResizeLonger():
                # The rounding up to even can make a square's other edge one longer.
                side = math.ceil((before.edge + before.edge % 2) / step.edge)
                return tile_count((side, side))
    return 1
