"""Choices among visual rows in two recordings: others, or the same ones with other numbers.

Rows that enter the decoder tell their places. Rows that go on at a layer are told by their keys in it: these
do not depend on which others go on, so a row whose key is none of the reference's is another row. Where every
row's key is another, or a text row's, numbers differ and not the choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from export.results.fidelity import FidelityLimits
from export.session.arrays import Array


@dataclass
class Choices:
    """What one side chose.

    Attributes:
        entering: which of the visual rows of pictures enter the decoder, numbers, by the pictures in words.
        going_on: keys [K + T, G * d] of visual rows that go on at a layer, then of text rows, by the call and
            the layer, with K.
    """

    entering: dict[str, Array] = field(default_factory=dict)
    going_on: dict[tuple[str, int], tuple[Array, int]] = field(default_factory=dict)


def others(
    reference: Choices, found: Choices, limits: FidelityLimits, beside: str
) -> Mapping[str, str]:
    """Return where other rows were chosen: how the names of all calls behind begin, with the failure.

    Args:
        reference: one side's.
        found: the other's.
        limits: what is one number.
        beside: what made the reference, in words.
    """
    lines = {}
    why = f"others than {beside} chooses: ties that rounding decides, or other scores"
    unsaid = "numbers behind them are not compared"
    for words, wanted in reference.entering.items():
        got = found.entering.get(words)
        if got is None or got.shape != wanted.shape:
            lines[f"{words}, "] = f"{words}: no places of visual rows that enter, or not as many"
        elif count := int((~np.isin(got, wanted)).sum()):
            lines[f"{words}, "] = (
                f"{words}: {count} of {got.size} visual rows that enter the decoder are {why}; {unsaid}"
            )
    for (call, layer), (keys, rows) in reference.going_on.items():
        own = found.going_on.get((call, layer))
        before = any(call.startswith(start) for start in lines)
        if own is not None and not before and (count := _unlike(keys, own[0], rows, limits)):
            lines[f"{call}: "] = (
                f"{call}: at layer {layer} {count} of {rows} visual rows that go on are {why}; {unsaid}"
            )
    return lines


def behind(call: str, starts: Sequence[str]) -> bool:
    """Return whether a call's numbers follow from other rows; embeddings of text do not."""
    return not call.endswith(": embed") and call.startswith(tuple(starts))


def in_both(
    call: str, rows: tuple[Array, Array], sides: tuple[Choices, Choices]
) -> tuple[Array, Array]:
    """Return of rows [.., K, D] that the vision side gave those that both sides chose; all else as it is."""
    pictures = call.partition(", ")[2]
    one, other = (side.entering.get(pictures) for side in sides)
    if one is None or other is None or np.array_equal(one, other):
        return rows
    ids = one, other
    first, second = (
        side.reshape(-1, side.shape[-1])[np.isin(ids[i], ids[1 - i])] for i, side in enumerate(rows)
    )
    return first, second


def _unlike(wanted: Array, got: Array, rows: int, limits: FidelityLimits) -> int:
    """Return how many of the first rows are no row of the reference; 0 where it is numbers that differ."""
    if wanted.shape != got.shape:
        return 0
    close = max(limits.max_abs, limits.max_relative * float(np.abs(wanted).max(initial=0.0)))
    if (np.abs(wanted - got)[rows:] > close).any():
        return 0
    # One row at a time: all distances at once are rows times rows times width.
    nearest = [np.abs(wanted[:rows] - row).max(axis=1).min() for row in got[:rows]]
    count = int((np.array(nearest) > close).sum())
    return 0 if count == rows else count
