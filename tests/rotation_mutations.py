"""Damages what surrounds the rotations of keys and queries in a decoder's graph; seeded."""

import contextlib
import random
from collections.abc import Callable

import onnx
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper
from onnx.helper import make_attribute, make_node, make_tensor

ROTATION = "RotaryEmbedding"
SIZES = (0, 1, -1, 2, 3, 4, 7, 8, 16, 64)


def damaged_rotation(content: bytes, seed: str) -> bytes:
    """Return a graph with one or two edits in front of, at or behind a rotation.

    Args:
        content: a ModelProto with rotations.
        seed: of the edits; none: the graph as it is.
    """
    if not seed:
        return content
    randomly, model = random.Random(seed), onnx.load_model_from_string(content)
    for _ in range(randomly.choice((1, 1, 2))):
        rotation = randomly.choice([node for node in model.graph.node if node.op_type == ROTATION])
        with contextlib.suppress(StopIteration):  # nothing of that kind is left
            randomly.choice(EDITS)(model.graph, rotation, randomly)
    return model.SerializeToString()


def _numbers(graph: GraphProto, numbers: list[int]) -> str:
    """Return the name of a new constant."""
    name = f"fuzz{len(graph.initializer)}"
    graph.initializer.append(make_tensor(name, TensorProto.INT64, [len(numbers)], numbers))
    return name


def _between(
    graph: GraphProto,
    rotation: NodeProto,
    place: int,
    kind: str,
    more: list[str],
    **attributes: object,
) -> None:
    """Put a node between an input of a rotation (0: rows, 1: cos, 2: sin) and what computes it."""
    name = f"between{len(graph.node)}"
    node = make_node(kind, [rotation.input[place], *more], [name], **attributes)
    at = next(i for i, one in enumerate(graph.node) if one == rotation)
    rotation.input[place] = name
    graph.node.insert(at, node)


def _source(graph: GraphProto, name: str) -> NodeProto:
    return next(node for node in graph.node if name in node.output)


def _order(randomly: random.Random) -> list[int]:
    return randomly.sample(range(4), 4)


def _other_order(graph: GraphProto, rotation: NodeProto, randomly: random.Random) -> None:
    """Another `perm` of the node in front, or none."""
    before = _source(graph, rotation.input[0])
    del before.attribute[:]
    if randomly.random() < 0.8:
        before.attribute.append(make_attribute("perm", _order(randomly)))


def _turned(graph: GraphProto, rotation: NodeProto, randomly: random.Random) -> None:
    _between(graph, rotation, 0, "Transpose", [], perm=_order(randomly))


def _table_turned(graph: GraphProto, rotation: NodeProto, randomly: random.Random) -> None:
    """Cos, sin or both with other axes."""
    order = randomly.sample(range(3), 3)
    for place in randomly.choice(((1,), (2,), (1, 2))):
        _between(graph, rotation, place, "Transpose", [], perm=order)


def _cut(graph: GraphProto, rotation: NodeProto, randomly: random.Random) -> None:
    """Fewer rows, numbers or tables: a slice of any input, on any axis."""
    axis, step = randomly.randrange(-4, 4), randomly.choice((1, 1, 2, -1))
    edges = [randomly.choice(SIZES), randomly.choice(SIZES)]
    for place in randomly.choice(((0,), (1,), (2,), (1, 2))):
        limits = [_numbers(graph, [number]) for number in (*edges, axis, step)]
        _between(graph, rotation, place, "Slice", limits)


def _doubled(graph: GraphProto, rotation: NodeProto, randomly: random.Random) -> None:
    """Twice as much on an axis."""
    for place in randomly.choice(((0,), (1,), (2,), (1, 2))):
        name = rotation.input[place]
        _between(graph, rotation, place, "Concat", [name], axis=randomly.randrange(-3, 3))


def _reshaped(graph: GraphProto, rotation: NodeProto, randomly: random.Random) -> None:
    place = randomly.choice((0, 0, 1, 2))
    rank = randomly.choice((2, 3, 3, 4, 4, 4))
    shape = [randomly.choice(SIZES) for _ in range(rank)]
    if randomly.random() < 0.7:
        shape[randomly.randrange(rank)] = -1
    _between(graph, rotation, place, "Reshape", [_numbers(graph, shape)])


def _another_axis(graph: GraphProto, rotation: NodeProto, randomly: random.Random) -> None:
    kind = randomly.choice(("Unsqueeze", "Squeeze"))
    axis = _numbers(graph, [randomly.randrange(-4, 4)])
    _between(graph, rotation, randomly.choice((0, 1, 2)), kind, [axis])


def _other_inputs(graph: GraphProto, rotation: NodeProto, randomly: random.Random) -> None:
    """Other tensors of the graph in an input's place, or two inputs in each other's."""
    del graph
    one, other = randomly.sample(range(3), 2)
    if randomly.random() < 0.5:
        rotation.input[one] = rotation.input[other]
    else:
        first, second = rotation.input[one], rotation.input[other]
        rotation.input[one], rotation.input[other] = second, first


def _other_numbers(graph: GraphProto, rotation: NodeProto, randomly: random.Random) -> None:
    """Other shapes and axes in what computes an input, up to four nodes in front."""
    node = _source(graph, rotation.input[randomly.choice((0, 0, 1, 2))])
    held = {tensor.name: tensor for tensor in graph.initializer}
    for _ in range(4):
        small = [n for n in node.input if n in held and held[n].data_type == TensorProto.INT64]
        if small:
            tensor = held[randomly.choice(small)]
            values = numpy_helper.to_array(tensor).copy()
            values.reshape(-1)[randomly.randrange(values.size)] = randomly.choice(SIZES)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            return
        node = _source(graph, node.input[0])


def _other_attribute(graph: GraphProto, rotation: NodeProto, randomly: random.Random) -> None:
    """Interleaved or not, other heads, a part of the numbers."""
    del graph
    name = randomly.choice(("interleaved", "num_heads", "rotary_embedding_dim"))
    kept = [attribute for attribute in rotation.attribute if attribute.name != name]
    number = 1 if name == "interleaved" else randomly.choice(SIZES)
    del rotation.attribute[:]
    rotation.attribute.extend([*kept, make_attribute(name, number)])


EDITS: tuple[Callable[[GraphProto, NodeProto, random.Random], None], ...] = (
    _other_order, _turned, _table_turned, _cut, _cut, _doubled, _reshaped, _reshaped, _another_axis,
    _other_inputs, _other_numbers, _other_attribute,
)  # fmt: skip
