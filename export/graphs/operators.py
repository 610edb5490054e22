"""The operators that a graph of this tool may have, all of the standard domain; it refuses others by name."""

from collections.abc import Set
from typing import Final

STANDARD_DOMAINS: Final[Set[str]] = frozenset({"", "ai.onnx"})
"""Names of the one domain."""

# What exports of the families and methods here came to.
_EXPORTED = {
    "Abs", "Add", "And", "ArgMax", "Attention", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape",
    "Conv", "Cos", "CumSum", "DequantizeLinear", "Div", "Equal", "Expand", "Gather", "GatherElements",
    "GatherND", "Gelu", "Gemm", "Greater", "GreaterOrEqual", "Identity", "If", "LayerNormalization",
    "Less", "LessOrEqual", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pad",
    "RMSNormalization", "Range", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceSum", "Reshape", "Resize", "RotaryEmbedding", "Scan", "ScatterElements", "Shape", "Sigmoid",
    "Sin", "Slice", "Softmax", "Split", "Squeeze", "Sub", "Tanh", "TensorScatter", "Tile", "TopK",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
# What another torch, family or method may well come to, and is as harmless.
_ALIKE = {
    "ArgMin", "AveragePool", "BatchNormalization", "BitShift", "Ceil", "Celu", "Cosh", "DepthToSpace",
    "Dropout", "Elu", "Erf", "Exp", "Flatten", "Floor", "GlobalAveragePool", "GroupNormalization",
    "HardSigmoid", "HardSwish", "InstanceNormalization", "IsInf", "IsNaN", "LeakyRelu", "Log",
    "LogSoftmax", "LpNormalization", "MaxPool", "Mean", "Mish", "NonZero", "OneHot", "PRelu", "Pow",
    "ReduceL1", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare", "Relu", "Round", "ScatterND",
    "Selu", "Sign", "Sinh", "Size", "Softplus", "Softsign", "SpaceToDepth", "Sqrt", "Sum", "Swish",
    "Tan", "Trilu", "Unique", "Xor",
}  # fmt: skip

ONNX_OPERATORS: Final[Set[str]] = frozenset(_EXPORTED | _ALIKE)
"""By type. `Scan` and `If` have bodies of the same operators; `Loop` is not among them."""

MAY_LACK_INPUTS: Final[Set[str]] = frozenset({"Resize"})
"""Operators of our graphs with an input left out before another one; ONNX Runtime 1.31 crashed on others."""
