"""Predicted cost of a plan: prefill FLOPs and KV bytes, layer by layer, against the naive original.

FLOPs are multiply-adds times two of the matrix products; norms, softmax and rotations are left out.
A layer over n rows with full attention and a gated MLP of width M costs 8nD^2 + 4n^2D + 6nDM when
H * d = D and H_kv = H; grouped queries make K and V cheaper. A frozen layer with t text rows: K and V
on n rows; Q, O and MLP on t rows; attention t x n.
"""

from dataclasses import dataclass

from compressor.dims import DecoderDims
from compressor.plan import LayerPlan, Plan

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
    rows = visual + text
    busy = text if layer.frozen else rows
    projections = 4 * rows * dims.hidden * dims.kv_width + 4 * busy * dims.hidden * dims.query_width
    attention = 4 * busy * rows * dims.query_width
    mlp = 6 * busy * dims.hidden * dims.intermediate
    return projections + attention + mlp


def predict(plan: Plan) -> Cost:
    """Return the predicted cost of the plan's workload, logits for the last token only."""
    dims, visual, text = plan.model.decoder, plan.visual, plan.workload.text
    return Cost(
        layer_flops=tuple(layer_flops(dims, layer, visual, text) for layer in plan.layers),
        head_flops=2 * dims.hidden * dims.vocab,
        layer_kv_values=tuple(2 * (visual + text) * dims.kv_width for _ in plan.layers),
    )


def predicted_speedup(plan: Plan) -> float:
    """Prefill FLOPs of the naive original divided by those of the plan."""
    return predict(plan.naive()).flops / predict(plan).flops
