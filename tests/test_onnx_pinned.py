"""Named axes become numbers in a graph's bytes; the ONNX package is the judge, and nothing else changes."""

import onnx
from onnx import TensorProto, helper

from export.backends.tensorrt.pinned import pinned


def graph() -> onnx.ModelProto:
    """With names in inputs, outputs, values between, an initializer and a subgraph."""
    axes = ["batch", 2, "room", None]
    given = helper.make_tensor_value_info("given", TensorProto.FLOAT16, axes)
    told = helper.make_tensor_value_info("told", TensorProto.BOOL, ["batch", "room_text"])
    between = helper.make_tensor_value_info("between", TensorProto.FLOAT16, axes)
    left = helper.make_tensor_value_info("left", TensorProto.FLOAT16, axes)
    weight = helper.make_tensor("room", TensorProto.FLOAT, [3], [1.0, -2.5, 1e30])
    branch = helper.make_graph([], "room", [], [helper.make_tensor_value_info("b", 1, ["room"])])
    nodes = [
        helper.make_node("Identity", ["given"], ["between"], name="room" * 100),
        helper.make_node("Identity", ["between"], ["left"], alpha=0.5, count=-7, branch=branch),
    ]
    whole = helper.make_graph(
        nodes, "decoder", [given, told], [left], initializer=[weight], value_info=[between]
    )
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 24)])


def test_axes_of_these_names_are_numbers_and_all_else_is_as_it_was() -> None:
    model = graph()
    found = onnx.load_from_string(
        pinned(model.SerializeToString(), {"room": 2048, "room_text": 1472})
    )
    for values in ("input", "output", "value_info"):
        for value in getattr(model.graph, values):
            for axis in value.type.tensor_type.shape.dim:
                if size := {"room": 2048, "room_text": 1472}.get(axis.dim_param):
                    axis.dim_value = size
    assert found == model
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in found.graph.input]
    assert shapes == [[0, 2, 2048, 0], [0, 1472]]


def test_a_graph_without_such_names_stays_what_it_is_byte_for_byte() -> None:
    content = graph().SerializeToString()
    assert pinned(content, {}) == pinned(content, {"other": 3}) == content
