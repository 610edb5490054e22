"""Arrays in one temporary file, mapped into memory for as long as each is copied.

What is mapped counts as memory of the process as long as it is; so the file may be larger than memory, and is
mapped anew for every array.
"""

from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Slot(NamedTuple):
    """Where an array lies in the file.

    Attributes:
        offset: its first byte.
        shape: of the array.
        dtype: of its numbers, such as `float32`.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: str


class ArrayFile:
    """Arrays that are written one behind the other, and over what they were.

    Args:
        path: of the file, which is made or grows.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = path.stat().st_size if path.exists() else 0

    def add(self, array: NDArray[Any]) -> Slot:
        """Write an array behind the others."""
        slot = Slot(self._end, array.shape, str(array.dtype))
        self._end += array.nbytes
        with self._path.open("ab") as file:
            file.write(array.tobytes())
        return slot

    def read(self, slot: Slot) -> NDArray[Any]:
        """Return a copy of an array."""
        return np.array(self._mapped(slot, "r")) if prod(slot.shape) else _empty(slot)

    def write(self, slot: Slot, array: NDArray[Any]) -> None:
        """Put another array of the same shape and dtype in the place of one.

        Raises:
            ValueError: it has another shape or dtype.
        """
        if (array.shape, str(array.dtype)) != slot[1:]:
            raise ValueError(f"an array {array.shape} {array.dtype} in the place of {slot}")
        if array.size:
            self._mapped(slot, "r+")[...] = array

    def _mapped(self, slot: Slot, mode: Any) -> NDArray[Any]:
        return np.memmap(self._path, slot.dtype, mode, slot.offset, slot.shape)


def _empty(slot: Slot) -> NDArray[Any]:
    return np.empty(slot.shape, slot.dtype)
