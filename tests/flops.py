"""Counts the multiply-adds, times two, of a graph's matrix products at given sizes, by walking the graph."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from export.graphs.spec import GraphSpec


def layer_nodes(path: Path) -> Counter[int]:
    """Return how many nodes each decoder layer has in a graph, those under branches included."""
    model = ir.load(path)
    places = ((node.name or "").split(".") for node in model.graph.all_nodes())
    return Counter(int(parts[1]) for parts in places if parts[0] == "layers")


def flops_by_layer(folder: Path, spec: GraphSpec, sizes: Mapping[str, int]) -> Counter[int | None]:
    """Return the FLOPs of one run's MatMul, Gemm and Attention nodes by layer; None: outside layers.

    What makes more visual rows in front of a layer is a part of it.

    Args:
        folder: of the graph.
        spec: its declaration.
        sizes: of its axes.
    """
    graph, values = ran(folder, spec, sizes)
    flops: Counter[int | None] = Counter()
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Attention"):
            continue
        first, second = (values[name].shape for name in node.input[:2])
        path = node.name.split(".")
        layer = int(path[1]) if path[0] in ("layers", "growing") else None
        if node.op_type == "Attention":
            batch, heads, rows, size = first
            flops[layer] += 4 * batch * heads * rows * second[2] * size
        elif node.op_type == "Gemm":
            flops[layer] += 2 * first[0] * first[1] * second[0]  # transB
        else:
            together = np.broadcast_shapes(first[:-2], second[:-2])
            flops[layer] += 2 * math.prod(together) * first[-2] * first[-1] * second[-1]
    return flops


def ran(
    folder: Path, spec: GraphSpec, sizes: Mapping[str, int]
) -> tuple[onnx.GraphProto, dict[str, NDArray[Any]]]:
    """Return a graph without branches and all that it holds, reads and makes in one run on zeros, by name.

    Values are those that ONNX Runtime really has: each is made an output. Nothing is folded or joined.

    Args:
        folder: of the graph.
        spec: its declaration.
        sizes: of its axes; by them the branch is chosen that such a call takes.
    """
    import onnxruntime as ort

    model = onnx.load(folder / spec.file)
    _take_branches(model.graph, images=sizes["visual"] > 0)
    told = {value.name for value in model.graph.output}
    for name in (name for node in model.graph.node for name in node.output if name):
        if name not in told:
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
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return model.graph, held | feeds | found


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
