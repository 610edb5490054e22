"""Counts the multiply-adds, times two, of a graph's matrix products at given sizes, by walking the graph."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from export.graphs import GraphSpec


def graph_flops(folder: Path, spec: GraphSpec, sizes: Mapping[str, int]) -> int:
    """Return the FLOPs of MatMul, Gemm and Attention nodes of one run.

    Shapes are those that ONNX Runtime really has: every operand of a product is made an output.

    Args:
        folder: of the graph.
        spec: its declaration.
        sizes: of its axes.
    """
    model = onnx.load(folder / spec.file)
    _take_branches(model.graph, images=sizes["visual"] > 0)
    products = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm", "Attention")]
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    inputs = {value.name for value in model.graph.input}
    wanted = {name for node in products for name in node.input if name}
    told = {value.name for value in model.graph.output}
    for name in sorted(wanted - constants.keys() - inputs - told):
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {t.name: np.zeros(t.shape(dict(sizes)), t.numpy) for t in spec.inputs}
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, feeds), strict=True))
    shapes = constants | {name: value.shape for name, value in (feeds | found).items()}
    total = 0
    for node in products:
        first, second = shapes[node.input[0]], shapes[node.input[1]]
        if node.op_type == "Attention":
            batch, heads, rows, size = first
            total += 4 * batch * heads * rows * second[2] * size
        elif node.op_type == "Gemm":
            total += 2 * first[0] * first[1] * second[0]  # transB
        else:
            batch = np.broadcast_shapes(first[:-2], second[:-2])
            total += 2 * math.prod(batch) * first[-2] * first[-1] * second[-1]
    return total


def _take_branches(graph: onnx.GraphProto, *, images: bool) -> None:
    """Replace every If by the branch that a call takes."""
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type != "If":
            graph.node.append(node)
            continue
        branch = next(
            a.g for a in node.attribute if a.name == ("then_branch" if images else "else_branch")
        )
        graph.node.extend(branch.node)
        (given,) = branch.output
        graph.node.append(onnx.helper.make_node("Identity", [given.name], list(node.output)))
