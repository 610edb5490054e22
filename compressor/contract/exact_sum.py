"""Sums that no order of adding changes, so that parts of a calibration add up to the whole of it.

A sum is kept as several numbers at each place, whose exact total it is: what one addition rounds away, the
next number holds. Source: J. R. Shewchuk, Adaptive precision floating-point arithmetic and fast robust
geometric predicates, 1997, sections 2.2 and 2.4 (two-sum, grow-expansion).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def exactly_added(parts: Sequence[Any], values: Any) -> tuple[Any, ...]:
    """Return a sum with more values added, as parts that are as few as can be.

    Args:
        parts: of the sum so far, each in the shape of the values, nested tuples of numbers; none: it is 0.
        values: nested tuples of numbers. One that is infinite or none makes its sum so.
    """
    grown: list[Numbers] = []
    total: Numbers = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        for part in map(np.asarray, parts):  # least first
            both = total + part
            second = both - total
            lost = (total - (both - second)) + (part - second)
            grown.append(np.where(np.isfinite(both), lost, 0.0))
            total = both
    # Zeros first, place by place: parts of which nothing but zeros is left are dropped.
    stacked = np.stack([*grown, total])
    order = np.argsort(stacked != 0, axis=0, kind="stable")
    found = np.take_along_axis(stacked, order, axis=0)
    return tuple(_tuples(part.tolist()) for part in found if part.any()) or (
        _tuples(np.zeros_like(total).tolist()),
    )


def exact_mean(parts: Sequence[Any], count: int) -> Any:
    """Return the mean of `count` values by the parts of their sum; both are rounded once."""
    if isinstance(parts[0], tuple):
        return tuple(exact_mean(place, count) for place in zip(*parts, strict=True))
    return math.fsum(parts) / count


def _tuples(values: Any) -> Any:
    return tuple(map(_tuples, values)) if isinstance(values, list) else values
