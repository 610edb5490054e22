"""Reads protobuf's wire format within bounds: https://protobuf.dev/programming-guides/encoding.

For ONNX graphs, whose bytes are looked at before, or without, a library that parses them.
"""

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Value = int | memoryview | float
"""A number, bytes, or (always 0.0) a number of fixed size, which nothing here reads."""


class MalformedError(ValueError):
    """Bytes that are no protobuf message, or none of the expected form."""


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: of the field.
        value: what it holds.
        start: first byte of its tag.
        end: behind its last byte.
    """

    number: int
    value: Value
    start: int
    end: int


def fields(data: memoryview) -> Iterator[Field]:
    """Yield the fields of one message in their order.

    Raises:
        MalformedError: truncated, groups, or no field number.
    """
    at = 0
    while at < len(data):
        start = at
        tag, at = varint(data, at)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise MalformedError(f"field number {number}")
        value: Value
        if kind == VARINT:
            value, at = varint(data, at)
        else:
            if kind == BYTES:
                size, at = varint(data, at)
            elif kind in (FIXED64, FIXED32):
                size = 8 if kind == FIXED64 else 4
            else:
                raise MalformedError(f"wire type {kind}")
            if size > len(data) - at:
                raise MalformedError("truncated")
            value = data[at : at + size] if kind == BYTES else 0.0
            at += size
        yield Field(number, value, start, at)


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number that begins at a byte, and where it ends.

    Raises:
        MalformedError: truncated, or more than ten bytes.
    """
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise MalformedError("truncated")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & (1 << 64) - 1, at
    raise MalformedError("a number of more than ten bytes")


def as_varint(number: int) -> bytes:
    """Return the bytes of a number that is not negative."""
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))
