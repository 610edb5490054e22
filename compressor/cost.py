"""Predicted cost of a plan: prefill FLOPs and KV bytes, layer by layer, against the naive original.

FLOPs are multiply-adds times two of the matrix products; norms, softmax and rotations are left out.
A layer over n rows with full attention and a gated MLP of width M costs 8nD^2 + 4n^2D + 6nDM when
H * d = D and H_kv = H; grouped queries make K and V cheaper. A frozen layer with t text rows: K and V
on n rows; Q, O and MLP on t rows; attention t x n. After an exit: everything on t rows. A gate of hidden
width W on one pair of states: 4DW + 4W.

Where gates decide, the figures are means over the exits that calibration saw; without a calibration
they are those of a prompt in which no gate fires, the dearest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compressor.dims import DecoderDims
from compressor.plan import Gates, LayerPlan, Plan

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


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


def layer_flops(dims: DecoderDims, layer: LayerPlan, visual: int, text: int) -> int:
    """FLOPs of one layer on V visual and T text rows with an empty past."""
    rows = text if layer.exited else visual + text
    busy = text if layer.frozen else rows
    projections = 4 * rows * dims.hidden * dims.kv_width + 4 * busy * dims.hidden * dims.query_width
    attention = 4 * busy * rows * dims.query_width
    mlp = 6 * busy * dims.hidden * dims.intermediate
    return projections + attention + mlp


def predict(plan: Plan) -> Cost:
    """Return the predicted cost of the plan's workload, logits for the last token only."""
    if plan.gates is None:
        return _fixed(plan)
    gates = plan.gates
    exits = [*gates.candidates, None]
    counts = [*gates.fired, gates.unfired] if gates.fired else [*(0 for _ in gates.candidates), 1]
    share = [count / max(1, sum(counts)) for count in counts]
    outcomes = [_gated(plan, gates, layer) for layer in exits]
    return Cost(
        layer_flops=_mean([o.layer_flops for o in outcomes], share),
        head_flops=outcomes[0].head_flops,
        layer_kv_values=_mean([o.layer_kv_values for o in outcomes], share),
    )


def _fixed(plan: Plan) -> Cost:
    dims, visual, text = plan.model.decoder, plan.visual, plan.workload.text
    return Cost(
        layer_flops=tuple(layer_flops(dims, layer, visual, text) for layer in plan.layers),
        head_flops=2 * dims.hidden * dims.vocab,
        layer_kv_values=tuple(
            2 * (text if layer.exited else visual + text) * dims.kv_width for layer in plan.layers
        ),
    )


def _gated(plan: Plan, gates: Gates, fired: int | None) -> Cost:
    """Cost of a prompt whose first gate to fire is behind layer `fired`, the gates' own work included."""
    width, hidden = gates.width, plan.model.decoder.hidden
    asked = [c for c in gates.candidates if fired is None or c <= fired]
    cost = _fixed(plan.fired_after(fired))
    flops = tuple(
        value + (4 * hidden * width + 4 * width if i in asked else 0)
        for i, value in enumerate(cost.layer_flops)
    )
    return replace(cost, layer_flops=flops)


def _mean(rows: Sequence[tuple[int, ...]], share: Sequence[float]) -> tuple[int, ...]:
    columns = zip(*rows, strict=True)
    return tuple(round(sum(v * s for v, s in zip(c, share, strict=True))) for c in columns)


def predicted_speedup(plan: Plan) -> float:
    """Prefill FLOPs of the naive original divided by those of the plan."""
    return predict(plan.naive()).flops / predict(plan).flops
