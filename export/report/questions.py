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
from export.checks.stored import COMPRESSED_FILE, ORIGINAL_FILE, SAMPLES_FILE, stored_samples
from export.results.answers import Answer, KeptPlaces, exact, right_one

Change = Literal["same", "lost", "won", "different", "both wrong"]

VERDICTS: dict[Change, str] = {
    "same": "same answer",
    "lost": "different: was right, is wrong",
    "won": "different: was wrong, is right",
    "different": "different",
    "both wrong": "different: both wrong",
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
    """

    sample: Sample
    original: str
    compressed: str
    images: tuple[Path, ...] = ()
    missing: int = 0
    kept: tuple[KeptPlaces, ...] = ()

    @property
    def right(self) -> str | None:
        """The right answer, any of several; None if unknown."""
        return " or ".join(self.sample.answers) if self.sample.answers else None

    @property
    def equal(self) -> bool:
        """Whether both models say the same."""
        return exact(self.original, self.compressed)

    @property
    def outcome(self) -> Change:
        """What became of the answer."""
        if self.equal:
            return "same"
        if right_one(self.original, self.sample.answers):
            return "lost"
        if right_one(self.compressed, self.sample.answers):
            return "won"
        return "both wrong" if self.sample.answers else "different"

    @property
    def verdict(self) -> str:
        """What became of the answer, in words."""
        return VERDICTS[self.outcome]


def stored_questions(folder: Path) -> tuple[Question, ...]:
    """Return the questions that an artifact was validated on; none if it was not.

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
        Question(row.sample, a.text, b.text, row.shown, row.missing, b.kept or ())
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
