"""Pictures that are resized to whole cells: as transformers does it, and never more cells than is told."""

import random

import pytest

from compressor.errors import DataError, ModelError
from compressor.families.picture_steps import Crop, Normalise, ResizeToCells, output_size

STEPS = {
    "capped": ResizeToCells(cell=28, least=56 * 56, most=28 * 28 * 64, resample="bicubic"),
    "published": ResizeToCells(cell=28, least=56 * 56, most=28 * 28 * 1280, resample="bicubic"),
    "enlarged": ResizeToCells(cell=8, least=8 * 8 * 90, most=8 * 8 * 100, resample="bicubic"),
}


@pytest.mark.parametrize("name", STEPS)
def test_grids_are_those_of_transformers_and_within_the_most_cells(name: str) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    step, drawn = STEPS[name], random.Random(0)
    for _ in range(3000):
        height, width = (int(2 ** drawn.uniform(0, 12)) for _ in range(2))
        if max(height, width) > 200 * min(height, width):
            continue
        wanted = smart_resize(height, width, step.cell, step.least, step.most)
        rows, columns = step.grid(height, width)
        assert (rows * step.cell, columns * step.cell) == wanted
        assert rows * columns <= step.most_cells


def test_a_row_of_cells_may_be_more_than_the_budget_but_no_more_than_is_told() -> None:
    step = STEPS["capped"]
    assert step.grid(10_000, 50) == (113, 1)
    assert step.most_cells == 113


def test_pictures_that_are_too_oblong_are_refused() -> None:
    with pytest.raises(
        DataError, match="10 x 3000 pixels: one edge is more than 200 times the other"
    ):
        STEPS["published"].grid(3000, 10)


def test_sizes_differ_and_nothing_but_steps_on_values_stands_behind() -> None:
    first = STEPS["published"]
    values = Normalise(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert output_size([first, values]) is None
    with pytest.raises(ModelError, match="crop: stands behind resize_to_cells"):
        output_size([first, Crop(size=(8, 8))])
    with pytest.raises(ModelError, match="resize_to_cells: does not stand first"):
        output_size([Crop(size=(8, 8)), first])
