"""What an artifact holds of its validation: questions, both models' answers, pictures as far as kept.

    validation/samples.jsonl        a question a line; `image`: its pictures as they were; `not_kept`: how
                                    many are not there; `small`: smaller copies of these, for reports alone
    validation/original.json        answers of the original; compressed.json: of the artifact
    validation/original_logits.npy  [questions, vocab] float32 at the last prompt token

Only pictures as they were are measured on. Where they are not kept, the same data given again stands in.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np

from compressor.disk.files import read_text
from compressor.disk.opening import sha256_of
from compressor.errors import ArtifactError, DataError, first_line
from compressor.samples.questions import Sample, choose, data_digest, read_samples
from compressor.samples.small_pictures import small_picture
from compressor.schema.sections import ValidateSection
from export.results.answers import Answer, Answers
from export.results.loss_report import LossReport

FOLDER = "validation"
SAMPLES_FILE = f"{FOLDER}/samples.jsonl"
ORIGINAL_FILE = f"{FOLDER}/original.json"
COMPRESSED_FILE = f"{FOLDER}/compressed.json"
LOGITS_FILE = f"{FOLDER}/original_logits.npy"
IMAGES, SMALL = "images", "small"
PLAIN_ENDING = re.compile(r"\.[A-Za-z0-9]{1,8}")

NOT_KEPT = (
    "the artifact does not hold the pictures of its questions as they were (validate.keep_pictures); give "
    "`data`, the data that it was validated on"
)

NO_ANSWERS = "no held-out questions (`vtcompress export --validate-data FILE`)"

ANSWERS_FORCED = (
    "it was measured by layer, and the artifact holds no answers (give `data` and `model` where the model "
    "fits into memory)"
)

Keep = Literal["none", "samples", "all"]

# What reading damaged JSON and .npy files raises.
_BROKEN = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    SyntaxError,
    OverflowError,
    RecursionError,
    ArtifactError,
    DataError,
    TokenError,
)


@dataclass(frozen=True)
class StoredSample:
    """A question as an artifact holds it.

    Attributes:
        sample: its pictures are those that were kept as they were.
        missing: how many of its pictures were not.
        small: smaller copies of these.
    """

    sample: Sample
    missing: int
    small: tuple[Path, ...]

    @property
    def shown(self) -> tuple[Path, ...]:
        """What a report shows of its pictures."""
        return self.sample.images or self.small


def store_original(
    folder: Path,
    samples: Sequence[Sample],
    original: Answers,
    keep: Keep = "all",
    shown: Collection[int] = (),
) -> None:
    """Write samples and the original's answers into an artifact under construction.

    Args:
        folder: of the artifact.
        samples: that were asked.
        original: its answers to them.
        keep: which pictures: `all` as they are, `samples`: smaller copies of those in `shown`, or `none`.
        shown: places of the samples that a report shows.
    """
    (folder / FOLDER).mkdir(parents=True)
    rows = []
    for place, sample in enumerate(samples):
        row: dict[str, Any] = {
            "image": [],
            "question": sample.question,
            "answer": list(sample.answers) if sample.others else sample.answer,
            "kind": sample.kind,
        }
        if keep == "all":
            row["image"] = [_copied(path, folder / FOLDER) for path in sample.images]
        elif sample.images:
            row["not_kept"] = len(sample.images)
            if keep == "samples" and place in shown:
                names = [_shrunk(path, folder / FOLDER) for path in sample.images]
                row["small"] = [name for name in names if name is not None]
        rows.append(json.dumps(row, ensure_ascii=False))
    (folder / SAMPLES_FILE).write_text("\n".join(rows) + "\n", encoding="utf-8")
    np.save(folder / LOGITS_FILE, original.logits.astype(np.float32), allow_pickle=False)
    write_answers(folder / ORIGINAL_FILE, original)


def _copied(path: Path, folder: Path) -> str:
    # An ending may be long, or of bytes that no manifest can name; what the file is tells its content.
    ending = path.suffix.lower() if PLAIN_ENDING.fullmatch(path.suffix) else ""
    name = f"{IMAGES}/{sha256_of(path)[:16]}{ending}"
    (folder / IMAGES).mkdir(exist_ok=True)
    if not (folder / name).exists():
        shutil.copyfile(path, folder / name)
    return name


def _shrunk(path: Path, folder: Path) -> str | None:
    found = small_picture(path)
    if found is None:
        return None
    name = f"{SMALL}/{hashlib.sha256(found.content).hexdigest()[:16]}.{found.kind}"
    (folder / SMALL).mkdir(exist_ok=True)
    (folder / name).write_bytes(found.content)
    return name


def write_answers(path: Path, answers: Answers) -> None:
    """Write answers (without logits) as JSON."""
    document = {
        "max_new_tokens": answers.max_new_tokens,
        "answers": [a.model_dump(exclude_none=True) for a in answers.answers],
    }
    path.write_text(json.dumps(document, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def stored_samples(folder: Path) -> tuple[StoredSample, ...]:
    """Return the questions that an artifact holds.

    Raises:
        DataError: they are broken.
        ArtifactError: they name pictures outside the artifact.
    """
    return _inside(folder, _parsed(folder))


def _parsed(folder: Path) -> tuple[StoredSample, ...]:
    path = folder / SAMPLES_FILE
    samples = read_samples(path)
    lines = [line for line in read_text(path, DataError).split("\n") if line.strip()]
    found = []
    for sample, line in zip(samples, lines, strict=True):
        row = json.loads(line)
        missing, names = row.get("not_kept", 0), row.get("small", [])
        if not isinstance(missing, int) or missing < 0 or not _are_names(names):
            raise DataError([f"{sample.where}: not_kept and small: a number and a list of files"])
        small = tuple(folder / FOLDER / name for name in names)
        found.append(StoredSample(sample, missing, small))
    return tuple(found)


def _inside(folder: Path, found: tuple[StoredSample, ...]) -> tuple[StoredSample, ...]:
    """Return questions none of whose pictures lies outside the artifact."""
    outside = {
        f"{folder / FOLDER}: the picture {picture} is not in the artifact; do not use this artifact"
        for stored in found
        for picture in (*stored.sample.images, *stored.small)
        if not picture.resolve().is_relative_to((folder / FOLDER).resolve())
    }
    if outside:
        raise ArtifactError(sorted(outside))
    return found


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(name, str) and "\0" not in name for name in value
    )


def stored_original(folder: Path) -> tuple[tuple[Sample, ...], Answers]:
    """Return the samples, with their pictures as they were, and the original's answers to them.

    Raises:
        ArtifactError: the artifact holds none, or not all pictures, or they are broken.
    """
    if not (folder / ORIGINAL_FILE).is_file():
        raise ArtifactError(
            [f"{folder}: holds no answers of the original; give `data` and `model` to measure them"]
        )
    stored, answers = _read(folder)
    if any(row.missing for row in stored):
        raise ArtifactError([f"{folder}: {NOT_KEPT}"])
    return tuple(row.sample for row in stored), answers


def original_for(
    folder: Path, loss: LossReport | None, section: ValidateSection, data: Path | None
) -> tuple[tuple[Sample, ...], Answers] | None:
    """Return on what an artifact can be measured without the original; None: it holds no answers.

    Args:
        folder: of the artifact.
        loss: of its manifest.
        section: of its recipe; says which samples of the data were drawn.
        data: the data that it was validated on, where its pictures were not kept; None: it holds them.

    Raises:
        ArtifactError: pictures were not kept and no data is given; other data is given; or what is stored is
            broken.
        DataError: the data cannot be used.
    """
    if not (folder / ORIGINAL_FILE).is_file():
        if data is not None:
            raise ArtifactError([_other(data, None)])
        return None
    if data is None:
        return stored_original(folder)
    read = read_samples(data)
    for samples in (choose(read, section.samples, section.seed), read):
        if loss is not None and data_digest(samples) == loss.data_digest:
            return samples, _read(folder)[1]
    raise ArtifactError([_other(data, loss)])


def keeps_pictures(folder: Path) -> bool:
    """Whether an artifact can be measured on what it holds, or holds no answers of the original at all.

    Raises:
        ArtifactError: what is stored is broken.
    """
    if not (folder / ORIGINAL_FILE).is_file():
        return True
    return not any(stored.missing for stored in _read(folder)[0])


def why_unmeasured(folder: Path, loss: LossReport | None) -> str:
    """Return why compression loss was not measured on what an artifact holds, with the remedy.

    Args:
        folder: of the artifact.
        loss: of its manifest.

    Raises:
        ArtifactError: what is stored is broken.
    """
    if loss is not None and loss.by_layer is not None:
        return ANSWERS_FORCED
    return NO_ANSWERS if keeps_pictures(folder) else NOT_KEPT


def _other(data: Path, loss: LossReport | None) -> str:
    than = "" if loss is None else f"; it was validated on {loss.data}"
    return (
        f"{data}: the artifact holds no answers of the original to this data{than}: give `model` as "
        "well"
    )


def _read(folder: Path) -> tuple[tuple[StoredSample, ...], Answers]:
    try:
        document = json.loads(read_text(folder / ORIGINAL_FILE, ArtifactError))
        answers = tuple(Answer.model_validate(a) for a in document["answers"])
        # Mapped first: a header that promises more than the file holds is refused, not allocated.
        logits = np.lib.format.open_memmap(folder / LOGITS_FILE, mode="r")
        cut = int(document["max_new_tokens"])
        stored = _parsed(folder)
    except _BROKEN as failure:
        reason = first_line(failure)
        raise ArtifactError([f"{folder / FOLDER}: broken: {reason}"]) from None
    if logits.ndim != 2 or not len(stored) == len(answers) == len(logits):
        raise ArtifactError([f"{folder / FOLDER}: samples and answers differ in number"])
    if logits.dtype != np.float32 or cut < 1:
        raise ArtifactError([f"{folder / FOLDER}: broken: logits or length of the answers"])
    return _inside(folder, stored), Answers(answers, np.array(logits), cut)
