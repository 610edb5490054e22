"""Signals that end a run, none of them lost: a library may swallow what Python raised inside its callback.

Ctrl-C, the SIGTERM of a supervisor and the SIGHUP of a terminal that closes unwind a run as an error does, so
that it cleans up behind itself.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Windows has no SIGHUP.
TERMINATIONS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)
# A terminal that closes tells its programs, and so does its shell: the second must not stop the cleaning.
SETTLES_SECONDS = 5.0
# What a shell adds to the number of a signal that ended a program.
SIGNAL_CODES = 128


class Interrupts:
    """Remembers the signal that is to end the run; every step of progress asks again."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._raised = 0.0

    @property
    def code(self) -> int:
        """The exit code of a run that was ended."""
        return SIGNAL_CODES + (self._number or signal.SIGINT)

    def __str__(self) -> str:
        if self._number is not None and self._number != signal.SIGINT:
            return f"ended by {signal.Signals(self._number).name}"
        return "interrupted"

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Take over the signals while the block runs; each raises KeyboardInterrupt.

        Those that are ignored (`nohup`) or that somebody else listens to stay so. Signals belong to the main
        thread: in another nothing is taken over.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        free = [one for one in TERMINATIONS if signal.getsignal(one) == signal.SIG_DFL]
        before = {number: signal.signal(number, self._end) for number in (signal.SIGINT, *free)}
        hook, sys.unraisablehook = sys.unraisablehook, _unraisable
        try:
            yield
        finally:
            sys.unraisablehook = hook
            for number, handler in before.items():
                if handler is not None:  # else it was not Python's
                    signal.signal(number, handler)

    def check(self) -> None:
        """Raise again an interrupt that was swallowed.

        Raises:
            KeyboardInterrupt: a signal was to end the run before.
        """
        if self._number is not None:
            raise KeyboardInterrupt

    def _end(self, number: int, frame: FrameType | None) -> None:
        del frame
        now = time.monotonic()
        again = self._number in TERMINATIONS and now - self._raised < SETTLES_SECONDS
        if again and number in TERMINATIONS:
            return
        self._number, self._raised = self._number or number, now
        raise KeyboardInterrupt


def _unraisable(failure: "sys.UnraisableHookArgs") -> None:
    """Keep the trace of an interrupt to ourselves: what cannot raise it (weak references) swallows it."""
    if failure.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(failure)
