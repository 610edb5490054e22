"""Tensors kept as they are: in memory as far as they fit there, the rest in a file without a name."""

import os
import tempfile
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from compressor.disk.paths import why_unwritten
from compressor.errors import VtcompressError


class Shelved(NamedTuple):
    """Where a tensor lies in the file, and where it was."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class TensorShelf:
    """Keeps tensors. The file goes with the process, however that ends; what is read are the very bits.

    Args:
        room: bytes that stay in memory.
        folder: that the file is in; None: the system's own for temporary files.
    """

    def __init__(self, room: int, folder: Path | None = None) -> None:
        self.room, self.folder = room, folder

    def put(self, tensor: Tensor) -> Tensor | Shelved:
        """Keep a tensor; `get` gives it for what is returned.

        Raises:
            VtcompressError: the file cannot be written.
        """
        if tensor.nbytes <= self.room:
            self.room -= tensor.nbytes
            return tensor.clone()  # of a part the whole would stay
        content = _bytes_of(tensor.detach().cpu().contiguous())
        try:
            start = self._file.seek(0, os.SEEK_END)
            while content:
                content = content[self._file.write(content) :]
        except OSError as failure:
            raise self._failed("write", failure) from None
        return Shelved(start, tuple(tensor.shape), tensor.dtype, tensor.device)

    def get(self, kept: Tensor | Shelved) -> Tensor:
        """Return what was put, where it was.

        Raises:
            VtcompressError: the file cannot be read.
        """
        if isinstance(kept, Tensor):
            return kept
        found = torch.empty(kept.shape, dtype=kept.dtype)
        content, count = _bytes_of(found), 1
        try:
            self._file.seek(kept.offset)
            while content and count:
                count = self._file.readinto(content)
                content = content[count:]
        except OSError as failure:
            raise self._failed("read", failure) from None
        return found.to(kept.device)

    @cached_property
    def _file(self) -> FileIO:
        # Without a buffer: what was not written is told where it was.
        return tempfile.TemporaryFile(dir=self.folder, buffering=0)

    def _failed(self, what: str, failure: OSError) -> VtcompressError:
        where = self.folder or tempfile.gettempdir()
        return VtcompressError(f"{where}: cannot {what} tensors there: {why_unwritten(failure)}")


def _bytes_of(part: Tensor) -> memoryview:
    """Return the memory of a tensor."""
    return memoryview(part.flatten().view(torch.uint8).numpy().data)
