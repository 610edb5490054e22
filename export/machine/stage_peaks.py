"""The highest resident memory of this process, stage by stage.

Linux keeps the highest value since it was last asked to forget it (`/proc/self/clear_refs`, 5), which a stage
does when it begins. What the whole process had at most is then kept here: the kernel no longer knows it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.machine.process_status import SELF, status_bytes

FORGET = "5"
"""What the kernel takes for: let the highest resident memory be what it is now."""


class StagePeaks:
    """Notes the peak of each stage; stages are not begun inside of others.

    Args:
        process: the folder in which the system tells of this process.

    Attributes:
        highest: of all stages, in bytes; 0: the system does not tell.
    """

    def __init__(self, process: Path = SELF) -> None:
        self._process = process
        self._found: dict[str, int] = {}
        self.highest = 0

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Note the peak of what runs within; of a stage that comes again, the higher one."""
        self._note(self._peak())  # what lies between stages counts for the whole
        forgot = self._forget()
        yield
        peak = self._peak()
        self._note(peak)
        if forgot and peak:
            self._found[stage] = max(peak, self._found.get(stage, 0))

    @property
    def bytes_by_stage(self) -> dict[str, int] | None:
        """The stages' peaks in the order in which they first ran; None: the system does not tell."""
        return dict(self._found) or None

    def _note(self, peak: int) -> None:
        self.highest = max(self.highest, peak)

    def _peak(self) -> int:
        return status_bytes("VmHWM", self._process) or 0

    def _forget(self) -> bool:
        try:
            # Opened as it is: where there is no such file, none is made.
            with (self._process / "clear_refs").open("r+", encoding="utf-8") as stream:
                stream.write(FORGET)
        except OSError:
            return False
        return True
