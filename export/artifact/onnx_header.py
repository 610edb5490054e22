"""Reads of an ONNX file which bytes of which files it wants, before any library parses it.

ONNX Runtime maps whatever file, offset and length a graph names. So a graph is walked here first, as
plain protobuf (`export.artifact.protobuf_wire`), within bounds, and refused unless all
its tensors lie in the artifact. What our graphs never have is refused, not judged: subgraphs
within subgraphs, functions, training information, sparse tensors and texts, fields given twice, groups, and
operators other than those of `export.graphs.operators`.

Field numbers are those of onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from compressor.disk.opening import read_bytes, why_unread
from export.artifact.protobuf_wire import (
    BYTES,
    MalformedError,
    Value,
    as_varint,
    fields,
    varint,
)
from export.graphs.operators import MAY_LACK_INPUTS, ONNX_OPERATORS, STANDARD_DOMAINS

MAX_GRAPH_BYTES: Final = 64 << 20
"""Largest graph file read: graphs without their weights are below 2 MiB."""

MAX_FIELDS: Final = 2_000_000
"""Most protobuf fields of one graph: one of 80 layers has about 100,000."""

MAX_DIMS: Final = 16

BITS: Final[Mapping[int, int]] = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64,
    15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8,
}  # fmt: skip
"""Size of one element by TensorProto.DataType; texts (8) have none and are refused."""

_EXTERNAL: Final = 1
# Fields of a model, of its graph, and of an output.
_GRAPH, _OUTPUT, _NAME = 7, 12, 1
_KNOWN_KEYS: Final = frozenset({"location", "offset", "length", "checksum"})


@dataclass(frozen=True)
class TensorHeader:
    """What a graph says of one stored tensor.

    Attributes:
        name: as in the graph, for people.
        data_type: TensorProto.DataType.
        dims: its shape.
        inline: bytes it holds within the graph; 0 for an external one.
        location: file it lies in, relative to the graph's folder; None: inside the graph.
        offset: first byte in that file.
        length: how many bytes there; None: not said.
    """

    name: str
    data_type: int
    dims: tuple[int, ...]
    inline: int = 0
    location: str | None = None
    offset: int = 0
    length: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the values by type and shape.

        Raises:
            MalformedError: the type has no size.
        """
        if self.data_type not in BITS:
            raise MalformedError(f"{self.name!r} has the data type {self.data_type}")
        return (math.prod(self.dims) * BITS[self.data_type] + 7) // 8


def check_graph(folder: Path, file: str, sizes: Mapping[str, int]) -> list[str]:
    """Return what is wrong with the stored tensors of one graph; nothing but this file is read.

    Args:
        folder: the artifact.
        file: the graph, relative to it.
        sizes: bytes of every file of the artifact, by relative name.
    """
    path = folder / file
    try:
        tensors = read_tensors(read_bytes(path, MAX_GRAPH_BYTES))
        problems = [_problem(tensor, PurePosixPath(file).parent, sizes) for tensor in tensors]
    except MalformedError as error:
        return [f"{path}: not an ONNX graph of this tool: {error}; copy the artifact anew"]
    except OSError as failure:
        return [f"{path}: {why_unread(failure)}"]
    return [f"{path}: {problem}; do not use this artifact" for problem in problems if problem]


def more_outputs(names: Sequence[str]) -> bytes:
    """Return what, behind the bytes of a graph's file, makes values of the graph outputs of it as well.

    Messages that come twice are merged, and what they list is joined: so protobuf has it, and no library that
    writes graphs is needed.

    Args:
        names: of the values.
    """
    outputs = b"".join(_field(_OUTPUT, _field(_NAME, name.encode())) for name in names)
    return _field(_GRAPH, outputs)


def _field(number: int, content: bytes) -> bytes:
    return as_varint(number << 3 | BYTES) + as_varint(len(content)) + content


def _problem(tensor: TensorHeader, parent: PurePosixPath, sizes: Mapping[str, int]) -> str | None:
    if tensor.location is None:
        # A packed number takes at least one byte of the graph and at most eight in memory.
        if tensor.nbytes > 8 * tensor.inline:
            return f"{tensor.name!r} is declared with {tensor.nbytes} bytes and holds fewer"
        return None
    name = (parent / tensor.location).as_posix()
    if "\\" in tensor.location or tensor.location.startswith("/") or name not in sizes:
        return f"{tensor.name!r} lies in {tensor.location!r:.80}, which is not among the files"
    if tensor.length != tensor.nbytes:
        return f"{tensor.name!r} is {tensor.length} bytes long; its shape takes {tensor.nbytes}"
    if tensor.offset + tensor.length > sizes[name]:
        end = tensor.offset + tensor.length
        return f"{tensor.name!r} ends at byte {end} of {name}, which has {sizes[name]}"
    return None


def read_tensors(data: bytes) -> tuple[TensorHeader, ...]:
    """Return every stored tensor of a ModelProto: initializers, and values of node attributes.

    Raises:
        MalformedError: no ModelProto with one graph, truncated, or with parts that are refused.
    """
    walker = _Walker()
    model = walker.message(
        data, "the model", once=(1, 7), refused={20: "training", 25: "functions"}
    )
    if not model.get(1) or not model.get(7):
        raise MalformedError("no version or no graph")
    return tuple(walker.tensors_of_graph(_bytes(model[7][0]), "the graph", branches=1))


class _Walker:
    """Splits protobuf messages into fields, at most `MAX_FIELDS` of them."""

    def __init__(self) -> None:
        self._left = MAX_FIELDS

    def message(
        self,
        data: bytes | memoryview,
        what: str,
        *,
        once: tuple[int, ...] = (),
        refused: Mapping[int, str] | None = None,
    ) -> dict[int, list[Value]]:
        """Return the fields of one message by number, in their order.

        Args:
            data: the message.
            what: it is, for errors.
            once: fields that may not be repeated; protobuf would merge them.
            refused: fields that may not be there, with what they are.
        """
        found: dict[int, list[Value]] = {}
        for number, value, *_ in fields(memoryview(data)):
            self._count()
            if refused and number in refused:
                raise MalformedError(f"{what} has {refused[number]}")
            if number in once and number in found:
                raise MalformedError(f"{what} has field {number} twice")
            found.setdefault(number, []).append(value)
        return found

    def tensors_of_graph(
        self, data: memoryview, what: str, *, branches: int
    ) -> Iterator[TensorHeader]:
        """Yield the tensors of a graph.

        Args:
            data: the graph.
            what: it is, for errors.
            branches: how deep graphs may lie in attributes of its nodes, as those of an `If` do.
        """
        graph = self.message(data, what, refused={15: "sparse initializers"})
        for value in graph.get(5, ()):
            yield self.tensor(_bytes(value))
        for node in graph.get(1, ()):
            held = self.message(_bytes(node), "a node", once=(4, 7), refused={8: "an overload"})
            _check_operator(held)
            for attribute in held.get(5, ()):
                yield from self._tensors_of_attribute(_bytes(attribute), branches)

    def _tensors_of_attribute(self, data: memoryview, branches: int) -> Iterator[TensorHeader]:
        refused = {11: "subgraphs", 22: "a sparse tensor", 23: "sparse tensors"}
        if not branches:
            refused[6] = "a subgraph within a subgraph"
        held = self.message(data, "an attribute", once=(5, 6), refused=refused)
        for value in held.get(6, ()):
            yield from self.tensors_of_graph(_bytes(value), "a subgraph", branches=branches - 1)
        for value in (*held.get(5, ()), *held.get(10, ())):
            yield self.tensor(_bytes(value))

    def tensor(self, data: memoryview) -> TensorHeader:
        """Return what a TensorProto says of itself."""
        refused = {3: "segments", 6: "texts"}
        held = self.message(data, "a tensor", once=(2, 8, 9, 14), refused=refused)
        name = _text(held.get(8, [memoryview(b"")])[0])
        dims = tuple(self._numbers(held.get(1, ())))
        if len(dims) > MAX_DIMS or any(dim >= 1 << 63 for dim in dims):
            raise MalformedError(f"{name!r} has no shape that a tensor can have")
        data_type = _number(held.get(2, [0])[0])
        external = _number(held.get(14, [0])[0]) == _EXTERNAL
        if external != bool(held.get(13)):
            raise MalformedError(f"{name!r} says neither where it lies nor holds its values")
        if not external:
            raw = held.get(9)
            header = TensorHeader(name, data_type, dims, inline=len(data))
            if raw is not None and len(_bytes(raw[0])) != header.nbytes:
                raise MalformedError(f"{name!r} holds other than the bytes of its shape")
            return header
        if any(number in held for number in (4, 5, 7, 9, 10, 11)):
            raise MalformedError(f"{name!r} holds values and lies elsewhere too")
        entries = self._entries(held[13], name)
        if "location" not in entries:
            raise MalformedError(f"{name!r} names no file")
        length = entries.get("length")
        return TensorHeader(
            name,
            data_type,
            dims,
            location=entries["location"],
            offset=_decimal(entries.get("offset", "0"), name),
            length=None if length is None else _decimal(length, name),
        )

    def _entries(self, values: list[Value], name: str) -> dict[str, str]:
        entries: dict[str, str] = {}
        for value in values:
            pair = self.message(_bytes(value), "an entry", once=(1, 2))
            if not pair.get(1) or not pair.get(2):
                raise MalformedError(f"{name!r} has a key without value")
            key = _text(pair[1][0])
            if key in entries or key not in _KNOWN_KEYS:
                raise MalformedError(f"{name!r} has the key {key!r:.40} twice, or it is unknown")
            entries[key] = _text(pair[2][0])
        return entries

    def _numbers(self, values: Sequence[Value]) -> Iterator[int]:
        """Yield repeated numbers, written one by one or packed."""
        for value in values:
            if isinstance(value, int):
                yield value
                continue
            packed, at = _bytes(value), 0
            while at < len(packed):
                number, at = varint(packed, at)
                self._count()
                yield number

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise MalformedError(f"more than {MAX_FIELDS} fields")


def _check_operator(node: Mapping[int, list[Value]]) -> None:
    """Refuse a node, by its fields, that no graph of this tool has.

    Raises:
        MalformedError: another operator, one with more or fewer inputs or outputs than it takes, or with an
            input left out that our graphs always give.
    """
    operator, domain = (_text(node.get(number, [memoryview(b"")])[0]) for number in (4, 7))
    if domain not in STANDARD_DOMAINS or operator not in ONNX_OPERATORS:
        name = f"{domain}.{operator}" if domain else operator
        raise MalformedError(f"it has the operator {name!r:.80}")
    inputs, outputs = len(node.get(1, ())), len(node.get(2, ()))
    least, most, most_outputs = ONNX_OPERATORS[operator]
    if not least <= inputs <= most or not 1 <= outputs <= most_outputs:
        raise MalformedError(f"a node {operator} has {inputs} inputs and {outputs} outputs")
    if operator not in MAY_LACK_INPUTS and any(not _bytes(name) for name in node.get(1, ())):
        raise MalformedError(f"a node {operator} has an input without a name")


def _bytes(value: Value) -> memoryview:
    if not isinstance(value, memoryview):
        raise MalformedError("a number where a message belongs")
    return value


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise MalformedError("bytes where a number belongs")
    return value


def _text(value: Value) -> str:
    try:
        return bytes(_bytes(value)).decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedError("a name that is no UTF-8") from None


def _decimal(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise MalformedError(f"{name!r} has {text!r:.40} for a number of bytes")
    return int(text)
