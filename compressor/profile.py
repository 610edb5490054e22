"""What calibration measured, as a JSON file that grows sample by sample."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails

from compressor.contract.exact_sum import exact_mean, exactly_added
from compressor.contract.measure import Measured
from compressor.disk.files import read_json, read_text, write_text
from compressor.disk.mistaken import mistaken
from compressor.disk.model_digest import difference, same_model
from compressor.errors import ProfileError
from compressor.facts import Facts
from compressor.methods import MEASURES, UNUSABLE
from compressor.samples.shard import Shard
from compressor.schema.problems import error_with
from compressor.schema.values import RunDType

KEPT: Final = ("samples", "mean")
FORMAT_2: Final[Mapping[str, Any]] = {"shard": None, "sums": {}, "dtype": "float32"}
"""Keys that format 1 has not, and what it says by that."""


def _known(name: str) -> str:
    if name not in MEASURES:
        raise ValueError(f"not measured by any method here; known: {', '.join(MEASURES)}")
    return name


MeasureName = Annotated[str, AfterValidator(_known)]
"""Name of something that calibration measures."""

ACTIVITY_DIGITS = 6
"""Significant digits of means that are stored alone: they are many (L x M), and only their order is used."""

Values = tuple[float, ...] | tuple[tuple[float, ...], ...]
"""What was measured, in a measure's shape."""


def _kept(how: str) -> tuple[str, ...]:
    """Return the measures of which every sample's values are kept, or the mean alone."""
    return tuple(name for name, measure in MEASURES.items() if measure.kept == how)


class _Values(Facts):
    """A value with further keys: measures of one kind, by name; empty ones are not there."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Values]

    kept: ClassVar[str]

    @model_validator(mode="wrap")
    @classmethod
    def _known_keys(cls, value: Any, handler: Callable[[Any], Self]) -> Self:
        if not isinstance(value, Mapping):
            return handler(value)
        known = _kept(cls.kept)
        details = [
            InitErrorDetails(type="extra_forbidden", loc=(key,), input=value[key])
            for key in value
            if key not in cls.model_fields and key not in known
        ]
        unknown = {detail["loc"][0] for detail in details}
        there = {
            key: item
            for key, item in value.items()
            if key not in unknown and not (key in known and item in ((), []))
        }
        try:
            made = handler(there)
        except ValidationError as error:
            raise error_with(error, details) from None
        if details:
            raise ValidationError.from_exception_data(cls.__name__, details)
        return made

    @property
    def values(self) -> dict[str, Values]:
        """What was measured, by measure."""
        return self.__pydantic_extra__ or {}


class SampleScore(_Values):
    """Measurements on one sample, each under the name of its measure.

    Attributes:
        visual: V of its prompt.
        text: T of its prompt.
        sample: its digest, see `compressor.samples.questions.sample_digest`; empty in older profiles.
    """

    kept: ClassVar[str] = "samples"

    visual: int = Field(ge=1)
    text: int = Field(ge=1)
    sample: str = ""

    @property
    def no_numbers(self) -> tuple[str, ...]:
        """Measures in which values are none, so that nothing can be ranked by them."""
        return tuple(n for n, values in self.values.items() if not MEASURES[n].finite(values))


class Profile(_Values):
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
        dtype: in which the original ran.
        shard: which of the samples it is for; None: all of them. `data_digest` and `total` are of all.
        sums: of measures whose mean alone is kept, the exact sums over the samples so far, in parts (see
            `compressor.contract.exact_sum`), each in the measure's shape; empty once nothing is to be added.
        samples: those measured so far, in order.

    Of measures that are not kept for each sample (with 32 layers of 11,008 neurons one takes 3 MB) the mean
    over the samples so far stands under the measure's name. Sums and means in the same file are always in
    step with the samples that they are of.

    Format 2 is format 1 with `dtype`, `shard` and `sums`; what needs none of them stays format 1.
    """

    kept: ClassVar[str] = "mean"

    profile_format: Literal[1, 2] = 1
    model: str
    model_digest: str
    data: str
    data_digest: str
    layers: int = Field(ge=1)
    total: int = Field(ge=1)
    measures: tuple[MeasureName, ...] = ("layer_contribution",)
    gate_layers: tuple[int, ...] = ()
    gates_digest: str = ""
    gates_under: str = ""
    dtype: RunDType = "float32"
    shard: Shard | None = None
    sums: dict[MeasureName, tuple[Values, ...]] = Field(default_factory=dict)
    samples: tuple[SampleScore, ...] = ()

    @model_serializer(mode="wrap")
    def _without_news(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what format 1 has not where it says nothing: a profile's digest stays what it was."""
        written: dict[str, Any] = handler(self)
        return {k: v for k, v in written.items() if k not in FORMAT_2 or v != FORMAT_2[k]}

    def changed(self, **values: Any) -> "Profile":
        """Return the profile with other values, in the format that they need."""
        made = self.model_copy(update=values)
        newer = any(getattr(made, key) != value for key, value in FORMAT_2.items())
        return made.model_copy(update={"profile_format": 2 if newer else 1})

    @property
    def complete(self) -> bool:
        """Whether every sample of the data has been measured, so that something can be chosen by it."""
        return self.shard is None and len(self.samples) == self.total

    @property
    def wanted(self) -> int:
        """How many samples it has in the end: all, or its shard's."""
        return self.total if self.shard is None else len(self.shard.among(range(self.total)))

    def mean(self, measure: str) -> tuple[Any, ...]:
        """Return the mean of a measure over the samples, in its shape."""
        if MEASURES[measure].kept == "mean":
            return self.values[measure]
        return _mean([sample.values[measure] for sample in self.samples])

    def measurement(self, measure: str) -> Measured:
        """Return what was found by one of the profile's measures."""
        each = MEASURES[measure].kept == "samples"
        return Measured(
            mean=self.mean(measure),
            samples=tuple(sample.values[measure] for sample in self.samples) if each else (),
            count=len(self.samples),
            gate_layers=self.gate_layers,
            gates_digest=self.gates_digest,
        )

    def measured(self) -> dict[str, Measured]:
        """Return what was found by all of the profile's measures; it has a sample."""
        return {measure: self.measurement(measure) for measure in self.measures}

    def typical_text_rows(self) -> int:
        """Return the median T of the samples; what predicted costs refer to."""
        return int(median_low(s.text for s in self.samples))

    def with_sample(self, score: SampleScore, means: Mapping[str, Any] | None = None) -> "Profile":
        """Return the profile with one more sample.

        Args:
            score: of the sample.
            means: its values of measures whose mean alone is kept, each in the measure's shape.
        """
        sums = {n: exactly_added(self.sum_of(n), values) for n, values in (means or {}).items()}
        return self.with_sums((*self.samples, score), sums)

    def with_sums(
        self, samples: tuple[SampleScore, ...], sums: Mapping[str, tuple[Any, ...]]
    ) -> "Profile":
        """Return the profile with other samples, and sums over them in place of its own."""
        means = {name: _short(exact_mean(parts, len(samples))) for name, parts in sums.items()}
        return self.changed(samples=samples, sums=dict(sums), **means)

    def sum_of(self, measure: str) -> tuple[Any, ...]:
        """Return the sum over the samples of a measure whose mean alone is kept, in parts.

        Of a profile that keeps no sums it is what the mean tells, to the digits that it has.
        """
        if measure in self.sums or not self.samples:
            return self.sums.get(measure, ())
        return (_scaled(self.values[measure], len(self.samples)),)

    def finished(self) -> "Profile":
        """Return a complete profile without the sums, which its means were made of; others as they are."""
        return self.changed(sums={}) if self.complete else self

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

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 of all that was measured."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the profile as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @property
    def consistent(self) -> bool:
        """Whether every sample has as many values as its measures ask for."""
        kept = {how: {n for n in self.measures if MEASURES[n].kept == how} for how in KEPT}
        averaged = {n for n in kept["mean"] if self.length(n)}
        return (
            len(self.samples) <= self.wanted
            and (self.shard is None or self.shard.of <= self.total)
            and self.sums.keys() in (set(), averaged)
            and all(self.holds(name, part) for name, sum_ in self.sums.items() for part in sum_)
            and all(self.sums.values())
            and all(self._fits(sample.values, kept["samples"]) for sample in self.samples)
            and self._fits(self.values, kept["mean"] if self.samples else set())
        )

    def _fits(self, values: Mapping[str, Values], measures: set[str]) -> bool:
        """Whether values are there of these measures, of no others, in their shapes."""
        asked = {name for name in measures if self.length(name)}
        return values.keys() == asked and all(self.holds(name, values[name]) for name in asked)

    def length(self, measure: str) -> int:
        """Return the length of a measure's first axis."""
        axes = {"layers": self.layers, "gates": len(self.gate_layers), "prompt": 1}
        return axes[MEASURES[measure].shape[0]]

    def holds(self, measure: str, values: Any) -> bool:
        """Whether values have the shape of a measure, here."""
        axes = len(MEASURES[measure].shape)
        return isinstance(values, tuple) and (
            len(values) == self.length(measure) and _rectangular(values, axes)
        )

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Read a profile.

        Raises:
            ProfileError: missing, no JSON, of a newer format or inconsistent.
        """
        if (problem := mistaken(path, "profile")) is not None:
            raise ProfileError([problem])
        remedy = "make it anew with `vtcompress calibrate`"
        try:
            profile = read_json(path, cls, ProfileError, "profile", remedy)
        except ProfileError:
            if foreign := _foreign(path):
                problem = (
                    f"{path}: holds {', '.join(foreign)}, which no method here measures; install the package "
                    f"whose method does, or {remedy}"
                )
                raise ProfileError([*UNUSABLE, problem]) from None
            raise
        if not profile.consistent:
            raise ProfileError([f"{path}: inconsistent; {remedy}"])
        for number, sample in enumerate(profile.samples):
            if names := sample.no_numbers:
                problem = f"sample {number}: {', '.join(names)}: NaN or infinite"
                raise ProfileError(
                    [f"{path}: {problem}; {remedy}, with a model whose outputs are numbers"]
                )
        return profile


def _foreign(path: Path) -> list[str]:
    """Return what a profile says to hold and no method here measures; none where that cannot be told."""
    try:
        said = json.loads(read_text(path, ProfileError))["measures"]
    except (ProfileError, ValueError, TypeError, KeyError, RecursionError):
        return []
    names = said if isinstance(said, list) else []
    return [name for name in names if isinstance(name, str) and name not in MEASURES]


def _short(values: Any) -> Any:
    """Return means with the digits that are stored."""
    if isinstance(values, tuple):
        return tuple(map(_short, values))
    return float(f"{values:.{ACTIVITY_DIGITS}g}")


def _scaled(values: Any, factor: int) -> Any:
    if isinstance(values, tuple):
        return tuple(_scaled(value, factor) for value in values)
    return values * factor


def _rectangular(values: Any, axes: int) -> bool:
    """Whether values have so many axes, and rows of one length."""
    if axes == 1:
        return not any(isinstance(value, tuple) for value in values)
    rows = all(isinstance(row, tuple) and _rectangular(row, axes - 1) for row in values)
    return rows and len({len(row) for row in values}) <= 1


def _mean(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return the mean of values of one shape, axis by axis."""
    places = zip(*values, strict=True)
    return tuple(
        _mean(each) if isinstance(each[0], tuple) else math.fsum(each) / len(each)
        for each in places
    )
