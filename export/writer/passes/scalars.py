"""Numbers that a bfloat16 graph computes with are exact, as in torch.

The exporter stores a number of the code in the dtype of the tensor beside it. In bfloat16 1.702 is 1.703125,
and all that it is multiplied with comes out too large by 0.07 %. torch computes such a product in float32
from the exact number and rounds once; so do the nodes that read one.

Limitations:
    - bfloat16 only. In float16 a number is off by 2^-12 of itself at most, less than what each node rounds.
"""

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from export.writer.passes.float32 import compute_in_float32
from export.writer.passes.graph_pass import number_of

if TYPE_CHECKING:
    from compressor.schema.sections import ExportSection
    from export.graphs.spec import GraphSpec

ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow")
"""Operators that compute with a number; others, such as Where, put it in place as it is."""

words = ""


def applies(spec: "GraphSpec", settings: "ExportSection") -> bool:  # noqa: ARG001 - numbers tell
    """See `GraphPass.applies`."""
    return any(tensor.dtype == "bfloat16" for tensor in (*spec.inputs, *spec.outputs))


def run(model: ir.Model) -> None:
    """See `GraphPass.run`; nodes that compute with a number that bfloat16 does not hold do so in float32."""
    graph = model.graph
    found: dict[ir.Node, None] = {}
    for name, stored in list(graph.initializers.items()):
        number, values = number_of(stored), stored.const_value
        if number is None or values is None or stored.dtype != ir.DataType.BFLOAT16:
            continue
        array = np.full(values.shape.numpy(), number, np.float32)
        if np.array_equal(values.numpy().astype(np.float32), array):
            continue
        uses = [(u.node, u.idx) for u in stored.uses() if u.node.op_type in ARITHMETIC]
        if not uses:
            continue
        tensor = ir.tensor(array, name=f"{name}.exact")
        exact = ir.Value(name=tensor.name, const_value=tensor)
        exact.shape, exact.dtype = stored.shape, ir.DataType.FLOAT
        graph.register_initializer(exact)
        for node, place in uses:
            node.replace_input_with(place, exact)
            found[node] = None
        if not stored.uses():
            del graph.initializers[name]
    compute_in_float32(graph, found)
