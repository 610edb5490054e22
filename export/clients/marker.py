"""The marker channel: how one `inputs_embeds` [B, S, D + 1] tells a decoder of two row groups apart.

Stock clients merge text and picture rows into one tensor. So the embedding graph appends a channel that is 0,
the vision graph one that is 1, and -1 for a place of the prompt whose row was not kept. In front of the
decoder rows are taken apart by it again, and their places are taken from `position_ids`.

Limitations:
    - One prompt a call: NonZero gives the places of all prompts in one list.
    - `position_ids` are places: not of models that turn rows on several axes.

Letters: B batch, S rows of a call, D hidden, I images, N rows of a tile, K of these that were kept.
"""

import numpy as np
import onnx_ir as ir

from export.clients.surgery import Nodes, port, ports, replace_input, replace_output
from export.graphs.spec import KEPT, ROWS, GraphSpec

EMBEDS, PLACES = "inputs_embeds", "position_ids"
"""The decoder's inputs in place of the two kinds of rows and of their places."""
TEXT, VISUAL, DROPPED = 0.0, 1.0, -1.0


def mark_text(model: ir.Model, spec: GraphSpec) -> None:
    """Append the channel of text rows to what the embedding graph gives: [B, T, D + 1]."""
    nodes = Nodes(model.graph, "marker")
    (rows,) = ports(spec.outputs, list(model.graph.outputs)).values()
    marked = _with_channel(nodes, rows, spec.outputs[0].numpy, 3, TEXT)
    marked.shape = ir.Shape(_wider(spec.outputs[0].axes))
    replace_output(model.graph, rows, marked)
    nodes.behind()


def mark_visual(model: ir.Model, spec: GraphSpec, tile_rows: int) -> None:
    """Append the channel of visual rows to what the vision graph gives: [I, N, D + 1], one row a place.

    Where only K of the N rows are kept, the others are rows of the mark `DROPPED`, and `kept` is no output
    any more.

    Args:
        model: the vision graph; changed in place.
        spec: its declaration, with one output of rows.
        tile_rows: N.
    """
    graph, nodes = model.graph, Nodes(model.graph, "marker")
    given = ports(spec.outputs, list(graph.outputs))
    rows, dtype = given[spec.outputs[0].name], spec.outputs[0].numpy
    marked = _with_channel(nodes, rows, dtype, 3, VISUAL)
    axes = _wider(spec.outputs[0].axes)
    if KEPT in given:
        kept = given[KEPT]
        width = nodes.numbers(int(axes[-1]))
        sizes = nodes("Concat", nodes.size(rows, 0), nodes.numbers(tile_rows), width, axis=0)
        dropped = nodes("Expand", nodes.constant(np.full((1, 1, 1), DROPPED, dtype)), sizes)
        which = nodes("Unsqueeze", kept, nodes.numbers(2))
        which = nodes("Expand", which, nodes("Shape", marked))
        marked = nodes("ScatterElements", dropped, which, marked, axis=1)
        graph.outputs.remove(kept)
        axes = (axes[0], tile_rows, axes[-1])
    marked.shape = ir.Shape(axes)
    replace_output(graph, rows, marked)
    nodes.behind()


def take_apart(model: ir.Model, spec: GraphSpec) -> None:
    """Let a decoder read `inputs_embeds` [B, S, D + 1] and `position_ids` [B, S] int64; B is 1.

    They take the place of `visual_embeds`, `inputs_embeds` [B, T, D], `visual_index` and `text_index`.
    """
    graph, nodes = model.graph, Nodes(model.graph, "marker")
    old = ports(spec.inputs, list(graph.inputs))
    hidden, dtype = int(spec.inputs[0].axes[-1]), spec.inputs[0]
    old[EMBEDS].name = f"{EMBEDS}.text"
    batch = spec.inputs[0].axes[0]
    embeds = port(EMBEDS, dtype.dtype, (batch, "sequence", hidden + 1))
    places = port(PLACES, "int64", (batch, "sequence"))
    last = nodes.numbers(-1)
    content, channel = nodes.several("Split", 2, embeds, nodes.numbers(hidden, 1), axis=2)
    channel = nodes("Reshape", channel, last)
    half = nodes.constant(np.array(0.5, dtype.numpy))
    visual = nodes("Greater", channel, half)
    text = nodes("Less", nodes("Abs", channel), half)
    for mask, rows, index in ((visual, ROWS[0], ROWS[2]), (text, ROWS[1], ROWS[3])):
        where = nodes("Reshape", nodes("NonZero", mask), last)
        replace_input(graph, old[rows], nodes("Gather", content, where, axis=1))
        replace_input(graph, old[index], nodes("Gather", places, where, axis=1))
    graph.inputs.insert(0, embeds)
    graph.inputs.insert(1, places)
    nodes.front()


def last_logits(model: ir.Model, spec: GraphSpec) -> None:
    """Let a decoder that gives the logits of all text rows give those of the last one: [B, 1, vocab]."""
    logits = spec.outputs[0]
    if logits.axes[1] == 1:
        return
    nodes = Nodes(model.graph, "last")
    old = ports(spec.outputs, list(model.graph.outputs))[logits.name]
    new = nodes("Slice", old, nodes.numbers(-1), nodes.numbers(2**31), nodes.numbers(1))
    new.shape = ir.Shape((logits.axes[0], 1, logits.axes[2]))
    replace_output(model.graph, old, new)
    nodes.behind()


def _with_channel(
    nodes: Nodes, rows: ir.Value, dtype: np.dtype, rank: int, mark: float
) -> ir.Value:
    pads = nodes.numbers(*[0] * (2 * rank - 1), 1)
    return nodes("Pad", rows, pads, nodes.constant(np.array(mark, dtype)))


def _wider(axes: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return (*axes[:-1], int(axes[-1]) + 1)
