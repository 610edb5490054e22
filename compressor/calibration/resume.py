"""Which profile a calibration goes on with: what it holds of this model and data is not measured again."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.disk.model_digest import same_model
from compressor.errors import ProfileError
from compressor.facts import ModelFacts
from compressor.profile import Profile, SampleScore
from compressor.samples.questions import Sample, data_digest, sample_digest
from compressor.samples.shard import Shard
from compressor.schema.values import RunDType


@dataclass(frozen=True)
class Task:
    """What a calibration measures.

    Attributes:
        model: hub id or folder name; for people.
        model_digest: of the model.
        layers: L of its decoder.
        data: name of the data file; for people.
        samples: in the order of the complete profile.
        measures: by name.
        gate_layers: layers whose gates are asked.
        gates_digest: sha256 of their file; empty: no gates.
        dtype: in which the original runs.
        shard: which of the samples are measured; None: all.
    """

    model: str
    model_digest: str
    layers: int
    data: str
    samples: tuple[Sample, ...]
    measures: tuple[str, ...]
    gate_layers: tuple[int, ...] = ()
    gates_digest: str = ""
    dtype: RunDType = "float32"
    shard: Shard | None = None

    @classmethod
    def of(
        cls,
        facts: ModelFacts,
        model_digest: str,
        samples: Sequence[Sample],
        data: str,
        measures: tuple[str, ...] = ("layer_contribution",),
        **others: Any,
    ) -> "Task":
        """Return the task of a model; `others` are the fields of its gates, its dtype and its shard."""
        return cls(
            facts.name, model_digest, facts.decoder.layers, data, tuple(samples), measures, **others
        )

    def new(self) -> Profile:
        """Return a profile without samples."""
        return Profile(  # type: ignore[call-arg]  # further measures are keys
            model=self.model,
            model_digest=self.model_digest,
            data=self.data,
            data_digest=data_digest(self.samples),
            layers=self.layers,
            total=len(self.samples),
            measures=self.measures,
            gate_layers=self.gate_layers,
            gates_digest=self.gates_digest,
            dtype=self.dtype,
            shard=self.shard,
        ).changed()

    @property
    def asked(self) -> tuple[Sample, ...]:
        """The samples that are measured, in order: all, or the shard's."""
        return self.samples if self.shard is None else self.shard.among(self.samples)

    def go_on(self, path: Path) -> Profile:
        """Return the profile at `path` to go on with; a new one if there is none.

        A profile whose samples are all among the task's is extended.

        Raises:
            ProfileError: it cannot be read, or was measured on another model, on samples that the task does
                not have, without one of its measures, or with other gates; one line with what it holds.
        """
        if not path.exists():
            return self.new()
        profile, digest = Profile.load(path), data_digest(self.samples)
        same = profile.data_digest == digest
        without = [name for name in self.measures if name not in profile.measures]
        differences = [
            words
            for differs, words in (
                (
                    not same_model(profile.model_digest, self.model_digest),
                    f"on another model than {self.model}",
                ),
                (
                    not same and (self.shard is not None or not self._holds(profile)),
                    f"on other data than the {len(self.samples)} samples of {self.data} (seed counts too)",
                ),
                (bool(without), f"without {', '.join(without)}"),
                (not without and profile.gates_digest != self.gates_digest, "with other gates"),
                (profile.dtype != self.dtype, f"in {profile.dtype}, not {self.dtype}"),
                (profile.shard != self.shard, f"{_part(profile.shard)}, not {_part(self.shard)}"),
            )
            if differs
        ]
        if differences:
            held = f"{len(profile.samples)} of {profile.wanted} samples of {profile.data}"
            raise ProfileError(
                [
                    f"{path}: measured {', '.join(differences)}: it holds {held}, on {profile.model}; "
                    "add `overwrite` to start anew, or choose another `output`"
                ]
            )
        if same:
            return profile
        changes = {"data": self.data, "data_digest": digest, "total": len(self.samples)}
        return profile.changed(**changes)

    def _holds(self, profile: Profile) -> bool:
        """Whether all samples of a profile are among the task's."""
        return not Counter(score.sample for score in profile.samples) - Counter(
            map(sample_digest, self.samples)
        )

    def left(self, profile: Profile) -> list[tuple[str, Sample]]:
        """Return the samples that a profile lacks, with their digests."""
        known = [(sample_digest(sample), sample) for sample in self.asked]
        if not all(score.sample for score in profile.samples):  # an older profile: by their order
            return known[len(profile.samples) :]
        measured = Counter(score.sample for score in profile.samples)
        missing = []
        for digest, sample in known:
            if measured[digest]:
                measured[digest] -= 1
            else:
                missing.append((digest, sample))
        return missing

    def ordered(self, profile: Profile) -> Profile:
        """Return a profile of all that was asked in the task's order, as if it never was extended."""
        if not all(score.sample for score in profile.samples):
            return profile
        scores: dict[str, list[SampleScore]] = {}
        for score in profile.samples:
            scores.setdefault(score.sample, []).append(score)
        found = tuple(scores[sample_digest(sample)].pop(0) for sample in self.asked)
        return profile.changed(samples=found)


def _part(shard: Shard | None) -> str:
    return "on all samples" if shard is None else f"as shard {shard}"
