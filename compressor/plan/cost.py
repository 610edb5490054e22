"""Predicted cost of a plan: prefill FLOPs and KV bytes, layer by layer, against the naive original.

FLOPs are multiply-adds times two of the matrix products; norms, softmax and rotations are left out.
A layer over n rows with full attention and a gated MLP of width M costs 8nD^2 + 4n^2D + 6nDM when
H * d = D and H_kv = H; grouped queries make K and V cheaper. A frozen layer with t text rows: K and V
on n rows; Q, O and MLP on t rows; attention t x n. After an exit: everything on t rows. A gate of hidden
width W on one pair of states: 4DW + 4W.

Where visual tokens take part in some heads alone, the others do everything on t rows, attention t x t. In a
window of side w on a grid of width g a visual row reads a band of w * g visual keys and t text keys. Neurons
that visual rows do not use run on t rows, and so does an operator that they go without. Where k of n visual
rows go on, a layer has k; where k of n run it, it costs what it costs of k, and 2Dw for each row that a
router of w outputs reads. Where n rows of a tile become m, a layer has these, and making V of them costs 2VnD
in front of it. Masked layers run attention in full, whatever they mask.

Where gates decide, the figures are means over the exits that calibration saw; without a calibration
they are those of a prompt in which no gate fires, the dearest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from compressor.facts import DecoderDims
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Gates, Plan

BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}


@dataclass(frozen=True)
class Cost:
    """Predicted figures of one plan for its workload, a prefill from an empty cache.

    Attributes:
        layer_flops: per decoder layer.
        head_flops: of the output embedding, for the rows whose logits are asked for.
        layer_kv_values: numbers kept in the KV cache per layer after the prefill (K and V together).
    """

    layer_flops: tuple[int, ...]
    head_flops: int
    layer_kv_values: tuple[int, ...]

    @property
    def flops(self) -> int:
        """Of the whole prefill."""
        return sum(self.layer_flops) + self.head_flops

    def kv_bytes(self, dtype: str) -> int:
        """Bytes of the KV cache after the prefill."""
        return sum(self.layer_kv_values) * BYTES[dtype]


class LayerWork(NamedTuple):
    """FLOPs of one layer by what is multiplied.

    Attributes:
        router: rows by a router's matrix.
        projections: rows by the matrices of queries, keys, values and output.
        attention: queries by keys, and weights by values.
        mlp: rows by the MLP's matrices.
    """

    router: int
    projections: int
    attention: int
    mlp: int


BAND_OVERHEAD = 2.75
"""Time of one FLOP of attention in bands divided by that of one of full attention.

Measured on ONNX Runtime's CPU in float32 (`benchmarks.cuts`: 8 layers, hidden 1024, 16 heads, MLP 2752, 64
text rows): a 5 x 5 window alone, and the dead rows of the last layer, made the prefill 1.11 times as fast at
576 visual tokens (24 x 24), and 1.64 times at 2,916 (54 x 54). Let a FLOP outside attention cost 1, one of
full attention a, one of bands b: the two measurements give a = 2.05 and b = 5.64. Other runs gave from 1.9
to 2.9 for b / a. Another backend may differ; predicted FLOPs do not contain it.
"""

PAYS_BELOW = 0.9
"""Share of full attention's predicted time below which a window pays.

Less than 1, because runs differ in the overhead, and a window costs accuracy and some of each decode step.
"""


def band_ratio(window: int, grid: tuple[int, int], visual: int, text: int) -> float:
    """Return the predicted time of attention in bands divided by full attention's; see `PAYS_BELOW`.

    Args:
        window: side of the square of neighbours.
        grid: rows and columns of one image's visual tokens.
        visual: V, of all images.
        text: T.
    """
    pairs = _band_pairs(window, grid, visual, text)
    return BAND_OVERHEAD * pairs / (visual + text) ** 2


def layer_flops(
    dims: DecoderDims,
    layer: LayerPlan,
    visual: int,
    text: int,
    grid: tuple[int, int] | None = None,
) -> int:
    """FLOPs of one layer on V visual and T text rows with an empty past; arguments as `layer_work`."""
    return sum(layer_work(dims, layer, visual, text, grid))


def layer_work(
    dims: DecoderDims,
    layer: LayerPlan,
    visual: int,
    text: int,
    grid: tuple[int, int] | None = None,
) -> LayerWork:
    """Return the FLOPs of one layer on V visual and T text rows with an empty past.

    Args:
        dims: of the decoder.
        layer: what visual rows do.
        visual: V that are there.
        text: T.
        grid: rows and columns of one image's visual tokens; needed for a window.
    """
    router = 0 if layer.run is None else 2 * dims.hidden * layer.run.outputs * (visual + text)
    visual = layer.running(visual)
    rows = text if layer.exited else visual + text
    busy = text if layer.frozen or layer.without == "attention" else rows
    seen = _seen_groups(dims, layer)
    unseen, group = dims.kv_heads - seen, dims.heads // dims.kv_heads
    query_rows = group * (seen * busy + unseen * text)  # summed over heads, as all that follow
    key_rows = seen * rows + unseen * text
    pairs = busy * rows
    if in_bands(layer):
        if grid is None:
            raise ValueError("a window needs a token grid")
        pairs = _band_pairs(layer.window or 0, grid, visual, text)
    pairs = group * (seen * pairs + unseen * text * text)
    used = dims.intermediate if layer.neurons is None else len(layer.neurons)
    used_rows = text if layer.frozen or layer.without == "mlp" else rows
    neuron_rows = used * used_rows + (dims.intermediate - used) * text
    return LayerWork(
        router=router,
        projections=4 * dims.hidden * dims.head_dim * (query_rows + key_rows),
        attention=4 * dims.head_dim * pairs,
        mlp=6 * dims.hidden * neuron_rows,
    )


def in_bands(layer: LayerPlan) -> bool:
    """Return whether visual rows read a window in bands of keys; masked layers attend in full."""
    return layer.window is not None and not layer.masked


def layer_kv_values(dims: DecoderDims, layer: LayerPlan, visual: int, text: int) -> int:
    """Numbers in one layer's KV cache after a prefill of V visual and T text rows, K and V together."""
    rows = text if layer.exited else layer.running(visual) + text
    seen = _seen_groups(dims, layer)
    return 2 * dims.head_dim * (seen * rows + (dims.kv_heads - seen) * text)


def _seen_groups(dims: DecoderDims, layer: LayerPlan) -> int:
    """Return in how many key/value heads visual rows are computed; masked ones are."""
    return len(layer.groups) if layer.groups is not None and not layer.masked else dims.kv_heads


def _band_pairs(window: int, grid: tuple[int, int], visual: int, text: int) -> int:
    """Return how many pairs of query and key attention in bands looks at, in one head."""
    return visual * (window * grid[1] + text) + text * (visual + text)


def predict(plan: Plan) -> Cost:
    """Return the predicted cost of the plan's workload, logits for the last token only."""
    if plan.gates is None:
        return _fixed(plan)
    gates = plan.gates
    exits, share = zip(*shares_of_exits(gates), strict=True)
    outcomes = [_gated(plan, gates, layer) for layer in exits]
    return Cost(
        layer_flops=_mean([o.layer_flops for o in outcomes], share),
        head_flops=outcomes[0].head_flops,
        layer_kv_values=_mean([o.layer_kv_values for o in outcomes], share),
    )


def shares_of_exits(gates: Gates) -> tuple[tuple[int | None, float], ...]:
    """Return behind which layer gates fire first, None: behind none, and the share of such prompts."""
    exits = (*gates.candidates, None)
    counts = [*gates.fired, gates.unfired] if gates.fired else [*(0 for _ in gates.candidates), 1]
    total = max(1, sum(counts))
    return tuple((layer, count / total) for layer, count in zip(exits, counts, strict=True))


def _fixed(plan: Plan) -> Cost:
    dims, text, grid = plan.model.decoder, plan.workload.text, plan.model.token_grid
    rows = list(zip(plan.layers, plan.rows_of_layers(plan.visual), strict=True))
    made = {i: 2 * grown.of * dims.hidden for i, grown in plan.grows().items()}
    return Cost(
        layer_flops=tuple(
            layer_flops(dims, layer, v, text, grid) + made.get(layer.index, 0) * v
            for layer, v in rows
        ),
        head_flops=2 * dims.hidden * dims.vocab,
        layer_kv_values=tuple(layer_kv_values(dims, layer, v, text) for layer, v in rows),
    )


def _gated(plan: Plan, gates: Gates, fired: int | None) -> Cost:
    """Cost of a prompt whose first gate to fire is behind layer `fired`, the gates' own work included."""
    asked = gates_asked(gates, fired)
    cost = _fixed(plan.fired_after(fired))
    flops = tuple(
        value + (gate_flops(plan.model.decoder, gates) if i in asked else 0)
        for i, value in enumerate(cost.layer_flops)
    )
    return replace(cost, layer_flops=flops)


def gates_asked(gates: Gates, fired: int | None) -> list[int]:
    """Return behind which layers a gate is asked where the first to fire is behind layer `fired`."""
    return [c for c in gates.candidates if fired is None or c <= fired]


def gate_flops(dims: DecoderDims, gates: Gates) -> int:
    """FLOPs of one gate."""
    return 4 * dims.hidden * gates.width + 4 * gates.width


def _mean(rows: Sequence[tuple[int, ...]], share: Sequence[float]) -> tuple[int, ...]:
    columns = zip(*rows, strict=True)
    return tuple(round(sum(v * s for v, s in zip(c, share, strict=True))) for c in columns)


def predicted_speedup(plan: Plan) -> float:
    """Prefill FLOPs of the naive original divided by those of the plan."""
    return predict(plan.naive()).flops / predict(plan).flops
