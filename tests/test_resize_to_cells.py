"""Pictures that are resized to whole cells: as transformers does it, and never more cells than is told."""

import random

import numpy as np
import pytest

from compressor.errors import DataError, ModelError
from compressor.families.pictures.sizes import output_size
from compressor.families.pictures.steps import Crop, FitToCells, Normalise, ResizeToCells

STEPS = {
    "capped": ResizeToCells(cell=28, least=56 * 56, most=28 * 28 * 64, resample="bicubic"),
    "published": ResizeToCells(cell=28, least=56 * 56, most=28 * 28 * 1280, resample="bicubic"),
    "enlarged": ResizeToCells(cell=8, least=8 * 8 * 90, most=8 * 8 * 100, resample="bicubic"),
    "from a cell": ResizeToCells(
        cell=28, least=384 * 384, most=1536 * 1536, resample="bicubic", from_cell=True
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_grids_are_those_of_transformers_and_within_the_most_cells(name: str) -> None:
    from transformers.models.paddleocr_vl import image_processing_pil_paddleocr_vl as from_cell
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as plain

    step, drawn = STEPS[name], random.Random(0)
    theirs = from_cell if step.from_cell else plain
    for _ in range(3000):
        height, width = (int(2 ** drawn.uniform(0, 12)) for _ in range(2))
        try:
            wanted = theirs.smart_resize(height, width, step.cell, step.least, step.most)
        except ValueError:
            with pytest.raises(DataError, match=f"{width} x {height} pixels: one edge is more"):
                step.grid(height, width)
            continue
        rows, columns = step.grid(height, width)
        assert (rows * step.cell, columns * step.cell) == wanted
        assert rows * columns <= step.most_cells


@pytest.mark.parametrize(
    ("cell", "frame"), [(28, (1540, 1540)), (8, (88, 88)), (8, (40, 300)), (16, (10, 10))]
)
def test_pictures_are_fitted_into_a_frame_as_transformers_does_it(
    cell: int, frame: tuple[int, int]
) -> None:
    from transformers.models.pixtral.image_processing_pil_pixtral import (
        get_resize_output_image_size,
    )

    step, drawn = FitToCells(cell=cell, size=frame, resample="bicubic"), random.Random(0)
    for _ in range(3000):
        size = [int(2 ** drawn.uniform(0, 12)) for _ in range(2)]
        picture = np.broadcast_to(np.uint8(0), (3, *size))
        wanted = get_resize_output_image_size(picture, frame, cell, "channels_first")
        if 0 in wanted:  # Pillow then fails
            with pytest.raises(DataError, match=r"pixels: made to fit into .* nothing is left of"):
                step.grid(*size)
            continue
        rows, columns = step.grid(*size)
        assert (rows * cell, columns * cell) == wanted
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
    frame = FitToCells(cell=28, size=(1540, 1540), resample="bicubic")
    for first in (STEPS["published"], frame):
        sizes_differ_behind(first)


def sizes_differ_behind(first: ResizeToCells | FitToCells) -> None:
    values = Normalise(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert output_size([first, values]) is None
    with pytest.raises(ModelError, match=f"crop: stands behind {first.step}"):
        output_size([first, Crop(size=(8, 8))])
    with pytest.raises(ModelError, match=f"{first.step}: does not stand first"):
        output_size([Crop(size=(8, 8)), first])
