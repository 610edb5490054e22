"""Least squares on many rows of numbers: what parts that are to be trained start from.

Letters: n rows, D numbers of a row, E of what is wanted of it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RIDGE = 0.01
"""Of the rows' mean square, added so that few rows of many numbers have one solution."""


def evenly(rows: "Tensor", most: int) -> "Tensor":
    """Return at most so many of rows [n, D], evenly taken."""
    return rows[:: -(-len(rows) // most)]


def linear_map(rows: "Tensor", wanted: "Tensor") -> "Tensor":
    """Return the matrix [E, D], float32, that maps rows as near as can be to what is wanted.

    It minimises ||X W^T - Y||^2 + r m ||W||^2, m the mean of |x|^2 over rows, r `RIDGE`. Solved by X X^T,
    which is small where rows are few and wide.

    Args:
        rows: X [n, D].
        wanted: Y [n, E].
    """
    import torch

    x, y = rows.double(), wanted.double()
    gram = x @ x.T
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    found: Tensor = (x.T @ torch.linalg.solve(gram, y)).T.float()
    return found.contiguous()
