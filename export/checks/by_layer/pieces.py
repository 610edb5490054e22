"""A written decoder graph cut between its layers: each piece is a graph, whose weights alone are loaded.

What crosses a cut are the states of visual and of text rows. Masks, rotations and sizes, which are made in
front of the layers, each piece makes anew of the call's places and of its own layer's past.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from export.backends.checked_on import OnnxGraph
from export.graphs.spec import (
    DEEPSTACK,
    LENGTH,
    PAST,
    PAST_VISUAL,
    POSITIONS,
    ROWS,
    GraphSpec,
)
from export.machine.freed import return_memory
from export.writer.passes.float32 import make_shadow, read_graph, shadow_spec, within

LAYER = re.compile(r"^layers\.(\d+)\.")
PRESENT, PRESENT_VISUAL = "present.", "present_visual"
SIZES = ("Shape", "Size")


@dataclass(frozen=True)
class Cut:
    """What crosses from one layer to the next: the values' names in the graph.

    Attributes:
        visual: of visual rows; None: nobody reads them any more.
        text: of text rows.
    """

    visual: str | None
    text: str


class Pieces:
    """The pieces of a decoder graph.

    Args:
        folder: of the graph and its weights.
        spec: the graph's declaration, of a plan in which nothing is decided between layers.
        layers: how many it has.

    Raises:
        RuntimeError: something else crosses from one layer to the next; the tool is wrong then.
    """

    def __init__(self, folder: Path, spec: GraphSpec, layers: int) -> None:
        self._folder, self._spec, self._layers = folder, spec, layers
        self._cuts = [Cut(ROWS[0], ROWS[1]), *_cuts(read_graph(folder / spec.file).graph, layers)]

    def open(self, layer: int | None) -> "Piece":
        """Load one layer, or what comes behind the last: None."""
        return_memory()  # graphs are cycles; with them the piece before would stay
        number = self._layers if layer is None else layer
        before = self._cuts[number]
        after = self._cuts[number + 1] if layer is not None else None
        spec = self._declared(layer, before, after)
        model = read_graph(self._folder / self._spec.file)
        _cut_out(model.graph, spec, before, self._spec)
        if any(t.dtype == "bfloat16" for t in spec.inputs):
            make_shadow(model.graph)
            spec = shadow_spec(spec)
        content = ir.to_proto(model).SerializeToString()
        # Weights that the runtime packs for its kernels would be in memory twice.
        graph = OnnxGraph(self._folder, spec, content=content, exact=True, mapped=True)
        return Piece(graph, before, after)

    def _declared(self, layer: int | None, before: Cut, after: Cut | None) -> GraphSpec:
        """Return a piece's declaration; states are called as rows are where they come in."""
        kept = [
            t
            for t in self._spec.inputs
            if t.name in (*ROWS, *POSITIONS)
            or (layer is not None and (t.name == PAST_VISUAL or _of_layer(t.name, layer)))
        ]
        filled = {t.filled + LENGTH for t in kept if t.filled}
        inputs = [t for t in self._spec.inputs if t in kept or t.name in filled]
        if after is None:
            found = [t for t in self._spec.outputs if not t.name.startswith("present")]
        else:
            states = zip(
                (after.visual, after.text), (before.visual, before.text), ROWS, strict=False
            )
            given = {t.name: t for t in self._spec.inputs}
            found = [
                given[rows].model_copy(update={"name": made})
                for made, entered, rows in states
                if made is not None and made != entered
            ]
            found += [
                t
                for t in self._spec.outputs
                if t.name == PRESENT_VISUAL or t.name.startswith(f"{PRESENT}{layer}.")
            ]
        update = {"inputs": tuple(inputs), "outputs": tuple(found)}
        return self._spec.model_copy(update=update)


@dataclass(frozen=True)
class Piece:
    """One loaded piece.

    Attributes:
        graph: that runs.
        before: what it reads.
        after: what it makes; None: logits.
    """

    graph: OnnxGraph
    before: Cut
    after: Cut | None

    def states(
        self, found: Sequence[object], entered: tuple[object, object]
    ) -> tuple[object, object]:
        """Return the states of visual and text rows behind the piece.

        Args:
            found: its outputs without keys and values.
            entered: the states in front of it, which pass by where it makes none.
        """
        made = iter(found)
        after = self.after or self.before
        return (
            entered[0] if after.visual in (None, self.before.visual) else next(made),
            entered[1] if after.text == self.before.text else next(made),
        )


def _of_layer(name: str, layer: int) -> bool:
    return name.startswith(f"{PAST}.{layer}.") or name == f"{DEEPSTACK}{layer}"


def _cuts(graph: ir.Graph, layers: int) -> list[Cut]:
    """Return what crosses behind each layer."""
    nodes = list(graph)
    numbers = [LAYER.match(node.name or "") for node in nodes]
    first: dict[int, int] = {}
    last = 0
    for place, number in enumerate(numbers):
        if number is not None:
            first.setdefault(int(number[1]), place)
            last = place
    ends = [first[layer] for layer in range(1, layers)]
    # Behind the last layer its rows are parted, which no module's name tells.
    ends.append(next(p for p in range(last + 1, len(nodes)) if nodes[p].op_type != "Split"))
    places = {inner: place for place, node in enumerate(nodes) for inner in within(node)}
    states = states_in(graph)
    return [_cut(states, places, end, layer) for layer, end in enumerate(ends)]


def states_in(graph: ir.Graph) -> list[ir.Value]:
    """Return the values that are made of embeddings, and not of their sizes alone."""
    found = {value: None for value in graph.inputs if value.name in ROWS[:2]}
    for node in graph:
        read = (v for inner in within(node) for v in inner.inputs)
        if node.op_type not in SIZES and any(value in found for value in read):
            found |= dict.fromkeys(node.outputs)
    return list(found)


def _cut(states: Sequence[ir.Value], places: Mapping[ir.Node, int], end: int, layer: int) -> Cut:
    """Return which states nodes from a place on read that nodes in front of it made."""
    found: dict[bool, str] = {}
    for value in states:
        maker = value.producer()
        readers = [places[use.node] for use in value.uses() if use.node.op_type not in SIZES]
        if (maker is None or places[maker] < end) and any(place >= end for place in readers):
            of_text = value.shape is not None and str(value.shape[1]) == "text"
            if of_text in found or value.shape is None or len(value.shape) != len(ROWS) - 1:
                raise RuntimeError(
                    f"behind layer {layer} the graph cannot be cut: {value.name} {value.shape} crosses "
                    f"beside {', '.join(found.values()) or 'nothing'}"
                )
            found[of_text] = value.name or ""
    if True not in found:
        raise RuntimeError(f"behind layer {layer} the graph cannot be cut: no text rows cross")
    return Cut(found.get(False), found[True])


def _cut_out(graph: ir.Graph, piece: GraphSpec, before: Cut, whole: GraphSpec) -> None:
    """Leave of a graph what makes a piece's outputs of its inputs."""
    values = {v.name: v for v in graph.inputs}
    values |= {v.name: v for node in graph for v in node.outputs}
    outputs = [values[spec.name] for spec in piece.outputs]
    axes = {spec.name: spec.axes for spec in whole.inputs}
    inputs = {spec.name: values[spec.name] for spec in piece.inputs}
    for name, crossing in zip(ROWS, (before.visual, before.text), strict=False):
        if crossing is not None and crossing != name:
            # Of the embeddings the layer reads sizes at most, and those the states have too.
            inputs[name] = entry = _like(values[name])
            for old in (values[crossing], values[name]):
                ir.convenience.replace_all_uses_with(old, entry)
    for name in axes.keys() - inputs.keys():
        # Which layer's past tells a size was the exporter's choice.
        for use in list(values[name].uses()):
            if use.node.op_type == "Shape":
                _tell_size(
                    use.node, use.idx, axes[name], {o: (v, axes[o]) for o, v in inputs.items()}
                )
    graph.inputs.clear()
    graph.inputs.extend(inputs[spec.name] for spec in piece.inputs)
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    _drop_unread(graph)
    for value in graph.inputs:
        value.shape = ir.Shape(next(s.axes for s in piece.inputs if s.name == value.name))
    _check_closed(graph, values)


def _drop_unread(graph: ir.Graph) -> None:
    """Take out what no output needs; onnx_ir's own pass keeps what branches of dropped nodes read."""
    needed = set(graph.outputs)
    for node in reversed(graph):
        if needed.intersection(node.outputs):
            needed |= {v for inner in within(node) for v in inner.inputs if v is not None}
    dropped = [node for node in graph if not needed.intersection(node.outputs)]
    for node in (inner for outer in dropped for inner in within(outer)):
        for place in range(len(node.inputs)):
            node.replace_input_with(place, None)
    graph.remove(dropped)
    for name, value in list(graph.initializers.items()):
        if value not in needed:
            del graph.initializers[name]


def _tell_size(
    node: ir.Node,
    place: int,
    axes: tuple[str | int, ...],
    inputs: Mapping[str, tuple[ir.Value, tuple[str | int, ...]]],
) -> None:
    """Let a Shape node that reads a value with these axes read sizes of the same names from an input."""
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    asked = axes[0 if start is None else start.as_int() : None if end is None else end.as_int()]
    for value, own in inputs.values():
        for first in range(len(own) - len(asked) + 1):
            if own[first : first + len(asked)] == asked:
                node.replace_input_with(place, value)
                node.attributes["start"] = ir.AttrInt64("start", first)
                node.attributes["end"] = ir.AttrInt64("end", first + len(asked))
                return


def _like(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, shape=value.shape, type=value.type)


def _check_closed(graph: ir.Graph, values: Mapping[str | None, ir.Value]) -> None:
    """Refuse a piece that reads what is no input of it: the cut was no cut."""
    inputs = set(graph.inputs)
    for node in graph:
        for inner in within(node):
            for value in inner.inputs:
                if value is None or value in inputs or value.is_initializer():
                    continue
                if value.producer() is None and values.get(value.name) is value:
                    raise RuntimeError(f"{inner.name} reads {value.name} of another layer")
