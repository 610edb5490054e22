"""Weights in whole numbers: 8 or 4 bits each, with one scale for each block of a matrix's column.

Which: the matrices of the layers, queries, keys, values, outputs and those of the MLP, as far as the plan
stores each: parts of heads and neurons have blocks of their own, none reaches from one part into another.
Not: embedding, head, norms, biases, gates, routers, and the vision side; they are small, read row by row, or
decide something.

    codes = round(w / s), s = max(max(w) / m, -min(w) / (m + 1)) over a block, m = 2^(bits - 1) - 1

Round to nearest, no zero point, scales above zero: what TensorRT reads beside ONNX Runtime and OpenVINO. The
scale takes the code -(m + 1) in, too, so that a block whose largest weight is negative has finer steps.

Letters: [in, out] a matrix; b block, which divides `in`.

Limitations:
    - Nothing but the weight decides: no data is looked at, no error is made up for by later weights.
    - A head is stored once; a matrix that many rows of the vocabulary have in common is left alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressor.decoder.model import Decoder
from compressor.decoder.weights import (
    LAYER_SOURCES,
    StoredWeight,
    WholeNumbers,
    stored_weights,
    with_parameters,
)

BITS = {"int8": 8, "int4": 4}
"""Of each whole number, by the recipe's word."""

NUMBERS_AT_ONCE = 1 << 22
"""Of a matrix while it is rounded; each takes 4 bytes, a few times."""

MATRICES = ("query", "key", "value", "output", "mlp.gate", "mlp.up", "mlp.down")
_ENDINGS = tuple(f".{LAYER_SOURCES[name]}.weight" for name in MATRICES)


@dataclass(frozen=True)
class Quantized:
    """A matrix in whole numbers.

    Attributes:
        codes: [in, out] int8, also where each has 4 bits.
        scales: [in / b, out], in the dtype of the weights.
    """

    codes: Tensor
    scales: Tensor

    def dequantized(self) -> Tensor:
        """Return codes times scales [in, out], in float32."""
        count, out = self.scales.shape
        blocks = self.codes.float().view(count, -1, out)
        return blocks.mul_(self.scales.float().unsqueeze(1)).view(self.codes.shape)


def quantized(weight: Tensor, kind: str, block: int) -> Quantized:
    """Return a matrix in whole numbers; see the module.

    Args:
        weight: [in, out], in the dtype that its scales will have.
        kind: `int8` or `int4`.
        block: b.

    Raises:
        ValueError: the block does not divide `in`.
    """
    width, out = weight.shape
    if width % block:
        raise ValueError(f"blocks of {block} do not divide an inner width of {width}")
    codes = weight.new_empty((width, out), dtype=torch.int8)
    scales = weight.new_empty((width // block, out))
    # A few blocks of every column at a time: all at once take several times the matrix in float32.
    step = max(1, NUMBERS_AT_ONCE // (block * out))
    for first in range(0, len(scales), step):
        part = slice(first, first + step)
        rows = slice(first * block, (first + step) * block)
        scales[part], codes[rows] = _rounded(weight[rows], BITS[kind], block)
    return Quantized(codes, scales)


def _rounded(weight: Tensor, bits: int, block: int) -> tuple[Tensor, Tensor]:
    """Return scales and codes of whole blocks."""
    most = 2 ** (bits - 1) - 1
    blocks = weight.float().reshape(-1, block, weight.shape[1])
    scales = torch.maximum(blocks.amax(1) / most, blocks.amin(1) / -(most + 1)).to(weight.dtype)
    # A block of zeros, or one so small that its scale is none in this dtype.
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    codes = torch.round(blocks / scales.float().unsqueeze(1)).clamp(-most - 1, most)
    return scales, codes.view(weight.shape)


def quantized_as(weight: Tensor, whole: WholeNumbers) -> Quantized:
    """Return a matrix [in, out] of any dtype in the whole numbers that are asked for."""
    return quantized(weight.to(getattr(torch, whole.scales)), whole.kind, whole.block)


def is_quantized(weight: StoredWeight) -> bool:
    """Return whether a decoder's parameter is one of those that are stored in whole numbers."""
    return weight.source.startswith("layers.") and weight.source.endswith(_ENDINGS)


def in_whole_numbers(
    weights: Mapping[str, StoredWeight], kind: str, block: int
) -> dict[str, StoredWeight]:
    """Return what is known of parameters, by name, where those that may be are stored in whole numbers."""

    def stored(weight: StoredWeight) -> StoredWeight:
        whole = WholeNumbers(kind, block, weight.dtype)
        return replace(weight, dtype=kind, whole=whole) if is_quantized(weight) else weight

    return {name: stored(weight) for name, weight in weights.items()}


def quantized_decoder(decoder: Decoder, kind: str, block: int, dtype: torch.dtype) -> Decoder:
    """Return a decoder that computes with the values that whole numbers stand for; the others are shared.

    Args:
        decoder: in any dtype.
        kind: `int8` or `int4`.
        block: see `quantized`.
        dtype: of the graphs: weights are rounded to it first, and scales have it.
    """
    made = {}
    for name, weight in stored_weights(decoder).items():
        if is_quantized(weight):
            held = decoder.get_parameter(name)
            values = quantized(held.detach().to(dtype), kind, block).dequantized()
            made[name] = values.to(held.dtype)
    return with_parameters(decoder, made)


def matrix_bytes(decoder: Decoder, kind: str, block: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return what the matrices that may be whole numbers take as floats of a dtype, and as whole numbers."""
    numbers = sum(
        decoder.get_parameter(name).numel()
        for name, weight in stored_weights(decoder).items()
        if is_quantized(weight)
    )
    return numbers * dtype.itemsize, numbers * BITS[kind] // 8 + numbers // block * dtype.itemsize
