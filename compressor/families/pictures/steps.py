"""What a model does to a picture before its vision tower, as data: steps, in their order.

A family gives them (`Family.picture_steps`), the manifest holds them, `export.runtime.images` runs them. A
new kind of step is a class here, its place in `PictureStep` and `output_size`, and a case there.
"""

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from compressor.errors import DataError
from compressor.facts import Facts

MAX_SIDE = 4096
"""Largest height or width that a step may ask for, in pixels."""

MAX_TILES = 256
"""Most tiles that a step may cut a picture into."""

MOST_OBLONG = 200
"""How many times its shorter edge the longer one of a picture may be that is resized to whole cells."""

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


class FitTiles(Facts):
    """Fits the picture, in its proportions, into one of several sizes, on black, and cuts that into tiles.

    The size is that in which most of the picture's pixels are kept, and of equal ones the smallest. First
    comes the whole picture, as large as a tile, its proportions lost; then tiles row by row.

    Attributes:
        size: height and width of a tile in pixels.
        sizes: heights and widths to choose from, multiples of a tile's.
        resample: Pillow's filter.
    """

    step: Literal["fit_tiles"] = "fit_tiles"
    size: tuple[Side, Side]
    sizes: Annotated[tuple[tuple[Side, Side], ...], Field(min_length=1)]
    resample: Filter

    @model_validator(mode="after")
    def _whole_tiles(self) -> "FitTiles":
        for size in self.sizes:
            if any(edge % tile for edge, tile in zip(size, self.size, strict=True)):
                raise ValueError(f"sizes: {size}: is not made of whole tiles of {self.size} pixels")
        return self

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of tiles of each of the sizes."""
        return tuple((high // self.size[0], wide // self.size[1]) for high, wide in self.sizes)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of tiles of a picture of so many pixels."""
        found, kept, least = self.grids[0], 0, math.inf
        for (high, wide), grid in zip(self.sizes, self.grids, strict=True):
            # In these operations, as transformers computes it: rounding decides.
            scale = min(wide / width, high / height)
            seen = min(int(width * scale) * int(height * scale), width * height)
            wasted = high * wide - seen
            if seen > kept or (seen == kept and wasted < least):
                found, kept, least = grid, seen, wasted
        return found

    def sides(self, height: int, width: int, grid: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width in pixels that a picture gets on a grid of tiles."""
        high, wide = (count * edge for count, edge in zip(grid, self.size, strict=True))
        along, down = wide / width, high / height
        if along < down:
            return min(math.ceil(height * along), high), wide
        return high, min(math.ceil(width * down), wide)


class ResizeToCells(Facts):
    """Makes both edges multiples of a cell's, each nearly as it was, and the picture of an allowed size.

    Attributes:
        cell: side of a cell in pixels.
        least: pixels of the result.
        most: pixels of the result, unless the picture is so oblong that a row of cells has more.
        resample: Pillow's filter.
        from_cell: whether a picture with an edge below a cell's is first taken to be enlarged to that.
    """

    step: Literal["resize_to_cells"] = "resize_to_cells"
    cell: Side
    least: Annotated[int, Field(ge=1)]
    most: Annotated[int, Field(ge=1)]
    resample: Filter
    from_cell: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "ResizeToCells":
        if self.least > self.most:
            raise ValueError(f"least: {self.least} pixels are more than the most, {self.most}")
        return self

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of cells of a picture of so many pixels.

        Raises:
            DataError: it is too oblong.
        """
        given = (width, height)
        if self.from_cell:
            if height < self.cell:
                height, width = self.cell, round(width * self.cell / height)
            if width < self.cell:
                height, width = round(height * self.cell / width), self.cell
        if max(height, width) / min(height, width) > MOST_OBLONG:
            raise DataError(
                [
                    f"image: {given[0]} x {given[1]} pixels: one edge is more than {MOST_OBLONG} times "
                    "the other, which this model does not take: crop it"
                ]
            )
        # In this order and these operations, as transformers computes it: floors are decided by rounding.
        cell = self.cell
        rows, columns = round(height / cell), round(width / cell)
        if rows * columns * cell**2 > self.most:
            factor = math.sqrt((height * width) / self.most)
            rows = max(1, math.floor(height / factor / cell))
            columns = max(1, math.floor(width / factor / cell))
        elif rows * columns * cell**2 < self.least:
            factor = math.sqrt(self.least / (height * width))
            rows = math.ceil(height * factor / cell)
            columns = math.ceil(width * factor / cell)
        return rows, columns

    @property
    def most_cells(self) -> int:
        """Cells of a picture at most, of whatever proportions."""
        fewest, allowed = self.least / self.cell**2, self.most // self.cell**2
        found = [1, allowed, math.floor(math.sqrt(MOST_OBLONG * self.most) / self.cell)]
        # Rounded up: a picture of `rows` rows was higher than rows - 1, and so less wide than this.
        for rows in range(1, math.ceil(math.sqrt(fewest)) + 1):
            high = max(rows - 1, math.sqrt(fewest / MOST_OBLONG))
            found.append(rows * math.ceil(fewest / high))
        return max(found)


class FitToCells(Facts):
    """Makes a picture that is larger than a frame fit into it, in proportion, and both edges whole cells.

    Edges are rounded up to cells; smaller pictures are not enlarged beyond that.

    Attributes:
        cell: side of a cell in pixels.
        size: height and width of the frame in pixels.
        resample: Pillow's filter.
    """

    step: Literal["fit_to_cells"] = "fit_to_cells"
    cell: Side
    size: tuple[Side, Side]
    resample: Filter

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of cells of a picture of so many pixels.

        Raises:
            DataError: it is so oblong that nothing of it is left.
        """
        sides = (height, width)
        # In these operations, as transformers computes it: floors are decided by rounding.
        ratio = max(height / self.size[0], width / self.size[1])
        if ratio > 1:
            sides = (math.floor(height / ratio), math.floor(width / ratio))
        if 0 in sides:
            raise DataError(
                [
                    f"image: {width} x {height} pixels: made to fit into {self.size[1]} x {self.size[0]}, as "
                    "this model does, nothing is left of it: crop it"
                ]
            )
        return math.ceil(sides[0] / self.cell), math.ceil(sides[1] / self.cell)

    @property
    def most_cells(self) -> int:
        """Cells of a picture at most, of whatever proportions."""
        return math.ceil(self.size[0] / self.cell) * math.ceil(self.size[1] / self.cell)


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
    | FitTiles
    | ResizeToCells
    | FitToCells
    | Rescale
    | Normalise,
    Field(discriminator="step"),
]
PictureSteps: TypeAlias = tuple[PictureStep, ...]
CellStep: TypeAlias = ResizeToCells | FitToCells
"""What gives each picture a size of its own."""
