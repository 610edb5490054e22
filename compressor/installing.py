"""How this tool and its extras are installed: no package index has it, so from a clone or from a wheel."""

from compressor.version import __version__

WHEEL = f"vtcompress-{__version__}-py3-none-any.whl"
"""File that `make wheel` writes into the clone's folder `dist`."""


def wheel_command(extra: str) -> str:
    """Return the command that installs this tool with an extra from its wheel, in the wheel's folder."""
    return f"pip install '{WHEEL}[{extra}]'"


def how_to_install(extra: str) -> str:
    """Return how an extra is installed, from a clone or from a wheel."""
    return (
        f"pip install '.[{extra}]' in a clone of vtcompress, or from the wheel of its `make wheel`: "
        f"{wheel_command(extra)}"
    )
