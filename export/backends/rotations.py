"""Keeps OpenVINO from fusing rotations of keys and queries: what it makes of them checks no shape.

Its CPU plugin (2026.4.1) replaces `x * cos - y * sin` beside `y * cos + x * sin` by one node, which reads as
many rows of `cos` as `x` has and as many numbers of `x` as it rotates, whatever is there: a graph may answer
with other memory of the process, or end it. The parts by themselves refuse shapes that do not fit.
"""

from collections import Counter
from typing import Any, Final

import numpy as np

from compressor.errors import ArtifactError

FUSED: Final = "RoPE"
"""What OpenVINO calls the node in a compiled model."""

_SUMS: Final = frozenset({"Add", "Subtract"})
_PRODUCT: Final = "Multiply"


def keep_apart(model: Any) -> None:
    """Put a node that changes no number behind the first product of each sum or difference of two products.

    Args:
        model: `openvino.Model`, as it was read; it is changed.
    """
    from openvino import opset13

    for node in model.get_ops():
        if node.get_type_name() not in _SUMS:
            continue
        first, second = (node.input_value(place) for place in (0, 1))
        products = all(value.get_node().get_type_name() == _PRODUCT for value in (first, second))
        kind = first.get_element_type()
        if products and kind.is_real():
            # OpenVINO leaves out additions of 0 and multiplications by 1, but not a slope of 1.
            slope = opset13.constant(np.ones(1, np.float32), kind)
            node.input(0).replace_source_output(opset13.prelu(first, slope).output(0))


def check_apart(compiled: Any, file: object) -> None:
    """Refuse a compiled model in which rotations are fused all the same.

    Args:
        compiled: `openvino.CompiledModel`.
        file: the graph, for the error.

    Raises:
        ArtifactError: there are some.
    """
    if count := kinds(compiled)[FUSED]:
        raise ArtifactError(
            [
                f"{file}: OpenVINO would run {count} of its rotations without checking shapes; "
                "run this artifact in ONNX Runtime"
            ]
        )


def kinds(compiled: Any) -> Counter[str]:
    """Return how many nodes of which kind a compiled model runs, in OpenVINO's words."""
    nodes = compiled.get_runtime_model().get_ops()
    return Counter(node.get_rt_info()["layerType"].astype(str) for node in nodes)
