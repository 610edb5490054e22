"""Ctrl-C that is not lost: a library may swallow the interrupt that Python raised inside its callback."""

import signal
import sys
import threading
from types import FrameType


class Interrupts:
    """Remembers that the user interrupted; every step of progress asks again."""

    def __init__(self) -> None:
        self._seen = False
        self._tell = sys.__unraisablehook__

    def listen(self) -> None:
        """Take over Ctrl-C; it goes on raising KeyboardInterrupt. Signals belong to the main thread."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._interrupt)
            self._tell, sys.unraisablehook = sys.unraisablehook, self._unraisable

    def check(self) -> None:
        """Raise again an interrupt that was swallowed.

        Raises:
            KeyboardInterrupt: the user interrupted before.
        """
        if self._seen:
            raise KeyboardInterrupt

    def _unraisable(self, failure: "sys.UnraisableHookArgs") -> None:
        """Keep the trace of an interrupt to ourselves: what cannot raise it (weak references) swallows it."""
        if failure.exc_type is not KeyboardInterrupt:
            self._tell(failure)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._seen = True
        raise KeyboardInterrupt
