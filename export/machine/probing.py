"""Asks packages in children what they can do, so that a crash or a hang there is a finding.

What the children run is `doctor_probes.py`.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.machine import probes as doctor_probes
from export.machine.probes import MARK

PROBE_SECONDS = 60.0


@dataclass(frozen=True)
class Probed:
    """What a probe said, and how it ended.

    Attributes:
        facts: all that it said, later words over earlier ones.
        ended: empty if it came to its end, else how it ended.
    """

    facts: Mapping[str, Any]
    ended: str = ""

    @property
    def cut_short(self) -> str:
        """Return how it ended and in which step; empty if it came to its end."""
        return f"{self.ended} while {self.facts.get('step', 'starting')}" if self.ended else ""


def probe(name: str, seconds: float = PROBE_SECONDS) -> Probed:
    """Run a probe in a child and return what it said; never raises for what the probe does."""
    # -P: the probes' folder is no place to import from; its modules have common names.
    command = [sys.executable, "-P", str(Path(doctor_probes.__file__)), name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as failure:
        return Probed(_facts(failure.stdout or b""), f"gave no answer for {seconds:g} s")
    facts = _facts(done.stdout)
    if facts.get("done"):
        return Probed(facts)
    code = done.returncode
    how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with status {code}"
    return Probed(facts, how)


def _facts(said: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for line in said.decode(errors="replace").splitlines():
        if line.startswith(MARK):
            facts |= json.loads(line.removeprefix(MARK))
    return facts
