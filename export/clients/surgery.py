"""Nodes put in front of and behind an exported graph."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from export.graphs.spec import TensorSpec
from export.session.arrays import Array

ONNX_TYPES: Mapping[str, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int64": ir.DataType.INT64,
    "bool": ir.DataType.BOOL,
}


class Nodes:
    """Makes nodes one after another; `front` or `behind` puts them into the graph.

    Args:
        graph: that they go into.
        prefix: of their values' names, which the graph has none of yet.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self._graph, self._prefix = graph, prefix
        self._made: list[ir.Node] = []
        self._count = 0

    def __call__(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Return the one result of a new node."""
        node = ir.node(operator, list(inputs), attributes, name=self._name(operator))
        node.outputs[0].name = node.name
        self._made.append(node)
        return node.outputs[0]

    def several(
        self, operator: str, count: int, *inputs: ir.Value, **attributes: Any
    ) -> list[ir.Value]:
        """Return the results of a new node that has several."""
        name = self._name(operator)
        node = ir.node(operator, list(inputs), attributes, name=name, num_outputs=count)
        for number, value in enumerate(node.outputs):
            value.name = f"{name}.{number}"
        self._made.append(node)
        return list(node.outputs)

    def numbers(self, *values: int) -> ir.Value:
        """Return a constant [n] of int64."""
        return self.constant(np.array(values, np.int64))

    def constant(self, array: Array) -> ir.Value:
        """Return a constant."""
        value = ir.Value(name=self._name("constant"))
        value.const_value = ir.tensor(array, name=value.name)
        value.shape, value.dtype = ir.Shape(array.shape), value.const_value.dtype
        self._graph.register_initializer(value)
        return value

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """Return the size [1] of an axis."""
        return self("Shape", value, start=axis, end=axis + 1)

    def front(self) -> None:
        """Put the nodes in front of all others."""
        self._graph.insert_before(self._graph[0], self._made)
        self._made = []

    def behind(self) -> None:
        """Put the nodes behind all others."""
        self._graph.extend(self._made)
        self._made = []

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self._prefix}.{what}.{self._count}"


def port(name: str, dtype: str, axes: tuple[int | str, ...]) -> ir.Value:
    """Return what an input or output of a graph is declared as."""
    return ir.Value(name=name, shape=ir.Shape(axes), type=ir.TensorType(ONNX_TYPES[dtype]))


def ports(specs: tuple[TensorSpec, ...], values: list[ir.Value]) -> dict[str, ir.Value]:
    """Return a graph's inputs or outputs by name.

    Raises:
        RuntimeError: one is missing.
    """
    found = {value.name or "": value for value in values}
    if lacking := [spec.name for spec in specs if spec.name not in found]:
        raise RuntimeError(f"the graph has no {', '.join(lacking)}")
    return {spec.name: found[spec.name] for spec in specs}


def replace_input(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let all nodes read `new` where they read an input, which is none any more."""
    ir.convenience.replace_all_uses_with(old, new)
    graph.inputs.remove(old)


def replace_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Give `new` where the graph gave `old`, under its name."""
    name, shape, kind = old.name, old.shape, old.type
    old.name = f"{name}.{new.name}"  # of several replacements each has another
    new.name = name
    if new.shape is None:
        new.shape = shape
    if new.type is None:
        new.type = kind
    graph.outputs[list(graph.outputs).index(old)] = new
