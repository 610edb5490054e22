"""Compression loss: the original model against the artifact, from image file to text. Quality, not numerics.

The original's side is measured once and stored in the artifact, so that the check runs later without it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from compressor.calibration.data import Sample, data_digest
from compressor.dims import Facts
from compressor.progress import SILENT, Progress
from export.sessions import Array

if TYPE_CHECKING:
    from export.runtime import Runtime


class Answer(Facts):
    """A greedy answer.

    Attributes:
        token_ids: its tokens, the ending one included.
        text: without special tokens.
        exit_layer: first layer that had no visual rows of the prompt; None if they stayed.
    """

    token_ids: tuple[int, ...]
    text: str
    exit_layer: int | None = None


@dataclass(frozen=True)
class Answers:
    """Answers of one model to all samples.

    Attributes:
        answers: in sample order.
        logits: [samples, vocab] float32 at the last prompt token.
        max_new_tokens: length at which answers were cut.
    """

    answers: tuple[Answer, ...]
    logits: Array
    max_new_tokens: int


class LossLimits(Facts):
    """Limits over all samples; None is reported, not judged."""

    max_kl: float | None = None
    min_agreement: float | None = None
    min_common_prefix: float | None = None
    min_exact_match: float | None = None
    min_exact_match_kept: float | None = None

    @property
    def given(self) -> bool:
        """Whether anything is judged."""
        return any(limit is not None for _, limit in self)


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class LossFigures(Facts):
    """Compression loss over some samples.

    Attributes:
        kind: group of the samples, `all` for all of them.
        samples: how many.
        kl: mean KL(original || compressed) of the next-token distributions, in nats.
        kl_worst: the largest.
        agreement: share of equal most likely next tokens.
        common_prefix: mean share of the original's answer tokens before the first difference.
        answered: samples that give a right answer; exact match is over them.
        exact_match_original: share of right answers of the original; None without answers.
        exact_match: of the artifact.
    """

    kind: str
    samples: int
    kl: float
    kl_worst: float
    agreement: Share
    common_prefix: Share
    answered: int
    exact_match_original: Share | None
    exact_match: Share | None

    @property
    def exact_match_kept(self) -> float | None:
        """The artifact's exact match divided by the original's."""
        if not self.exact_match_original or self.exact_match is None:
            return None
        return self.exact_match / self.exact_match_original


class LossReport(Facts):
    """The outcome over all samples and for each kind.

    Attributes:
        data: name of the data file.
        data_digest: sha256 over its questions and pictures.
        exits: first layer without visual rows and number of samples, ascending; samples whose visual rows
            reached the last layer are not among them.
    """

    data: str
    data_digest: str
    overall: LossFigures
    kinds: tuple[LossFigures, ...]
    limits: LossLimits
    failures: tuple[str, ...]
    exits: tuple[tuple[int, int], ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures


def measure(
    runtime: "Runtime",
    samples: Sequence[Sample],
    max_new_tokens: int,
    progress: Progress = SILENT,
    label: str = "artifact answers",
) -> Answers:
    """Let a runtime answer every sample with the likeliest tokens; progress is shown under the label.

    The model's generation configuration is left aside, as on the original's side.
    """
    asked = [(sample.question, sample.images) for sample in samples]
    running = runtime.answers(asked, max_new_tokens=max_new_tokens, generation_config=False)
    replies = dict(progress.track(running, label, len(samples)))
    ordered = [replies[place] for place in range(len(samples))]
    return Answers(
        tuple(
            Answer(token_ids=reply.token_ids, text=reply.text, exit_layer=reply.exit_layer)
            for reply in ordered
        ),
        np.stack([reply.first_logits for reply in ordered]),
        max_new_tokens,
    )


def compare(
    samples: Sequence[Sample],
    original: Answers,
    compressed: Answers,
    limits: LossLimits,
    data_name: str,
) -> LossReport:
    """Compare the two models' answers, overall and for each kind of sample."""
    kl = kl_rows(original.logits, compressed.logits)
    agree = original.logits.argmax(axis=1) == compressed.logits.argmax(axis=1)
    prefix = np.array(
        [
            common_prefix(a.token_ids, b.token_ids) / max(len(a.token_ids), 1)
            for a, b in zip(original.answers, compressed.answers, strict=True)
        ]
    )
    right = [
        (right_one(a.text, s.answers), right_one(b.text, s.answers)) if s.answers else None
        for s, a, b in zip(samples, original.answers, compressed.answers, strict=True)
    ]

    def figures(kind: str, rows: Sequence[int]) -> LossFigures:
        judged = [pair for i in rows if (pair := right[i]) is not None]
        count = len(judged)
        picked = list(rows)
        return LossFigures(
            kind=kind,
            samples=len(picked),
            kl=float(kl[picked].mean()),
            kl_worst=float(kl[picked].max()),
            agreement=float(agree[picked].mean()),
            common_prefix=float(prefix[picked].mean()),
            answered=count,
            exact_match_original=sum(a for a, _ in judged) / count if count else None,
            exact_match=sum(b for _, b in judged) / count if count else None,
        )

    exits = Counter(a.exit_layer for a in compressed.answers if a.exit_layer is not None)
    overall = figures("all", range(len(samples)))
    names = sorted({s.kind for s in samples if s.kind})
    kinds = [figures(k, [i for i, s in enumerate(samples) if s.kind == k]) for k in names]
    return LossReport(
        data=data_name,
        data_digest=data_digest(samples),
        overall=overall,
        kinds=tuple(kinds),
        limits=limits,
        failures=tuple(_misses(overall, limits)),
        exits=tuple(sorted(exits.items())),
    )


def kl_rows(original: Array, compressed: Array) -> Array:
    """KL(softmax(original) || softmax(compressed)) of each row, in nats; both [n, vocab]."""

    def log_softmax(x: Array) -> Array:
        x = x.astype(np.float64)
        x = x - x.max(axis=-1, keepdims=True)
        normalised: Array = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
        return normalised

    p, q = log_softmax(original), log_softmax(compressed)
    divergence: Array = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)
    return divergence


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading tokens are equal."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def exact(text: str, answer: str) -> bool:
    """Whether an answer is the right one, surrounding white space aside."""
    return text.strip() == answer.strip()


def right_one(text: str, answers: Sequence[str]) -> bool:
    """Whether an answer is one of the right ones."""
    return any(exact(text, answer) for answer in answers)


def _misses(figures: LossFigures, limits: LossLimits) -> list[str]:
    lines = []
    # Written so that a value that is no number misses its limit.
    if limits.max_kl is not None and not figures.kl <= limits.max_kl:
        lines.append(f"mean KL is {figures.kl:.4g} nats, allowed max_kl {limits.max_kl:g}")
    least = (
        ("agreement of next tokens", figures.agreement, limits.min_agreement, "min_agreement"),
        ("common prefix", figures.common_prefix, limits.min_common_prefix, "min_common_prefix"),
        ("exact match", figures.exact_match, limits.min_exact_match, "min_exact_match"),
        (
            "exact match kept",
            figures.exact_match_kept,
            limits.min_exact_match_kept,
            "min_exact_match_kept",
        ),
    )
    for words, value, limit, key in least:
        if limit is None:
            continue
        if value is None:
            reason = (
                "the original gives no right answer"
                if figures.answered
                else "the data has no answers"
            )
            lines.append(f"{words} cannot be judged against {key}: {reason}")
        elif not value >= limit:
            lines.append(f"{words} is {value:.4f}, wanted {key} {limit:g}")
    return lines
