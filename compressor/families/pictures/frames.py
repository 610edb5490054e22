"""Which part of a picture each of its tiles shows, from the steps and the picture's size alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from compressor.families.pictures.sizes import tile_grid
from compressor.families.pictures.steps import (
    Crop,
    CutTiles,
    FitTiles,
    FitToCells,
    Normalise,
    PadToSquare,
    PictureStep,
    Rescale,
    Resize,
    ResizeLonger,
    ResizeShorter,
    ResizeToCells,
    TileByAspect,
)


@dataclass(frozen=True)
class Frame:
    """A rectangle on a picture, in its pixels; it may reach beyond the picture's edges.

    Attributes:
        top: of its upper edge, from the picture's.
        left: likewise.
        height: of what it shows.
        width: likewise.
        pixels: height and width of it in the pixels that it is made of.
    """

    top: float
    left: float
    height: float
    width: float
    pixels: tuple[int, int]

    def part(self, top: int, left: int, size: tuple[int, int]) -> "Frame":
        """Return a part of it, given in its own pixels; of any size at any place."""
        down, along = self.height / self.pixels[0], self.width / self.pixels[1]
        return Frame(
            self.top + top * down, self.left + left * along, size[0] * down, size[1] * along, size
        )

    def resized(self, height: int, width: int) -> "Frame":
        """Return the same rectangle in other pixels."""
        return replace(self, pixels=(height, width))

    def around(self, size: tuple[int, int]) -> "Frame":
        """Return what it lies in the middle of, in its own pixels; an odd border is smaller in front."""
        height, width = self.pixels
        return self.part(-((size[0] - height) // 2), -((size[1] - width) // 2), size)


def tile_frames(steps: Sequence[PictureStep], height: int, width: int) -> tuple[Frame, ...]:
    """Return what each tile of a picture of so many pixels shows of it, in the order of the tiles.

    Raises:
        DataError: the model does not take such a picture.
    """
    frames = [Frame(0.0, 0.0, height, width, (height, width))]
    grid = tile_grid(steps, height, width)
    for step in steps:
        if isinstance(step, TileByAspect | CutTiles | FitTiles):
            frames = _tiles(frames[0], step, grid)
        else:
            frames = [_changed(frame, step) for frame in frames]
    return tuple(frames)


def _changed(frame: Frame, step: PictureStep) -> Frame:
    height, width = frame.pixels
    match step:
        case PadToSquare():
            return frame.around((max(height, width),) * 2)
        case Resize():
            return frame.resized(*step.size)
        case ResizeToCells() | FitToCells():
            rows, columns = step.grid(height, width)
            return frame.resized(rows * step.cell, columns * step.cell)
        case ResizeShorter():
            longer = int(step.edge * max(height, width) / min(height, width))
            return frame.resized(*((longer, step.edge) if width <= height else (step.edge, longer)))
        case ResizeLonger():
            return frame.resized(*step.sides(height, width))
        case Crop():
            top, left = (height - step.size[0]) // 2, (width - step.size[1]) // 2
            return frame.part(top, left, step.size)
        case TileByAspect() | CutTiles() | FitTiles() | Rescale() | Normalise():
            return frame
        case _:
            assert_never(step)


def _tiles(
    frame: Frame, step: TileByAspect | CutTiles | FitTiles, grid: tuple[int, int]
) -> list[Frame]:
    (high, wide), (rows, columns) = step.size, grid
    large = frame.resized(rows * high, columns * wide)
    if isinstance(step, FitTiles):
        laid = frame.resized(*step.sides(*frame.pixels, grid))
        large = laid.around((rows * high, columns * wide))
    tiles = [
        large.part(row * high, column * wide, step.size)
        for row in range(rows)
        for column in range(columns)
    ]
    whole = frame.resized(*step.size)
    if isinstance(step, FitTiles):
        return [whole, *tiles]
    return tiles if len(tiles) == 1 else [*tiles, whole]
