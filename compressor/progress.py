"""How long work reports its progress: the CLI shows bars, a library user passes nothing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Shows progress of loops and announces stages."""

    def track(self, items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
        """Yield the items, showing how many of `total` are done and the time left."""
        ...

    def say(self, line: str) -> None:
        """Announce a stage in one line."""
        ...


class Silent:
    """Shows nothing."""

    def track(self, items: Iterable[Item], label: str, total: int) -> Iterator[Item]:  # noqa: ARG002
        """Yield the items."""
        yield from items

    def say(self, line: str) -> None:
        """Say nothing."""


SILENT: Progress = Silent()

MEGABYTE = 1_000_000


class Megabytes:
    """Shows how many bytes of many are done, and the time left, in steps of a megabyte.

    Args:
        progress: shows it.
        label: what is done, with the unit.
    """

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress, self._label = progress, label
        self._steps: Iterator[int] = iter(())
        self._bytes = self._shown = 0

    @contextmanager
    def of(self, total: int) -> Iterator[None]:
        """Show the bytes that are added within; nothing where there are none to come."""
        count = -(-total // MEGABYTE)
        self._steps = self._progress.track(range(count), self._label, count) if count else iter(())
        yield
        for _ in self._steps:  # a bar ends when it is asked for more than it has
            pass

    def add(self, count: int) -> None:
        """Note that bytes are done."""
        self._bytes += count
        while self._shown < self._bytes // MEGABYTE:
            self._shown += 1
            next(self._steps, None)
