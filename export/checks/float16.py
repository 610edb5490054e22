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
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from compressor.errors import ProblemsError, VtcompressError
from export.checks.probes import Probe, ProbedGraph
from export.graphs.spec import GraphSpec, in_order
from export.session.session import GraphSession, Session
from export.writer.passes.float32 import (
    compute_in_float32,
    is_low,
    make_shadow,
    read_graph,
    shadow_spec,
    within,
)

if TYPE_CHECKING:
    import onnx_ir as ir
from export.results.float16 import FLOAT16_MAX, WIDE, Float16Ranges, GraphRange

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
        found = {name: _range(chain.files[name], run) for name, run in chain.in_float32().items()}
        if problems := [line for _, lines in found.values() for line in lines]:
            raise ProblemsError(problems)
        chosen = {n: set(r.float32_nodes) for n, (r, _) in found.items() if n not in ranges}
        chain.settle(chosen)
        for name, nodes in chosen.items():
            ordered = tuple(n for n in _node_names(chain.files[name]) if n in nodes)
            if ordered:
                _write(chain.files[name], nodes)
            ranges[name] = found[name][0].model_copy(update={"float32_nodes": ordered})
    ranges.pop("embed", None)
    return Float16Ranges(prompts=prompts.number, source=prompts.source, graphs=ranges)


class _Run(NamedTuple):
    """One graph's run: what its probes gave, and what each node reads."""

    largest: Mapping[Probe, float]
    reads: Mapping[str, frozenset[str]]


class _Chain:
    """The graphs from pixels and tokens to logits, run with probes inside."""

    def __init__(
        self, folder: Path, graphs: Sequence[GraphSpec], decoder: str, prompts: Prompts
    ) -> None:
        self.folder, self.graphs, self.decoder, self.prompts = folder, graphs, decoder, prompts
        self.files = {spec.name: folder / spec.file for spec in graphs}

    def in_float32(self) -> dict[str, _Run]:
        """Run the graphs' shadows."""
        return self._run([shadow_spec(spec) for spec in self.graphs], lambda _, g: make_shadow(g))

    def settle(self, chosen: dict[str, set[str]]) -> None:
        """Run the graphs in their own dtype; add nodes that overflow all the same.

        Args:
            chosen: names of nodes that are in float32, by graph; more are added.
        """

        def change(name: str, graph: "ir.Graph") -> None:
            _keep(graph, chosen.get(name, set()))

        for _ in range(MOST_ROUNDS):
            runs = self._run(self.graphs, change)
            # Those behind the first graph may have read what it should not have given.
            name, nodes = next(
                ((n, o) for n, run in runs.items() if (o := _overflow(run))), ("", ())
            )
            if not nodes:
                return
            known = chosen.get(name, set(_node_names(self.files[name])))
            more = set(nodes) & set(_node_names(self.files[name])) - known
            if not more:
                break
            chosen[name] |= more
        raise VtcompressError(
            f"{self.files[name].name}: node {nodes[0]} gives values that are not finite, and keeping it in "
            "float32 does not mend it; export with dtype bfloat16 or float32"
        )

    def _run(
        self, specs: Sequence[GraphSpec], change: "Callable[[str, ir.Graph], None]"
    ) -> dict[str, _Run]:
        probed: dict[str, ProbedGraph] = {}
        reads: dict[str, dict[str, frozenset[str]]] = {}

        def open_graph(spec: GraphSpec) -> ProbedGraph:
            model = read_graph(self.files[spec.name])
            change(spec.name, model.graph)
            reads[spec.name] = {n.name or "": _touched(n, outputs=False) for n in model.graph}
            probed[spec.name] = ProbedGraph(self.folder, spec, model)
            return probed[spec.name]

        self.prompts.run(GraphSession(specs, open_graph, self.decoder))
        return {name: _Run(graph.largest, reads[name]) for name, graph in probed.items()}


def _range(path: Path, run: _Run) -> tuple[GraphRange, list[str]]:
    """Return what a graph's shadow gave with the nodes that touch wide values, and what cannot be mended."""
    graph = read_graph(path).graph
    low = {v.name for node in graph for v in node.outputs if is_low(v)}
    low_inside = {n.name for n in graph if any(is_low(v) for i in _inside(n) for v in i.outputs)}
    sizes = {
        probe: size
        for probe, size in run.largest.items()
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
    nodes = tuple(n.name or "" for n in graph if n.name in inside or wide & _touched(n))
    given = {output.name for output in graph.outputs}
    problems = [
        f"{path.name}: {probe.value} reaches {size:,.0f}, and float16 ends at {FLOAT16_MAX:,.0f}: it leaves "
        "the graph and cannot be kept wider; export with dtype bfloat16 or float32"
        for probe, size in sizes.items()
        if size > FLOAT16_MAX and probe.value in given
    ]
    return GraphRange(largest=sizes[most], at=most.node, float32_nodes=nodes), problems


def _overflow(run: _Run) -> tuple[str, ...]:
    """Return the nodes that make values that are not finite of finite ones."""
    infinite = {probe.value for probe, size in run.largest.items() if math.isinf(size)}
    made_by = {probe.node for probe, size in run.largest.items() if math.isinf(size)}
    return tuple(n for n, read in run.reads.items() if n in made_by and not infinite & read)


def _inside(node: "ir.Node") -> "list[ir.Node]":
    return list(within(node))[1:]


def _touched(node: "ir.Node", *, outputs: bool = True) -> frozenset[str]:
    """Return the names of values that a node, its subgraphs included, reads and makes."""
    nodes = list(within(node))
    values = [v for n in nodes for v in n.inputs if v is not None]
    if outputs:
        values += [v for n in nodes for v in n.outputs]
    return frozenset(v.name for v in values if v.name)


def _node_names(path: Path) -> tuple[str, ...]:
    return tuple(node.name or "" for node in read_graph(path).graph)


def _keep(graph: "ir.Graph", nodes: Collection[str]) -> None:
    compute_in_float32(graph, [node for node in graph if node.name in nodes])


def _write(path: Path, nodes: Collection[str]) -> None:
    import onnx_ir as ir

    model = read_graph(path)
    _keep(model.graph, nodes)
    ir.save(model, path)
