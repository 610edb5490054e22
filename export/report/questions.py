"""The validation questions of an artifact with both models' answers, and which of them a report shows."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compressor.disk.files import read_text
from compressor.errors import ArtifactError, DataError
from compressor.samples.questions import Sample
from compressor.samples.scores import EXACT, exact
from export.checks.stored import COMPRESSED_FILE, ORIGINAL_FILE, SAMPLES_FILE, stored_samples
from export.results.answers import Answer, KeptPlaces

Change = Literal["same", "lost", "won", "different", "both right", "both wrong", "scored alike"]

VERDICTS: dict[Change, str] = {
    "same": "same answer",
    "lost": "different: was right, is wrong",
    "won": "different: was wrong, is right",
    "different": "different",
    "both right": "different: both right",
    "both wrong": "different: both wrong",
    "scored alike": "different",
}


@dataclass(frozen=True)
class Question:
    """One question and what both models answered.

    Attributes:
        sample: as it was asked.
        original: answer of the original model.
        compressed: answer of the artifact.
        images: files of its pictures, or of smaller copies.
        missing: how many of its pictures the artifact does not hold as they were.
        kept: which visual tokens of each picture go on; none: not stored.
        scores: of both answers, 0 to 1; None: by `exact`.
        graded: whether scores are more than right and wrong.
    """

    sample: Sample
    original: str
    compressed: str
    images: tuple[Path, ...] = ()
    missing: int = 0
    kept: tuple[KeptPlaces, ...] = ()
    scores: tuple[float, float] | None = None
    graded: bool = False

    @classmethod
    def of(
        cls,
        sample: Sample,
        original: Answer,
        compressed: Answer,
        *,
        graded: bool,
        images: tuple[Path, ...] = (),
        missing: int = 0,
    ) -> "Question":
        """Return a question with both answers and their scores, as far as these are known."""
        before, after = original.score, compressed.score
        return cls(
            sample,
            original.text,
            compressed.text,
            images,
            missing,
            compressed.kept or (),
            None if before is None or after is None else (before, after),
            graded,
        )

    @property
    def right(self) -> str | None:
        """The right answer, any of several; None if unknown."""
        return " or ".join(dict.fromkeys(self.sample.answers)) if self.sample.answers else None

    @property
    def equal(self) -> bool:
        """Whether both models say the same."""
        return exact(self.original, self.compressed)

    @property
    def outcome(self) -> Change:
        """What became of the answer."""
        if self.equal:
            return "same"
        if self._scored is None:
            return "different"
        before, after = self._scored
        if before != after:
            return "lost" if after < before else "won"
        if self.graded:
            return "scored alike"
        return "both right" if after else "both wrong"

    @property
    def _scored(self) -> tuple[float, float] | None:
        if self.scores is not None:
            return self.scores
        before, after = (EXACT.of(text, self.sample) for text in (self.original, self.compressed))
        return None if before is None or after is None else (before, after)

    @property
    def verdict(self) -> str:
        """What became of the answer, in words."""
        if self.graded and self.scores is not None and not self.equal:
            before, after = self.scores
            return f"different: score {before:.2f} before, {after:.2f} now"
        return VERDICTS[self.outcome]


def stored_questions(folder: Path, *, graded: bool = False) -> tuple[Question, ...]:
    """Return the questions that an artifact was validated on; none if it was not.

    Args:
        folder: of the artifact.
        graded: whether the score that it was validated by is.

    Raises:
        ArtifactError: what is stored is broken, or names pictures outside the artifact.
    """
    if not (folder / COMPRESSED_FILE).is_file():
        return ()
    try:
        stored = stored_samples(folder)
    except DataError as failure:
        raise ArtifactError(failure.problems) from None
    original, compressed = (_answers(folder / name) for name in (ORIGINAL_FILE, COMPRESSED_FILE))
    if not len(stored) == len(original) == len(compressed):
        raise ArtifactError([f"{folder / SAMPLES_FILE}: samples and answers differ in number"])
    return tuple(
        Question.of(row.sample, a, b, graded=graded, images=row.shown, missing=row.missing)
        for row, a, b in zip(stored, original, compressed, strict=True)
    )


def _answers(path: Path) -> tuple[Answer, ...]:
    try:
        document = json.loads(read_text(path, ArtifactError))
        return tuple(Answer.model_validate(answer) for answer in document["answers"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ArtifactError([f"{path}: broken; validate or export the model anew"]) from None


def chosen_places(questions: Sequence[Question], most: int = 10) -> tuple[int, ...]:
    """Return the places of at most `most` questions: lost answers first, other differences, then equal ones.

    Within each of the three, kinds take turns, so that no kind hides the others.
    """
    seen: Counter[tuple[int, str]] = Counter()
    keyed = []
    for place, question in enumerate(questions):
        rank, kind = {"lost": 0, "same": 2}.get(question.outcome, 1), question.sample.kind
        keyed.append((rank, seen[rank, kind], place))
        seen[rank, kind] += 1
    return tuple(place for _, _, place in sorted(keyed)[:most])


def chosen_questions(questions: Sequence[Question], most: int = 10) -> tuple[Question, ...]:
    """Return the questions that a report shows; see `chosen_places`."""
    return tuple(questions[place] for place in chosen_places(questions, most))
