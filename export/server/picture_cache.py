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


@dataclass
class _Entry:
    """What is kept, and how large it was when it was last looked at."""

    value: Any
    size: Callable[[], int]
    bytes: int = 0


class PictureCache:
    """Entries by kind and key; threads may share it.

    Args:
        most_bytes: of all entries together; 0: nothing is kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._sum = most_bytes, 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, Hashable], _Entry] = OrderedDict()
        # Caches of fixed size grow with what goes on behind them.
        self._used: set[tuple[str, Hashable]] = set()
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
            self._used.add((kind, key))
            return found.value

    def put(self, kind: str, key: Hashable, value: Any, size: Callable[[], int]) -> None:
        """Keep an entry if it fits at all; others go for it.

        Args:
            kind: of it.
            key: by which it is found.
            value: anything but None.
            size: tells its bytes now.
        """
        if size() > self._most:
            return
        with self._lock:
            self._drop((kind, key))
            self._entries[kind, key] = _Entry(value, size)
            self._used.add((kind, key))
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
        return self._sum

    def trim(self) -> None:
        """Let go what is beyond the bound: what was used may have grown."""
        with self._lock:
            self._trim()

    def _trim(self) -> None:
        for place in self._used & self._entries.keys():
            entry = self._entries[place]
            before, entry.bytes = entry.bytes, entry.size()
            self._sum += entry.bytes - before
        self._used.clear()
        while self._sum > self._most:
            self._drop(next(iter(self._entries)))

    def _drop(self, place: tuple[str, Hashable]) -> None:
        if (entry := self._entries.pop(place, None)) is not None:
            self._sum -= entry.bytes
