"""Where on a picture the visual tokens lie that go on: from the stored places and the steps of pictures."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compressor.errors import ArtifactError, DataError
from compressor.families.pictures.frames import Frame, tile_frames
from compressor.families.pictures.sizes import tile_grid
from compressor.families.pictures.steps import PictureSteps
from export.artifact.manifest import Manifest
from export.checks.stored import COMPRESSED_FILE
from export.report.questions import Question
from export.results.answers import KeptPlaces

THIRDS = ("top", "middle", "bottom")


@dataclass(frozen=True)
class TileCells:
    """The cells of one tile, each of which is one visual token.

    Attributes:
        frame: what the tile shows of the picture.
        grid: rows and columns of its cells.
        kept: places of the cells that go on, in reading order.
    """

    frame: Frame
    grid: tuple[int, int]
    kept: frozenset[int]

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return math.prod(self.grid)

    @property
    def left_out(self) -> Iterator[tuple[int, int, int]]:
        """Runs of cells in a row that do not go on: row, first column, and how many."""
        rows, columns = self.grid
        for row in range(rows):
            first = 0
            for column in range(columns + 1):
                if column == columns or row * columns + column in self.kept:
                    if column > first:
                        yield row, first, column - first
                    first = column + 1


@dataclass(frozen=True)
class KeptView:
    """A picture as tiles show it once: as a whole, or in rows and columns of them.

    Attributes:
        rows: of tiles.
        columns: of tiles.
        tiles: row by row.
    """

    rows: int
    columns: int
    tiles: tuple[TileCells, ...]

    @property
    def words(self) -> str:
        """How many visual tokens of it go on."""
        kept, cells = sum(len(t.kept) for t in self.tiles), sum(t.cells for t in self.tiles)
        return f"{kept:,} of {cells:,} visual tokens go on"

    @property
    def thirds(self) -> str:
        """How many of them lie how high, in words: one number each for the top, the middle and the bottom."""
        counts = [0, 0, 0]
        for place, tile in enumerate(self.tiles):
            for cell in tile.kept:
                high = place // self.columns + (cell // tile.grid[1] + 0.5) / tile.grid[0]
                counts[min(int(3 * high / self.rows), 2)] += 1
        found = (f"{third} third {count:,}" for third, count in zip(THIRDS, counts, strict=True))
        return ", ".join(found)


@dataclass(frozen=True)
class KeptPicture:
    """One picture of a question with what goes on of it.

    Attributes:
        size: its height and width in pixels.
        views: as often as the model sees it.
    """

    size: tuple[int, int]
    views: tuple[KeptView, ...]

    @property
    def words(self) -> str:
        """What goes on of it, in one line."""
        return "; ".join(f"{self.said(view)} ({view.thirds})" for view in self.views)

    def said(self, view: KeptView) -> str:
        """Return what goes on of one view, and which it is where there are several."""
        if len(self.views) == 1:
            return view.words
        tiles = f"in {view.rows} x {view.columns} tiles" if len(view.tiles) > 1 else "as a whole"
        return f"{tiles}: {view.words}"


def kept_pictures(question: Question, manifest: Manifest) -> tuple[KeptPicture, ...]:
    """Return what goes on of each picture of a question; none: it is not stored.

    Raises:
        ArtifactError: what is stored does not fit the model.
    """
    form, grid = manifest.picture_form, manifest.model.token_grid
    steps = form.steps
    if len(question.kept) > 1 and form.steps_beside_others is not None:
        steps = form.steps_beside_others
    if steps is None or grid is None:
        return ()
    return tuple(_picture(kept, steps, grid) for kept in question.kept)


def _picture(kept: KeptPlaces, steps: PictureSteps, grid: tuple[int, int]) -> KeptPicture:
    try:
        frames = tile_frames(steps, *kept.size)
    except DataError:
        frames = ()
    most = grid[0] * grid[1]
    if len(frames) != len(kept.tiles) or any(p >= most for tile in kept.tiles for p in tile):
        raise ArtifactError(
            [f"{COMPRESSED_FILE}: kept: places that this model's pictures do not have"]
        )
    tiles = [
        TileCells(frame, grid, frozenset(places))
        for frame, places in zip(frames, kept.tiles, strict=True)
    ]
    rows, columns = tile_grid(steps, *kept.size)
    return KeptPicture(kept.size, _views(tiles, rows, columns))


def _views(tiles: Sequence[TileCells], rows: int, columns: int) -> tuple[KeptView, ...]:
    """Return tiles in views: those of the grid, and the whole behind several of them.

    Where the whole comes first, rows are arranged: no tiles' cells are chosen, so no places are stored.
    """
    cut, whole = tuple(tiles[: rows * columns]), tuple(tiles[rows * columns :])
    return KeptView(rows, columns, cut), *((KeptView(1, 1, whole),) if whole else ())
