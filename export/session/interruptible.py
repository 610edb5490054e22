"""Calls of a library that a signal ends: Python hears of Ctrl-C between its own steps alone."""

import math
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TypeVar

import numpy as np

from export.graphs.spec import GraphSpec

Returned = TypeVar("Returned")
PIXELS = "pixel_values"
# Axes whose rows make a call long.
ROWS = (("text",), ("visual",))
LONG_SECONDS = 0.2
"""What a call may take that no signal ends: another thread takes about 0.3 ms, more on a busy machine."""


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
    """Run a call so that what a signal raises in the main thread ends it; in other threads just run it.

    Another thread runs it meanwhile, because the main thread must wait where signals reach it.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
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
