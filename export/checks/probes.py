"""Graphs that tell how large the values inside them get: one number a value, so that memory stays small.

ONNX Runtime's CPU has float16 kernels for few operators, and between the others it leaves values in float32:
a float16 graph then does not overflow there though it would elsewhere. A probed graph rounds every value to
its dtype.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from export.backends.checked_on import OnnxGraph
from export.graphs.spec import GraphSpec
from export.session.arrays import Array
from export.session.session import as_array
from export.writer.passes.float32 import is_low, names_in, subgraphs

if TYPE_CHECKING:
    import onnx_ir as ir


# Operators whose branch runs again and again; what it adds comes out as one number a step.
REPEATED = ("Loop", "Scan")


class Probe(NamedTuple):
    """One number that a probed graph gives besides its own outputs: the largest magnitude; inf also for NaN.

    Attributes:
        output: name of the number.
        node: whose value it is about.
        value: name of the value; empty: of all values in the node's subgraphs.
        reads: names of the values that the node reads.
    """

    output: str
    node: str
    value: str
    reads: frozenset[str]


class ProbedGraph(OnnxGraph):
    """One graph on the CPU, each node as it is written; keeps the largest magnitude of every value.

    Args:
        folder: of the weights.
        spec: the graph's declaration.
        model: the graph; it is changed.

    Attributes:
        largest: what every probe gave at most, over all calls.
    """

    def __init__(self, folder: Path, spec: GraphSpec, model: "ir.Model") -> None:
        import onnx_ir as ir

        probes = add_probes(model.graph)
        content = ir.to_proto(model).SerializeToString()
        # Not optimized: casts of weights would be folded into copies of them, and nodes joined.
        super().__init__(folder, spec, content=content, optimized=False)
        self.largest = dict.fromkeys(probes, 0.0)

    def __call__(self, feeds: Sequence[Any]) -> list[Any]:
        """See `OnnxGraph`; what the probes give is kept."""
        found = self.run(feeds, [probe.output for probe in self.largest])
        count = len(self.spec.outputs)
        for probe, number in zip(self.largest, found[count:], strict=True):
            value = float(as_array(number))
            # Of no rows it is -inf.
            self.largest[probe] = max(self.largest[probe], math.inf if math.isnan(value) else value)
        return found[:count]

    def bound(self, buffers: Mapping[str, Array]) -> Callable[[Sequence[Any]], list[Any]]:
        """See `OnnxGraph.bound`; what the probes give is kept, and caches are copied into their buffers."""
        cached = self.spec.cached
        names = {spec.name for spec in cached}

        def run(feeds: Sequence[Any]) -> list[Any]:
            rest = iter(feeds)
            given = [
                buffers[spec.name] if spec.name in names else next(rest)
                for spec in self.spec.inputs
            ]
            found = self(given)
            for spec, value in zip(cached, found[-len(cached) :], strict=True):
                buffers[spec.name][...] = as_array(value)
            return found[: -len(cached)]

        return run


def add_probes(graph: "ir.Graph") -> tuple[Probe, ...]:
    """Round every floating value of a graph to its dtype, and add what its probes give to the outputs."""
    found = _probe(graph)
    graph.outputs.extend(number for _, number in found)
    return tuple(probe for probe, _ in found)


def _probe(graph: "ir.Graph") -> "list[tuple[Probe, ir.Value]]":
    found = []
    # Before anything is put between values and their readers.
    for node, reads in [(node, names_in(node)) for node in graph]:
        name = node.name or ""
        values = [value for value in node.outputs if value.name]
        if branches := list(subgraphs(node)):
            for place, branch in enumerate(branches):
                branch.outputs.append(_worst(branch, f"probe.{name}.{place}"))
            inside = _of_branches(node)
            found.append((Probe(inside.name or "", name, "", reads), inside))
        for value in values:
            if value.dtype is None:
                raise RuntimeError(f"{graph.name}: {value.name} has no dtype")
            if value.dtype.is_floating_point():
                number = _largest(node, value)
                probe = Probe(f"probe.{value.name}", name, value.name or "", reads)
                found.append((probe, number))
    return found


def _of_branches(node: "ir.Node") -> "ir.Value":
    """Return what a node gives of its branches' last outputs; of steps the largest number."""
    import onnx_ir as ir

    node.resize_outputs(len(node.outputs) + 1)
    inside = node.outputs[-1]
    inside.name = f"probe.{node.name}.inside"
    if node.op_type not in REPEATED:
        return inside
    for name in ("scan_output_axes", "scan_output_directions"):
        if name in node.attributes:
            node.attributes[name] = ir.AttrInt64s(name, [*node.attributes[name].as_ints(), 0])
    largest = ir.node("ReduceMax", [inside], {"keepdims": 0})
    node.append([largest])
    return _number([largest], f"probe.{node.name}.steps")


def _worst(branch: "ir.Graph", name: str) -> "ir.Value":
    """Return the largest of all probes in a branch, which hears of what its caller has not."""
    import onnx_ir as ir

    zero = ir.node("Constant", [], {"value_float": 0.0})
    worst = ir.node("Max", [zero.outputs[0], *(number for _, number in _probe(branch))])
    branch.extend([zero, worst])
    return _number([zero, worst], name)


def _largest(node: "ir.Node", value: "ir.Value") -> "ir.Value":
    import onnx_ir as ir

    made = []
    read = value
    if is_low(value):
        # ONNX Runtime drops casts to float16 and back, unless a node of no arithmetic stands between them.
        rounded = ir.node("Identity", [value])
        rounded.outputs[0].type, rounded.outputs[0].shape = value.type, value.shape
        for user, place in list(value.uses()):
            if user is not rounded:
                user.replace_input_with(place, rounded.outputs[0])
        wide = ir.node("Cast", rounded.outputs, {"to": ir.DataType.FLOAT})
        made += [rounded, wide]
        read = wide.outputs[0]
    # ONNX leaves open what the largest of numbers and NaN is.
    nan = ir.node("IsNaN", [read])
    inf = ir.node("Constant", [], {"value_float": math.inf})
    size = ir.node("Abs", [read])
    told = ir.node("Where", [nan.outputs[0], inf.outputs[0], size.outputs[0]])
    largest = ir.node("ReduceMax", [told.outputs[0]], {"keepdims": 0})
    made += [nan, inf, size, told, largest]
    node.append(made)
    return _number(made, f"probe.{value.name}")


def _number(made: "Sequence[ir.Node]", name: str) -> "ir.Value":
    """Name what new nodes make, in branches too, where names must not be those of the graph around them."""
    import onnx_ir as ir

    for place, node in enumerate(made):
        node.outputs[0].name = f"{name}.{place}"
    number = made[-1].outputs[0]
    number.name, number.dtype, number.shape = name, ir.DataType.FLOAT, ir.Shape(())
    return number
