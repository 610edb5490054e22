"""Tells two ONNX graphs apart by what they compute and with which names, not by the order of their nodes."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir


def contents(model: ir.Model) -> dict[str, Any]:
    """Return what is equal of two graphs that are one up to names of inner values and the order of nodes.

    Its nodes, each told by operator, attributes and all that it is computed from; what its outputs are
    computed from; the declared inputs and outputs; initializers' bytes, and the names of weights;
    nodes' names without the numbers that tell several of one name apart.
    """
    values, nodes = _told(model.graph, {})
    graph = model.graph
    return {
        "inputs": [(value.name, str(value.dtype), str(value.shape)) for value in graph.inputs],
        "outputs": [(v.name, str(v.dtype), str(v.shape), values[v]) for v in graph.outputs],
        "initializers": Counter(
            (name if "." in name else "", values[value])
            for name, value in graph.initializers.items()
        ),
        "nodes": nodes,
        "names": Counter(re.sub(r"_\d+$", "", str(node.name)) for node in graph.all_nodes()),
        "opsets": dict(model.opset_imports),
    }


def _told(
    graph: ir.Graph, outer: Mapping[ir.Value, str]
) -> tuple[dict[ir.Value, str], Counter[tuple[str, str]]]:
    values = {**outer, **{value: f"input {value.name}" for value in graph.inputs}}
    nodes: Counter[tuple[str, str]] = Counter()
    for value in graph.initializers.values():
        values[value] = _digest("tensor", *_tensor(value.const_value))
    for node in graph:
        attributes = []
        for name, attribute in sorted(node.attributes.items()):
            told: Any = attribute.value
            if attribute.type == ir.AttributeType.GRAPH:
                inside, more = _told(attribute.as_graph(), values)
                nodes += more
                told = [inside[value] for value in attribute.as_graph().outputs]
            elif attribute.type == ir.AttributeType.TENSOR:
                told = _tensor(attribute.as_tensor())
            attributes.append((name, str(told)))
        given = [values[value] if value is not None else "" for value in node.inputs]
        if node.op_type in ("Add", "Mul"):
            given.sort()
        digest = _digest(node.domain, node.op_type, attributes, given)
        nodes[node.op_type, digest] += 1
        values |= {value: f"{digest} {at}" for at, value in enumerate(node.outputs)}
    return values, nodes


def _tensor(tensor: Any) -> tuple[str, str, str]:
    content = hashlib.sha256(tensor.tobytes()).hexdigest()
    return str(tensor.dtype), str(tensor.shape), content


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
