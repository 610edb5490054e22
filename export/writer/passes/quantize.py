"""Stores matrices in whole numbers, with a DequantizeLinear in front of each node that reads one.

The standard form: ONNX's DequantizeLinear with `block_size`, along the inner axis of the matrix. Runtimes
join it with the MatMul behind it. Each reader has a node of its own, in its own graph or branch, because that
is what they join; codes and scales are stored once.

Which matrices: those that are noted as stored so (`compressor.decoder.quantization.in_whole_numbers`).
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from compressor.decoder.quantization import BITS, quantized
from export.writer.passes.graph_pass import note_weights, weights_of

if TYPE_CHECKING:
    from compressor.decoder.weights import StoredWeight
    from compressor.schema.sections import ExportSection
    from export.graphs.spec import GraphSpec

words = ""


def applies(spec: "GraphSpec", settings: "ExportSection") -> bool:  # noqa: ARG001 - weights tell
    """See `GraphPass.applies`."""
    return settings.weights != "float"


def run(model: ir.Model) -> None:
    """See `GraphPass.run`."""
    for value in list(model.graph.initializers.values()):
        for weight in weights_of(value):
            if weight.block is not None:
                _quantize(model.graph, value, weight, weight.block)


def _quantize(graph: ir.Graph, value: ir.Value, weight: "StoredWeight", block: int) -> None:
    name, dtype = value.name or "", value.dtype
    if value.const_value is None or dtype is None:
        raise RuntimeError(f"{name} has no values")
    found = quantized(_in_torch(value.const_value), weight.dtype, block)
    codes = _codes(f"{name}.codes", found.codes.numpy(), weight.dtype)
    scales = _stored(ir.tensor(found.scales, name=f"{name}.scales"))
    del graph.initializers[name]
    for made in (codes, scales):
        graph.register_initializer(made)
    note_weights(graph, {f"{name}.codes": (weight,)})
    for node, place in list(value.uses()):
        inputs, form = [codes, scales], {"axis": 0, "block_size": block}
        front = ir.node("DequantizeLinear", inputs, form, name=f"{node.name}.DequantizeLinear")
        whole = front.outputs[0]
        whole.name, whole.shape, whole.dtype = f"{node.name}.{name}", value.shape, dtype
        node.prepend(front)
        node.replace_input_with(place, whole)


def _in_torch(tensor: ir.TensorProtocol) -> torch.Tensor:
    array = np.require(tensor.numpy(), requirements="W")
    if tensor.dtype == ir.DataType.BFLOAT16:  # torch reads no bfloat16 of numpy
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _codes(name: str, codes: "np.ndarray[Any, Any]", kind: str) -> ir.Value:
    """Return an initializer of whole numbers; two of 4 bits share a byte, the first in its lower half."""
    dtype = ir.DataType[kind.upper()]
    if BITS[kind] == 8:
        return _stored(ir.Tensor(codes, dtype, name=name))
    pairs = codes.reshape(-1, 2).view(np.uint8)
    packed = (pairs[:, 0] & 0xF) | (pairs[:, 1] << 4)
    return _stored(ir.PackedTensor(packed, dtype, shape=ir.Shape(codes.shape), name=name))


def _stored(tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(name=tensor.name, const_value=tensor)
    value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
    return value
