"""An artifact's graphs as transformers.js runs them: its names, its caches, float32 between graphs.

What the client fixes, as version 4.3.2 has it:

- Files are `embed_tokens`, `vision_encoder` and `decoder_model_merged`, with weights beside each.
- Caches are inputs `past_key_values.N.key` and `.value` with N below the configuration's number of layers, of
  any type and length; of their axes it knows `batch_size` alone, all other names are 0 at first.
- The length of the first cache is how many rows of the prompt ran already.
- Rows that it merges are float32; pixels too.

So caches get numbers of their own, and where no cache has every row of the prompt, a clock in front of them
has: a cache [1, 1, P, 1] that counts.
"""

from dataclasses import dataclass
from itertools import count

import numpy as np
import onnx_ir as ir

from export.clients.marker import EMBEDS, last_logits, mark_text, mark_visual, take_apart
from export.clients.packing import Packing
from export.clients.surgery import ONNX_TYPES, Nodes, port, replace_input, replace_output
from export.clients.transformers_js.configuration import DECODER, EMBED, VISION
from export.graphs.spec import PAST, GraphSpec, vision_for

BATCH = "batch_size"
FULL = "past"
"""The name of the length of caches that hold every row which entered the decoder."""


@dataclass(frozen=True)
class ClientGraphs:
    """Graphs by the client's names, and what its configuration must say of them.

    Attributes:
        models: by session.
        layers: numbers that caches use, from 0.
    """

    models: dict[str, ir.Model]
    layers: int


def client_graphs(packing: Packing, decoder: str = "decoder") -> ClientGraphs:
    """Return the three graphs for a decoder of the artifact, the compressed one or the original's."""
    names = [spec.name for spec in packing.manifest.graphs]
    seen = vision_for(decoder, names)
    embed, vision, model = packing.graph("embed"), packing.graph(seen), packing.graph(decoder)
    mark_text(embed, packing.spec("embed"))
    mark_visual(vision, packing.spec(seen), packing.facts.tile_rows)
    spec = packing.spec(decoder)
    take_apart(model, spec)
    last_logits(model, spec)
    layers = _number_caches(model, spec, whole=packing.spec(seen).rows_kept is None)
    for one in (embed, vision, model):
        _name_batch(one)
        _float32_between(one)
    return ClientGraphs({EMBED: embed, VISION: vision, DECODER: model}, layers)


def _number_caches(model: ir.Model, spec: GraphSpec, *, whole: bool) -> int:
    """Give caches the client's names, one with every row of the prompt first; return how many numbers.

    Args:
        model: the decoder.
        spec: its declaration.
        whole: every row of the prompt enters it.
    """
    graph = model.graph
    given, taken = ({v.name: v for v in values} for values in (graph.inputs, graph.outputs))
    pairs = _pairs(spec)
    full = [names for names, length in pairs if length == FULL][:whole]
    if not full:
        _add_clock(graph)
    ordered = full + [names for names, _ in pairs if names not in full]
    number = first = int(not full)
    for number, names in zip(count(first), ordered, strict=False):
        for part, (past, present) in zip(("key", "value"), names, strict=False):
            old, new = given[past], taken[present]
            old.name, new.name = f"{PAST}.{number}.{part}", f"present.{number}.{part}"
            for values, value in ((graph.inputs, old), (graph.outputs, new)):
                values.remove(value)
                values.append(value)
    return number + 1


def _pairs(spec: GraphSpec) -> list[tuple[tuple[tuple[str, str], ...], str]]:
    """Return what is cached: names of (past, present) that belong together, and the name of their length."""
    presents = [t.name for t in spec.outputs[-len(spec.cached) :]]
    told = list(zip(spec.cached, presents, strict=True))
    found = []
    while told:
        (past, present), *told = told
        names = [(past.name, present)]
        axis = next((a for a in past.axes[1:] if isinstance(a, str)), "")
        if past.name.endswith("key"):
            names.append((told[0][0].name, told[0][1]))
            told = told[1:]
        found.append((tuple(names), axis))
    return found


def _add_clock(graph: ir.Graph) -> None:
    nodes = Nodes(graph, "clock")
    (embeds,) = (value for value in graph.inputs if value.name == EMBEDS)
    past = port(f"{PAST}.0.key", "float32", (BATCH, 1, "ran", 1))
    one = nodes.numbers(1)
    rows = nodes("Concat", one, one, nodes.size(embeds, 1), one, axis=0)
    ticks = nodes("Expand", nodes.constant(np.zeros((1, 1, 1, 1), np.float32)), rows)
    present = nodes("Concat", past, ticks, axis=2)
    present.name = "present.0.key"
    present.shape, present.type = ir.Shape((BATCH, 1, "run", 1)), past.type
    cached = next(i for i, value in enumerate(graph.inputs) if (value.name or "").startswith(PAST))
    graph.inputs.insert(cached, past)
    graph.outputs.insert(1, present)
    nodes.front()


def _name_batch(model: ir.Model) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and value.shape[0] == "batch":
            value.shape = ir.Shape((BATCH, *value.shape[1:]))


def _float32_between(model: ir.Model) -> None:
    """Let pixels come, and rows come and go, in float32, whatever the graph computes in."""
    graph = model.graph
    half, whole = ONNX_TYPES["float16"], ONNX_TYPES["float32"]
    for value in list(graph.inputs):
        if value.dtype != half or (value.name or "").startswith(PAST):
            continue
        nodes = Nodes(graph, f"float32.{value.name}")
        new = ir.Value(name=value.name, shape=value.shape, type=ir.TensorType(whole))
        place = list(graph.inputs).index(value)
        value.name = f"{value.name}.half"
        replace_input(graph, value, nodes("Cast", new, to=half))
        graph.inputs.insert(place, new)
        nodes.front()
    for value in list(graph.outputs):
        if value.dtype != half or (value.name or "").startswith("present"):
            continue
        nodes = Nodes(graph, f"float32.{value.name}")
        new = nodes("Cast", value, to=whole)
        new.shape, new.type = value.shape, ir.TensorType(whole)
        replace_output(graph, value, new)
        nodes.behind()
