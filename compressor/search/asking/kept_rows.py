"""What a vision side made of pictures, made once and kept."""

from collections.abc import Callable, Hashable
from pathlib import Path

from compressor.calibration.tensor_shelf import TensorShelf
from compressor.samples.layout import VisualRows

MOST_BYTES = 512 << 20
"""Of rows that stay in memory."""


class KeptRows:
    """Keeps visual rows by keys.

    Args:
        folder: see `TensorShelf`.
        most_bytes: that stay in memory.
    """

    def __init__(self, folder: Path | None = None, most_bytes: int = MOST_BYTES) -> None:
        self._shelf = TensorShelf(most_bytes, folder)
        self._kept: dict[Hashable, VisualRows] = {}

    def of(self, key: Hashable, make: Callable[[], VisualRows]) -> VisualRows:
        """Return the rows of a key, made where they are asked for the first time.

        Raises:
            VtcompressError: the file cannot be written, or not read.
        """
        if key not in self._kept:
            made = make()
            self._kept[key] = made._replace(features=tuple(map(self._shelf.put, made.features)))
            return made
        kept = self._kept[key]
        return kept._replace(features=tuple(map(self._shelf.get, kept.features)))
