"""What calibration measured, as a JSON file that grows sample by sample."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median_low
from typing import Literal

from pydantic import Field, ValidationError

from compressor.dims import Facts
from compressor.errors import ProfileError
from compressor.files import read_text, write_text

Measure = Literal["layer_contribution", "exit_kl", "gate_margin"]
"""What calibration can measure, by the name of the field that holds it."""


class SampleScore(Facts):
    """Measurements on one sample; empty: not measured.

    Attributes:
        visual: V of its prompt.
        text: T of its prompt.
        layer_contribution: [L] KL(p_i || p) in nats, by ShortV's definition.
        exit_kl: [L] KL(p_K || p) in nats by the first layer K without visual rows, by VTW's definition.
        gate_margin: logit 1 minus logit 0 of the gate behind each of the profile's `gate_layers`.
    """

    visual: int = Field(ge=1)
    text: int = Field(ge=1)
    layer_contribution: tuple[float, ...] = ()
    exit_kl: tuple[float, ...] = ()
    gate_margin: tuple[float, ...] = ()


class Profile(Facts):
    """Measurements of one model on one set of samples.

    Attributes:
        model: hub id or folder name; for people.
        data: name of the data file; for people.
        total: how many samples the complete profile has.
        measures: what was measured on each sample.
        gate_layers: layers whose gates were asked.
        gates_digest: sha256 of their file; empty: no gates.
        samples: those measured so far, in order.
    """

    profile_format: Literal[1] = 1
    model: str
    model_digest: str
    data: str
    data_digest: str
    layers: int = Field(ge=1)
    total: int = Field(ge=1)
    measures: tuple[Measure, ...] = ("layer_contribution",)
    gate_layers: tuple[int, ...] = ()
    gates_digest: str = ""
    samples: tuple[SampleScore, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every sample has been measured."""
        return len(self.samples) == self.total

    def layer_contribution(self) -> tuple[float, ...]:
        """Return the mean layer contribution [L] over the samples, in nats."""
        return _mean([sample.layer_contribution for sample in self.samples])

    def exit_kl(self) -> tuple[float, ...]:
        """Return the mean KL [L] over the samples, in nats, by the first layer without visual rows."""
        return _mean([sample.exit_kl for sample in self.samples])

    def typical_text_rows(self) -> int:
        """Return the median T of the samples; what predicted costs refer to."""
        return int(median_low(s.text for s in self.samples))

    def lengths(self) -> dict[str, int]:
        """Return how many values a sample has of each measure."""
        whole = {
            "layer_contribution": self.layers,
            "exit_kl": self.layers,
            "gate_margin": len(self.gate_layers),
        }
        return {name: count if name in self.measures else 0 for name, count in whole.items()}

    def with_sample(self, score: SampleScore) -> "Profile":
        """Return the profile with one more sample."""
        return self.model_copy(update={"samples": (*self.samples, score)})

    def check_belongs(
        self,
        path: Path,
        *,
        model_digest: str,
        data_digest: str | None = None,
        measures: Iterable[Measure] = (),
        gates_digest: str | None = None,
    ) -> None:
        """Refuse to be used for another model, other data or other gates, or for what it does not hold.

        Args:
            path: of the profile; starts every problem.
            model_digest: of the model at hand.
            data_digest: of the data at hand; None: any.
            measures: that are needed.
            gates_digest: of the gates at hand; None: any.

        Raises:
            ProfileError: a digest differs or a measure is missing; all differences are named.
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
        if missing := [name for name in measures if name not in self.measures]:
            problems.append(
                f"{path}: has no {', '.join(missing)}, which the recipe needs; remove it or calibrate anew"
            )
        elif gates_digest not in (None, self.gates_digest):
            problems.append(f"{path}: measured with other gates; remove it or calibrate anew")
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
        if len(profile.samples) > profile.total or any(
            len(getattr(sample, name)) != length
            for name, length in profile.lengths().items()
            for sample in profile.samples
        ):
            raise ProfileError([f"{path}: inconsistent; make it anew with `vtcompress calibrate`"])
        return profile


def _mean(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    columns = zip(*rows, strict=True)
    return tuple(math.fsum(column) / len(rows) for column in columns)
