"""The one weight file that all graphs of an artifact share: aligned for memory mapping, nothing twice."""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx_ir as ir
import torch

from export.graphs.spec import WEIGHTS_FILE
from export.writer.passes.graph_pass import weights_of

# Offsets that are multiples of the page size can be mapped without copying.
PAGE = 4096
# Smaller ones stay in the graph: shape inference reads them, and a page each would waste more.
INLINE_BELOW = 1024
BYTE = 8  # bits
DTYPE_NAMES = {
    "float32": "FLOAT",
    "float16": "FLOAT16",
    "bfloat16": "BFLOAT16",
    "int8": "INT8",
    "int4": "INT4",
    "int64": "INT64",
    "bool": "BOOL",
}


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

    def flush(self) -> None:
        """Put what was written where readers find it, while further graphs are still to come."""
        self._stream.flush()

    def take(self, model: ir.Model) -> None:
        """Move the model's initializers into the file and leave references."""
        for value in list(model.graph.initializers.values()):
            tensor = value.const_value
            if tensor is None:
                continue
            for weight in weights_of(value):
                if tensor.dtype.name != DTYPE_NAMES[weight.dtype]:
                    raise RuntimeError(
                        f"{value.name} holds {tensor.dtype}, and {weight.source} is stored as {weight.dtype}"
                    )
            if tensor.nbytes < INLINE_BELOW:
                continue
            offset, length = self._store(_as_stored(tensor))
            value.const_value = ir.ExternalTensor(
                WEIGHTS_FILE,
                offset,
                length,
                ir.DataType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
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


def _as_stored(tensor: ir.TensorProtocol) -> np.ndarray:
    """Return an array whose bytes are those that a file has; of two numbers in a byte, the bytes."""
    if tensor.dtype.bitwidth < BYTE:
        return np.frombuffer(tensor.tobytes(), np.uint8)
    return _in_order(tensor.numpy())


def _in_order(array: np.ndarray) -> np.ndarray:
    """Return an array whose numbers lie in memory as they are written; of a copy the bits alone count.

    Most matrices come turned, and torch turns one in an eighth of numpy's time (86 MiB: 0.1 s for 0.8 s).
    """
    if array.flags.c_contiguous:
        return array
    bits = torch.from_numpy(array.view(f"i{array.itemsize}"))  # torch reads no bfloat16 of numpy
    return bits.contiguous().numpy()
