"""Stores matrices in whole numbers, with a DequantizeLinear in front of each node that reads one.

The standard form: ONNX's DequantizeLinear with `block_size`, along the inner axis of the matrix. Runtimes
join it with the MatMul behind it. Each reader has a node of its own, in its own graph or branch, because that
is what they join; codes and scales are stored once.

Which matrices: those that are noted as stored so (`compressor.decoder.quantization.in_whole_numbers`).
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from compressor.decoder.quantization import BITS, quantized_as
from compressor.families.stand_ins import is_stand_in
from export.writer.passes.graph_pass import note_weights, weights_of

if TYPE_CHECKING:
    from compressor.decoder.weights import StoredWeight, WholeNumbers
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
            if weight.whole is not None:
                _quantize(model.graph, value, weight, weight.whole)


def _quantize(
    graph: ir.Graph, value: ir.Value, weight: "StoredWeight", whole: "WholeNumbers"
) -> None:
    name, dtype = value.name or "", value.dtype
    if value.const_value is None or dtype is None:
        raise RuntimeError(f"{name} has no values")
    parts = f"{name}.codes", f"{name}.scales"
    codes, scales = map(_stored, _made(value.const_value, whole, *parts))
    del graph.initializers[name]
    for made in (codes, scales):
        graph.register_initializer(made)
    of_scales = replace(weight, dtype=whole.scales)
    note_weights(graph, dict(zip(parts, ((weight,), (of_scales,)), strict=True)))
    for node, place in list(value.uses()):
        inputs, form = [codes, scales], {"axis": 0, "block_size": whole.block}
        front = ir.node("DequantizeLinear", inputs, form, name=f"{node.name}.DequantizeLinear")
        matrix = front.outputs[0]
        matrix.name, matrix.shape, matrix.dtype = f"{node.name}.{name}", value.shape, dtype
        node.prepend(front)
        node.replace_input_with(place, matrix)


def _made(
    tensor: ir.TensorProtocol, whole: "WholeNumbers", codes: str, scales: str
) -> tuple[ir.TensorProtocol, ir.TensorProtocol]:
    """Return codes and scales of a matrix, by these names; of a stand-in, what has their form alone."""
    if isinstance(raw := tensor.raw, torch.Tensor) and is_stand_in(raw):
        width, out = raw.shape
        return (
            _absent(codes, ir.DataType[whole.kind.upper()], width, out),
            _absent(scales, tensor.dtype, width // whole.block, out),
        )
    found = quantized_as(_in_torch(tensor), whole)
    return codes_tensor(found.codes, whole.kind, codes), ir.tensor(found.scales, name=scales)


def _absent(name: str, dtype: ir.DataType, *shape: int) -> ir.TensorProtocol:
    def read() -> ir.TensorProtocol:
        raise RuntimeError(f"{name} is not in memory")

    return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(shape), name=name)


def _in_torch(tensor: ir.TensorProtocol) -> torch.Tensor:
    array = np.require(tensor.numpy(), requirements="W")
    if tensor.dtype == ir.DataType.BFLOAT16:  # torch reads no bfloat16 of numpy
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def codes_tensor(codes: torch.Tensor, kind: str, name: str) -> ir.TensorProtocol:
    """Return whole numbers as a graph holds them; two of 4 bits share a byte, the first in its lower half."""
    array, dtype = codes.numpy(), ir.DataType[kind.upper()]
    if BITS[kind] == 8:
        return ir.Tensor(array, dtype, name=name)
    pairs = array.reshape(-1, 2).view(np.uint8)
    packed = (pairs[:, 0] & 0xF) | (pairs[:, 1] << 4)
    return ir.PackedTensor(packed, dtype, shape=ir.Shape(array.shape), name=name)


def _stored(tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(name=tensor.name, const_value=tensor)
    value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
    return value
