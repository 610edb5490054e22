"""Writes numbers in place of named axes into an ONNX graph, without a library that parses it.

TensorRT refuses a cache whose rows have a name, whatever the profiles say: "The KV cache tensor must have a
static sequence length dimension" (TensorRT-RTX 1.7.1, for TensorScatter). So its parser is handed the graph
with the room that the engine is built for.

Field numbers are those of onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from collections.abc import Mapping
from typing import Final

from export.artifact.protobuf_wire import BYTES, VARINT, as_varint, fields

# From a model down to one axis of what is named in it: the graph; its inputs, outputs and values between;
# the type; of a tensor; its shape; an axis.
_PATH: Final = ((7,), (11, 12, 13), (2,), (1,), (2,), (1,))
_NUMBER, _NAME = 1, 2


def pinned(content: bytes, sizes: Mapping[str, int]) -> bytes:
    """Return a graph whose axes of these names are numbers.

    Args:
        content: of the ONNX file.
        sizes: by the names of axes; other axes stay as they are.

    Raises:
        MalformedError: no protobuf message.
    """
    return _rewritten(memoryview(content), 0, sizes) if sizes else content


def _rewritten(message: memoryview, depth: int, sizes: Mapping[str, int]) -> bytes:
    if depth == len(_PATH):
        names = (
            bytes(f.value)
            for f in fields(message)
            if isinstance(f.value, memoryview) and f.number == _NAME
        )
        size = sizes.get(next(names, b"").decode())
        return (
            bytes(message) if size is None else as_varint(_NUMBER << 3 | VARINT) + as_varint(size)
        )
    parts: list[bytes | memoryview] = []
    kept = 0
    for number, value, start, end in fields(message):
        if number in _PATH[depth] and isinstance(value, memoryview):
            inner = _rewritten(value, depth + 1, sizes)
            tag = as_varint(number << 3 | BYTES)
            parts += [message[kept:start], tag, as_varint(len(inner)), inner]
            kept = end
    return b"".join((*parts, message[kept:]))
