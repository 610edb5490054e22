"""What is kept of large arrays, so that they can be compared elsewhere: a few sums that every number is in.

Rule: numbers get signs by a formula of their place; those of the rows r, r + 4, r + 8 ... and of the columns
c, c + 16, c + 32 ... are summed up. Such sums keep sizes and differences in the mean (Charikar, Chen and
Farach-Colton, "Finding Frequent Items in Data Streams", 2002), so limits that hold for arrays are held
against them; a single number that is wrong is in one of them.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from compressor.errors import ArtifactError
from compressor.facts import Facts
from export.checks.fidelity import how_different
from export.results.fidelity import Difference
from export.session.arrays import Array

GROUPS, WIDTH = 4, 16
SAMPLED = 64
DIGITS = 8
"""Digits that numbers are stored with; float32 has seven."""
# Odd, near 2^32 divided by the golden ratio: the highest bit of its multiples has no period.
_SIGNS = 0x9E3779B1

Row = tuple[float, ...]
SumRow = Annotated[Row, Field(min_length=WIDTH, max_length=WIDTH)]
SumRows = Annotated[tuple[SumRow, ...], Field(min_length=GROUPS, max_length=GROUPS)]
TokenId = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Sums(Facts):
    """What is kept of an array.

    Attributes:
        shape: of it.
        sums: [4, 16], see the module.
    """

    shape: tuple[int, ...]
    sums: SumRows

    @classmethod
    def of(cls, array: Array) -> "Sums":
        """Return what is kept of an array of any shape, one axis at least."""
        return cls(shape=array.shape, sums=tuple(map(numbers, summed(array))))

    def against(self, found: "Sums", what: str) -> Difference | str:
        """Return how far what was found is from this; or that its shape is another."""
        return rows_compared(self.shape, self.sums, found.shape, found.sums, what)


class Pixels(Facts):
    """What is kept of the pixel values of a picture.

    Attributes:
        shape: [tiles, 3, H, W].
        sha256: of the values, float32, little-endian.
        sampled: some of them, evenly spaced.
        sums: as of `Sums`.
    """

    shape: tuple[int, ...]
    sha256: Digest
    sampled: Annotated[Row, Field(max_length=SAMPLED)]
    sums: SumRows

    @classmethod
    def of(cls, values: Array) -> "Pixels":
        """Return what is kept of pixel values [tiles, 3, H, W]."""
        flat = values.astype("<f4").reshape(-1)
        places = np.linspace(0, flat.size - 1, min(SAMPLED, flat.size)).astype(np.int64)
        return cls(
            shape=values.shape,
            sha256=hashlib.sha256(flat.tobytes()).hexdigest(),
            sampled=numbers(flat[places]),
            sums=Sums.of(values).sums,
        )


class Logits(Facts):
    """What is kept of the logits of one step.

    Attributes:
        ids: the likeliest tokens, the first one first.
        values: their logits.
        whole: of all of them.
        margin: how far the second one is behind the first.
    """

    ids: Annotated[tuple[TokenId, ...], Field(min_length=1)]
    values: Row
    whole: Sums
    margin: float

    @model_validator(mode="after")
    def _a_value_for_each_token(self) -> Self:
        if len(self.ids) != len(self.values):
            raise ValueError("ids and values differ in number")
        return self

    @classmethod
    def of(cls, logits: Array, count: int) -> "Logits":
        """Return what is kept of logits [vocab]: the `count` likeliest."""
        order = np.argsort(-logits.astype(np.float64), kind="stable")[:count]
        values = logits[order].astype(np.float64)
        margin = float(values[0] - values[1]) if len(values) > 1 else 0.0
        return cls.at(logits, tuple(order.tolist()), margin)

    @classmethod
    def at(cls, logits: Array, ids: Sequence[int], margin: float = 0.0) -> "Logits":
        """Return what is kept of logits [vocab] at given tokens.

        Raises:
            ArtifactError: there is no such token.
        """
        if max(ids) >= len(logits):
            raise ArtifactError(
                [f"the known answers name the token {max(ids)}, and there are {len(logits)}"]
            )
        values = logits[list(ids)].astype(np.float64)
        whole = Sums.of(logits[None])
        return cls(
            ids=tuple(ids), values=numbers(values), whole=whole, margin=as_stored_number(margin)
        )


def summed(array: Array) -> Array:
    """Return the sums [4, 16] of an array's signed numbers; its last axis has the columns."""
    rows = array.astype(np.float64).reshape(-1, array.shape[-1])
    place = np.arange(rows.size, dtype=np.uint64).reshape(rows.shape)
    minus = (place * np.uint64(_SIGNS) & np.uint64(0xFFFFFFFF)) >> np.uint64(31)
    signed = np.where(minus.astype(bool), -rows, rows)
    found = np.zeros((GROUPS, WIDTH))
    for group in range(GROUPS):
        of_columns = signed[group::GROUPS].sum(axis=0)
        for column in range(WIDTH):
            found[group, column] = of_columns[column::WIDTH].sum()
    return found


def rows_compared(
    shape: Sequence[int],
    wanted: Sequence[Row],
    found_shape: Sequence[int],
    found: Sequence[Row],
    what: str,
) -> Difference | str:
    """Return how far rows of numbers are from the wanted ones; or that they tell of another shape."""
    if tuple(shape) != tuple(found_shape):
        return f"{what}: is {[*found_shape]}, known is {[*shape]}"
    return how_different(what, np.array(wanted), np.array(found))


def as_stored_number(number: float) -> float:
    """Return a number as it is stored."""
    return float(f"{number:.{DIGITS}g}")


def numbers(values: Array) -> Row:
    """Return numbers as they are stored."""
    return tuple(as_stored_number(float(value)) for value in values)


def token_runs(ids: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return tokens as pairs of a token and how often it stands there in a row."""
    found: list[tuple[int, int]] = []
    for token in ids:
        if found and found[-1][0] == token:
            found[-1] = token, found[-1][1] + 1
        else:
            found.append((token, 1))
    return tuple(found)


def places_digest(*arrays: Array | None) -> str:
    """Return the sha256 of whole numbers; None: there are none."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(b"-" if array is None else repr(array.shape).encode())
        total.update(b"" if array is None else np.ascontiguousarray(array, "<i8").tobytes())
    return total.hexdigest()
