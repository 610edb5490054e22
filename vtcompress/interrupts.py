"""Ctrl-C that is not lost: a library may swallow the interrupt that Python raised inside its callback."""

import signal
import sys
import threading
from types import FrameType


class Interrupts:
    """Remembers that the user interrupted; every step of progress asks again."""

    def __init__(self) -> None:
        self._seen = False

    def listen(self) -> None:
        """Take over Ctrl-C; it goes on raising KeyboardInterrupt. Signals belong to the main thread."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._interrupt)
            sys.unraisablehook = _unraisable

    def check(self) -> None:
        """Raise again an interrupt that was swallowed.

        Raises:
            KeyboardInterrupt: the user interrupted before.
        """
        if self._seen:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._seen = True
        raise KeyboardInterrupt


def _unraisable(failure: "sys.UnraisableHookArgs") -> None:
    """Keep the trace of an interrupt to ourselves: what cannot raise it (weak references) swallows it."""
    if failure.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(failure)
