"""An error that nobody foresaw: one line on stderr, and a private file with the full trace."""

import errno
import os
import platform
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from compressor.entry_points import package_in
from export.artifact.manifest import tool_versions
from vtcompress.interrupts import Interrupts
from vtcompress.terminal import say

# A library's message may hold a whole tensor.
LONGEST_MESSAGE = 300
SECRET = "--api-key"  # noqa: S105 - the name of an option


@dataclass
class Doing:
    """What the command line is at; changes while it works.

    Attributes:
        command: the subcommand; None: none was chosen yet.
        stage: the last announcement; None: there was none.
        verbose: whether a trace is shown too.
        failed: a thread ended by an error.
        interrupts: signals that end it.
    """

    command: str | None = None
    stage: str | None = None
    verbose: bool = False
    failed: bool = False
    interrupts: Interrupts = field(default_factory=Interrupts)

    def __str__(self) -> str:
        command = "`vtcompress`" if self.command is None else f"`vtcompress {self.command}`"
        return command if self.stage is None else f'{command} after "{self.stage}"'

    def tell(self, error: BaseException) -> None:
        """Say in one line what failed and where the trace is; with `verbose` the trace as well."""
        trace = "".join(traceback.format_exception(error))
        log = self._write(trace)
        if self.verbose or log is None:
            say(trace, nl=False, err=True)
        where = "no file could be written for the trace above" if log is None else f"trace: {log}"
        say(f"error: {self._what(error)}; {where}", err=True)

    def _what(self, error: BaseException) -> str:
        if isinstance(error, MemoryError):
            return f"not enough memory in {self}: close other programs, or take a smaller model"
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return f"no space left on the device in {self}: make room, or write elsewhere"
        message = next(iter(str(error).strip().splitlines()), "")
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]}..."
        said = type(error).__name__ + (f": {message}" if message else "")
        package = package_in(error)
        where = f"{self}, in code of the package {package}" if package else str(self)
        whom = f" to those who make {package}," if package else ""
        return f"unexpected in {where}: {said}; please report it{whom} with the file that is named here"

    def _write(self, trace: str) -> Path | None:
        """Write a new file that only its owner may read; return its place, None if none can be written."""
        try:
            versions = "\n".join(f"{name} {version}" for name, version in tool_versions().items())
            number, name = tempfile.mkstemp(prefix="vtcompress-", suffix=".log")
            with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(
                    f"vtcompress failed in {self}\narguments: {_shown(sys.argv[1:])}\n"
                    f"{platform.platform()}\n{versions}\n\n{trace}"
                )
        except (OSError, MemoryError):
            return None
        return Path(name)


def _shown(arguments: Sequence[str]) -> list[str]:
    """Return arguments without keys: the file is to be handed on."""
    shown = list(arguments)
    for at, one in enumerate(arguments):
        if one.startswith(f"{SECRET}="):
            shown[at] = f"{SECRET}=..."
        elif at and arguments[at - 1] == SECRET:
            shown[at] = "..."
    return shown


@contextmanager
def watched_threads(doing: Doing) -> Iterator[None]:
    """Tell of errors in threads inside as of all others; `doing.failed` remembers that there was one."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
            doing.failed = True
            doing.tell(arguments.exc_value)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def discard_output() -> None:
    """Lead stdout nowhere, so that Python's own end does not fail on what could not be written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
    os.close(nowhere)
