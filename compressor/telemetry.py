"""Nothing is reported to anybody: switches of the packages that would, set before any of them is imported.

ONNX Runtime writes a device id and an event database below the home folder and sends events some seconds
after a session was made; its own function that stops it comes too late, because that much is done on import.
"""

import os

SWITCHES = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Environment variables by which packages report nothing. One that is set already is left alone."""


def switch_off() -> None:
    """Set the switches in this process and those that it starts; a choice that was made before stays."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
