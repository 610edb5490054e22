"""Caches as clients count them: one pair a layer, all heads, as many rows as the conversation has tokens.

A decoder's caches may be shorter: behind an exit, of heads that read text alone, or where a part of the
visual rows goes on. Clients that allocate them take every token for a row. So `present` gets rows of a
`SENTINEL` in front of the real ones, up to the length of `attention_mask`; the next step counts these rows in
one cache of each length and cuts them off.

Limitations:
    - What behind an exit is saved is work: the client's caches are as large as without it.
    - A real value above `MOST` would be taken for a sentinel; float16 holds none above 65504.

Letters: B batch, G heads of a cache, H key/value heads of the model, P past rows, d head size.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compressor.plan.plan import Cache
from export.clients.surgery import Nodes, port, ports, replace_input
from export.graphs.spec import PAST, GraphSpec, TensorSpec, caches_of

MASK = "attention_mask"
SENTINEL, MOST = 65504.0, 60000.0
PARTS = ("key", "value")


class LayerCaches:
    """Turns a decoder's caches into one pair [B, H, P, d] for each layer, of full length.

    Args:
        model: the decoder; changed by `replace`.
        spec: its declaration.
        heads: H.
        short: names of lengths that are not the conversation's, such as `past_text`.
    """

    def __init__(self, model: ir.Model, spec: GraphSpec, heads: int, short: frozenset[str]) -> None:
        self._graph, self._spec, self._heads, self._short = model.graph, spec, heads, short
        self._front, self._behind = Nodes(model.graph, "past"), Nodes(model.graph, "padded")
        self._inputs = ports(spec.cached, list(model.graph.inputs))
        self._outputs = ports(spec.outputs, list(model.graph.outputs))
        self._counts: dict[str, ir.Value] = {}
        self._total: ir.Value | None = None
        self._layers: dict[int, list[Cache]] = defaultdict(list)
        for cache in caches_of(spec.inputs):
            self._layers[cache.layer].append(cache)

    def replace(self) -> None:
        """Change the graph, which takes `attention_mask` [B, total] from then on."""
        mask = port(MASK, "int64", (self._spec.inputs[0].axes[0], "total"))
        self._graph.inputs.insert(2, mask)
        self._total = self._behind.size(mask, 1)
        for layer, caches in self._layers.items():
            if self._is_plain(caches):
                continue
            for part in PARTS:
                self._take_apart(layer, caches, part)
                self._join(layer, caches, part)
        self._front.front()
        self._behind.behind()

    def _is_plain(self, caches: Sequence[Cache]) -> bool:
        (first, *others) = caches
        plain = not others and first.groups == self._heads and not first.part
        return plain and first.length not in self._short

    def _take_apart(self, layer: int, caches: Sequence[Cache], part: str) -> None:
        nodes, spec = self._front, self._tensor(caches[0], part)
        olds = [self._inputs[self._tensor(cache, part).name] for cache in caches]
        at = list(self._graph.inputs).index(olds[0])
        axes = (spec.axes[0], self._heads, "past", spec.axes[-1])
        for old in olds:
            old.name = f"{old.name}.inner"
        whole = port(f"{PAST}.{layer}.{part}", spec.dtype, axes)
        pieces = [whole]
        if (sizes := self._sizes(caches)) != [self._heads]:
            pieces = nodes.several("Split", len(sizes), whole, nodes.numbers(*sizes), axis=1)
        for cache, old, piece in zip(caches, olds, pieces, strict=False):
            new = piece
            if cache.length in self._short:
                new = self._without_sentinels(cache.length, piece)
            replace_input(self._graph, old, new)
        self._graph.inputs.insert(at, whole)

    def _without_sentinels(self, length: str, piece: ir.Value) -> ir.Value:
        nodes = self._front
        if length not in self._counts:
            start, end = nodes.numbers(0, 0, 0), nodes.numbers(1, 1, 1)
            column = nodes("Slice", piece, start, end, nodes.numbers(0, 1, 3))
            column = nodes("Cast", column, to=ir.DataType.FLOAT)
            above = nodes("Greater", column, nodes.constant(np.array(MOST, np.float32)))
            which = nodes("Cast", above, to=ir.DataType.INT64)
            count = nodes("ReduceSum", which, keepdims=0)
            self._counts[length] = nodes("Reshape", count, nodes.numbers(1))
        end = nodes.numbers(2**31)
        return nodes("Slice", piece, self._counts[length], end, nodes.numbers(2))

    def _join(self, layer: int, caches: Sequence[Cache], part: str) -> None:
        nodes = self._behind
        pieces = []
        for cache in caches:
            spec = self._tensor(cache, part)
            old = self._outputs[spec.name.replace(PAST, "present", 1)]
            at = list(self._graph.outputs).index(old)
            old.name = f"{old.name}.inner"
            self._graph.outputs.remove(old)
            piece = self._padded(old, cache.groups, spec) if cache.length in self._short else old
            pieces.append(piece)
            if cache is caches[0]:
                first, axes = at, (spec.axes[0], self._heads, "total", spec.axes[-1])
        if idle := self._heads - sum(cache.groups for cache in caches):
            pieces.append(self._filled(idle, self._total, self._tensor(caches[0], part), 0.0))
        whole = nodes("Concat", *pieces, axis=1) if len(pieces) > 1 else pieces[0]
        whole.name = f"present.{layer}.{part}"
        whole.shape = ir.Shape(axes)
        whole.type = port("", spec.dtype, axes).type
        self._graph.outputs.insert(first, whole)

    def _padded(self, rows: ir.Value, heads: int, spec: TensorSpec) -> ir.Value:
        nodes = self._behind
        missing = nodes("Sub", self._total, nodes.size(rows, 2))
        return nodes("Concat", self._filled(heads, missing, spec, SENTINEL), rows, axis=2)

    def _filled(
        self, heads: int, rows: ir.Value | None, spec: TensorSpec, number: float
    ) -> ir.Value:
        nodes = self._behind
        value = nodes.constant(np.full((1, 1, 1, 1), number, spec.numpy))
        sizes = (nodes.numbers(1, heads), rows, nodes.numbers(int(spec.axes[-1])))
        return nodes("Expand", value, nodes("Concat", *sizes, axis=0))

    def _sizes(self, caches: Sequence[Cache]) -> list[int]:
        sizes = [cache.groups for cache in caches]
        idle = self._heads - sum(sizes)
        return [*sizes, idle] if idle else sizes

    def _tensor(self, cache: Cache, part: str) -> TensorSpec:
        name = f"{PAST}.{cache.layer}.{cache.part}{part}"
        return next(spec for spec in self._spec.inputs if spec.name == name)


def short_lengths(spec: GraphSpec, *, chooses: bool) -> frozenset[str]:
    """Return the names of lengths of a decoder's caches that are not the conversation's.

    Args:
        spec: the decoder's declaration.
        chooses: a part of the visual rows is gone in front of the decoder.
    """
    lengths = {cache.length for cache in caches_of(spec.inputs)}
    return frozenset(lengths if chooses else lengths - {"past"})
