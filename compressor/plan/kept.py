"""Which of the visual rows go on, or run a layer, as data: k of every n, by a method's rule."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from compressor.facts import Facts, ModelFacts, Positive


class Kept(Facts):
    """k of every n visual rows go on; a method's rule says which.

    Attributes:
        count: k.
        of: n, visual rows of one tile that the choice is made among.
        by: name of the method.
        asked: its keys in the recipe: what its rule is made of again; no files.
        weights: digest of the file of weights that its rule reads; empty: it reads none.
    """

    count: Positive
    of: Positive
    by: str
    asked: Mapping[str, Any] = {}
    weights: str = ""

    @model_serializer(mode="wrap")
    def _without_weights_that_are_not_read(
        self, handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if k != "weights" or v}

    @model_validator(mode="after")
    def _fewer(self) -> "Kept":
        if self.count > self.of:
            raise ValueError(f"{self.by} keeps {self.count} of {self.of} visual rows")
        return self

    def rows(self, visual: int) -> int:
        """Return how many of so many visual rows go on; see `rows_going_on`."""
        return rows_going_on(visual, [(self.count, self.of)])


def rows_going_on(visual: int, choices: Iterable[tuple[int, int]]) -> int:
    """Return how many of so many visual rows are left behind choices of k of every n.

    Rounded up, so that of a picture with fewer rows than n one goes on: a choice is no exit.

    Args:
        visual: rows in front of the first choice; a number, or a size of the exporter.
        choices: k and n of each, one after the other.
    """
    for count, of in choices:
        # In this form the exporter sees that no more go on than there are.
        visual -= visual * (of - count) // of
    return visual


class Running(Kept):
    """k of every n visual rows run a layer; the others pass by it and leave no keys and values there.

    Attributes:
        within: whether rows compete with all visual ones of a call, or with those of their own tile.
        outputs: numbers that the router gives of a row.
        weights: sha256 of the file of routers.
    """

    within: Literal["call", "tile"] = "call"
    outputs: Positive = 1
    weights: str = ""


def rows_of_share(share: float, rows: int) -> int:
    """Return how many a share (0..1) of so many rows is, rounded down."""
    # A hair more, so that 0.29 of 100 is 29.
    return math.floor(share * rows + 1e-9)


def why_no_tiles(facts: ModelFacts) -> str | None:
    """Return why pictures of a model are not of tiles that have one number of rows; None: they are."""
    if not facts.grids_differ:
        return None
    return (
        f"pictures of {facts.family} have grids of their own, so different numbers of visual tokens"
    )
