"""Finds where states lie between the layers of written graphs, and records them while an artifact is made."""

import re
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from compressor.facts import ModelFacts
from export.artifact.onnx_header import more_outputs
from export.backends.checked_on import OnnxGraph
from export.checks.bfloat16 import open_for_checks
from export.checks.by_layer.pieces import SIZES, states_in
from export.checks.known.answers import KnownGraphs, KnownLayer, LayerEnd
from export.checks.known.judge import worst_of
from export.checks.known.locate import states_of, told_layers
from export.graphs.spec import GraphSpec, in_order
from export.results.fidelity import Difference
from export.writer.passes.float32 import make_shadow, read_graph, shadow_spec, within

# In a stage's graph the layers are those of its decoder.
LAYER_OF = re.compile(r"^(?:decoder\.)?layers\.(\d+)\.")


def record_layers(
    folder: Path,
    graphs: Sequence[GraphSpec],
    facts: ModelFacts,
    dtype: str,
    known: KnownGraphs,
    *,
    exact: bool = True,
) -> tuple[KnownLayer, ...]:
    """Return the states between layers on the way of the made-up call.

    Where they are computed exactly, weights stay in the mapped file: the graphs run once.

    Args:
        folder: the artifact under construction.
        graphs: its graphs.
        facts: of the model.
        dtype: of the graphs.
        known: of the made-up calls.
        exact: as checks compute; False: as users' sessions do, which round inputs of whole numbers.
    """
    ends = [end for spec in in_order(graphs, "decoder") for end in layer_ends(folder, spec, facts)]

    def watch(spec: GraphSpec, names: Sequence[str]) -> OnnxGraph:
        model = read_graph(folder / spec.file)
        if dtype == "bfloat16":
            make_shadow(model.graph)
            spec = shadow_spec(spec)
        content = ir.to_proto(model).SerializeToString() + more_outputs(names)
        # Else casts of weights are folded into copies of all of them.
        whole = dtype != "float16"
        return OnnxGraph(folder, spec, content=content, exact=exact, mapped=exact, optimized=whole)

    session = open_for_checks(folder, graphs, dtype, mapped=True)
    _, found = states_of(session, facts, known, watch, ends)
    return told_layers(ends, found)


def states_apart(known: Sequence[KnownLayer], found: Sequence[KnownLayer]) -> Difference | None:
    """Return how far states between layers are from the known ones, at most; None: there are none."""
    differences = []
    for one, other in zip(known, found, strict=False):
        pairs = [(one.text_states, other.text_states)]
        if one.visual_states is not None and other.visual_states is not None:
            pairs.append((one.visual_states, other.visual_states))
        told = [wanted.against(got, "states") for wanted, got in pairs]
        differences += [each for each in told if isinstance(each, Difference)]
    return worst_of(differences)


def layer_ends(folder: Path, spec: GraphSpec, facts: ModelFacts) -> list[LayerEnd]:
    """Return where states lie behind each layer of a decoder's graph that they can be told behind."""
    graph = read_graph(folder / spec.file).graph
    nodes = list(graph)
    first: dict[int, int] = {}
    last = 0
    for place, node in enumerate(nodes):
        if number := LAYER_OF.match(node.name or ""):
            first.setdefault(int(number[1]), place)
            last = place
    if not first:
        return []
    # Behind the last layer its rows are parted, which no module's name tells.
    behind = (p for p in range(last + 1, len(nodes)) if nodes[p].op_type != "Split")
    layers = sorted(first)
    ends = [*(first[layer] for layer in layers[1:]), next(behind, len(nodes))]
    places = {inner: place for place, node in enumerate(nodes) for inner in within(node)}
    states = [v for v in states_in(graph) if _is_states(v, facts.decoder.hidden)]
    found: list[LayerEnd] = []
    seen: set[str] = set()
    for layer, end in zip(layers, ends, strict=True):
        crossing = {_of_text(v): v.name or "" for v in states if _crosses(v, places, end, graph)}
        text, visual = crossing.get(True), crossing.get(False)
        if text is None or text in seen:
            continue
        visual = None if visual in seen else visual
        seen |= {name for name in (text, visual) if name is not None}
        found.append(LayerEnd(graph=spec.name, layer=layer, text=text, visual=visual))
    return found


def _is_states(value: ir.Value, hidden: int) -> bool:
    """Whether a value that a node made holds rows of the decoder's width."""
    shape = value.shape
    made = value.producer() is not None and value.name is not None
    return made and shape is not None and len(shape) == 3 and shape[2] == hidden


def _of_text(value: ir.Value) -> bool:
    return value.shape is not None and str(value.shape[1]) == "text"


def _crosses(value: ir.Value, places: dict[ir.Node, int], end: int, graph: ir.Graph) -> bool:
    """Whether nodes in front of a place make a value that nodes behind it, or the graph's caller, read."""
    maker = value.producer()
    if maker is None or places.get(maker, end) >= end:
        return False
    readers = (use.node for use in value.uses() if use.node.op_type not in SIZES)
    return value in graph.outputs or any(places[node] >= end for node in readers)
