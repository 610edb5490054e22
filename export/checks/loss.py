"""Compression loss: the original model against the artifact, from image file to text. Quality, not numerics.

The original's side is measured once and stored in the artifact, so that the check runs later without it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.progress import SILENT, Progress
from compressor.samples.questions import Sample, data_digest
from compressor.samples.scores import EXACT, Score, exact
from export.results.loss_report import LossFigures, LossLimits, LossReport, misses
from export.session.arrays import Array

if TYPE_CHECKING:
    from export.runtime.runtime import Runtime
from export.results.answers import Answer, Answers, scored


def measure_answers(
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


@dataclass(frozen=True)
class Pair:
    """What both models made of one sample.

    Attributes:
        kl: KL(original || compressed) of the next-token distributions, in nats.
        agrees: the most likely next tokens are equal.
        scores: of the original's answer and of the artifact's, 0 to 1; None: no right answer is known, or
            nothing tells.
        prefix: share of the original's answer tokens before the first difference; None: answers were not
            generated.
        same: both answer in the same words; likewise.
    """

    kl: float
    agrees: bool
    scores: tuple[float, float] | None
    prefix: float | None = None
    same: bool | None = None


def compare(
    samples: Sequence[Sample],
    original: Answers,
    compressed: Answers,
    limits: LossLimits,
    data_name: str,
    score: Score = EXACT,
) -> LossReport:
    """Score the two models' answers and compare them, overall and for each kind of sample.

    Raises:
        DataError: a score of the user's own failed.
    """
    original = scored(samples, original, score)
    compressed = scored(samples, compressed, score)
    return compare_scored(samples, original, compressed, limits, data_name, score)


def compare_scored(
    samples: Sequence[Sample],
    original: Answers,
    compressed: Answers,
    limits: LossLimits,
    data_name: str,
    score: Score,
) -> LossReport:
    """Compare answers that are scored already, by this score; see `compare`."""
    kl = kl_rows(original.logits, compressed.logits)
    agree = original.logits.argmax(axis=1) == compressed.logits.argmax(axis=1)
    pairs = [
        Pair(
            kl=float(kl[i]),
            agrees=bool(agree[i]),
            scores=None if a.score is None or b.score is None else (a.score, b.score),
            prefix=common_prefix(a.token_ids, b.token_ids) / max(len(a.token_ids), 1),
            same=exact(a.text, b.text),
        )
        for i, (a, b) in enumerate(zip(original.answers, compressed.answers, strict=True))
    ]
    report = judged(samples, pairs, limits, data_name, score)
    exits = Counter(a.exit_layer for a in compressed.answers if a.exit_layer is not None)
    return report.model_copy(update={"exits": tuple(sorted(exits.items()))})


def judged(
    samples: Sequence[Sample],
    pairs: Sequence[Pair],
    limits: LossLimits,
    data_name: str,
    score: Score = EXACT,
) -> LossReport:
    """Return what samples lost, overall and for each kind of them, beside the limits."""
    generated = all(pair.same is not None for pair in pairs)

    def figures(kind: str, rows: Sequence[int]) -> LossFigures:
        of = [pairs[i] for i in rows]
        known = [pair.scores for pair in of if pair.scores is not None]
        count = len(known)
        kl = np.array([pair.kl for pair in of])
        return LossFigures(
            kind=kind,
            samples=len(of),
            pictured=sum(bool(samples[i].images) for i in rows),
            kl=float(kl.mean()),
            kl_worst=float(kl.max()),
            agreement=sum(pair.agrees for pair in of) / len(of),
            common_prefix=float(np.mean([pair.prefix or 0.0 for pair in of]))
            if generated
            else None,
            answered=count,
            equal_answers=sum(bool(pair.same) for pair in of) if generated else None,
            undecided=None if generated else sum(bool(samples[i].answers) for i in rows) - count,
            **_scored(known, graded=score.graded),
        )

    overall = figures("all", range(len(samples)))
    names = sorted({s.kind for s in samples if s.kind})
    kinds = [figures(k, [i for i, s in enumerate(samples) if s.kind == k]) for k in names]
    return LossReport(
        data=data_name,
        data_digest=data_digest(samples),
        overall=overall,
        kinds=tuple(kinds),
        score=score.name,
        limits=limits,
        failures=misses(overall, limits, score.name),
    )


def _scored(pairs: Sequence[tuple[float, float]], *, graded: bool) -> dict[str, Any]:
    """Return the figures of scores before and after: means, and what went up and down."""
    if not pairs:
        return {"exact_match_original": None, "exact_match": None}
    down = [a - b for a, b in pairs if b < a]
    up = [b - a for a, b in pairs if b > a]
    # Sums of the scores of a share are whole numbers, so that the mean is the share.
    found: dict[str, Any] = {
        "exact_match_original": fsum(a for a, _ in pairs) / len(pairs),
        "exact_match": fsum(b for _, b in pairs) / len(pairs),
    }
    if not graded:
        return found | {"right_to_wrong": len(down), "wrong_to_right": len(up)}
    return found | {
        "scores_down": len(down),
        "scores_up": len(up),
        "score_lost": fsum(down),
        "score_won": fsum(up),
    }


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
