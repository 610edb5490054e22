"""What calibration measured, as a JSON file that grows sample by sample."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median_low
from typing import Any, Literal

from pydantic import Field

from compressor.disk.files import read_json, write_text
from compressor.disk.model_digest import difference, same_model
from compressor.errors import ProfileError
from compressor.facts import Facts

Measure = Literal["layer_contribution", "exit_kl", "gate_margin", "head_score", "neuron_activity"]
"""What calibration can measure, by the name of the field that holds it."""

ACTIVITY_DIGITS = 6
"""Significant digits of stored activations: they are many (L x M), and only their order is used."""


class SampleScore(Facts):
    """Measurements on one sample; empty: not measured.

    Attributes:
        visual: V of its prompt.
        text: T of its prompt.
        sample: its digest, see `compressor.samples.questions.sample_digest`; empty in older profiles.
        layer_contribution: [L] KL(p_i || p) in nats, by ShortV's definition.
        exit_kl: [L] KL(p_K || p) in nats by the first layer K without visual rows, by VTW's definition.
        gate_margin: logit 1 minus logit 0 of the gate behind each of the profile's `gate_layers`.
        head_score: [L][H] attention mass of text queries on visual keys / on text keys, by YOPO's definition.
    """

    visual: int = Field(ge=1)
    text: int = Field(ge=1)
    sample: str = ""
    layer_contribution: tuple[float, ...] = ()
    exit_kl: tuple[float, ...] = ()
    gate_margin: tuple[float, ...] = ()
    head_score: tuple[tuple[float, ...], ...] = ()

    @property
    def no_numbers(self) -> tuple[Measure, ...]:
        """Measures in which values are none, so that nothing can be ranked by them.

        A head score may be infinite: that of a head in which text reads pictures alone.
        """
        rows: dict[Measure, Iterable[float]] = {
            "layer_contribution": self.layer_contribution,
            "exit_kl": self.exit_kl,
            "gate_margin": self.gate_margin,
        }
        found = [name for name, values in rows.items() if not all(map(math.isfinite, values))]
        if any(math.isnan(value) for row in self.head_score for value in row):
            found.append("head_score")
        return tuple(found)


class Profile(Facts):
    """Measurements of one model on one set of samples.

    Attributes:
        model: hub id or folder name; for people.
        data: name of the data file; for people.
        total: how many samples the complete profile has.
        measures: what was measured on each sample.
        gate_layers: layers whose gates were asked.
        gates_digest: sha256 of their file; empty: no gates.
        gates_under: `Plan.gates_see` of the decoder whose states they were asked on; empty: the original's;
            `in part`: of some samples the one, of some the other.
        samples: those measured so far, in order.
        neuron_activity: [L][M] mean magnitude of the MLP's activations on visual rows, mean over the
            samples so far. Not kept for each sample: with 32 layers of 11,008 neurons one takes 3 MB. A
            running mean in the same file is always in step with the samples that it is the mean of.
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
    gates_under: str = ""
    samples: tuple[SampleScore, ...] = ()
    neuron_activity: tuple[tuple[float, ...], ...] = ()

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

    def head_score(self) -> tuple[tuple[float, ...], ...]:
        """Return the mean head score [L][H] over the samples."""
        layers = zip(*(sample.head_score for sample in self.samples), strict=True)
        return tuple(_mean(rows) for rows in layers)

    def typical_text_rows(self) -> int:
        """Return the median T of the samples; what predicted costs refer to."""
        return int(median_low(s.text for s in self.samples))

    def lengths(self) -> dict[str, int]:
        """Return how many values a sample has of each measure."""
        whole = {
            "layer_contribution": self.layers,
            "exit_kl": self.layers,
            "gate_margin": len(self.gate_layers),
            "head_score": self.layers,
        }
        return {name: count if name in self.measures else 0 for name, count in whole.items()}

    def with_sample(
        self, score: SampleScore, activity: Sequence[Sequence[float]] | None = None
    ) -> "Profile":
        """Return the profile with one more sample.

        Args:
            score: of the sample.
            activity: [L][M] its neuron activity; None: not measured.
        """
        samples = (*self.samples, score)
        changes: dict[str, Any] = {"samples": samples}
        if activity is not None:
            before = self.neuron_activity or [[0.0] * len(row) for row in activity]
            changes["neuron_activity"] = tuple(
                tuple(_short(m + (x - m) / len(samples)) for m, x in zip(old, new, strict=True))
                for old, new in zip(before, activity, strict=True)
            )
        return self.model_copy(update=changes)

    def check_belongs(self, path: Path, *, model_digest: str) -> None:
        """Refuse to be used for another model.

        Args:
            path: of the profile; starts the problem.
            model_digest: of the model at hand.

        Raises:
            ProfileError: it was measured on another.
        """
        if not same_model(self.model_digest, model_digest):
            raise ProfileError(
                [
                    f"{path}: measured on another model (named {self.model}, "
                    f"{difference(self.model_digest, model_digest)}); remove it or calibrate anew"
                ]
            )

    def save(self, path: Path) -> None:
        """Write the profile as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @property
    def consistent(self) -> bool:
        """Whether every sample has as many values as its measures ask for."""
        asked = "neuron_activity" in self.measures and bool(self.samples)
        rows = [*(sample.head_score for sample in self.samples), self.neuron_activity]
        return (
            len(self.samples) <= self.total
            and all(
                len(getattr(sample, name)) == length
                for name, length in self.lengths().items()
                for sample in self.samples
            )
            and len(self.neuron_activity) == (self.layers if asked else 0)
            and all(len({len(row) for row in table}) <= 1 for table in rows)
        )

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Read a profile.

        Raises:
            ProfileError: missing, no JSON, of a newer format or inconsistent.
        """
        remedy = "make it anew with `vtcompress calibrate`"
        profile = read_json(path, cls, ProfileError, "profile", remedy)
        if not profile.consistent:
            raise ProfileError([f"{path}: inconsistent; {remedy}"])
        for number, sample in enumerate(profile.samples):
            if names := sample.no_numbers:
                problem = f"sample {number}: {', '.join(names)}: NaN or infinite"
                raise ProfileError(
                    [f"{path}: {problem}; {remedy}, with a model whose outputs are numbers"]
                )
        return profile


def _short(value: float) -> float:
    return float(f"{value:.{ACTIVITY_DIGITS}g}")


def _mean(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    columns = zip(*rows, strict=True)
    return tuple(math.fsum(column) / len(rows) for column in columns)
