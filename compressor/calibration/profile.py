"""What calibration measured, as a JSON file that grows sample by sample."""

import math
from pathlib import Path
from statistics import median_low
from typing import Literal

from pydantic import Field, ValidationError

from compressor.dims import Facts
from compressor.errors import ProfileError
from compressor.files import read_text, write_text


class SampleScore(Facts):
    """Measurements on one sample.

    Attributes:
        visual: V of its prompt.
        text: T of its prompt.
        layer_contribution: [L] KL(p_i || p) in nats, by ShortV's definition.
    """

    visual: int = Field(ge=1)
    text: int = Field(ge=1)
    layer_contribution: tuple[float, ...]


class Profile(Facts):
    """Measurements of one model on one set of samples.

    Attributes:
        model: hub id or folder name; for people.
        data: name of the data file; for people.
        total: how many samples the complete profile has.
        samples: those measured so far, in order.
    """

    profile_format: Literal[1] = 1
    model: str
    model_digest: str
    data: str
    data_digest: str
    layers: int = Field(ge=1)
    total: int = Field(ge=1)
    samples: tuple[SampleScore, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every sample has been measured."""
        return len(self.samples) == self.total

    def layer_contribution(self) -> tuple[float, ...]:
        """Return the mean layer contribution [L] over the samples, in nats."""
        columns = zip(*(s.layer_contribution for s in self.samples), strict=True)
        return tuple(math.fsum(column) / len(self.samples) for column in columns)

    def typical_text_rows(self) -> int:
        """Return the median T of the samples; what predicted costs refer to."""
        return int(median_low(s.text for s in self.samples))

    def with_sample(self, score: SampleScore) -> "Profile":
        """Return the profile with one more sample."""
        return self.model_copy(update={"samples": (*self.samples, score)})

    def check_belongs(
        self, path: Path, *, model_digest: str, data_digest: str | None = None
    ) -> None:
        """Refuse to be used for another model or other data.

        Raises:
            ProfileError: a digest differs; all differences are named.
        """
        problems = []
        if self.model_digest != model_digest:
            problems.append(
                f"{path}: measured on another model (named {self.model}, digest "
                f"{self.model_digest[:12]}, not {model_digest[:12]}); remove it or calibrate anew"
            )
        if data_digest is not None and self.data_digest != data_digest:
            problems.append(
                f"{path}: measured on other data (named {self.data}, digest "
                f"{self.data_digest[:12]}, not {data_digest[:12]}; samples and seed count too); "
                "remove it or calibrate anew"
            )
        if problems:
            raise ProfileError(problems)

    def save(self, path: Path) -> None:
        """Write the profile as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Read a profile.

        Raises:
            ProfileError: missing, no JSON, of a newer format or inconsistent.
        """
        try:
            profile = cls.model_validate_json(read_text(path, ProfileError))
        except ValidationError as error:
            raise ProfileError(
                f"{path}: {'.'.join(map(str, e['loc'])) or 'profile'}: {e['msg']}; "
                "make it anew with `vtcompress calibrate`"
                for e in error.errors()
            ) from None
        if any(len(s.layer_contribution) != profile.layers for s in profile.samples) or (
            len(profile.samples) > profile.total
        ):
            raise ProfileError([f"{path}: inconsistent; make it anew with `vtcompress calibrate`"])
        return profile
