"""What a sweep found: points of one model on one data, beside the original and beside each other."""

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any, Literal

from pydantic import Field

from compressor.facts import Facts, Positive
from export.results.bench import BenchReport
from export.results.intervals import Interval, change_interval
from export.results.loss_report import LossFigures, LossReport

Leaves = Literal["stay", "leave", "may leave"]
"""Visual rows `stay` to the last layer, `leave` at a fixed exit, or `may leave` where gates decide."""


class SweepPoint(Facts):
    """One plan of a sweep.

    Attributes:
        name: of its files.
        label: for people: its methods, and the values that the sweep gives them.
        series: its methods, and the values that do not change from point to point of a line.
        methods: all that its recipe asks of them, in words.
        over: the values that the sweep gives, by dotted key.
        baseline: whether it chooses rows without looking at them.
        searched: whether a search made its plan.
        plan: its plan's file.
        recipe: file of the recipe that the plan was made by.
        done: what the plan does with visual rows, in a few words.
        leaves: what becomes of visual rows.
        predicted: prefill FLOPs of the original divided by the plan's.
        kv_bytes_original: KV cache predicted for the original's prefill, in `SweepReport.dtype`.
        kv_bytes: for the plan's.
        loss: answers of the compressed torch model beside the original's.
        hits: a character a question: 1 where the answer is right; or, where no question has a right answer,
            where the first token is the original's; 0 where it is not, - where it cannot be told. Empty
            where `scores` tell it.
        scores: of graded scores those of the answers, a question each; None where it cannot be told.
        measured: times of its graphs beside the original's, in turns; None: not measured.
        notes: those of the plan.
    """

    name: str
    label: str
    series: str
    methods: tuple[str, ...]
    over: Mapping[str, Any] = {}
    baseline: bool = False
    searched: bool = False
    plan: str
    recipe: str
    done: str
    leaves: Leaves
    predicted: float
    kv_bytes_original: Positive
    kv_bytes: Positive
    loss: LossReport
    hits: str
    scores: tuple[float | None, ...] = ()
    measured: BenchReport | None = None
    notes: tuple[str, ...] = ()


class SweepReport(Facts):
    """All of a sweep.

    Attributes:
        sweep_format: version of this file's format.
        tools: versions of what it was made with.
        model: hub id or folder name.
        model_digest: of the model.
        data: name of the validation data.
        data_digest: over its questions and pictures.
        questions: how many.
        max_new_tokens: longest answer.
        calibration: name of the calibration data; empty: nothing was measured on it.
        calibration_samples: how many.
        visual: V of the prefill that figures are predicted for, and T.
        text: see `visual`.
        assumed: T stands for prompts that nobody measured.
        dtype: that KV bytes are predicted in.
        points: in the order of the recipes and values; baselines last.
        files: every file of the folder but this, with its size and sha256.
    """

    sweep_format: Literal[1] = 1
    tools: Mapping[str, str]
    model: str
    model_digest: str
    data: str
    data_digest: str
    questions: Positive
    max_new_tokens: Positive
    calibration: str = ""
    calibration_samples: int = 0
    visual: Positive
    text: Positive
    assumed: bool = False
    dtype: str
    points: tuple[SweepPoint, ...] = Field(min_length=1)
    files: Mapping[str, Mapping[str, Any]] = {}

    @property
    def by_answers(self) -> bool:
        """Whether right answers are told; else first tokens that are the original's."""
        return all(point.loss.overall.answered for point in self.points)

    @property
    def timed(self) -> bool:
        """Whether every point was timed."""
        return all(point.measured is not None for point in self.points)


def accuracy(figures: LossFigures) -> float:
    """Return the share of right answers, or the mean score; where none is known, of equal first tokens."""
    return figures.agreement if figures.exact_match is None else figures.exact_match


def accuracy_interval(figures: LossFigures) -> Interval | None:
    """Return the 95% interval of `accuracy`."""
    if figures.exact_match is None:
        return figures.agreement_interval
    return figures.exact_match_interval


class Beaten(Facts):
    """A point that a baseline beats: predicted no slower, and more answers right.

    Attributes:
        point: that is beaten.
        by: the baseline; of several points of one the one with the most right answers.
        change: the point's share minus the baseline's; below 0.
        interval: of the change, on the same questions; Agresti and Min's.
    """

    point: SweepPoint
    by: SweepPoint
    change: float
    interval: Interval

    @property
    def told_apart(self) -> bool:
        """Whether the interval lies below zero."""
        return self.interval[1] < 0


def beaten(points: Sequence[SweepPoint]) -> tuple[tuple[Beaten, ...], ...]:
    """Return the points that baselines beat, in their order: each with one entry a baseline."""
    found = []
    for point in (point for point in points if not point.baseline):
        best: dict[str, SweepPoint] = {}
        for other in (other for other in points if other.baseline):
            least = best.get(other.series, point)
            if other.predicted >= point.predicted and _right(other) > _right(least):
                best[other.series] = other
        if best:
            found.append(tuple(_beaten(point, other) for other in best.values()))
    return tuple(found)


def _right(point: SweepPoint) -> float:
    return accuracy(point.loss.overall)


def _beaten(point: SweepPoint, by: SweepPoint) -> Beaten:
    pairs = [
        (a, b)
        for a, b in zip(_scores(by), _scores(point), strict=True)
        if a is not None and b is not None
    ]
    lost, won = fsum(max(a - b, 0) for a, b in pairs), fsum(max(b - a, 0) for a, b in pairs)
    return Beaten(
        point=point,
        by=by,
        change=(won - lost) / len(pairs),
        interval=change_interval(lost, won, len(pairs)),
    )


def _scores(point: SweepPoint) -> Sequence[float | None]:
    return point.scores or [None if hit == "-" else float(hit) for hit in point.hits]
