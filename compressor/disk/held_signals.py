"""Signals that end a run wait while it does what must not be left half done."""

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

# Windows has no SIGHUP.
ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class HeldSignals:
    """While the block runs, what signals would raise is raised behind it, or from `pass_on` on.

    Python looks for signals where a function begins, behind a call and in a loop, never at an assignment. So
    nothing is raised between the end of a `try` and what its `finally` does, if that first sets `wait`:

        with HeldSignals() as signals:
            try:
                make()
                signals.pass_on()
                work()
            finally:
                signals.wait = True
                remove()

    Signals that nobody listens to in Python are as they were, and so is everything in another thread than the
    main one, where none is raised.

    Attributes:
        wait: signals that come are raised later.
    """

    def __init__(self) -> None:
        self.wait = True
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._came: list[int] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            try:
                for number in ENDING:
                    before = signal.getsignal(number)
                    if callable(before):
                        self._before[number] = before
                        signal.signal(number, self._hear)
            except BaseException:
                self._give_back()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self.wait = True
        self._give_back()
        self._raise()

    def pass_on(self) -> None:
        """Let signals be raised, those that came already now, until `wait` is set again."""
        self.wait = False
        self._raise()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.wait:
            self._came.append(number)
        else:
            self._before[number](number, frame)

    def _raise(self) -> None:
        while self._came:
            number = self._came.pop(0)
            self._before[number](number, None)

    def _give_back(self) -> None:
        try:
            for number, before in self._before.items():
                signal.signal(number, before)
        finally:
            self.wait = False  # of those that one has kept from being given back
