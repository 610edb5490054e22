"""Damages ONNX graphs so that most of them still look like graphs of this tool; seeded."""

import contextlib
import math
import random
from collections.abc import Callable

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from export.graphs.operators import ONNX_OPERATORS
from tests.mutations import damaged

OPERATORS = sorted(ONNX_OPERATORS)
NUMBERS = (0, 1, -1, 2, 3, -2, 7, 64, 1 << 20, 1 << 31, (1 << 63) - 1, -(1 << 63))
REALS = (0.0, -1.0, 1e-38, 1e38, math.nan, math.inf)


def damaged_graph(content: bytes, seed: str) -> bytes:
    """Return a graph with one to three edits of nodes, attributes, constants or declarations.

    One of ten is damaged in its bytes instead.

    Args:
        content: a ModelProto.
        seed: of the edits.
    """
    randomly = random.Random(seed)
    if not seed or randomly.random() < 0.1:
        return damaged([content], seed)
    model = onnx.load_model_from_string(content)
    for _ in range(randomly.choice((1, 1, 2, 3))):
        with contextlib.suppress(IndexError):  # nothing of that kind is left
            randomly.choice(EDITS)(model, randomly)
    return model.SerializeToString()


def _graphs(graph: GraphProto) -> list[GraphProto]:
    branches = [
        a.g for node in graph.node for a in node.attribute if a.type == AttributeProto.GRAPH
    ]
    return [graph, *(inner for branch in branches for inner in _graphs(branch))]


def _node(model: ModelProto, randomly: random.Random) -> tuple[GraphProto, NodeProto]:
    graph = randomly.choice([g for g in _graphs(model.graph) if g.node])
    return graph, randomly.choice(graph.node)


def _names(graph: GraphProto) -> list[str]:
    return [name for node in graph.node for name in (*node.input, *node.output)] or [""]


def _other_operator(model: ModelProto, randomly: random.Random) -> None:
    _node(model, randomly)[1].op_type = randomly.choice(OPERATORS)


def _other_inputs(model: ModelProto, randomly: random.Random) -> None:
    graph, node = _node(model, randomly)
    if not node.input:
        return
    at = randomly.randrange(len(node.input))
    match randomly.randrange(5):
        case 0:
            node.input[at] = ""
        case 1:
            del node.input[at]
        case 2:
            node.input.append(randomly.choice((*_names(graph), "")))
        case 3:
            node.input[at], node.input[0] = node.input[0], node.input[at]
        case _:
            node.input[at] = randomly.choice(_names(graph))


def _other_outputs(model: ModelProto, randomly: random.Random) -> None:
    graph, node = _node(model, randomly)
    match randomly.randrange(4):
        case 0 if node.output:
            node.output[0] = randomly.choice(_names(graph))
        case 1:
            node.output.append(randomly.choice(("", "new")))
        case 2 if node.output:
            del node.output[-1]
        case _ if node.output:
            node.output[0] = ""


def _other_nodes(model: ModelProto, randomly: random.Random) -> None:
    graph, node = _node(model, randomly)
    match randomly.randrange(3):
        case 0:
            graph.node.remove(node)
        case 1:
            graph.node.append(node)
        case _:
            nodes = list(graph.node)
            randomly.shuffle(nodes)
            del graph.node[:]
            graph.node.extend(nodes)


def _other_attribute(model: ModelProto, randomly: random.Random) -> None:
    _, node = _node(model, randomly)
    having = [n for g in _graphs(model.graph) for n in g.node if n.attribute]
    node = randomly.choice(having) if having and randomly.random() < 0.9 else node
    if not node.attribute or randomly.random() < 0.1:
        node.attribute.add(name=randomly.choice(("axis", "to", "perm", "x")), type=2, i=7)
        return
    attribute = randomly.choice(node.attribute)
    match randomly.randrange(6):
        case 0:
            node.attribute.remove(attribute)
        case 1:
            attribute.type = randomly.choice((1, 2, 3, 4, 5, 6, 7, 8))
        case 2:
            attribute.name = randomly.choice(("axis", "to", "value", ""))
        case 3:
            attribute.ints.append(randomly.choice(NUMBERS))
        case _ if attribute.type == AttributeProto.INTS and attribute.ints:
            attribute.ints[randomly.randrange(len(attribute.ints))] = randomly.choice(NUMBERS)
        case _ if attribute.type == AttributeProto.FLOAT:
            attribute.f = randomly.choice(REALS)
        case _ if attribute.type == AttributeProto.STRING:
            attribute.s = randomly.choice((b"", b"x", b"linear", b"\xff"))
        case _:
            attribute.i = randomly.choice(NUMBERS)


def _tensors(model: ModelProto) -> list[TensorProto]:
    graphs = _graphs(model.graph)
    values = [a.t for g in graphs for n in g.node for a in n.attribute if a.HasField("t")]
    return [*(t for g in graphs for t in g.initializer), *values]


def _other_constant(model: ModelProto, randomly: random.Random) -> None:
    """Other numbers in a small tensor of whole numbers: shapes, axes, places."""
    small = [t for t in _tensors(model) if t.raw_data and t.data_type == TensorProto.INT64]
    if small:
        tensor = randomly.choice(small)
        at = 8 * randomly.randrange(len(tensor.raw_data) // 8)
        number = randomly.choice(NUMBERS).to_bytes(8, "little", signed=True)
        tensor.raw_data = tensor.raw_data[:at] + number + tensor.raw_data[at + 8 :]


def _other_tensor(model: ModelProto, randomly: random.Random) -> None:
    """Another shape or type of as many bytes, or another place in the weights."""
    if not (tensors := _tensors(model)):
        return
    tensor = randomly.choice(tensors)
    dims, count = list(tensor.dims), math.prod(tensor.dims)
    match randomly.randrange(6):
        case 0:
            dims.reverse()
        case 1:
            dims = [count]
        case 2:
            dims = [1, *dims]
        case 3 if tensor.data_type in (1, 6, 12):
            tensor.data_type = randomly.choice((1, 6, 12))
        case 4 if tensor.data_type in (7, 11, 13):
            tensor.data_type = randomly.choice((7, 11, 13))
        case _:
            for entry in tensor.external_data:
                if entry.key == "offset":
                    entry.value = str(randomly.choice((0, 1, 3, 64, int(entry.value) // 2)))
    tensor.dims[:] = dims


def _other_declaration(model: ModelProto, randomly: random.Random) -> None:
    graph = model.graph
    match randomly.randrange(6):
        case 0:
            model.opset_import[0].version = randomly.choice((0, 1, 9, 13, 18, 21, 24, 99, -1))
        case 1:
            model.ir_version = randomly.choice((0, 3, 8, 13, 99))
        case 2:
            declared = randomly.choice([*graph.input, *graph.output])
            declared.type.tensor_type.elem_type = randomly.choice((0, 1, 7, 8, 9, 10, 11, 16, 99))
        case 3:
            dims = randomly.choice([*graph.input, *graph.output]).type.tensor_type.shape.dim
            if dims:
                randomly.choice(dims).dim_value = randomly.choice(NUMBERS)
        case 4:
            dims = randomly.choice([*graph.input, *graph.output]).type.tensor_type.shape.dim
            dims.add(dim_value=1)
        case _:
            rows = randomly.choice((graph.input, graph.output, graph.value_info))
            if len(rows):
                del rows[randomly.randrange(len(rows))]


EDITS: tuple[Callable[[ModelProto, random.Random], None], ...] = (
    _other_operator, _other_operator, _other_inputs, _other_inputs, _other_outputs, _other_nodes,
    _other_attribute, _other_attribute, _other_constant, _other_constant, _other_tensor, _other_declaration,
)  # fmt: skip
