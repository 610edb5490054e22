"""How active each MLP neuron is on visual rows; YOPO may keep the most active. See `rule` of this folder.

Activity of neuron m in layer l = mean over visual rows of |act(x W_gate) * x W_up| at m. The layers run once
more, one at a time, from the states of one full pass.
"""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from compressor.decoder.full_pass import FullPass

if TYPE_CHECKING:
    from compressor.decoder.layer import DecoderLayer


@torch.inference_mode()
def neuron_activity(full: FullPass) -> Tensor:
    """Return the activity [L, M] of one prompt, float64; 0 in layers whose visual rows have no MLP."""
    return torch.stack([_layer_activity(full, index) for index in range(len(full.decoder.layers))])


def _layer_activity(full: FullPass, index: int) -> Tensor:
    """Return the activity [M] of one layer."""
    layer = cast("DecoderLayer", full.decoder.layers[index])
    visual, text = full.visual[index], full.text[index]
    if layer.frozen:
        return visual.new_zeros(full.decoder.dims.intermediate, dtype=torch.float64)
    neurons = layer.active_neurons(visual, text, full.call.all)[0, : visual.shape[1]]
    return neurons.abs().double().mean(dim=0)
