"""How the visual rows of a picture are made of its tiles' rows: without borders, lines one below the other.

It is decided from a picture's size alone, in numpy; a vision graph that takes `row_index` gathers the rows.

Letters: I tiles, N rows of a tile, V visual rows, K rows that one visual row is made of.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Index = NDArray[np.int64]
Grid = tuple[int, int]

LINE_END = -1
"""In place of an index: the learned row that ends a line."""

ROUNDED = 7
"""Decimals that transformers rounds a length to, before it takes the whole cells of it."""

MOST_OVER = 1.1
"""How many times as long as allowed the edges of a grid may be before it is made smaller."""

CORNERS = 4
"""K where grids are made smaller: the cells around a point."""


@dataclass(frozen=True)
class Arrangement:
    """Which rows of tiles visual rows are made of.

    Attributes:
        index: [V] among the rows of all tiles, [V, K] where several make one; or `LINE_END`.
        weight: [V, K] float32 of each; None: K is 1.
        tiles: I, of the pictures.
        tile_rows: N.
        grids: tiles and rows of each grid, one grid's behind the other's: the whole picture, its tiles.
    """

    index: Index
    weight: NDArray[np.float32] | None
    tiles: int
    tile_rows: int
    grids: tuple[Grid, ...]

    @property
    def rows(self) -> int:
        """V."""
        return len(self.index)

    @property
    def ends(self) -> Index:
        """Places of the rows that end lines."""
        return np.flatnonzero(self.index.reshape(self.rows, -1)[:, 0] == LINE_END)

    def parts(self) -> Iterator["GridPart"]:
        """Yield the grids of a picture that have cells."""
        tile, row, ends = 0, 0, self.ends
        for tiles, rows in self.grids:
            cells = np.setdiff1d(np.arange(row, row + rows), ends)
            index = self.index[cells] - tile * self.tile_rows
            end = np.full_like(self.index[:1], tiles * self.tile_rows)
            weight = None if self.weight is None else self.weight[np.append(cells, 0)]
            index = np.append(index, end, axis=0)
            if len(cells):
                grid = ((tiles, len(index)),)
                one = Arrangement(index, weight, tiles, self.tile_rows, grid)
                yield GridPart(slice(tile, tile + tiles), one, cells)
            tile, row = tile + tiles, row + rows

    def rows_kept(self, kept: Callable[[int], int]) -> int:
        """Return how many rows of a picture stay, if so many of a grid's cells do; line ends all stay."""
        return len(self.ends) + sum(kept(len(part.cells)) for part in self.parts())

    @property
    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        """What a vision graph takes besides pixels, in its order."""
        return (self.index,) if self.weight is None else (self.index, self.weight)


@dataclass(frozen=True)
class GridPart:
    """One grid of a picture: what a vision graph that chooses among its cells is given.

    Attributes:
        tiles: those of the picture that it reads.
        arranged: its cells, and behind them the row that ends lines.
        cells: their places among the picture's rows, ascending.
    """

    tiles: slice
    arranged: Arrangement
    cells: Index


class Unpadded(BaseModel):
    """The rows of the whole picture, which is the first tile, then those of the grid of the other tiles.

    The grid has the cells of all its tiles; a border that the picture was padded with is left out, line by
    line, and each line ends with a row that stands for no cell. A picture of one tile alone has all its rows
    and one such row.

    Attributes:
        side: cells along the side of a tile.
        most_tiles: of whose cells a grid may have 1.21 times as many; a larger one is made smaller,
            bilinear. None: none is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: Annotated[int, Field(ge=1)]
    most_tiles: Annotated[int, Field(ge=1)] | None = None

    @property
    def taps(self) -> int:
        """K."""
        return 1 if self.most_tiles is None else CORNERS

    def of_whole(self) -> Arrangement:
        """Return the rows of a picture that is one tile."""
        index = np.append(np.arange(self.side**2), LINE_END)
        return self._arrangement(self._single(index), ((1, len(index)),))

    def of_tiles(self, height: int, width: int, grid: Grid) -> Arrangement:
        """Return the rows of a picture that is cut into tiles.

        Args:
            height: of the picture as it came, in pixels.
            width: likewise.
            grid: rows and columns of its tiles.
        """
        lines, columns = (np.arange(count * self.side) for count in grid)
        border = self._border(height, width, grid)
        lines, columns = (
            cells[cut : len(cells) - cut]
            for cells, cut in zip((lines, columns), border, strict=True)
        )
        made = self._size((len(lines), len(columns)))
        if made == (len(lines), len(columns)):
            cells = self._single(self._cell(lines[:, None], columns, grid))
        else:
            (above, under, low), (left, right, wide) = (
                _between(length, wanted)
                for length, wanted in zip((len(lines), len(columns)), made, strict=True)
            )
            corners = [
                (self._cell(lines[y][:, None], columns[x], grid), down[:, None] * along)
                for y, down in ((above, 1 - low), (under, low))
                for x, along in ((left, 1 - wide), (right, wide))
            ]
            cells = tuple(np.stack(part, axis=-1) for part in zip(*corners, strict=True))
        whole, end = (
            self._single(np.arange(self.side**2)),
            self._single(np.full((made[0], 1), LINE_END)),
        )
        found = []
        for first, middle, last in zip(whole, cells, end, strict=True):
            ended = np.concatenate([middle, last], axis=1)
            found.append(np.concatenate([first, ended.reshape(-1, *first.shape[1:])]))
        of_tiles = len(found[0]) - self.side**2
        return self._arrangement(found, ((1, self.side**2), (grid[0] * grid[1], of_tiles)))

    def most_rows(self, grids: Iterable[Grid]) -> int:
        """Return V of a picture at most, of those that are cut into such grids."""
        sizes = [(rows * self.side, wide * self.side) for rows, wide in grids]
        found = [self.side**2 + 1]
        for lines, columns in sizes:
            cut = [(lines - 2 * off, columns) for off in range((lines + 1) // 2)]
            cut += [(lines, columns - 2 * off) for off in range((columns + 1) // 2)]
            for high, wide in cut:
                # A picture that a smaller grid holds at the same scale is cut into that one.
                smaller = any(
                    a * b < lines * columns and high <= a and wide <= b and (high, wide) != (a, b)
                    for a, b in sizes
                )
                if not smaller:
                    made = self._size((high, wide))
                    found.append(self.side**2 + made[0] * (made[1] + 1))
        return max(found)

    def most_rows_kept(self, tiles: int, rows: int, kept: Callable[[int], int]) -> int:
        """Return a bound of `Arrangement.rows_kept`, of pictures of so many tiles and rows at most."""
        of_tiles = max(1, rows - self.side**2)
        ends = min(of_tiles, max(1, (tiles - 1) * self.side))
        return kept(self.side**2) + kept(of_tiles - ends) + ends

    def made_up(self, tiles: int, rows: int) -> Arrangement:
        """Return the rows of a picture that is none; all tiles are read, if rows are enough.

        Its grid of several tiles has as many lines as a square one has.
        """
        cells = self.side**2
        whole = min(cells, rows) if tiles > 1 else 0
        grids = ((1, whole), (tiles - 1, rows - whole)) if tiles > 1 else ((1, rows),)
        lines = math.isqrt(rows - whole) if tiles > 1 else 1
        first, of_grid = np.arange(whole * self.taps), np.arange((rows - whole) * self.taps)
        made = np.append(first % cells, len(grids[1:]) * cells + of_grid % (grids[-1][0] * cells))
        index: Index = made.reshape((rows, self.taps)[: 1 + (self.taps > 1)])
        index[whole + np.arange(1, lines + 1) * (rows - whole) // max(1, lines) - 1] = LINE_END
        weight = np.tile(np.linspace(0.1, 0.4, self.taps), (rows, 1))
        return self._arrangement((index,) if self.taps == 1 else (index, weight), grids)

    def _border(self, height: int, width: int, grid: Grid) -> Grid:
        """Return how many cells are left out on each side, of lines and of columns."""
        # In these operations and this order, as transformers computes it: rounding decides.
        high, wide = grid[0] * self.side, grid[1] * self.side
        if width / height > wide / high:
            return (high - int(round(height * (wide / width), ROUNDED))) // 2, 0
        return 0, (wide - int(round(width * (high / height), ROUNDED))) // 2

    def _size(self, grid: Grid) -> Grid:
        """Return the lines and columns that a grid of cells gets."""
        if self.most_tiles is None:
            return grid
        lines, columns = grid
        ratio = math.sqrt(lines * columns / (self.most_tiles * self.side**2))
        return (int(lines // ratio), int(columns // ratio)) if ratio > MOST_OVER else grid

    def _cell(self, lines: Index, columns: Index, grid: Grid) -> Index:
        """Return the places of cells among the rows of all tiles."""
        tile = 1 + lines // self.side * grid[1] + columns // self.side
        return tile * self.side**2 + lines % self.side * self.side + columns % self.side

    def _single(self, index: Index) -> tuple[NDArray[np.generic], ...]:
        """Return index and weight of rows that are one row each."""
        if self.taps == 1:
            return (index,)
        weight = np.zeros((*index.shape, self.taps), np.float32)
        weight[..., 0] = 1
        return np.repeat(index[..., None], self.taps, axis=-1), weight

    def _arrangement(
        self, parts: Sequence[NDArray[np.generic]], grids: tuple[Grid, ...]
    ) -> Arrangement:
        index, *weight = parts
        return Arrangement(
            np.ascontiguousarray(index, np.int64),
            np.ascontiguousarray(weight[0], np.float32) if weight else None,
            sum(tiles for tiles, _ in grids),
            self.side**2,
            grids,
        )


def side_by_side(pictures: Sequence[Arrangement]) -> Arrangement:
    """Return the rows of several pictures whose tiles go through the vision graph in one call.

    The row that ends lines lies behind those of all tiles.
    """
    (tile_rows,) = {picture.tile_rows for picture in pictures}
    tiles = [picture.tiles for picture in pictures]
    starts = np.cumsum([0, *tiles])[:-1] * tile_rows
    index = [
        np.where(picture.index == LINE_END, sum(tiles) * tile_rows, picture.index + start)
        for picture, start in zip(pictures, starts, strict=True)
    ]
    weight = [picture.weight for picture in pictures if picture.weight is not None]
    return Arrangement(
        np.concatenate(index),
        np.concatenate(weight) if weight else None,
        sum(tiles),
        tile_rows,
        tuple(grid for picture in pictures for grid in picture.grids),
    )


def _between(length: int, wanted: int) -> tuple[Index, Index, NDArray[np.float32]]:
    """Return between which two of `length` cells each of `wanted` lies, and how near to the second.

    As torch resizes bilinear without `align_corners`: in float32, but for products, which are not rounded.
    """
    scale = np.float64(np.float32(length) / np.float32(wanted))
    places = np.maximum(scale * (np.arange(wanted) + 0.5) - 0.5, 0).astype(np.float32)
    first = places.astype(np.int64)
    return first, np.minimum(first + 1, length - 1), places - first.astype(np.float32)


def cells_kept(cells: int, kept: int, of: int) -> int:
    """Return how many of a grid's cells enter the decoder, if `kept` of every `of` do.

    Rounded down, as released code does; numbers, or sizes of the exporter.
    """
    return cells * kept // of
