"""Imports of packages that report their use, without the reporting.

OpenVINO writes an id and reports every import; it has no variable against that, but does without where the
package that reports is missing.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

REPORTERS = ("openvino_telemetry",)
"""Packages whose only work is to report; their users do without them."""


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
