"""Which of the visual rows go on, as data: k of every n, by a method's rule."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from compressor.facts import Facts, Positive


class Kept(Facts):
    """k of every n visual rows go on; a method's rule says which.

    Attributes:
        count: k.
        of: n, visual tokens of one tile.
        by: name of the method.
        asked: its keys in the recipe: what its rule is made of again.
    """

    count: Positive
    of: Positive
    by: str
    asked: Mapping[str, Any] = {}

    @model_validator(mode="after")
    def _fewer(self) -> "Kept":
        if self.count > self.of:
            raise ValueError(f"{self.by} keeps {self.count} of {self.of} visual rows")
        return self

    def rows(self, visual: int) -> int:
        """Return how many of so many visual rows go on; numbers, or sizes of the exporter."""
        return visual * self.count // self.of


def rows_of_share(share: float, rows: int) -> int:
    """Return how many a share (0..1) of so many rows is, rounded down."""
    # A hair more, so that 0.29 of 100 is 29.
    return math.floor(share * rows + 1e-9)
