"""Ctrl-C that is not lost: a library may swallow the interrupt that Python raised inside its callback."""

import signal
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
