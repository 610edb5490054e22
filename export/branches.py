"""Puts work that visual rows alone need under a branch, so that calls without an image skip it.

A window's attention is some 45 small nodes (`compressor.decoder.ops.attend_near`). In a decode step they all
run on no rows; calling them made a step 3 to 6% slower than the original's (docs/performance.md). So they
become the branch of an ONNX `If` that runs when V > 0; the other branch gives no rows.

Limitations:
    - float32 graphs only: TensorRT-RTX 1.7.1 parses such an `If` and then fails in its compiler ("ssa.cpp:
      CHECK(false) failed"), also with a branch that only reshapes the query. It takes no float32 Attention,
      so float16 graphs are what it gets.
    - Both branches give [B, V, H * d]. A branch that also joins the text rows would save three nodes, but
      OpenVINO 2026.4.1 gives wrong numbers where branches differ in their second size.
"""

import numpy as np
import onnx_ir as ir

SCOPE = "near"
"""Name of the module whose nodes are put under a branch, once for each layer that has one."""


def branch_on_images(model: ir.Model) -> None:
    """Put what only a `near` module's result needs under an `If` on V > 0.

    Args:
        model: a decoder's float32 graph, its nodes named after modules; changed in place.
    """
    graph = model.graph
    ends = _ends(graph)
    if not ends:
        return
    condition = _any_visual(graph)
    for module, end in ends.items():
        _branch(graph, module, end, condition)


def _ends(graph: ir.Graph) -> dict[str, ir.Node]:
    """Return the Reshape that gives the result of every `near` module, by the module's path."""
    last = {}
    for node in graph:
        path = (node.name or "").split(".")
        if SCOPE in path:
            last[".".join(path[: path.index(SCOPE) + 1])] = node
    return last


def _any_visual(graph: ir.Graph) -> ir.Value:
    """Add nodes for the scalar V > 0 at the start of the graph."""
    visual_index = next(value for value in graph.inputs if value.name == "visual_index")
    zero = ir.tensor(np.zeros(1, np.int64), name="any_visual.zero")
    constant = ir.Value(name=zero.name, const_value=zero)
    constant.shape, constant.dtype = ir.Shape([1]), ir.DataType.INT64
    graph.register_initializer(constant)
    count = ir.node("Shape", [visual_index], {"start": 1, "end": 2}, name="any_visual.Shape")
    more = ir.node("Greater", [count.outputs[0], constant], name="any_visual.Greater")
    scalar = ir.node("Squeeze", [more.outputs[0], constant], name="any_visual.Squeeze")
    nodes = (count, more, scalar)
    for node, name in zip(nodes, ("count", "more", "scalar"), strict=True):
        node.outputs[0].name = f"any_visual.{name}"
    graph.insert_before(graph[0], nodes)
    return scalar.outputs[0]


def _branch(graph: ir.Graph, module: str, end: ir.Node, condition: ir.Value) -> None:
    result, shape = end.outputs[0], end.inputs[-1]
    if end.op_type != "Reshape" or shape is None:
        raise RuntimeError(f"{end.name}: a {end.op_type} gives what a Reshape should")
    inside = _needed_only_by(graph, end, keep=shape.producer())
    zero = ir.tensor(np.zeros(1, np.float32))
    nothing = ir.node("ConstantOfShape", [shape], {"value": zero}, name=f"{module}.ConstantOfShape")
    nothing.outputs[0].name = f"{result.name}.nothing"
    chosen = ir.Value(name=f"{result.name}.chosen", shape=result.shape, type=result.type)
    choice = ir.node("If", [condition], name=f"{module}.If", outputs=[chosen])
    graph.insert_before(end, choice)
    ir.convenience.replace_all_uses_with(result, chosen)
    graph.remove(inside)
    branches = {
        "then_branch": ir.Graph([], [result], nodes=inside, name=f"{module}.images"),
        "else_branch": ir.Graph([], [nothing.outputs[0]], nodes=[nothing], name=f"{module}.none"),
    }
    for name, branch in branches.items():
        choice.attributes.add(ir.AttrGraph(name, branch))


def _needed_only_by(graph: ir.Graph, end: ir.Node, keep: ir.Node | None) -> list[ir.Node]:
    """Return the nodes whose results nothing but `end` needs, in their order, `end` included.

    Args:
        graph: of the nodes.
        end: the last of them.
        keep: a node that stays outside, with all that it needs.
    """
    found = {end}
    told = set(graph.outputs)
    for node in reversed(list(graph)):
        uses = [use.node for value in node.outputs for use in value.uses()]
        free = node is not keep and not told.intersection(node.outputs)
        if free and uses and all(user in found for user in uses):
            found.add(node)
    return [node for node in graph if node in found]
