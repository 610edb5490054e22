"""How active each MLP neuron is on visual rows; YOPO may keep the most active. See `rule` of this folder.

Activity of neuron m in layer l = mean over visual rows of |act(x W_gate) * x W_up| at m. The layers run once
more, one at a time, from the states of one full pass.
"""

import torch
from torch import Tensor

from compressor.decoder.full_pass import AtLayer, FullPass
from compressor.decoder.walks.walk import OnceALayer


def neuron_walk() -> OnceALayer:
    """Return how activity is measured."""
    return OnceALayer(_layer_activity)


@torch.inference_mode()
def neuron_activity(full: FullPass) -> Tensor:
    """Return the activity [L, M] of one prompt, float64; 0 in layers whose visual rows have no MLP."""
    return neuron_walk().of(full)


def _layer_activity(here: AtLayer) -> Tensor:
    """Return the activity [M] of one layer."""
    visual, prompt = here.visual, here.prompt
    if here.layer.frozen:
        return visual.new_zeros(prompt.decoder.dims.intermediate, dtype=torch.float64)
    neurons = here.layer.active_neurons(visual, here.text, prompt.call.all)[0, : visual.shape[1]]
    return neurons.abs().double().mean(dim=0)
