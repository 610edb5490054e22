"""Shards: equal shares of the samples of one calibration, each measured by a run of its own."""

import re
from collections.abc import Sequence
from typing import Self, TypeVar

from pydantic import Field, model_validator

from compressor.errors import DataError
from compressor.facts import Facts

Item = TypeVar("Item")


class Shard(Facts):
    """Every n-th sample of a calibration, from the number-th on; slow ones that stand together spread so.

    Attributes:
        number: which, from 1 on.
        of: n, how many shards there are.
    """

    number: int = Field(ge=1)
    of: int = Field(ge=1)

    @model_validator(mode="after")
    def _among_all(self) -> Self:
        if self.number > self.of:
            raise ValueError(f"shard {self.number} of {self.of}")
        return self

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `3/8`: the third of eight.

        Raises:
            DataError: it is something else.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text) if isinstance(text, str) else None
        number, of = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= of:
            problem = f"`shard`: {text!r:.40} is no shard; give which of how many, 1/8 to 8/8 say"
            raise DataError([problem])
        return cls(number=number, of=of)

    def check_has_some(self, samples: int) -> None:
        """Refuse to be one of more shards than there are samples.

        Raises:
            DataError: says how many there may be.
        """
        if self.of > samples:
            raise DataError(
                [
                    f"`shard`: {self}: there are {samples} samples in all; give at most {samples} shards"
                ]
            )

    def among(self, items: Sequence[Item]) -> tuple[Item, ...]:
        """Return those of all samples' items that are its own, in order."""
        return tuple(items[self.number - 1 :: self.of])

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"
