"""What a vision side made of pictures, kept: in memory as far as it fits there, the rest in a file."""

import io
import os
import tempfile
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from compressor.errors import VtcompressError
from compressor.samples.layout import VisualRows

MOST_BYTES = 512 << 20
"""Of rows that stay in memory."""


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies in the file."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class KeptRows:
    """Keeps visual rows by keys.

    The file has no name and goes with the process, however that ends. What is read of it are the very bits.

    Args:
        folder: that the file is in; None: the system's own for temporary files.
        most_bytes: that stay in memory.
    """

    def __init__(self, folder: Path | None = None, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self.room = folder, most_bytes
        self._kept: dict[Hashable, VisualRows] = {}

    def of(self, key: Hashable, make: Callable[[], VisualRows]) -> VisualRows:
        """Return the rows of a key, made where they are asked for the first time.

        Raises:
            VtcompressError: the file cannot be written, or not read.
        """
        if key not in self._kept:
            made = make()
            size = sum(part.nbytes for part in made.features)
            if size <= self.room:
                self.room -= size
                self._kept[key] = made
                return made
            stored = tuple(self._written(part) for part in made.features)
            self._kept[key] = made._replace(features=stored)
            return made
        kept = self._kept[key]
        parts = tuple(self._read(p) if isinstance(p, _Stored) else p for p in kept.features)
        return kept._replace(features=parts)

    def _written(self, part: Tensor) -> _Stored:
        content = _bytes_of(part.cpu().contiguous())
        try:
            start = self._file.seek(0, os.SEEK_END)
            while content:
                content = content[self._file.write(content) :]
        except OSError as failure:
            raise self._failed("write", failure) from None
        return _Stored(start, tuple(part.shape), part.dtype, part.device)

    @cached_property
    def _file(self) -> io.FileIO:
        # Without a buffer: what was not written is told where it was.
        return tempfile.TemporaryFile(dir=self.folder, buffering=0)

    def _read(self, stored: _Stored) -> Tensor:
        found = torch.empty(stored.shape, dtype=stored.dtype)
        content, count = _bytes_of(found), 1
        try:
            self._file.seek(stored.start)
            while content and count:
                count = self._file.readinto(content)
                content = content[count:]
        except OSError as failure:
            raise self._failed("read", failure) from None
        return found.to(stored.device)

    def _failed(self, what: str, failure: OSError) -> VtcompressError:
        where = self.folder or tempfile.gettempdir()
        return VtcompressError(f"{where}: cannot {what} visual rows there: {failure.strerror}")


def _bytes_of(part: Tensor) -> memoryview:
    """Return the memory of a tensor."""
    return memoryview(part.flatten().view(torch.uint8).numpy().data)
