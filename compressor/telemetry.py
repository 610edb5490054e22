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

SWITCHES = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Environment variables by which packages report nothing. One that is set already is left alone."""
REPORTERS = ("openvino_telemetry",)
"""Packages whose only work is to report; their users do without them."""


def switch_off() -> None:
    """Set the switches in this process and those that it starts; a choice that was made before stays."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)


@contextmanager
def unreported() -> Iterator[None]:
    """Let imports within find no package that reports; afterwards all is as it was."""
    before = {name: sys.modules.get(name) for name in REPORTERS}
    sys.modules.update(dict.fromkeys(REPORTERS))  # type: ignore[arg-type] # None: cannot be imported
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
