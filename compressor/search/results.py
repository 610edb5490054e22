"""What a search found: single changes, the plans of its front with what they keep, and which was chosen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from compressor.disk.files import read_json, write_text
from compressor.disk.mistaken import CHOSEN, FRONT
from compressor.errors import PlanError
from compressor.facts import Facts, Positive
from compressor.plan.layer import Natural
from compressor.schema.values import SearchTarget
from compressor.search.bounds import lower_bound

FRONT_FILE, CHOSEN_FILE, PLANS = FRONT, CHOSEN, "plans"
"""Of a search's folder: `SearchReport`; the chosen plan; a folder with all plans of the front."""

Nats = Annotated[float, Field(allow_inf_nan=False)]
Amount = Natural | Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A number of answers, or a sum of their scores."""


class KeptAnswers(Facts):
    """Answers of a plan beside the original's, on some questions.

    An answer is right as `SearchReport.score` says, or, where no right one is known, if greedy decoding gives
    the original's own. Graded scores are summed: of a question the plan keeps the lesser of its score and the
    original's, so that what is kept is never made up for by another question, and right and wrong answers
    are the case of scores of 1 and 0.

    Attributes:
        kind: of the questions; `all` for all of them.
        questions: how many.
        original: of them that the original answers right; of a graded score its sum.
        kept: of these that the plan answers right, too; of a graded score the sum of what is kept.
        won: that the plan alone answers right; of a graded score the sum of what it has more.
        graded: whether answers have scores between 0 and 1.
    """

    kind: str
    questions: Natural
    original: Amount
    kept: Amount
    won: Amount
    graded: bool = False

    @property
    def share(self) -> float | None:
        """Of the original's right answers, or of its summed score, that is kept; None: it has none."""
        return self.kept / self.original if self.original else None

    @property
    def bound(self) -> float | None:
        """One-sided lower 95% bound of `share`, Clopper and Pearson's.

        None: of no answers, or of graded scores, for which it does not hold.
        """
        if self.graded or not self.original:
            return None
        return lower_bound(round(self.kept), round(self.original))

    @property
    def counts(self) -> str:
        """What is kept of how much: `31 of 32`, of a graded score `30.25 of 31.50`."""
        if self.graded:
            return f"{self.kept:.2f} of {self.original:.2f}"
        return f"{self.kept:.0f} of {self.original:.0f}"


class HalfFigures(Facts):
    """What a plan as a whole does to the answers of one half of the questions.

    Attributes:
        kl: mean KL(original || plan) over answer tokens, then over questions, in nats.
        overall: answers of all kinds.
        kinds: of each kind, by name; one entry where questions have no kinds.
    """

    kl: Nats
    overall: KeptAnswers
    kinds: tuple[KeptAnswers, ...]


class Single(Facts):
    """One change, measured alone.

    Attributes:
        method: whose word of the plan it is.
        change: what it does, in words: `frozen`, `1/4 of the neurons`, `visual tokens leave`.
        layer: that it is made in, or from which on; None: in front of the decoder.
        kl: mean KL(original || changed) over answer tokens, then over questions, in nats.
        saved: share of the original's predicted work (`SearchReport.target`) that it saves alone.
    """

    method: str
    change: str
    layer: Natural | None
    kl: Nats
    saved: float


class FrontPoint(Facts):
    """One plan, measured as a whole.

    Attributes:
        name: of its plan's file.
        label: what it does in a few words, for people.
        series: empty: found by the search; else the method that chose alone, as a baseline.
        plan: its file, from the search's folder: `plans/NAME.json`.
        predicted: how many times less work than the original's, of `SearchReport.target`.
        predicted_prefill: prefill FLOPs of the original divided by the plan's, whatever the target is.
        kv_bytes: share of the original's KV bytes behind the prefill that is left.
        summed_kl: sum of the single changes' KL, in nats; None: not all of them were measured alone.
        chosen_on: on the half that plans were chosen on.
        judged_on: on the other half, by which no plan is made; None: there was no time.
        swaps: how many exchanges made it better than what the sum of singles gave.
        layers: what each layer does, a few words each.
        reasons: why, one sentence a layer.
    """

    name: str
    label: str
    series: str = ""
    plan: str
    predicted: float
    predicted_prefill: float
    kv_bytes: float
    summed_kl: Nats | None = None
    chosen_on: HalfFigures
    judged_on: HalfFigures | None = None
    swaps: Natural = 0
    layers: tuple[str, ...]
    reasons: tuple[str, ...] = ()


class SearchReport(Facts):
    """All of a search.

    Attributes:
        search_format: version of this file's format.
        tools: versions of what it was made with.
        model: hub id or folder name.
        model_digest: of the model.
        data: name of the questions' file.
        data_digest: over its questions and pictures.
        questions: how many there were.
        own_answers: of them whose right answer is the original's own, as none is given.
        score: name of what scored the other answers, as in a recipe; older versions knew `exact` alone.
        seed: of the split in two halves.
        asked: what the recipe asks for, in words: `keep: 0.99`.
        target: see `SearchTarget`.
        unit: of the costs that predictions are made of: `FLOPs`, `KV bytes` or `seconds of this machine`.
        visual: V of the prefill that figures are predicted for.
        text: T of it.
        original_chosen_on: the original's own right answers on the half that plans were chosen on.
        original_judged_on: and on the other half.
        singles: of `singles_questions` questions.
        singles_questions: how many questions single changes were measured on.
        points: the search's own by rising `predicted`, then the baselines.
        chosen: name of the chosen point.
        why: it was chosen, a sentence.
        not_tried: what there was no time for, and what the model rules out, a sentence each.
        seconds: that the search took, all runs together.
        budget: seconds that it was given; None: no end was set.
        files: every file of the folder but this, with its size and sha256.
    """

    search_format: Literal[1] = 1
    tools: Mapping[str, str] = {}
    model: str
    model_digest: str
    data: str
    data_digest: str
    questions: Positive
    own_answers: Natural = 0
    score: str = "exact"
    seed: Natural
    asked: str
    target: SearchTarget
    unit: str
    visual: Natural
    text: Positive
    original_chosen_on: KeptAnswers
    original_judged_on: KeptAnswers
    singles: tuple[Single, ...]
    singles_questions: Positive
    points: tuple[FrontPoint, ...] = Field(min_length=1)
    chosen: str
    why: str
    not_tried: tuple[str, ...] = ()
    seconds: float = Field(ge=0, allow_inf_nan=False)
    budget: float | None = None
    files: Mapping[str, Mapping[str, Any]] = {}

    @model_validator(mode="after")
    def _chosen_is_there(self) -> "SearchReport":
        if self.chosen not in {point.name for point in self.front}:
            raise ValueError(f"chosen: {self.chosen!r} is none of its points")
        return self

    @property
    def chosen_point(self) -> FrontPoint:
        """The point that was chosen."""
        return next(point for point in self.points if point.name == self.chosen)

    @property
    def front(self) -> tuple[FrontPoint, ...]:
        """Points of the search itself."""
        return tuple(point for point in self.points if not point.series)

    @property
    def baselines(self) -> tuple[FrontPoint, ...]:
        """Points of single methods, at about the same speed-ups."""
        return tuple(point for point in self.points if point.series)

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "SearchReport":
        """Read one.

        Raises:
            PlanError: the file is missing, no JSON, of a newer format or inconsistent.
        """
        remedy = "search anew with `vtcompress search`"
        return read_json(path, cls, PlanError, "report of a search", remedy)
