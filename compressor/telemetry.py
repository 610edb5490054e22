"""Nothing is reported to anybody: switches of the packages that would, set before any of them is imported.

ONNX Runtime writes a device id and an event database below the home folder and sends events some seconds
after a session was made; its own function that stops it comes too late, because that much is done on import.
OpenVINO writes an id and reports every import; it has no variable, but does without where the package that
reports is missing (`unreported`).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

SWITCHES = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Environment variables by which packages report nothing. One that is set already is left alone."""
REPORTERS = ("openvino_telemetry",)
"""Packages whose only work is to report; their users do without them."""


def switch_off() -> None:
    """Set the switches in this process and those that it starts; a choice that was made before stays."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)


class _Block:
    """The block on packages that report, shared by all who import meanwhile."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.users = 0
        self.before: dict[str, ModuleType] = {}

    def enter(self) -> None:
        """Set it, unless somebody has."""
        with self.lock:
            if not self.users:
                self.before = {name: sys.modules[name] for name in REPORTERS if name in sys.modules}
                sys.modules.update(dict.fromkeys(REPORTERS))  # type: ignore[arg-type] # no import finds them
            self.users += 1

    def leave(self) -> None:
        """Take it away after the last; a block of somebody else's, who has put None there, stays."""
        with self.lock:
            self.users -= 1
            if not self.users:
                for name in REPORTERS:
                    sys.modules.pop(name, None)
                sys.modules.update(self.before)


_BLOCK = _Block()


@contextmanager
def unreported() -> Iterator[None]:
    """Let imports within find no package that reports; after the last such block all is as it was."""
    _BLOCK.enter()
    try:
        yield
    finally:
        _BLOCK.leave()
