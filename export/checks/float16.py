"""Finds by running which nodes of float16 graphs meet values too large for float16; they stay in float32.

A first run computes everything in float32 and looks at the largest magnitude of every value that the graph
keeps in float16. A value above `WIDE` is wide: the nodes that make it or read it are put in float32. So a
wide residual stream stays float32 through its sums, and only a norm's output goes back. A second run is of
the graphs as they then are, every value rounded to its dtype: a node that turns finite values into infinite
ones overflows within, and is put in float32 too.

Limitations:
    - Found on the prompts that were run; another prompt may need more. `WIDE` leaves a factor of two.
    - What a node does inside is that of ONNX Runtime's CPU, which adds up float16 products in float32.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from compressor.errors import ProblemsError, VtcompressError
from export.checks.probes import Probe, ProbedGraph
from export.graphs.spec import GraphSpec, in_order
from export.results.float16 import FLOAT16_MAX, WIDE, Float16Ranges, GraphRange
from export.session.session import GraphSession, Session
from export.writer.passes.float32 import (
    is_low,
    made_by,
    make_shadow,
    read_by,
    read_graph,
    shadow_spec,
    within,
)
from export.writer.passes.wide import Wide

if TYPE_CHECKING:
    import onnx_ir as ir

# Each round puts nodes in float32 that overflowed in the one before.
MOST_ROUNDS = 8


class Prompts(NamedTuple):
    """What the graphs are run on.

    Attributes:
        run: runs all prompts on a session.
        number: how many.
        source: where they are from, in words.
    """

    run: Callable[[Session], None]
    number: int
    source: str


def keep_wide(folder: Path, graphs: Sequence[GraphSpec], prompts: Prompts) -> Float16Ranges:
    """Put nodes of an artifact's float16 graphs in float32 where values need it; no other graph is written.

    Args:
        folder: of the graphs.
        graphs: all of the artifact's.
        prompts: to run.

    Raises:
        VtcompressError: a graph's own output does not fit into float16, or a node gives values that are not
            finite in float32 either; names it.
    """
    ranges: dict[str, GraphRange] = {}
    for decoder in ("decoder", "baseline_decoder"):
        if not in_order(graphs, decoder):
            continue
        chain = _Chain(folder, graphs, decoder, prompts)
        shadows = [shadow_spec(spec) for spec in graphs]
        sizes = chain.run(shadows, lambda _, model: make_shadow(model.graph))
        found = {name: _range(chain.files[name], largest) for name, largest in sizes.items()}
        if problems := [line for _, lines in found.values() for line in lines]:
            raise ProblemsError(problems)
        chosen = {n: set(r.float32_nodes) for n, (r, _) in found.items() if n not in ranges}
        chain.settle(chosen)
        for name, nodes in chosen.items():
            model = read_graph(chain.files[name])
            ordered = tuple(n for n in _names(model) if n in nodes)
            if ordered:
                Wide(ordered).run(model)
                _save(model, chain.files[name])
            ranges[name] = found[name][0].model_copy(update={"float32_nodes": ordered})
    ranges.pop("embed", None)
    return Float16Ranges(prompts=prompts.number, source=prompts.source, graphs=ranges)


class _Chain:
    """The graphs from pixels and tokens to logits, run with probes inside."""

    def __init__(
        self, folder: Path, graphs: Sequence[GraphSpec], decoder: str, prompts: Prompts
    ) -> None:
        self.folder, self.graphs, self.decoder, self.prompts = folder, graphs, decoder, prompts
        self.files = {spec.name: folder / spec.file for spec in graphs}

    def run(
        self, specs: Sequence[GraphSpec], change: "Callable[[str, ir.Model], None]"
    ) -> "dict[str, Mapping[Probe, float]]":
        """Run the prompts on changed graphs; return what the probes of each gave."""
        largest: dict[str, Mapping[Probe, float]] = {}

        def open_graph(spec: GraphSpec) -> ProbedGraph:
            model = read_graph(self.files[spec.name])
            change(spec.name, model)
            graph = ProbedGraph(self.folder, spec, model)
            largest[spec.name] = graph.largest
            return graph

        self.prompts.run(GraphSession(specs, open_graph, self.decoder))
        return largest

    def settle(self, chosen: dict[str, set[str]]) -> None:
        """Run the graphs in their own dtype; add nodes that overflow all the same.

        Args:
            chosen: names of nodes that are in float32, by graph; more are added.
        """
        for _ in range(MOST_ROUNDS):
            sizes = self.run(self.graphs, lambda name, m: Wide(chosen.get(name, ())).run(m))
            # Those behind the first graph may have read what it should not have given.
            found = ((name, o) for name, largest in sizes.items() if (o := _overflow(largest)))
            name, nodes = next(found, ("", ()))
            if not nodes:
                return
            own = set(_names(read_graph(self.files[name])))
            more = set(nodes) & own - chosen.get(name, own)
            if not more:
                break
            chosen[name] |= more
        raise VtcompressError(
            f"{self.files[name].name}: node {nodes[0]} gives values that are not finite, and keeping it in "
            "float32 does not mend it; export with dtype bfloat16 or float32"
        )


def _range(path: Path, largest: "Mapping[Probe, float]") -> tuple[GraphRange, list[str]]:
    """Return what a graph's shadow gave with the nodes that touch wide values, and what cannot be mended."""
    graph = read_graph(path).graph
    low = {v.name for node in graph for v in node.outputs if is_low(v)}
    low_inside = {
        n.name for n in graph for i in within(n) if i is not n and any(map(is_low, i.outputs))
    }
    sizes = {
        probe: size
        for probe, size in largest.items()
        if (probe.value in low if probe.value else probe.node in low_inside)
    }
    if not sizes:
        return GraphRange(largest=0.0, at=""), []
    most = max(sizes, key=lambda probe: sizes[probe])
    if not math.isfinite(sizes[most]):
        line = f"{path.name}: node {most.node} gives values that are not finite, in float32 too"
        return GraphRange(largest=0.0, at=""), [f"{line}; check the model's weights"]
    wide = {probe.value for probe, size in sizes.items() if size > WIDE and probe.value}
    inside = {probe.node for probe, size in sizes.items() if size > WIDE and not probe.value}
    nodes = tuple(
        n.name or "" for n in graph if n.name in inside or wide & (read_by(n) | made_by(n))
    )
    given = {output.name for output in graph.outputs}
    problems = [
        f"{path.name}: {probe.value} reaches {size:,.0f}, and float16 ends at {FLOAT16_MAX:,.0f}: it leaves "
        "the graph and cannot be kept wider; export with dtype bfloat16 or float32"
        for probe, size in sizes.items()
        if size > FLOAT16_MAX and probe.value in given
    ]
    return GraphRange(largest=sizes[most], at=most.node, float32_nodes=nodes), problems


def _overflow(largest: "Mapping[Probe, float]") -> tuple[str, ...]:
    """Return the nodes that make values that are not finite of finite ones."""
    infinite = {probe for probe, size in largest.items() if math.isinf(size)}
    values = {probe.value for probe in infinite}
    return tuple({p.node: None for p in largest if p in infinite and not values & p.reads})


def _names(model: "ir.Model") -> tuple[str, ...]:
    return tuple(node.name or "" for node in model.graph)


def _save(model: "ir.Model", path: Path) -> None:
    import onnx_ir as ir

    ir.save(model, path)
