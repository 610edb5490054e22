"""Rows of pictures that are put together from tiles, beside the code of transformers that does it."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from compressor.arrangement import LINE_END, Unpadded, side_by_side
from compressor.families.pictures.steps import FitTiles
from tests.family_cases import odd_sizes

NEXT = ([(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)], 336, 24, None)
SIX = range(1, 7)
ONEVISION = ([(rows, columns) for rows in SIX for columns in SIX], 384, 27, 9)
SIZES = {
    (336, 336): (1176, 1485),
    (640, 480): (2340, 2929),
    (1024, 768): (2340, 4725),
    (1920, 1080): (1948, 7269),
    (1240, 1754): (2256, 7353),
    (3000, 400): (1306, 4152),
}
"""Rows of a picture of so many pixels (width, height), by transformers' own processors."""

Kind = tuple[list[tuple[int, int]], int, int, int | None]


def step_of(kind: Kind) -> FitTiles:
    grids, edge, _, _ = kind
    sizes = tuple((rows * edge, columns * edge) for rows, columns in grids)
    return FitTiles(size=(edge, edge), sizes=sizes, resample="bicubic")


def packed(kind: Kind, size: tuple[int, int], features: torch.Tensor, end: torch.Tensor) -> Any:
    """Return what transformers puts together of the features of a picture's tiles."""
    from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    _, edge, side, most = kind
    vision = SimpleNamespace(image_size=edge, patch_size=edge // side)
    config = SimpleNamespace(
        vision_config=vision, image_grid_pinpoints=[list(size) for size in step_of(kind).sizes]
    )
    model, given = SimpleNamespace(config=config), ([features], [size[::-1]])
    if most is None:
        (rows,), _ = LlavaNextModel.pack_image_features(
            model, *given, vision_feature_select_strategy="default", image_newline=end
        )
    else:
        (rows,), _ = LlavaOnevisionModel.pack_image_features(
            model, *given, image_newline=end, vision_aspect_ratio=f"anyres_max_{most}"
        )
    return rows


def gathered(one: Any, table: torch.Tensor) -> torch.Tensor:
    rows = table[torch.from_numpy(one.index)]
    return rows if one.weight is None else (rows * torch.from_numpy(one.weight)[..., None]).sum(1)


@pytest.mark.parametrize(("kind", "exact"), [(NEXT, True), (ONEVISION, False)])
def test_rows_are_those_that_transformers_puts_together(kind: Kind, exact: bool) -> None:
    generator, rows = torch.Generator().manual_seed(0), Unpadded(side=kind[2], most_tiles=kind[3])
    step, seen = step_of(kind), set()
    for size in [*odd_sizes(60, most=3000), (3000, 1), *SIZES]:
        grid = step.grid(*size[::-1])
        tiles = 1 + grid[0] * grid[1]
        features = torch.randn(tiles, kind[2] ** 2, 2, generator=generator)
        end = torch.randn(2, generator=generator)
        wanted = packed(kind, size, features, end)
        one = rows.of_tiles(*size[::-1], grid)
        assert (one.rows, one.tiles, one.tile_rows) == (len(wanted), tiles, kind[2] ** 2)
        found = gathered(side_by_side([one]), torch.cat([features.flatten(0, 1), end[None]]))
        assert (found - wanted).abs().max() <= (0 if exact else 1e-6), size
        assert one.rows <= rows.most_rows(step.grids)
        seen.add(one.rows)
    assert len(seen) > 30


def test_real_sizes_give_as_many_rows_as_the_processors_write() -> None:
    for size, wanted in SIZES.items():
        for kind, count in zip((NEXT, ONEVISION), wanted, strict=True):
            rows = Unpadded(side=kind[2], most_tiles=kind[3])
            assert rows.of_tiles(*size[::-1], step_of(kind).grid(*size[::-1])).rows == count


def test_the_most_rows_are_those_of_a_picture_that_fills_the_largest_grid() -> None:
    rows = Unpadded(side=24)
    assert rows.most_rows(NEXT[0]) == rows.of_tiles(672, 672, (2, 2)).rows == 2928
    assert rows.most_rows([(1, 2), (2, 1)]) == 1776
    assert rows.most_rows([]) == rows.of_whole().rows == 577


def test_pictures_side_by_side_read_their_own_tiles_and_one_row_behind_all() -> None:
    rows = Unpadded(side=2)
    wide, whole = rows.of_tiles(10, 20, (1, 2)), rows.of_whole()
    assert whole.index.tolist() == [0, 1, 2, 3, LINE_END]
    assert wide.index.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, LINE_END, 6, 7, 10, 11, LINE_END]
    both = side_by_side([whole, wide, whole])
    assert both.tiles == 5
    assert both.index[:5].tolist() == [0, 1, 2, 3, 20]
    assert (both.index[5:19] == np.where(wide.index == LINE_END, 20, wide.index + 4)).all()
    assert both.index[19:].tolist() == [16, 17, 18, 19, 20]


@pytest.mark.parametrize("most", [None, 9])
def test_a_made_up_call_reads_every_tile_and_the_end_of_lines(most: int | None) -> None:
    rows = Unpadded(side=3, most_tiles=most)
    made = rows.made_up(tiles=3, rows=79)
    assert (made.rows, made.tiles, made.grids) == (79, 3, ((1, 9), (2, 70)))
    assert set(side_by_side([made]).index.ravel().tolist()) == set(range(3 * 9 + 1))
    # As many lines as a square one has, of 8 x 8 cells and an end each at most.
    assert made.ends.tolist() == [9 + 70 * line // 8 - 1 for line in range(1, 9)]
    shapes = [array.shape for array in made.arrays]
    assert shapes == ([(79,)] if most is None else [(79, 4), (79, 4)])
    assert [part.cells.tolist() for part in rows.made_up(1, 10).parts()] == [list(range(9))]


@pytest.mark.parametrize("most", [None, 4])
def test_the_grids_of_a_picture_are_given_one_by_one(most: int | None) -> None:
    rows = Unpadded(side=4, most_tiles=most)
    grids = [(1, 2), (2, 1), (2, 2), (1, 3), (3, 3), (1, 1)]
    bound = {
        grid: rows.most_rows_kept(1 + grid[0] * grid[1], rows.most_rows([grid]), lambda n: n // 3)
        for grid in grids
    }
    table = torch.arange(10 * 16 + 1.0)[:, None]
    for size, grid in product([*odd_sizes(12, most=300), (1, 300), (300, 1)], grids):
        one = rows.of_tiles(*size[::-1], grid)
        found = gathered(one, torch.cat([table[: one.tiles * 16], -torch.ones(1, 1)]))
        ends = one.ends.tolist()
        assert (found[ends] == -1).all()
        seen, parts = set(ends), list(one.parts())
        for part in parts:
            own = table[: one.tiles * 16].reshape(-1, 16)[part.tiles].reshape(-1, 1)
            of_part = gathered(part.arranged, torch.cat([own, -torch.ones(1, 1)]))
            assert torch.equal(of_part[:-1], found[part.cells])
            assert of_part[-1] == -1
            assert not seen & set(part.cells.tolist())
            seen |= set(part.cells.tolist())
        assert sorted(seen) == list(range(one.rows))
        kept = len(ends) + sum(len(part.cells) // 3 for part in parts)
        assert one.rows_kept(lambda n: n // 3) == kept <= bound[grid]
    (part,) = rows.of_whole().parts()
    assert (part.cells.tolist(), part.arranged.rows) == (list(range(16)), 17)
