"""ShortV's layer contribution: how much the next token depends on visual rows being updated in a layer.

KL(p_i || p) at the last prompt token: p is the original distribution, p_i the one with layer i's attention
and MLP deltas zeroed on visual rows. Source: see `compressor.passes.shortv`.

Freezing layer i leaves all up to layer i and the text rows' output of layer i as they were. So one full
pass is kept, and only layers i + 1 .. L - 1 run again: about half the layer passes of L full runs.
"""

import torch
from torch import Tensor

from compressor.decoder import Decoder


def kl_divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Return KL(softmax(logits) || softmax(reference)) in nats over the last axis, in float64."""
    log_p = torch.log_softmax(logits.double(), dim=-1)
    log_q = torch.log_softmax(reference.double(), dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


@torch.inference_mode()
def layer_contribution(
    decoder: Decoder, visual: Tensor, text: Tensor, visual_index: Tensor, text_index: Tensor
) -> Tensor:
    """Return the layer contribution [L] of one prompt, in nats, float64.

    Args:
        decoder: the original's decoder, nothing frozen that matters to the logits.
        visual: visual embeddings [1, V, D], V >= 1.
        text: text embeddings [1, T, D].
        visual_index: [1, V] places in the prompt.
        text_index: [1, T] places in the prompt.
    """
    call = decoder.places(visual_index, text_index, text.dtype).call(0, text.shape[1])
    empty = decoder.empty_past(1)

    def run(first: int, visual: Tensor, text: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Run layers from `first` on; return last-token logits, and visual rows in and text rows out."""
        states = []
        for layer, past in zip(decoder.layers[first:], empty[first:], strict=True):
            entering = visual
            visual, text, _ = layer(visual, text, call, past)
            states.append((entering, text))
        return decoder.next_token_logits(text)[0, -1], states

    original, states = run(0, visual, text)
    frozen = [run(i + 1, entering, leaving)[0] for i, (entering, leaving) in enumerate(states)]
    return kl_divergence(torch.stack(frozen), original)
