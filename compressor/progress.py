"""How long work reports its progress: the CLI shows bars, a library user passes nothing."""

from collections.abc import Iterable, Iterator
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
