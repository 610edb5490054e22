"""What compression loss found: figures, the recipe's limits, and how each limit was judged. Without numpy."""

from typing import Annotated, Literal

from pydantic import Field, computed_field

from compressor.facts import Facts
from export.results.intervals import Interval, change_interval, kept_interval, share_interval
from export.results.score_words import ScoreWords, score_words
from export.results.verdict import Check, Derived, Verdict

# Below this share a model is called changed whatever the recipe's limits are, or if it has none.
CHANGED_BELOW = 0.9
# Compression concerns visual rows: without any, equal answers say nothing of it.
NO_PICTURE = "no question has a picture"
NOT_GENERATED = "answers were not generated"
UNDECIDED = "no answer could be told right or wrong"
NO_LIMIT = "no limit set"
NO_DATA_WORDS = (
    "no held-out questions were given: nobody judged what the answers lost. Give some "
    "(`vtcompress export --validate-data FILE`), and a limit such as validate.loss.min_exact_match_kept"
)
UNPARTED_WORDS = (
    "`vtcompress export --stream` does not run compression loss of this plan: nobody judged what the answers "
    "lost. Where the model fits, `vtcompress validate ARTIFACT --model MODEL --data FILE` measures it"
)
NO_LIMIT_WORDS = (
    "no loss limit was set: nobody judged what the answers lost. Set one, such as "
    "validate.loss.min_exact_match_kept"
)

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Sum = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LossLimits(Facts):
    """Limits over all samples; None is reported, not judged.

    `min_exact_match` and `min_exact_match_kept` are of `LossReport.score`, whatever it is.
    """

    max_kl: float | None = None
    min_agreement: float | None = None
    min_common_prefix: float | None = None
    min_exact_match: float | None = None
    min_exact_match_kept: float | None = None


class LossFigures(Derived):
    """Compression loss over some samples.

    Answers are equal if they are the same text but for white space around it; right, or how right, by
    `LossReport.score`. Intervals are of 95%, see `export.results.intervals`; None where there is no figure.

    Attributes:
        kind: group of the samples, `all` for all of them.
        samples: how many.
        kl: mean KL(original || compressed) of the next-token distributions, in nats.
        kl_worst: the largest.
        agreement: share of equal most likely next tokens.
        common_prefix: mean share of the original's answer tokens before the first difference; None: answers
            were not generated.
        answered: samples that give a right answer, but for those that are `undecided`; exact match is over
            them.
        exact_match_original: share of right answers of the original, of a graded score its mean; None without
            answers.
        exact_match: of the artifact.
        equal_answers: samples that both models answer in the same words; None: not counted, as in artifacts
            of format 1, or where answers were not generated.
        right_to_wrong: samples that the original alone answers right; None without answers, not counted, or
            of a graded score.
        wrong_to_right: samples that the artifact alone answers right; likewise.
        scores_down: samples whose graded score fell; None of others, and without answers.
        scores_up: samples whose graded score rose; likewise.
        score_lost: how far those fell together.
        score_won: how far those rose together.
        pictured: samples with a picture; None: not counted, as by older versions.
        undecided: samples that give a right answer, of which nothing tells whether a model gives it: see
            `export.checks.by_layer.forced`; None: answers were generated.
    """

    kind: str
    samples: int
    kl: float
    kl_worst: float
    agreement: Share
    common_prefix: Share | None
    answered: int
    exact_match_original: Share | None
    exact_match: Share | None
    equal_answers: Count | None = None
    right_to_wrong: Count | None = None
    wrong_to_right: Count | None = None
    scores_down: Count | None = None
    scores_up: Count | None = None
    score_lost: Sum | None = None
    score_won: Sum | None = None
    pictured: Count | None = None
    undecided: Count | None = None

    @property
    def counted(self) -> str:
        """How many samples, and how many of them have a picture where not all do."""
        if self.pictured is None or self.pictured == self.samples:
            return str(self.samples)
        return f"{self.samples}, {self.pictured} with a picture"

    @property
    def changes(self) -> tuple[int, int] | None:
        """How many answers went from right to wrong and back, or scored lower and higher; None: unknown."""
        for down, up in (
            (self.right_to_wrong, self.wrong_to_right),
            (self.scores_down, self.scores_up),
        ):
            if down is not None and up is not None:
                return down, up
        return None

    @property
    def _sums(self) -> tuple[float, float] | None:
        """What was lost and won, in right answers or their parts; None: unknown."""
        if self.score_lost is not None and self.score_won is not None:
            return self.score_lost, self.score_won
        return self.changes

    def _scored(self, mean: float) -> float:
        # Of right answers the count comes back whole.
        total = mean * self.answered
        return total if self.score_lost is not None else round(total)

    def _interval(self, mean: float | None) -> Interval | None:
        if mean is None or self.answered < 1:
            return None
        return share_interval(self._scored(mean), self.answered)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exact_match_kept(self) -> float | None:
        """The artifact's exact match divided by the original's."""
        if not self.exact_match_original or self.exact_match is None:
            return None
        return self.exact_match / self.exact_match_original

    @computed_field  # type: ignore[prop-decorator]
    @property
    def agreement_interval(self) -> Interval | None:
        """Of `agreement`; Wilson's."""
        if self.samples < 1:
            return None
        return share_interval(round(self.agreement * self.samples), self.samples)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exact_match_original_interval(self) -> Interval | None:
        """Of `exact_match_original`; Wilson's."""
        return self._interval(self.exact_match_original)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exact_match_interval(self) -> Interval | None:
        """Of `exact_match`; Wilson's."""
        return self._interval(self.exact_match)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exact_match_change_interval(self) -> Interval | None:
        """Of `exact_match - exact_match_original` on the same questions; Agresti and Min's."""
        if self._sums is None or self.answered < 1:
            return None
        return change_interval(*self._sums, self.answered)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exact_match_kept_interval(self) -> Interval | None:
        """Of `exact_match_kept`, a ratio on the same questions; Bonett and Price's."""
        original = self.exact_match_original
        if self._sums is None or self.exact_match_kept is None or original is None:
            return None
        (lost, won), before = self._sums, self._scored(original)
        return kept_interval(max(before - lost, 0), lost, won) if before else None


def by_layer_loss_words(report: "LossReport") -> tuple[str, ...]:
    """Return how both models were asked a layer at a time; nothing of an artifact that answered."""
    if report.by_layer is None:
        return ()
    whole = ""
    if report.by_layer != "float":
        whole = f", the compressed one with what its {report.by_layer} weights stand for"
    lines = [
        "By layer: both models ran all questions in torch with one layer's weights in memory at a time, in "
        f"float32{whole}; the original is the rewritten model, nothing cut. That the graphs compute the same "
        "is check 1.",
        "Answers were not generated: right ones were forced behind the prompts, and a greedy answer is right "
        "if at each of their places the likeliest token is the next one, the end included. So common "
        "prefixes and equal answers are not known.",
    ]
    if count := report.overall.undecided:
        lines.append(
            f"{count} of {report.overall.samples} questions are left out of right answers: an answer began "
            "as a right one does, in other tokens, and how it goes on is not known."
        )
    return tuple(lines)


def nats(value: float | None) -> str:
    """Return a KL in nats as it is shown everywhere: digits that count, so that means and worsts compare."""
    return "-" if value is None else f"{value:.4g}"


def percent(value: float | None) -> str:
    """Return a share in percent, a dash where there is none."""
    return "-" if value is None else f"{value:.1%}"


def share(value: float | None, interval: Interval | None) -> str:
    """Return a share in percent with its interval, such as `87.5% (52.9 to 97.8)`."""
    if interval is None:
        return percent(value)
    return f"{percent(value)} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


class LossMeasure(Facts):
    """One measure over all samples beside its limit.

    Attributes:
        words: name of the measure.
        key: of the limit that is asked for, in `validate.loss`.
        figure: None: there is no such figure.
        limit: None: none was set.
        at_most: whether the limit is the most that is allowed; else it is the least.
        in_place: why this measure is judged by another one's limit, which the data cannot be judged by.
        cannot: why the limit cannot be judged, or why to keep it proves nothing.
    """

    words: str
    key: str
    figure: float | None
    limit: float | None
    at_most: bool = False
    in_place: str = ""
    cannot: str = ""

    @property
    def verdict(self) -> Verdict:
        """What became of it."""
        if self.limit is None or self.figure is None:
            return Verdict.NOT_JUDGED
        # Written so that a value that is no number misses its limit.
        kept = self.figure <= self.limit if self.at_most else self.figure >= self.limit
        if kept and self.cannot:
            return Verdict.NOT_JUDGED
        return Verdict.PASSED if kept else Verdict.FAILED

    @property
    def miss(self) -> str:
        """Return what was found and what was wanted, in words."""
        if self.at_most:
            return f"{self.words} is {nats(self.figure)} nats, allowed {self.key} {self.limit:g}"
        why = f" ({self.in_place})" if self.in_place else ""
        return f"{self.words} is {self.figure:.4f}, wanted {self.key} {self.limit:g}{why}"


def measures(
    figures: LossFigures, limits: LossLimits, score: str = "exact"
) -> tuple[LossMeasure, ...]:
    """Return every measure beside its limit.

    A share of right answers that must be kept cannot be judged where no right answers are known. The same
    share of equal next tokens is then asked for in its place, unless the recipe has a limit for these.
    """
    right = score_words(score)
    unknown = ""
    if figures.exact_match_kept is None:
        unknown = UNDECIDED if figures.undecided else "the data has no answers"
        if figures.answered:
            graded = f"the original's {right.right} is 0"
            unknown = graded if right.graded else "the original gives no right answer"
    kept, agreement, key, in_place = (
        limits.min_exact_match_kept,
        limits.min_agreement,
        "min_agreement",
        "",
    )
    if unknown and kept is not None and agreement is None:
        # What is kept may exceed 1; agreement cannot.
        agreement, key = min(kept, 1.0), "min_exact_match_kept"
        in_place = f"in place of {right.kept}: {unknown}"
        kept = None
    found = (
        LossMeasure(
            words="mean KL", key="max_kl", figure=figures.kl, limit=limits.max_kl, at_most=True
        ),
        LossMeasure(
            words="agreement of next tokens",
            key=key,
            figure=figures.agreement,
            limit=agreement,
            in_place=in_place,
        ),
        LossMeasure(
            words="common prefix",
            key="min_common_prefix",
            figure=figures.common_prefix,
            limit=limits.min_common_prefix,
            cannot=NOT_GENERATED if figures.common_prefix is None else "",
        ),
        LossMeasure(
            words=right.name,
            key="min_exact_match",
            figure=figures.exact_match,
            limit=limits.min_exact_match,
            cannot="" if figures.answered else unknown,
        ),
        LossMeasure(
            words=f"{right.name} kept",
            key="min_exact_match_kept",
            figure=figures.exact_match_kept,
            limit=kept,
            # Where equal next tokens have a limit of their own, they are what is judged.
            cannot="" if limits.min_agreement is not None else unknown,
        ),
    )
    if figures.pictured == 0:
        return tuple(measure.model_copy(update={"cannot": NO_PICTURE}) for measure in found)
    return found


def misses(figures: LossFigures, limits: LossLimits, score: str = "exact") -> tuple[str, ...]:
    """Return a line for every limit that is missed."""
    found = measures(figures, limits, score)
    return tuple(measure.miss for measure in found if measure.verdict is Verdict.FAILED)


def changes_words(figures: LossFigures, score: str) -> str | None:
    """Return in a sentence which way answers changed; None: not counted, or no right answer is known."""
    if figures.changes is None:
        return None
    down, up = figures.changes
    if score_words(score).graded:
        return (
            f"Of the questions with a right answer {down} scored lower than before and {up} higher."
        )
    changed = f"{down} went from right to wrong and {up} from wrong to right"
    return f"Of the questions with a right answer {changed}."


def unjudged_words(loss: "LossReport | None", *, unparted: bool) -> str | None:
    """Return that nobody judged what the answers lost, why, and the remedy; None: it was judged.

    Args:
        loss: None: answers were not compared.
        unparted: whether the export was streamed, and its decoder cannot be run a layer at a time.
    """
    if loss is None:
        return UNPARTED_WORDS if unparted else NO_DATA_WORDS
    if loss.verdict is not Verdict.NOT_JUDGED:
        return None
    if NO_LIMIT in loss.not_judged:
        return NO_LIMIT_WORDS
    return f"nobody judged what the answers lost: {', '.join(loss.not_judged)}"


class LossReport(Check):
    """The outcome over all samples and for each kind.

    Attributes:
        data: name of the data file.
        data_digest: sha256 over its questions and pictures.
        score: name of what scored the answers, as in a recipe; older versions knew `exact` alone.
        exits: first layer without visual rows and number of samples, ascending; samples whose visual rows
            reached the last layer are not among them.
        by_layer: how the artifact stores the weights that the compressed model computed with, layer by layer
            in torch, right answers forced on it; None: the artifact was run, and answered.
    """

    data: str
    data_digest: str
    overall: LossFigures
    kinds: tuple[LossFigures, ...]
    limits: LossLimits
    score: str = "exact"
    exits: tuple[tuple[int, int], ...] = ()
    by_layer: Literal["float", "int8", "int4"] | None = None

    @property
    def words(self) -> ScoreWords:
        """What its score is called."""
        return score_words(self.score)

    @property
    def measures(self) -> tuple[LossMeasure, ...]:
        """Every measure over all samples beside its limit."""
        return measures(self.overall, self.limits, self.score)

    @property
    def not_judged(self) -> tuple[str, ...]:
        """Why nothing was judged, or not everything that the recipe asks for."""
        asked = [measure for measure in self.measures if measure.limit is not None]
        if not asked:
            return (NO_LIMIT,)
        if self.overall.pictured == 0:
            return (NO_PICTURE,)
        return tuple(f"{m.key}: {m.cannot}" for m in asked if m.cannot)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What has changed so much that it must be said, whatever the limits are."""
        found, lines = self.overall, []
        # Written so that a value that is no number is told too.
        if not found.agreement >= CHANGED_BELOW:
            lines.append(
                f"only {found.agreement:.1%} of the most likely next tokens are the original's"
            )
        if found.exact_match_kept is not None:
            if not found.exact_match_kept >= CHANGED_BELOW:
                lines.append(
                    f"only {found.exact_match_kept:.1%} of the original's {self.words.right} "
                    f"{'was' if self.words.graded else 'were'} kept"
                )
        elif found.equal_answers is not None:
            share = found.equal_answers / max(found.samples, 1)
            if not share >= CHANGED_BELOW:
                lines.append(
                    f"only {found.equal_answers} of {found.samples} answers are the original's, word for word"
                )
        return tuple(lines)
