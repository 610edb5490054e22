"""The one weight file that all graphs of an artifact share: aligned for memory mapping, nothing twice."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import onnx_ir as ir
import torch

from export.graphs.spec import WEIGHTS_FILE
from export.writer.passes.graph_pass import weights_of
from export.writer.passes.quantize import codes_tensor

if TYPE_CHECKING:
    from compressor.decoder.quantization import Quantized
    from compressor.decoder.weights import StoredWeight, WholeNumbers
    from compressor.families.stand_ins import AbsentTensor

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

    Args:
        folder: of the graphs.
        stored: where weights lie that graphs have stand-ins for, by their source; each is read when it is
            written.
        wrote: is told of the bytes of each of them that have come into the file; None: nobody is.
    """

    def __init__(
        self,
        folder: Path,
        stored: "Mapping[str, AbsentTensor] | None" = None,
        wrote: Callable[[int], None] | None = None,
    ) -> None:
        self.folder = folder
        self._stored, self._wrote = stored or {}, wrote
        self._known: dict[StoredWeight, tuple[int, int]] = {}
        self._last: dict[StoredWeight, Quantized] = {}
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
            streamed = [weight for weight in weights_of(value) if weight.source in self._stored]
            if not streamed and self._stored:
                _check_none_computed(value, tensor)
            if tensor.nbytes < INLINE_BELOW:
                for weight in streamed:
                    value.const_value = self._read(weight, tensor)
                continue
            if streamed:
                offset, length = self._stream_in(streamed, tensor)
            else:
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

    def is_streamed(self, model: ir.Model) -> bool:
        """Return whether a graph has weights that are read from their files."""
        values = model.graph.initializers.values()
        return any(weight.source in self._stored for v in values for weight in weights_of(v))

    def bytes_to_read(self, models: Iterable[ir.Model]) -> int:
        """Return how many bytes of graphs are read from their files."""
        found = {
            weight: value.const_value.nbytes
            for model in models
            for value in model.graph.initializers.values()
            for weight in weights_of(value)
            if weight.source in self._stored and value.const_value is not None
        }
        return sum(found.values())

    def _stream_in(
        self, weights: "Sequence[StoredWeight]", instead: ir.TensorProtocol
    ) -> tuple[int, int]:
        (weight,) = weights  # what is made of several was parted by a pass
        if weight not in self._known:
            read = self._read(weight, instead)
            self._known[weight] = self._store(_as_stored(read))
            if self._wrote is not None:
                self._wrote(read.nbytes)
        return self._known[weight]

    def _read(self, weight: "StoredWeight", instead: ir.TensorProtocol) -> ir.TensorProtocol:
        """Return the numbers that a graph has a stand-in for, as they are written.

        Raises:
            ModelError: they cannot be read, or not held by the graph's dtype.
        """
        name, whole = instead.name or "", weight.whole
        if whole is None:
            found: ir.TensorProtocol = ir.tensor(self._floats(weight, weight.dtype), name=name)
        elif weight.dtype == whole.kind:
            found = codes_tensor(self._quantized(weight, whole).codes, whole.kind, name)
        else:
            found = ir.tensor(self._quantized(weight, whole).scales, name=name)
        if tuple(found.shape) != tuple(instead.shape):
            place = self._stored[weight.source].place
            raise RuntimeError(f"{place}: shape {found.shape}, in a graph {instead.shape}")
        return found

    def _quantized(self, weight: "StoredWeight", whole: "WholeNumbers") -> "Quantized":
        """Return codes and scales of a matrix; the last are kept, as each is asked for by itself."""
        from compressor.decoder.quantization import quantized_as

        key = replace(weight, dtype=whole.kind)
        if key not in self._last:
            self._last.clear()
            self._last[key] = quantized_as(self._floats(weight, whole.scales), whole)
        return self._last[key]

    def _floats(self, weight: "StoredWeight", dtype: str) -> torch.Tensor:
        from compressor.errors import ModelError
        from compressor.families.checkpoint import finite

        absent = self._stored[weight.source]
        numbers = weight.of(absent.read()).to(getattr(torch, dtype)).contiguous()
        if not finite(numbers):
            raise ModelError(
                [
                    f"{absent.place} has values that {dtype} cannot hold; set "
                    "export.dtype to bfloat16 or float32"
                ]
            )
        return numbers

    def _store(self, array: np.ndarray) -> tuple[int, int]:
        data = array.reshape(-1).view(np.uint8).data
        # The dtype and shape do not count: equal bytes serve any tensor of that length.
        key = (hashlib.sha256(data).hexdigest(), (len(data),))
        if key not in self._places:
            self._stream.write(b"\0" * (-self._stream.tell() % PAGE))
            self._places[key] = (self._stream.tell(), len(data))
            self._stream.write(data)
        return self._places[key]


def _check_none_computed(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Refuse constants that were computed from weights that are not in memory: stand-ins are no numbers."""
    if tensor.dtype.is_floating_point() and np.isnan(tensor.numpy()).any():
        raise RuntimeError(f"{value.name} was computed from weights that are not in memory")


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
