"""Asks backends in children what they can do, so that a crash or a hang there is a finding."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from typing import Any

MARK = "vtcompress-probe:"
PROBE_SECONDS = 60.0
ProbeFacts = dict[str, Any]
Probe = Callable[[], Iterator[ProbeFacts]]
"""Tells what it finds piece by piece, and as `step` what it does next, so that whoever waits knows how far
it came. A function of a module or a static method: the child finds it by its name."""

_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from export.backends.probing import main; main(*sys.argv[2:])"
)


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

    def unfinished(self, key: str) -> str:
        """Return why the probe never told something; empty if it did."""
        if key in self.facts:
            return ""
        step = f"{self.facts.get('step')}: {self.facts.get('words', 'no answer')}"
        return self.cut_short or step


def ask(probe: Probe, seconds: float = PROBE_SECONDS) -> Probed:
    """Run a probe in a child and return what it said; never raises for what the probe does."""
    # -P: the child looks where this process does, not where it happens to stand.
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps(sys.path)]
    command += [probe.__module__, probe.__qualname__]
    with subprocess.Popen(  # noqa: S603 - this Python, and code of this package
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as child:
        if child.stdout is not None:
            child.stdout.readline()  # what the child imports of ours has no limit
        try:
            facts = _facts(child.communicate(timeout=seconds)[0])
        except subprocess.TimeoutExpired:
            child.kill()
            return Probed(_facts(child.communicate()[0]), f"gave no answer for {seconds:g} s")
    if facts.get("done"):
        return Probed(facts)
    code = child.returncode
    how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with status {code}"
    return Probed(facts, how)


def _facts(said: bytes) -> ProbeFacts:
    facts: ProbeFacts = {}
    for line in said.decode(errors="replace").splitlines():
        if line.startswith(MARK):
            facts |= json.loads(line.removeprefix(MARK))
    return facts


def main(module: str, name: str) -> None:
    """Run a probe and print a line of JSON for each piece that it tells: what the child does."""
    probe: Probe = attrgetter(name)(import_module(module))
    _tell({})
    try:
        for facts in probe():
            _tell(facts)
    except ModuleNotFoundError as failure:
        _tell({"error": "missing", "missing": failure.name or "", "words": failure_words(failure)})
    except BaseException as failure:  # noqa: BLE001 - whatever it is, it is the answer
        _tell({"error": "other", "words": failure_words(failure)})
    _tell({"done": True})


def failure_words(failure: BaseException) -> str:
    """Return the first line of what an exception says, else its name."""
    lines = str(failure).strip().splitlines()
    return lines[0] if lines else type(failure).__name__


def _tell(facts: ProbeFacts) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(facts)}\n")
    sys.stdout.flush()
