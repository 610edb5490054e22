"""Questions about pictures from a jsonl file: `image`, `question`, optional `answer` and `kind`."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.errors import DataError
from compressor.files import is_file, read_text, sha256_of

KNOWN_KEYS = ("image", "question", "answer", "kind")
MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        images: files of its pictures, in prompt order; empty for a text-only question.
        question: the user's words.
        answer: the right answer, None if unknown.
        kind: group that accuracy is reported for, e.g. `counting`.
        where: file and line that it was read from; empty if from none.
    """

    images: tuple[Path, ...]
    question: str
    answer: str | None = None
    kind: str = ""
    where: str = field(default="", compare=False)

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
    # Not splitlines(): a question may hold other line separators of Unicode.
    for number, line in enumerate(read_text(path, DataError).split("\n"), start=1):
        if not line.strip():
            continue
        sample, found = _parse(line, f"{path}:{number}", path.parent)
        problems += found
        if sample is not None:
            samples.append(sample)
    if problems:
        more = len(problems) - MAX_PROBLEMS
        raise DataError(
            problems[:MAX_PROBLEMS] + ([f"{path}: and {more} more"] if more > 0 else [])
        )
    if not samples:
        raise DataError([f"{path}: no questions in it; one JSON object a line is needed"])
    return tuple(samples)


def _parse(line: str, where: str, folder: Path) -> tuple[Sample | None, list[str]]:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None, [f"{where}: not JSON"]
    if not isinstance(row, dict):
        return None, [f"{where}: not a JSON object"]
    problems = [
        f"{where}: {key}: unknown key; known: {', '.join(KNOWN_KEYS)}"
        for key in row
        if key not in KNOWN_KEYS
    ]
    images = row.get("image", [])
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        problems.append(f"{where}: image: must be a file name or a list of file names")
        images = []
    if not isinstance(row.get("question"), str) or not row["question"].strip():
        problems.append(f"{where}: question: must be a text")
    problems += [
        f"{where}: {key}: must be a text"
        for key in ("answer", "kind")
        if row.get(key) is not None and not isinstance(row[key], str)
    ]
    files = tuple(folder / name for name in images)
    problems += [
        f"{where}: {key}: not valid Unicode"
        for key in ("question", "answer", "kind")
        if isinstance(row.get(key), str) and not _is_unicode(row[key])
    ]
    problems += [f"{where}: image: {file}: no such file" for file in files if not is_file(file)]
    if problems:
        return None, problems
    return Sample(files, row["question"], row.get("answer"), row.get("kind") or "", where), []


def _is_unicode(text: str) -> bool:
    """JSON can spell halves of characters, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def choose(samples: Sequence[Sample], count: int | None, seed: int) -> tuple[Sample, ...]:
    """Return `count` samples drawn by `seed`, in file order; all of them if there are no more."""
    if count is None or count >= len(samples):
        return tuple(samples)
    kept = sorted(random.Random(seed).sample(range(len(samples)), count))  # noqa: S311
    return tuple(samples[i] for i in kept)


def check_pictures(samples: Sequence[Sample], data_name: str) -> None:
    """Refuse calibration samples without pictures.

    Raises:
        DataError: names up to 20 of them.
    """
    blind = [s for s in samples if not s.images]
    if blind:
        raise DataError(
            f"{data_name}: {s.question[:60]!r} has no image; calibration needs one"
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
        pictures = [sha256_of(path) for path in sample.images]
        row = [pictures, sample.question, sample.answer, sample.kind]
        total.update(json.dumps(row, ensure_ascii=True).encode() + b"\n")
    return total.hexdigest()
