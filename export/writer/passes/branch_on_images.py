"""Puts a window's attention under a branch, so that calls without an image run what the original runs.

A window's attention is dozens of small nodes (`compressor.decoder.layers.near.attend_near`). In a decode step
all of them run on no rows, and calling them costs time (docs/performance.md). So a `near` module becomes an
ONNX `If` on V > 0. The other branch is plain attention: every row is a text row.

Limitations:
    - float32 graphs only: TensorRT-RTX 1.7.1 parses such an `If` and then fails in its compiler ("ssa.cpp:
      CHECK(false) failed"), also with a branch that only reshapes the query. It takes no float32 Attention,
      so float16 graphs are what it gets.
    - The result of an `If` goes into a Transpose, which copies it. OpenVINO 2026.4.1 may read it before it is
      there where the next node only looks at it in another shape, as a MatMul does: a decoder's first calls
      then gave wrong numbers, other ones in every run. So do pieces of a Split that go into a branch.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from compressor.schema.sections import ExportSection
    from export.graphs.spec import GraphSpec

SCOPE = "near"
"""Name of the module whose nodes are put under a branch, once for each layer that has one."""

words = ""


def applies(spec: "GraphSpec", settings: "ExportSection") -> bool:  # noqa: ARG001 - modules tell
    """See `GraphPass.applies`."""
    return spec.inputs[0].dtype == "float32"


def run(model: ir.Model) -> None:
    """Put what only the results of `near` modules need under an `If` on V > 0 for each of them.

    What several of them need, such as a mask, is made in every branch anew, so that calls without an image
    do not make it.

    Args:
        model: a float32 graph, its nodes named after modules; changed in place.
    """
    graph = model.graph
    ends = _ends(graph)
    if not ends:
        return
    condition = _any_visual(graph)
    # Before anything is moved: what the other branches read is then used by them too, and stays.
    text_alone = {module: _of_text_alone(end, module) for module, end in ends.items()}
    movable = _needed_only_by(graph, ends.values())
    for module, end in ends.items():
        images = _copied(_ancestors(end, movable), module, "images", {})
        _branch(graph, module, end, condition, images, text_alone[module])
    graph.remove(movable)


def _ends(graph: ir.Graph) -> dict[str, ir.Node]:
    """Return the node that gives the result of every `near` module, by the module's path."""
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


def _branch(
    graph: ir.Graph,
    module: str,
    end: ir.Node,
    condition: ir.Value,
    images: Sequence[ir.Node],
    text_alone: Sequence[ir.Node],
) -> None:
    result = end.outputs[0]
    chosen = ir.Value(name=f"{result.name}.chosen", shape=result.shape, type=result.type)
    choice = ir.node("If", [condition], name=f"{module}.If", outputs=[chosen])
    graph.insert_before(end, choice)
    ir.convenience.replace_all_uses_with(result, chosen)
    for name, nodes in (("then_branch", images), ("else_branch", text_alone)):
        branch = ir.Graph([], nodes[-1].outputs, nodes=nodes, name=f"{module}.{name}")
        choice.attributes.add(ir.AttrGraph(name, branch))


def _of_text_alone(end: ir.Node, module: str) -> list[ir.Node]:
    """Return a copy of the node that attends from text rows, on the queries of all rows instead.

    Args:
        end: joins what visual rows and what text rows read.
        module: path of the `near` module.
    """
    attention = _producer(end, end.inputs[-1], "Attention")
    text_queries = attention.inputs[0]
    queries = _producer(attention, text_queries, "Slice").inputs[0]
    return _copied([attention], module, "text_alone", {text_queries: queries})


def _producer(node: ir.Node, value: ir.Value | None, op: str) -> ir.Node:
    found = None if value is None else value.producer()
    if found is None or found.op_type != op:
        raise RuntimeError(f"{node.name}: reads something else than what a node {op} makes")
    return found


def _needed_only_by(graph: ir.Graph, ends: Collection[ir.Node]) -> list[ir.Node]:
    """Return the nodes whose results nothing but `ends` needs, in their order, `ends` included."""
    found = set(ends)
    told = set(graph.outputs)
    for node in reversed(list(graph)):
        uses = [use.node for value in node.outputs for use in value.uses()]
        if uses and not told.intersection(node.outputs) and all(user in found for user in uses):
            found.add(node)
    return [node for node in graph if node in found]


def _ancestors(end: ir.Node, among: Sequence[ir.Node]) -> list[ir.Node]:
    """Return those nodes that a node needs, itself included, in their order."""
    needed = {end}
    for node in reversed(among):
        if any(use.node in needed for value in node.outputs for use in value.uses()):
            needed.add(node)
    return [node for node in among if node in needed]


def _copied(
    nodes: Sequence[ir.Node],
    module: str,
    branch: str,
    values: Mapping[ir.Value | None, ir.Value | None],
) -> list[ir.Node]:
    """Return copies of nodes that read each other's results.

    Args:
        nodes: in their order.
        module: path of the `near` module.
        branch: that the copies are for; module and branch name them and their results.
        values: what they read instead of something else.
    """
    copies: list[ir.Node] = []
    read = dict(values)
    for node in nodes:
        copy = ir.node(
            node.op_type,
            [read.get(value, value) for value in node.inputs],
            node.attributes,
            domain=node.domain,
            num_outputs=len(node.outputs),
            name=f"{module}.{branch}.{node.op_type}_{len(copies)}",
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.shape, new.type = f"{module}.{branch}.{old.name}", old.shape, old.type
            read[old] = new
        copies.append(copy)
    return copies
