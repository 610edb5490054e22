"""Requests wait for one of a few threads that answer them; beyond a bound they are turned away."""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from export.server.refusal import RefusedError
from export.session.interruptible import Ending, ended_by

Asked = TypeVar("Asked")
Event = TypeVar("Event")

MOST_RETRY_SECONDS = 120
# How much the last answer weighs in the mean of how long they take.
_WEIGHT = 0.2


@dataclass(frozen=True)
class Failure:
    """An answer ended in an error.

    Attributes:
        error: that it was.
    """

    error: BaseException


class AnswerJob(Generic[Asked, Event]):
    """One request on its way, and what comes of it.

    Args:
        asked: the request.
        loop: whose task reads.
    """

    def __init__(self, asked: Asked, loop: asyncio.AbstractEventLoop) -> None:
        self.asked = asked
        self._loop, self._events = loop, asyncio.Queue[Event | Failure | None]()
        self.ending = Ending()

    def run(self, answer: Callable[[Asked], Iterator[Event]]) -> None:
        """Make the answer, in the thread of the caller."""
        try:
            with ended_by(self.ending):
                for event in answer(self.asked):
                    self._put(event)
                    if self.ending.asked:
                        break
        except BaseException as error:  # noqa: BLE001 - raised or told where it is read
            if not self.ending.asked:  # else it is what ending it made of the call that ran
                self._put(Failure(error))
        self.end()

    def end(self) -> None:
        """Tell who reads that nothing comes any more."""
        self._put(None)

    async def next(self) -> Event | Failure | None:
        """Return what comes next; None: the answer has ended."""
        return await self._events.get()

    def _put(self, event: Event | Failure | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody reads any more
            self.ending.ask()


class AnswerQueue(Generic[Asked, Event]):
    """Threads that answer, and the requests that wait for them.

    Args:
        answer: yields what comes of a request.
        parallel: threads.
        waiting: requests at most that wait.
    """

    def __init__(
        self, answer: Callable[[Asked], Iterator[Event]], parallel: int, waiting: int
    ) -> None:
        self._answer, self._parallel, self._most = answer, parallel, waiting
        self._waiting: deque[AnswerJob[Asked, Event]] = deque()
        self._running: set[AnswerJob[Asked, Event]] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._mean_seconds = 1.0
        # Daemons: a call that nothing ends must not keep the process.
        self._threads = [
            threading.Thread(target=self._work, name=f"vtcompress-answer-{i}", daemon=True)
            for i in range(parallel)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are answered now."""
        return len(self._running)

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._closed

    def submit(self, asked: Asked) -> AnswerJob[Asked, Event]:
        """Let a request wait for its turn; called in an event loop.

        Raises:
            RefusedError: too many wait already (429), or the server stops (503).
        """
        job: AnswerJob[Asked, Event] = AnswerJob(asked, asyncio.get_running_loop())
        with self._changed:
            if self._closed:
                raise stopping()
            if len(self._waiting) + len(self._running) >= self._most + self._parallel:
                raise self._full()
            self._waiting.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: AnswerJob[Asked, Event]) -> None:
        """End a request, whose asker left: it waits no longer, or its generation is interrupted."""
        job.ending.ask()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.end()

    def stop(self) -> None:
        """End all requests, and take no more."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *self._running]
            self._changed.notify_all()
        for job in jobs:
            self.cancel(job)

    def join(self, seconds: float) -> bool:
        """Wait for the threads behind `stop`; return whether all have ended."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _full(self) -> RefusedError:
        ahead = (len(self._waiting) + len(self._running)) / self._parallel
        seconds = min(MOST_RETRY_SECONDS, max(1, math.ceil(ahead * self._mean_seconds)))
        return RefusedError(
            429,
            f"{len(self._waiting)} requests wait already; try again in {seconds} s",
            code="queue_full",
            headers={"Retry-After": str(seconds)},
        )

    def _work(self) -> None:
        while (job := self._next()) is not None:
            started = time.monotonic()
            try:
                job.run(self._answer)
            finally:
                taken = time.monotonic() - started
                with self._changed:
                    self._running.discard(job)
                    self._mean_seconds += _WEIGHT * (taken - self._mean_seconds)

    def _next(self) -> AnswerJob[Asked, Event] | None:
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            job = self._waiting.popleft()
            self._running.add(job)
            return job


def stopping() -> RefusedError:
    """Return what is said while the server stops."""
    return RefusedError(503, "the server is stopping", code="stopping")
