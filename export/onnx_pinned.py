"""Writes numbers in place of named axes into an ONNX graph, without a library that parses it.

TensorRT refuses a cache whose rows have a name, whatever the profiles say: "The KV cache tensor must have a
static sequence length dimension" (TensorRT-RTX 1.7.1, for TensorScatter). So its parser is handed the graph
with the room that the engine is built for.

The graph is plain protobuf: https://protobuf.dev/programming-guides/encoding. Field numbers are those of
onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from collections.abc import Iterator, Mapping
from typing import Final

# From a model down to one axis of what is named in it: the graph; its inputs, outputs and values between;
# the type; of a tensor; its shape; an axis.
_PATH: Final = ((7,), (11, 12, 13), (2,), (1,), (2,), (1,))
_NUMBER_TAG: Final = b"\x08"
_NAME: Final = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def pinned(content: bytes, sizes: Mapping[str, int]) -> bytes:
    """Return a graph whose axes of these names are numbers.

    Args:
        content: of the ONNX file, which was checked when its artifact was opened.
        sizes: by the names of axes; other axes stay as they are.
    """
    return _rewritten(content, 0, sizes)


def _rewritten(message: bytes, depth: int, sizes: Mapping[str, int]) -> bytes:
    if depth == len(_PATH):
        names = (message[begin:end].decode() for n, _, begin, end in _fields(message) if n == _NAME)
        size = sizes.get(next(names, ""))
        return message if size is None else _NUMBER_TAG + _varint(size)
    parts, kept = [], 0
    for number, tag, begin, end in _fields(message):
        if number in _PATH[depth]:
            inner = _rewritten(message[begin:end], depth + 1, sizes)
            parts += [message[kept:tag], _varint(number << 3 | _BYTES), _varint(len(inner)), inner]
            kept = end
    return b"".join((*parts, message[kept:]))


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield each field of a message: number, first byte of its tag, and where its value begins and ends."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        size = {_FIXED64: 8, _FIXED32: 4}.get(tag & 7, 0)
        begin = at
        if tag & 7 == _VARINT:
            _, at = _read_varint(message, at)
        elif tag & 7 == _BYTES:
            size, begin = _read_varint(message, at)
            at = begin + size
        else:
            at += size
        yield tag >> 3, start, begin, at


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))
