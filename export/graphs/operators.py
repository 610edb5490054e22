"""The operators that a graph of this tool may have, all of the standard domain; it refuses others by name."""

from collections.abc import Mapping, Set
from typing import Final

STANDARD_DOMAINS: Final[Set[str]] = frozenset({"", "ai.onnx"})
"""Names of the one domain."""

_MANY: Final = 1 << 16
# By how many inputs they take at least and at most. Most of them are what exports of the families and methods
# here came to; the others another torch, family or method may well come to, and they are as harmless.
_BY_INPUTS: Final = {
    (0, 0): "Constant",
    (
        1,
        1,
    ): "Abs ArgMax ArgMin AveragePool Cast Ceil Celu ConstantOfShape Cos Cosh DepthToSpace Elu Erf Exp "
    "Flatten Floor Gelu GlobalAveragePool HardSigmoid HardSwish Identity If IsInf IsNaN LeakyRelu Log "
    "LogSoftmax LpNormalization MaxPool Mish Neg NonZero Not Reciprocal Relu Round Selu Shape Sigmoid Sign "
    "Sin Sinh Size Softmax Softplus Softsign SpaceToDepth Sqrt Swish Tan Tanh Transpose Unique",
    (1, 2): "ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare Split Squeeze Trilu",
    (1, 3): "Clip Dropout",
    (1, 4): "Resize",
    (1, _MANY): "Concat Max Mean Min Scan Sum",
    (
        2,
        2,
    ): "Add And BitShift CumSum Div Equal Expand Gather GatherElements GatherND Greater GreaterOrEqual "
    "Less LessOrEqual MatMul Mod Mul Or PRelu Pow RMSNormalization Reshape Sub Tile TopK Unsqueeze Xor",
    (2, 3): "Conv DequantizeLinear Gemm LayerNormalization TensorScatter",
    (2, 4): "Pad",
    (3, 3): "GroupNormalization InstanceNormalization OneHot Range ScatterElements ScatterND Where",
    (3, 4): "RotaryEmbedding",
    (3, 5): "Slice",
    (3, 7): "Attention",
    (5, 5): "BatchNormalization",
}
# Outputs at most, of those that may have more than one.
_OUTPUTS: Final = {
    "Attention": 4, "BatchNormalization": 3, "Dropout": 2, "If": _MANY, "LayerNormalization": 3, "MaxPool": 2,
    "Scan": _MANY, "Split": _MANY, "TopK": 2, "Unique": 4,
}  # fmt: skip

ONNX_OPERATORS: Final[Mapping[str, tuple[int, int, int]]] = {
    name: (*inputs, _OUTPUTS.get(name, 1))
    for inputs, names in _BY_INPUTS.items()
    for name in names.split()
}
"""By type, how many inputs at least and at most, and outputs at most: OpenVINO 2026.4.1 crashed on a Conv of
one input. `Scan` and `If` have bodies of the same operators; `Loop` is not among them."""

MAY_LACK_INPUTS: Final[Set[str]] = frozenset({"Resize"})
"""Operators of our graphs with an input left out before another one; ONNX Runtime 1.31 crashed on others."""
