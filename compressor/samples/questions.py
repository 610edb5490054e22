"""Questions about pictures from a jsonl file: `image`, `question`, optional `answer` and `kind`.

An answer may be a list: each of them is right alone. Other keys are not read.
"""

import contextlib
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from compressor.disk.files import read_text
from compressor.disk.mistaken import mistaken
from compressor.disk.opening import open_regular, sha256_of
from compressor.errors import DataError
from compressor.samples.rows import read_row, unread_words

MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        images: files of its pictures, in prompt order; empty for a text-only question.
        question: the user's words.
        answer: the right answer, the first if several are; None if unknown.
        kind: group that accuracy is reported for, e.g. `counting`.
        others: further answers that are right too; repeated ones count in scores of several annotators.
        where: file and line that it was read from; empty if from none.
        unread: keys beside it that say nothing here.
        blank: an answer, or one of a list, was blank or null and counts as none.
    """

    images: tuple[Path, ...]
    question: str
    answer: str | None = None
    kind: str = ""
    others: tuple[str, ...] = ()
    where: str = field(default="", compare=False)
    unread: tuple[str, ...] = field(default=(), compare=False)
    blank: bool = field(default=False, compare=False)

    @property
    def answers(self) -> tuple[str, ...]:
        """Every right answer; none if unknown."""
        return () if self.answer is None else (self.answer, *self.others)

    @property
    def place(self) -> str:
        """What an error calls it: file and line, else its words."""
        return self.where or repr(self.question[:60])


def read_samples(path: Path) -> tuple[Sample, ...]:
    """Read all questions of a jsonl file; image paths are relative to it.

    Raises:
        DataError: file or pictures missing, or lines that are no such questions; all are named.
    """
    samples, problems = [], []
    _check_kind(path)
    # Not splitlines(): a question may hold other line separators of Unicode.
    # A mark of byte order, which some editors write, is no part of the first line.
    text = read_text(path, DataError).removeprefix("\ufeff")
    if text.lstrip().startswith("[") and _is_list(text):
        raise DataError(
            [f"{path}: a JSON list; write one JSON object a line, without [ ] and commas"]
        )
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row, found = read_row(line, path.parent)
        problems += [f"{path}:{number}: {problem}" for problem in found]
        if row is not None:
            first, others = (row.answers[0], row.answers[1:]) if row.answers else (None, ())
            place = f"{path}:{number}"
            words = (row.question, first, row.kind, others, place, row.unread, row.blank)
            samples.append(Sample(row.images, *words))
    if problems:
        if other := _other_kind(text):
            raise DataError([f"{path}: {other}; write one JSON object a line, with its 'question'"])
        more = len(problems) - MAX_PROBLEMS
        raise DataError(
            problems[:MAX_PROBLEMS] + ([f"{path}: and {more} more"] if more > 0 else [])
        )
    if not samples:
        raise DataError([f"{path}: no questions in it; one JSON object a line is needed"])
    return tuple(samples)


def _is_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


def _check_kind(path: Path) -> None:
    """Refuse what is something else or no text, such as a picture; what cannot be opened is told later."""
    if (problem := mistaken(path, "data")) is not None:
        raise DataError([problem])
    with contextlib.suppress(OSError, ValueError), open_regular(path) as file:
        if b"\0" in file.read(1024):
            raise DataError([f"{path}: is no text file; a .jsonl file of questions is needed"])


def _other_kind(text: str) -> str | None:
    """Return what a file looks like that holds no questions, None if it may be meant to."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        lines = [line for line in text.split("\n") if line.strip()]
        table = len(lines) > 1 and any(
            mark in lines[0] and all(mark in line for line in lines) for mark in ",\t;"
        )
        return "looks like a table (CSV)" if table and lines[0][0] not in "{[" else None
    # One line with an object is a question, if perhaps a broken one.
    nested = isinstance(document, dict) and any(
        isinstance(value, list)
        and any(isinstance(item, dict) and "question" in item for item in value)
        for value in document.values()
    )
    return "one JSON document" if nested or "\n" in text.strip() else None


def notes_on(samples: Iterable[Sample]) -> tuple[str, ...]:
    """Return what people should know of questions that were read, one sentence each, with their file."""
    files: dict[str, dict[str, Sample]] = {}
    for sample in samples:
        files.setdefault(sample.where.rpartition(":")[0], {})[sample.where] = sample
    found = []
    for file, read in files.items():
        known = any(sample.answers for sample in read.values())
        if words := unread_words([sample.unread for sample in read.values()], known=known):
            found.append(f"{file}: {words}")
        if blank := sum(sample.blank for sample in read.values()):
            words = "answers that are blank or null count as none"
            found.append(f"{file}: {words}, in {blank} of {len(read)} questions")
        counts = Counter((sample.images, sample.question) for sample in read.values())
        if again := sum(count - 1 for count in counts.values()):
            found.append(f"{file}: {again} of {len(read)} questions are there more than once")
    return tuple(found)


def choose(samples: Sequence[Sample], count: int | None, seed: int) -> tuple[Sample, ...]:
    """Return `count` samples drawn by `seed`, in file order; all of them if there are no more.

    A larger count draws the same samples and more, so that a calibration can be extended.
    """
    if count is None or count >= len(samples):
        return tuple(samples)
    drawn, kept = random.Random(seed), set[int]()  # noqa: S311
    while len(kept) < count:
        kept.add(drawn.randrange(len(samples)))
    return tuple(samples[i] for i in sorted(kept))


def check_pictures(samples: Sequence[Sample], data_name: str, what: str = "calibration") -> None:
    """Refuse samples without pictures, of a calibration or of what else needs them.

    Raises:
        DataError: names up to 20 of them.
    """
    blind = [s for s in samples if not s.images]
    if blind:
        raise DataError(
            f"{s.where or data_name}: {s.question[:60]!r} has no image; {what} needs one"
            for s in blind[:20]
        )


def check_answered(samples: Sequence[Sample], data_name: str) -> None:
    """Refuse samples that nothing about answers can be learned from: without a picture or without an answer.

    Raises:
        DataError: names up to 20 of them.
    """
    problems = []
    for number, sample in enumerate(samples, start=1):
        missing = [] if sample.images else ["image"]
        missing += [] if (sample.answer or "").strip() else ["answer"]
        if missing:
            asked = f"question {number}, {sample.question[:60]!r}"
            problems.append(f"{data_name}: {asked}: has no {' and no '.join(missing)}")
    if problems:
        more = len(problems) - MAX_PROBLEMS
        shown = problems[:MAX_PROBLEMS]
        raise DataError(shown + ([f"{data_name}: and {more} more"] if more > 0 else []))


def data_digest(samples: Sequence[Sample]) -> str:
    """Return the sha256 over the questions and the bytes of their pictures, in order."""
    total = hashlib.sha256()
    for sample in samples:
        total.update(_digested(sample))
    return total.hexdigest()


def sample_digest(sample: Sample) -> str:
    """Return 16 hexadecimal digits by which a profile knows a sample again."""
    return hashlib.sha256(_digested(sample)).hexdigest()[:16]


def question_numbers(samples: Iterable[Sample]) -> list[int]:
    """Return numbers below 2**60 by which questions about pictures are known again, in the samples' order.

    The same pixels in another file, other spaces or capitals, another answer: the same question.

    Raises:
        DataError: a picture cannot be read.
    """
    from compressor.samples.pictures import load_image  # who compares nothing needs no Pillow

    shown: dict[Path, str] = {}
    numbers = []
    for sample in samples:
        for path in sample.images:
            if path not in shown:
                image = load_image(path)
                shown[path] = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
        words = " ".join(sample.question.split()).casefold()
        asked = json.dumps([[shown[path] for path in sample.images], words])
        numbers.append(int(hashlib.sha256(asked.encode()).hexdigest()[:15], 16))
    return numbers


def check_unseen(samples: Sequence[Sample], seen: Set[int], problem: str, remedy: str) -> None:
    """Refuse questions that are among others, in one line.

    Args:
        samples: that must not be among them.
        seen: numbers of the others; see `question_numbers`.
        problem: that they are, in words behind "3 of 64 questions".
        remedy: ends the line.

    Raises:
        DataError: with how many, and where the first is.
    """
    numbers = question_numbers(samples)
    again = [sample for sample, number in zip(samples, numbers, strict=True) if number in seen]
    if again:
        found = f"{len(again)} of {len(samples)} questions, this the first"
        raise DataError([f"{again[0].place}: {found}, {problem}; {remedy}"])


def _digested(sample: Sample) -> bytes:
    pictures = [sha256_of(path) for path in sample.images]
    row = [pictures, sample.question, sample.answer, sample.kind, *sample.others]
    return json.dumps(row, ensure_ascii=True).encode() + b"\n"
