"""ShortV's layer contribution: how much the next token depends on visual rows being updated in a layer.

KL(p_i || p) at the last prompt token: p is the original distribution, p_i the one with layer i's attention
and MLP deltas zeroed on visual rows. Source: see `compressor.methods.shortv`.

Freezing layer i leaves all up to layer i and the text rows' output of layer i as they were. So only layers
i + 1 .. L - 1 run again after the full pass: about half the layer passes of L full runs.
"""

import torch
from torch import Tensor

from compressor.decoder.full_pass import FullPass, kl_divergence


@torch.inference_mode()
def layer_contribution(full: FullPass) -> Tensor:
    """Return the layer contribution [L] of one prompt, in nats, float64."""
    decoder = full.decoder
    empty = decoder.empty_past(1)

    def frozen(index: int) -> Tensor:
        visual, text = full.visual[index], full.text[index + 1]
        later = decoder.layers[index + 1 :]
        for layer, past in zip(later, empty[index + 1 :], strict=True):
            visual, text, _ = layer(visual, text, full.call, past)
        return decoder.next_token_logits(text)[0, -1]

    logits = torch.stack([frozen(index) for index in range(len(decoder.layers))])
    return kl_divergence(logits, full.logits)
