"""What picture steps make of a picture of so many pixels: its size, tiles and cells."""

import math
from collections.abc import Sequence
from typing import assert_never

from compressor.errors import ModelError
from compressor.families.pictures.steps import (
    MAX_TILES,
    CellStep,
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


def output_size(steps: Sequence[PictureStep]) -> tuple[int, int] | None:
    """Return (H, W), in pixels, of every picture, or tile of one, that went through steps.

    None: each picture has its own, as the first step gives it.

    Raises:
        ModelError: pictures of different sizes come out, which a graph cannot take, a step that changes the
            picture stands behind one that changes its values, or one that makes tiles stands where it cannot,
            or makes more than `MAX_TILES`.
    """
    _check_order(steps)
    if cell_step(steps):
        return None
    size: tuple[int, int] | None = None
    square = False
    for step, following in zip(steps, (*steps[1:], None), strict=False):
        match step:
            case PadToSquare():
                square, size = True, size and (max(size), max(size))
            case ResizeShorter() | ResizeLonger():
                size = (step.edge, step.edge) if square else None
                by_shorter = isinstance(step, ResizeShorter)
                # Else a long line becomes a picture that no memory holds.
                if size is None and by_shorter and not isinstance(following, Crop):
                    break
            case Resize() | Crop() | TileByAspect() | CutTiles() | FitTiles():
                size, square = step.size, step.size[0] == step.size[1]
            case Rescale() | Normalise() | ResizeToCells() | FitToCells():
                pass
            case _:
                assert_never(step)
    if size is None:
        problem = "picture steps: give pictures of different sizes, which a graph cannot take"
        raise ModelError([problem])
    return size


def _check_order(steps: Sequence[PictureStep]) -> None:
    values = False
    for step in steps:
        problem = None
        if isinstance(step, Rescale | Normalise):
            values = True
        elif values:
            problem = "stands behind the steps on values"
        elif isinstance(step, TileByAspect | FitTiles | CellStep) and step is not steps[0]:
            problem = "does not stand first"
        elif isinstance(steps[0], CellStep) and step is not steps[0]:
            problem = f"stands behind {steps[0].step}"
        # Else the grid of a large picture would have no end.
        elif isinstance(step, CutTiles) and not (
            isinstance(steps[0], ResizeLonger) and step in steps[1:2]
        ):
            problem = "does not stand second, behind resize_longer"
        if problem:
            raise ModelError([f"picture steps: {step.step}: {problem}"])
    if (most := most_tiles(steps)) > MAX_TILES + 1:
        raise ModelError(
            [
                f"picture steps: up to {most} tiles of a picture; {MAX_TILES} and the whole are allowed"
            ]
        )


def tile_grid(steps: Sequence[PictureStep], height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of tiles that a picture of so many pixels is cut into."""
    for step in steps:
        match step:
            case ResizeLonger():
                height, width = step.sides(height, width)
            case TileByAspect() | CutTiles() | FitTiles():
                return step.grid(height, width)
            case _:
                break
    return 1, 1


def cell_step(steps: Sequence[PictureStep]) -> CellStep | None:
    """Return the step that gives each picture a size of its own; None: there is none."""
    first = next(iter(steps), None)
    return first if isinstance(first, CellStep) else None


def cell_grid(steps: Sequence[PictureStep], height: int, width: int) -> tuple[int, int] | None:
    """Return the rows and columns of cells of a picture of so many pixels; None: it has none of its own.

    Raises:
        DataError: the step does not take it.
    """
    step = cell_step(steps)
    return step.grid(height, width) if step else None


def tile_count(grid: tuple[int, int]) -> int:
    """Return how many tiles a picture becomes; behind several of a grid comes the whole picture.

    That of `FitTiles` comes in any case.
    """
    cells = grid[0] * grid[1]
    return cells if cells == 1 else cells + 1


def most_tiles(steps: Sequence[PictureStep]) -> int:
    """Return how many tiles a picture becomes at most."""
    for step, before in zip(steps, (None, *steps), strict=False):
        match step, before:
            case TileByAspect(), _:
                return tile_count((1, step.most))
            case FitTiles(), _:
                return 1 + max(rows * columns for rows, columns in step.grids)
            case CutTiles(), ResizeLonger():
                # The rounding up to even can make a square's other edge one longer.
                side = math.ceil((before.edge + before.edge % 2) / step.edge)
                return tile_count((side, side))
    return 1
