"""Joins weights of the parts that another graph of the artifact reads, so that both read the same bytes.

A weight that is noted as made of several stored ones becomes a Concat of them; a runtime folds it into one
matrix when it loads the graph.
"""

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from export.writer.passes.graph_pass import note_weights, weights_of

if TYPE_CHECKING:
    from compressor.decoder.weights import StoredWeight
    from compressor.schema.sections import ExportSection
    from export.graphs.spec import GraphSpec

words = ""


def applies(spec: "GraphSpec", settings: "ExportSection") -> bool:  # noqa: ARG001 - weights tell
    """See `GraphPass.applies`."""
    return True


def run(model: ir.Model) -> None:
    """See `GraphPass.run`."""
    for value in list(model.graph.initializers.values()):
        if len(parts := weights_of(value)) > 1:
            _join(model.graph, value, parts)


def _join(graph: ir.Graph, whole: ir.Value, weights: "tuple[StoredWeight, ...]") -> None:
    name = whole.name or ""
    del graph.initializers[name]
    if whole.const_value is None or whole.dtype is None:
        raise RuntimeError(f"{name} has no values")
    slices = [weight.part for weight in weights if weight.part is not None]
    axis, ends = slices[0].axis, np.cumsum([len(part.chosen) for part in slices])
    parts = []
    for i, array in enumerate(np.split(whole.const_value.numpy(), ends[:-1], axis=axis)):
        part = ir.Value(name=f"{name}.{i}", const_value=ir.tensor(array, name=f"{name}.{i}"))
        part.shape, part.dtype = ir.Shape(array.shape), whole.dtype
        graph.register_initializer(part)
        note_weights(graph, {f"{name}.{i}": weights[i : i + 1]})
        parts.append(part)
    node = ir.node("Concat", parts, {"axis": axis}, name=f"{name}.Concat")
    node.outputs[0].name = f"{name}.whole"
    node.outputs[0].shape, node.outputs[0].dtype = whole.shape, whole.dtype
    ir.convenience.replace_all_uses_with(whole, node.outputs[0])
    graph.insert_before(graph[0], node)
