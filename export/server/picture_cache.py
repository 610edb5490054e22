"""What was made of pictures, kept by content up to a bound of memory; what was unused longest goes first."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CacheCounts:
    """What became of look-ups of one kind of entry, since the beginning.

    Attributes:
        hits: that found what they looked for.
        misses: that did not.
    """

    hits: int = 0
    misses: int = 0


class PictureCache:
    """Entries by kind and key; threads may share it.

    Args:
        most_bytes: of all entries together; 0: nothing is kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._lock = threading.Lock()
        # The size of caches of fixed size changes while what goes on behind them is alive.
        self._entries: OrderedDict[tuple[str, Hashable], tuple[Any, Callable[[], int]]] = (
            OrderedDict()
        )
        self._counts: dict[str, CacheCounts] = {}

    def get(self, kind: str, key: Hashable) -> Any:
        """Return an entry; None: it is not there."""
        with self._lock:
            found = self._entries.get((kind, key))
            before = self._counts.get(kind, CacheCounts())
            if found is None:
                self._counts[kind] = CacheCounts(before.hits, before.misses + 1)
                return None
            self._counts[kind] = CacheCounts(before.hits + 1, before.misses)
            self._entries.move_to_end((kind, key))
            return found[0]

    def put(self, kind: str, key: Hashable, value: Any, size: Callable[[], int]) -> None:
        """Keep an entry if it fits at all; others go for it.

        Args:
            kind: of it.
            key: by which it is found.
            value: anything but None.
            size: tells its bytes now.
        """
        with self._lock:
            if size() <= self._most:
                self._entries[kind, key] = (value, size)
                self._entries.move_to_end((kind, key))
            self._trim()

    @property
    def counts(self) -> dict[str, CacheCounts]:
        """Look-ups by kind."""
        with self._lock:
            return dict(self._counts)

    @property
    def entries(self) -> int:
        """How many there are."""
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Of all entries."""
        with self._lock:
            return self._sum()

    def trim(self) -> None:
        """Let go what is beyond the bound: entries may have grown."""
        with self._lock:
            self._trim()

    def _trim(self) -> None:
        while self._entries and self._sum() > self._most:
            self._entries.popitem(last=False)

    def _sum(self) -> int:
        return sum(size() for _, size in self._entries.values())
