"""What a search has measured so far, so that one that was stopped goes on to the same plan."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from compressor.disk.files import read_json, write_text
from compressor.errors import PlanError
from compressor.facts import Facts
from compressor.search.results import HalfFigures
from compressor.version import __version__

SAVE_EVERY_SECONDS = 2.0

Half = Literal["choose", "judge"]
"""The questions that plans are chosen on, and the others."""


class SearchTask(Facts):
    """What decides what a search measures.

    Attributes:
        version: of this tool.
        model_digest: of the model.
        data_digest: over questions and pictures.
        seed: of the split.
        allowed: what may be used, in words: what is tried follows from it.
        trained: whether the plan is trained afterwards, for which not all is tried.
        tokens: longest answer that is decoded.
        score: name of what scores answers.
    """

    version: str = __version__
    model_digest: str
    data_digest: str
    seed: int
    allowed: str
    trained: bool = False
    tokens: int
    score: str = "exact"


class Found(Facts):
    """All that was measured.

    Attributes:
        findings_format: version of this file's format.
        task: what it was measured for.
        seconds: that runs took so far.
        singles: sums of KL over a batch's questions, by batch and change.
        wholes: plans measured as a whole, by half and plan.
    """

    findings_format: Literal[2] = 2
    task: SearchTask
    seconds: float = 0.0
    singles: Mapping[str, Mapping[str, float]] = {}
    wholes: Mapping[str, HalfFigures] = {}


class SearchFindings:
    """Keeps what was measured, in a file.

    Args:
        path: of the file; None: it is kept in memory alone.
        task: of the search; findings of another one are not taken.
    """

    def __init__(self, path: Path | None, task: SearchTask) -> None:
        self.path, self.task = path, task
        self.singles: dict[str, dict[str, float]] = {}
        self.wholes: dict[str, HalfFigures] = {}
        before = 0.0
        if path is not None and (found := _read(path, task)) is not None:
            self.singles = {batch: dict(sums) for batch, sums in found.singles.items()}
            self.wholes = dict(found.wholes)
            before = found.seconds
        self.goes_on = bool(self.singles or self.wholes)
        self._began = time.monotonic() - before
        self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long this run and those before it took."""
        return time.monotonic() - self._began

    def keep_singles(self, batch: str, sums: Mapping[str, float]) -> None:
        """Keep what was measured of one batch."""
        self.singles[batch] = dict(sums)
        self.save()

    def keep_whole(self, key: str, figures: HalfFigures) -> None:
        """Keep what was measured of a plan."""
        self.wholes[key] = figures
        if time.monotonic() - self._saved > SAVE_EVERY_SECONDS:
            self.save()

    def save(self) -> None:
        """Write all of it, atomically.

        Raises:
            VtcompressError: the folder is not writable, or the disk is full.
        """
        self._saved = time.monotonic()
        if self.path is not None:
            found = Found(
                task=self.task, seconds=self.seconds, singles=self.singles, wholes=self.wholes
            )
            write_text(self.path, found.model_dump_json() + "\n")


def _read(path: Path, task: SearchTask) -> Found | None:
    """Return what was found for the same task; None: nothing that can be gone on with."""
    if not path.is_file():
        return None
    try:
        found = read_json(path, Found, PlanError, "findings", "remove the file")
    except PlanError:
        return None
    return found if found.task == task else None
