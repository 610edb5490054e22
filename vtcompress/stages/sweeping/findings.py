"""What a sweep keeps while it runs, so that a stopped run goes on: each finding under what it rests on.

    profile.json                        the calibration, see `compressor.calibration.resume`
    original.json, original_logits.npy  the original's answers
    points/NAME.json                    a point
    graphs/                             of the point that is being timed

What rests on other inputs than today's is not read, and made anew in its place.
"""

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from compressor.disk.files import write_bytes, write_text
from compressor.version import __version__
from export.results.answers import Answer, Answers
from export.results.sweep import SweepPoint

PROFILE, ORIGINAL, LOGITS, GRAPHS = (
    "profile.json",
    "original.json",
    "original_logits.npy",
    "graphs",
)


def digest_of(**inputs: Any) -> str:
    """Return the digest of what something rests on, this tool's version included."""
    text = json.dumps({"vtcompress": __version__, **inputs}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Findings:
    """The folder of a sweep that is running.

    Attributes:
        folder: is made when something is kept.
    """

    folder: Path

    @property
    def profile(self) -> Path:
        """Where the calibration grows."""
        return self.folder / PROFILE

    def graphs(self) -> Path:
        """Return an empty folder for graphs."""
        folder = self.folder / GRAPHS
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def keep_original(self, answers: Answers, rests_on: str) -> None:
        """Keep the original's answers."""
        content = BytesIO()
        np.save(content, answers.logits.astype(np.float32), allow_pickle=False)
        # Without a description that fits them, logits are nobody's.
        (self.folder / ORIGINAL).unlink(missing_ok=True)
        write_bytes(self.folder / LOGITS, content.getvalue())
        document = {
            "rests_on": rests_on,
            "max_new_tokens": answers.max_new_tokens,
            "answers": [answer.model_dump(exclude_none=True) for answer in answers.answers],
        }
        write_text(self.folder / ORIGINAL, json.dumps(document, ensure_ascii=False) + "\n")

    def original(self, rests_on: str) -> Answers | None:
        """Return the original's answers; None: they are not here."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads((self.folder / ORIGINAL).read_text(encoding="utf-8"))
            if document["rests_on"] == rests_on:
                logits = np.load(self.folder / LOGITS, allow_pickle=False)
                answers = tuple(map(Answer.model_validate, document["answers"]))
                if len(answers) == len(logits):
                    return Answers(answers, logits, document["max_new_tokens"])
        return None

    def keep_point(self, point: SweepPoint, rests_on: str, timed_by: str) -> None:
        """Keep a point, with or without times."""
        document = {
            "rests_on": rests_on,
            "timed_by": timed_by,
            "point": point.model_dump(mode="json"),
        }
        text = json.dumps(document, ensure_ascii=False) + "\n"
        write_text(self._file_of(point.name), text)

    def point(self, name: str, rests_on: str, timed_by: str | None) -> SweepPoint | None:
        """Return a point, None: it is not here; without times that were taken otherwise, None: however."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads(self._file_of(name).read_text(encoding="utf-8"))
            if document["rests_on"] == rests_on:
                found = SweepPoint.model_validate_json(json.dumps(document["point"]))
                same = timed_by in (None, document["timed_by"])
                return found if same else found.model_copy(update={"measured": None})
        return None

    def _file_of(self, name: str) -> Path:
        return self.folder / "points" / f"{name}.json"

    def remove(self) -> None:
        """Remove all of it: the sweep is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
