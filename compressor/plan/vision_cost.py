"""Predicted cost of what runs in front of the decoder: vision tower and projector, from facts.

FLOPs are those of matrix products, as in `compressor.plan.cost`. Of a tile of p x p patches of q x q pixels a
tower of width C with MLPs of width M runs n = p * p rows, one more with a class token: making patches costs
2 * p * p * 3q^2 * C, each layer 8nC^2 + 4n^2C + 4nCM, the projector 2N times the sum of its matrices' sizes.
Layers behind those that the projector reads do not run.
"""

from itertools import pairwise

from compressor.facts import ModelFacts


def tile_flops(model: ModelFacts) -> int | None:
    """Return the FLOPs of tower and projector for one tile; None: the family does not tell its work."""
    tower = model.tower
    if tower is None or tower.work is None:
        return None
    work, width = tower.work, tower.width
    patches = (model.image_size // work.patch) ** 2
    rows = patches + tower.class_token
    embedded = 2 * patches * 3 * work.patch**2 * width
    layer = 8 * rows * width**2 + 4 * rows**2 * width + 4 * rows * width * work.intermediate
    projected = sum(2 * model.tile_rows * one * other for one, other in pairwise(work.projector))
    return embedded + tower.layers_read * layer + projected


def rows_chosen_among(model: ModelFacts) -> tuple[int, ...]:
    """Return the numbers of rows that a rule in front of the decoder sees, call by call, of a picture.

    Tiles are chosen among one by one; where they make up a grid, so are the first one and the grid.
    """
    if model.arrangement is None:
        return (model.tile_rows,) * model.most_tiles
    return model.tile_rows, model.most_cells
