"""How long an export will take at least: what exports took, by this machine's pace.

Most of it is Python that traces graphs and checks them, a share for each layer; the rest goes with the
numbers that are converted, hashed and compared. Both were fitted to exports on one machine, told in multiples
of a fixed piece of work, which is done anew where a forecast is made. Copying goes by a probe of the disk.

Limitations:
    - Said is the processor's time on an idle machine; beside other work exports took up to 2.3 times that.
    - Questions, calibration, search, timing and engines are not in it; each of them shows its time left.
    - Fitted to few exports by `identity`, in float32; gates, whole numbers and float16 take another time.
    - Said is far less than what wide models take in memory: checks run prompts with all their rows.
"""

import os
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from compressor.facts import ModelFacts

BESIDE = "calibration, questions and timing come on top"

# Fitted, in seconds of a machine whose `step_seconds` is `STEP`: docs/performance.md.
STEP = 0.010
BASE = {False: 5.5, True: 4.6}
"""Of any export, in memory and streamed, in a process that has imported what it needs."""
LAYER = {False: 0.7, True: 1.6}
"""Of a decoder layer: in the plan's graph, in the baseline's, and in checks, which run by layer streamed."""
TOWER_LAYER = {False: 0.2, True: 0.4}
"""Of a layer of the vision tower."""
NUMBERS = {False: 30e-9, True: 30e-9}
"""Of a number of the model's weights."""

PROBE_BYTES = 16 << 20
LEAST_COPIED = 256 << 20
"""Fewer are copied so fast that no disk is probed."""
STEPS = 9


class MachinePace(NamedTuple):
    """How fast a machine is now.

    Attributes:
        step: seconds of the processor for the fixed piece of work.
        copy: bytes that a disk takes in a second; None: not asked.
    """

    step: float
    copy: float | None = None

    @classmethod
    def here(cls, folder: Path | None = None) -> "MachinePace":
        """Return this machine's, and the disk's that a folder will be on; None: no disk is asked."""
        return cls(step_seconds(), None if folder is None else _bytes_a_second(folder))


class TimeForecast(NamedTuple):
    """What an export takes, in seconds.

    Attributes:
        computing: of the processor.
        copying: of the disk; None: it was not asked.
    """

    computing: float
    copying: float | None

    @property
    def words(self) -> str:
        """Return both in one sentence."""
        copying = "copying" if self.copying is None else f"{_time(self.copying)} of copying"
        return (
            f"the export takes at least about {_time(self.computing)} of this machine's processor; "
            f"{copying}, {BESIDE}"
        )


def time_forecast(
    facts: ModelFacts, numbers: int, disk: int, pace: MachinePace, *, stream: bool
) -> TimeForecast:
    """Return what an export will take, questions, calibration and timing left out.

    Args:
        facts: of the model.
        numbers: how many its weights are.
        disk: bytes of the artifact.
        pace: of the machine.
        stream: weights are copied one at a time.
    """
    tower = 0 if facts.tower is None else facts.tower.layers
    work = BASE[stream] + LAYER[stream] * facts.decoder.layers + TOWER_LAYER[stream] * tower
    work += NUMBERS[stream] * numbers
    return TimeForecast(work * pace.step / STEP, pace.copy and disk / pace.copy)


def export_time_words(facts: ModelFacts, numbers: int) -> str:
    """Return what an export would take, in memory and streamed."""
    pace = MachinePace.here()
    whole, streamed = (
        _time(time_forecast(facts, numbers, 0, pace, stream=stream).computing)
        for stream in (False, True)
    )
    return (
        f"an export takes at least about {whole} of this machine's processor, streamed {streamed}; copying, "
        f"{BESIDE}"
    )


def step_seconds() -> float:
    """Return the least time of this thread's processor for a piece of Python as tracing does it."""
    found = []
    for _ in range(STEPS):
        began = time.thread_time()
        table = {f"layers.{number}": (number, [number]) for number in range(20_000)}
        "".join(sorted(table, key=lambda name: table[name][0]))
        found.append(time.thread_time() - began)
    return min(found)


def _bytes_a_second(folder: Path) -> float | None:
    """Return how fast a file that nobody sees is written there; None: it cannot be."""
    there = next(
        (parent for parent in (folder, *folder.absolute().parents) if parent.is_dir()), None
    )
    try:
        with TemporaryFile(dir=there) as file:
            numbers = os.urandom(PROBE_BYTES)
            began = time.monotonic()
            file.write(numbers)
            file.flush()
            os.fsync(file.fileno())
            return PROBE_BYTES / (time.monotonic() - began)
    except OSError:
        return None


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
