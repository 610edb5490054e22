"""Graphs with some or all nodes in float32, on the same stored weights.

A shadow is a graph in which all of them are. It tells what values a float16 graph would need if its numbers
had no end (`export.checks.float16`), and what a graph computes for whose dtype this machine has no kernels
(`export.checks.bfloat16`). Its inputs and outputs are float32; weights stay where they are, cast where a
node reads them.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import MissingExtraError
from export.graphs.spec import GraphSpec, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

LOW = ("FLOAT16", "BFLOAT16")
"""ONNX names of the dtypes that float32 takes the place of."""

# The dtype of their output is an attribute, not that of an input.
_CONSTANTS = ("Constant", "ConstantOfShape", "EyeLike")


def read_graph(path: Path) -> "ir.Model":
    """Return a graph; its weights stay in their file.

    Raises:
        MissingExtraError: the packages that read graphs are not installed.
    """
    try:
        import onnx_ir
    except ImportError:
        raise MissingExtraError("computing a graph in float32", "compress") from None
    return onnx_ir.load(path)


def is_low(value: "ir.Value | None") -> bool:
    """Return whether a value is float16 or bfloat16."""
    return value is not None and value.dtype is not None and value.dtype.name in LOW


def shadow_spec(spec: GraphSpec) -> GraphSpec:
    """Return the declaration of a graph's shadow."""

    def changed(tensors: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(
            t.model_copy(update={"dtype": "float32"}) if t.dtype.upper() in LOW else t
            for t in tensors
        )

    update = {"inputs": changed(spec.inputs), "outputs": changed(spec.outputs)}
    return spec.model_copy(update=update)


def make_shadow(graph: "ir.Graph") -> None:
    """Change a graph so that it computes in float32; values keep their names."""
    for value in graph.inputs:
        _widen(value)
    _compute(graph, graph, outputs_too=True)
    for place, output in enumerate(graph.outputs):
        if is_low(output):  # rows of a stored table
            name = output.name or ""
            output.name = f"{name}.stored"
            graph.outputs[place] = _cast_behind(output, "FLOAT", name)


def compute_in_float32(graph: "ir.Graph", chosen: "Iterable[ir.Node]") -> None:
    """Let nodes of a graph, with the nodes of their subgraphs, compute in float32.

    What they read from other nodes, and stored weights, are cast in front of them. What other nodes read from
    them is cast back, and so are the graph's outputs. Values between them stay float32.
    """
    _compute(graph, chosen, outputs_too=False)


def _compute(graph: "ir.Graph", chosen: "Iterable[ir.Node]", *, outputs_too: bool) -> None:
    nodes = [n for node in list(chosen) for n in within(node) if not _reads_stored(n)]
    among = set(nodes)
    for node in nodes:
        for branch in subgraphs(node):
            for value in branch.inputs:  # those of a Scan's steps
                _widen(value)
        for value in node.outputs:
            if is_low(value):
                _make_wide(graph, value, among, outputs_too=outputs_too)
        if node.op_type == "Cast":
            _set_target(node)
    _cast_what_is_read(nodes)


def _cast_what_is_read(nodes: "Sequence[ir.Node]") -> None:
    """Cast what nodes in float32 still read in another dtype, once in each graph."""
    cast: dict[tuple[int, int], ir.Value] = {}
    for node in nodes:
        for place, read in enumerate(node.inputs):
            if read is not None and is_low(read):
                key = (id(node.graph), id(read))
                if key not in cast:
                    cast[key] = _cast_in_front(node, read)
                node.replace_input_with(place, cast[key])


def _make_wide(
    graph: "ir.Graph", value: "ir.Value", among: "set[ir.Node]", *, outputs_too: bool
) -> None:
    """Make a node's output float32; whoever still needs it in its dtype reads it from a Cast."""
    others = [(user, place) for user, place in value.uses() if user not in among]
    given = [] if outputs_too else [i for i, v in enumerate(graph.outputs) if v is value]
    low = value.dtype.name if value.dtype is not None else ""
    _widen(value)
    if not others and not given:
        return
    name = value.name or ""
    value.name = f"{name}.float32"
    back = _cast_behind(value, low, name)
    for user, place in others:
        user.replace_input_with(place, back)
    for place in given:
        graph.outputs[place] = back


def within(node: "ir.Node") -> "Iterator[ir.Node]":
    """Yield a node and the nodes of its subgraphs, such as the branches of an If."""
    yield node
    for inner in subgraphs(node):
        for deeper in inner:
            yield from within(deeper)


def subgraphs(node: "ir.Node") -> "Iterator[ir.Graph]":
    """Yield the graphs that a node holds."""
    for attribute in node.attributes.values():
        if attribute.type.name == "GRAPH":
            yield attribute.as_graph()


def names_in(node: "ir.Node", *, made: bool = False) -> frozenset[str]:
    """Return the names of values that a node, its subgraphs included, reads, and also of those it makes."""
    found = (v for n in within(node) for v in (*n.inputs, *(n.outputs if made else ())))
    return frozenset(v.name for v in found if v is not None and v.name)


def _reads_stored(node: "ir.Node") -> bool:
    """Return whether a node's output has the dtype of what is stored: constants, and rows of a table."""
    gathers = node.op_type == "Gather" and node.inputs[0] is not None
    return node.op_type in _CONSTANTS or (gathers and node.inputs[0].is_initializer())  # type: ignore[union-attr]


def _set_target(node: "ir.Node") -> None:
    """Let a Cast give what its output is declared to be."""
    import onnx_ir as ir

    dtype = node.outputs[0].dtype
    if dtype is not None:
        node.attributes["to"] = ir.AttrInt64("to", dtype)


def _cast_in_front(node: "ir.Node", value: "ir.Value") -> "ir.Value":
    """Cast right in front of a reader: casts of weights that all ran first would hold them all."""
    cast = _cast(value, "FLOAT", f"{node.name}.{value.name}.float32")
    node.prepend(cast)
    return cast.outputs[0]


def _cast_behind(value: "ir.Value", dtype: str, name: str) -> "ir.Value":
    producer = value.producer()
    if producer is None:
        raise RuntimeError(f"{name} is no node's output")
    cast = _cast(value, dtype, name)
    producer.append(cast)
    return cast.outputs[0]


def _cast(value: "ir.Value", dtype: str, name: str) -> "ir.Node":
    import onnx_ir as ir

    node = ir.node("Cast", [value], {"to": ir.DataType[dtype]}, name=f"{name}.Cast")
    output = node.outputs[0]
    output.name, output.dtype, output.shape = name, ir.DataType[dtype], value.shape
    return node


def _widen(value: "ir.Value") -> None:
    import onnx_ir as ir

    if is_low(value):
        value.dtype = ir.DataType.FLOAT
