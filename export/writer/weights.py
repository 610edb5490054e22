"""The one weight file that all graphs of an artifact share: aligned for memory mapping, nothing twice."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx_ir as ir

from export.graphs.spec import WEIGHTS_FILE

# Offsets that are multiples of the page size can be mapped without copying.
PAGE = 4096
# Smaller ones stay in the graph: shape inference reads them, and a page each would waste more.
INLINE_BELOW = 1024


class SharedWeights:
    """Writes tensors of several graphs to one file, each content once.

    Use as a context manager; move graphs' tensors with `take`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stream = (folder / WEIGHTS_FILE).open("wb")
        self._places: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def take(self, model: ir.Model) -> None:
        """Move the model's initializers into the file and leave references."""
        for value in _initializers(model):
            tensor = value.const_value
            if tensor is None or tensor.nbytes < INLINE_BELOW:
                continue
            offset, length = self._store(np.ascontiguousarray(tensor.numpy()))
            value.const_value = ir.ExternalTensor(
                WEIGHTS_FILE,
                offset,
                length,
                ir.DataType(tensor.dtype),
                shape=ir.Shape(tensor.numpy().shape),
                name=value.name or "",
                base_dir=str(self.folder),
            )

    def _store(self, array: np.ndarray) -> tuple[int, int]:
        data = array.reshape(-1).view(np.uint8).data
        # The dtype and shape do not count: equal bytes serve any tensor of that length.
        key = (hashlib.sha256(data).hexdigest(), (len(data),))
        if key not in self._places:
            self._stream.write(b"\0" * (-self._stream.tell() % PAGE))
            self._places[key] = (self._stream.tell(), len(data))
            self._stream.write(data)
        return self._places[key]


def _initializers(model: ir.Model) -> Iterable[ir.Value]:
    return list(model.graph.initializers.values())
