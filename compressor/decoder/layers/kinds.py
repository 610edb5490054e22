"""Which kind of layer does what the plan says of it."""

from torch import nn

from compressor.contract.choice import RunRule
from compressor.decoder.layer import DecoderLayer
from compressor.decoder.layers.cut_layer import CutLayer
from compressor.decoder.layers.masked_layer import MaskedLayer
from compressor.decoder.layers.running import SomeRunCutLayer, SomeRunLayer
from compressor.decoder.places import Rotary
from compressor.facts import ModelFacts
from compressor.plan.layer import LayerPlan


def layer_of(plan: LayerPlan, model: ModelFacts, rotary: Rotary, rule: RunRule | None) -> nn.Module:
    """Return a layer of a decoder.

    Args:
        plan: of the layer.
        model: whose it is.
        rotary: of the decoder.
        rule: chooses the visual rows that run it, where not all do.

    Raises:
        ValueError: some visual rows run it alone, and there is no rule.
    """
    dims, grid = model.decoder, model.token_grid
    if plan.run is not None:
        if rule is None:
            raise ValueError(f"no rule of the visual rows that run layer {plan.index}")
        kind = SomeRunCutLayer if plan.cuts else SomeRunLayer
        return kind(dims, plan, rule, rotary)
    if plan.masked:
        return MaskedLayer(dims, plan, grid)
    return CutLayer(dims, plan, grid) if plan.cuts else DecoderLayer(dims, plan)
