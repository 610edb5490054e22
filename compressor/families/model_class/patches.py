"""Pictures as grids of patches in a tower: their rotations by row and column, and squares of them.

Letters: I pictures, h and w patches in a column and in a row, C width, d head size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def rotations(
    grid: tuple[int, int], down: Sequence[float], right: Sequence[float], like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [h * w, d / 2] of patches' angles: by the row first, then by the column.

    Args:
        grid: h and w.
        down: angles of a row's step, d / 4 of them. No tensor: on the meta device it would have no values.
        right: likewise of a column's step.
        like: a tensor of the dtype and on the device wanted.
    """
    high, wide = grid
    turned = [
        torch.arange(count, device=like.device, dtype=torch.float32)[:, None]
        * torch.tensor(speeds, dtype=torch.float32, device=like.device)
        for count, speeds in ((high, down), (wide, right))
    ]
    angles = torch.cat(
        [turned[0][:, None].expand(high, wide, -1), turned[1][None].expand(high, wide, -1)], dim=-1
    ).flatten(0, 1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads' states [I, heads, h * w, d], whose halves are the two parts of a pair."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def squares(rows: Tensor, side: int) -> Tensor:
    """[I, h, w, ...] to [I, h / side, w / side, side, side, ...]."""
    cells: Tensor = rows.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return cells.transpose(2, 3)


def head_width_problems(
    section: Mapping[str, Any], where: str, width_key: str, heads_key: str
) -> list[str]:
    """Return a line if heads of a section whose counts are counts cannot be turned by row and column."""
    width, heads = section.get(width_key), section.get(heads_key)
    if width and heads and width % (4 * heads):
        return [
            f"{where}.{heads_key}: {heads} heads of a width of {width}: a head's width must be a multiple "
            "of 4, half for rows and half for columns"
        ]
    return []
