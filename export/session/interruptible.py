"""Calls that a signal or another thread ends: Python itself hears of Ctrl-C between its own steps alone."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import numpy as np

from export.graphs.spec import GraphSpec

Returned = TypeVar("Returned")
PIXELS = "pixel_values"
# Axes whose rows make a call long.
ROWS = (("text",), ("visual",))
LONG_SECONDS = 0.2
"""What a call may take that no signal ends: another thread takes about 0.3 ms, more on a busy machine."""


class EndedError(Exception):
    """Another thread ended the work of this one; see `Ending`."""


class Ending:
    """By which other threads end the work of one: the call that runs, and those that would come.

    Whoever does the work enters `ended_by`; what ends a call early may raise errors of the library.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = False
        self._stop: Callable[[], object] | None = None

    @property
    def asked(self) -> bool:
        """Whether the work is to end."""
        return self._asked

    def ask(self) -> None:
        """End the work; may be called by any thread, and more than once."""
        with self._lock:  # so that the call still stands
            self._asked = True
            if self._stop is not None:
                self._stop()

    def run(self, call: Callable[[], Returned], stop: Callable[[], object]) -> Returned:
        """Run a call that `ask` ends.

        Raises:
            EndedError: the work is to end already.
        """
        with self._lock:
            if self._asked:
                raise EndedError
            self._stop = stop
        try:
            return call()
        finally:
            with self._lock:
                self._stop = None


_ending: ContextVar[Ending | None] = ContextVar("what ends the work of this thread", default=None)


@contextmanager
def ended_by(ending: Ending) -> Iterator[None]:
    """Let other threads end what this thread does inside."""
    token = _ending.set(ending)
    try:
        yield
    finally:
        _ending.reset(token)


def check_ending() -> None:
    """Do nothing unless this thread's work is to end.

    Raises:
        EndedError: another thread has asked for it.
    """
    ending = _ending.get()
    if ending is not None and ending.asked:
        raise EndedError


def rows_run(spec: GraphSpec, feeds: Iterable[object]) -> int:
    """Return what the time of a call grows with: numbers of pictures, or rows; 1 of a decode step alone."""
    arrays = [
        (given, feed)
        for given, feed in zip(spec.inputs, feeds, strict=False)
        if isinstance(feed, np.ndarray)
    ]
    pictures = [feed.size for given, feed in arrays if given.name == PIXELS]
    rows = [feed.shape[1] for given, feed in arrays if given.axes[1:2] in ROWS]
    return sum(pictures) or max(rows, default=1)


class Interruptible:
    """Runs the calls of one graph, the long ones so that what a signal raises ends them.

    How long one will be is told by the last; the first may be.
    """

    def __init__(self) -> None:
        self._seconds_a_row = math.inf

    def run(self, rows: int, call: Callable[[], Returned], stop: Callable[[], object]) -> Returned:
        """Run a call.

        Args:
            rows: of the call, see `rows_run`.
            call: to run.
            stop: makes it end early; may come when it has ended already.
        """
        if rows == 1:  # a decode step takes longer for its row than a prefill for each of many
            return call()
        long = rows * self._seconds_a_row > LONG_SECONDS
        started = time.perf_counter()
        found = interruptible(call, stop) if long else call()
        self._seconds_a_row = (time.perf_counter() - started) / rows
        return found


def interruptible(call: Callable[[], Returned], stop: Callable[[], object]) -> Returned:
    """Run a call so that what a signal raises in the main thread ends it; in other threads, an `Ending`.

    Another thread runs it meanwhile, because the main thread must wait where signals reach it.
    """
    if threading.current_thread() is not threading.main_thread():
        ending = _ending.get()
        return call() if ending is None else ending.run(call, stop)
    done: Future[Returned] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as failure:  # noqa: BLE001 - raised again by whoever waits
            done.set_exception(failure)

    worker = threading.Thread(target=work, name="vtcompress-call")
    try:
        worker.start()
        return done.result()
    finally:
        # Left early, by a signal: nothing that the call reads may be freed before it has ended.
        if worker.ident is not None and not done.done():
            stop()
        if worker.ident is not None:
            worker.join()
