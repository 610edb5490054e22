"""How active each MLP neuron is on visual rows; YOPO may keep the most active. See `rule` of this folder.

Activity of neuron m in layer l = mean over visual rows of |act(x W_gate) * x W_up| at m. The layers run once
more, one at a time, from the states of one full pass.
"""

from typing import TYPE_CHECKING, Any, cast

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
    found = [torch.zeros(full.decoder.dims.intermediate, dtype=torch.float64)]

    def look(_: Any, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0][0, : visual.shape[1]].abs().double().mean(dim=0))

    if not layer.frozen:
        # What the last projection is given is the product of activation and up projection.
        handle = layer.mlp.down.register_forward_pre_hook(look)
        try:
            layer(visual, text, full.call, full.decoder.empty_past(1)[index])
        finally:
            handle.remove()
    return found[-1]
