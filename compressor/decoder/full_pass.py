"""One pass of the original over a prompt whose states every measurement starts from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.decoder import Decoder
from compressor.decoder.layer import Call
from compressor.decoder.model import CallPlaces


@dataclass(frozen=True)
class FullPass:
    """States of one prompt in the original's decoder.

    Attributes:
        decoder: that ran.
        places: of its rows, with their rotations.
        call: masks and rotations.
        visual: [L] visual rows [1, V, D] at the input of each layer.
        text: [L + 1] text rows [1, T, D] at the input of each layer, and behind the last.
        visual_index: [1, V].
        text_index: [1, T].
        logits: [vocab] at the last prompt token.
    """

    decoder: Decoder
    places: CallPlaces
    call: Call
    visual: list[Tensor]
    text: list[Tensor]
    visual_index: Tensor
    text_index: Tensor
    logits: Tensor


def kl_divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Return KL(softmax(logits) || softmax(reference)) in nats over the last axis, in float64."""
    log_p = torch.log_softmax(logits.double(), dim=-1)
    log_q = torch.log_softmax(reference.double(), dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


@torch.inference_mode()
def full_pass(
    decoder: Decoder,
    visual: Tensor,
    text: Tensor,
    visual_index: Tensor,
    text_index: Tensor,
    positions: Tensor | None = None,
) -> FullPass:
    """Run a prompt once.

    Args:
        decoder: the original's, nothing frozen that matters to the logits.
        visual: visual embeddings [1, V, D], V >= 1.
        text: text embeddings [1, T, D].
        visual_index: [1, V] places in the prompt.
        text_index: [1, T] places in the prompt.
        positions: [1, V + T, A] rotary positions; see `Decoder.places`.
    """
    places = decoder.places(visual_index, text_index, text.dtype, positions)
    call = places.call(text.shape[1])
    visual_rows, text_rows = [visual], [text]
    for layer, past in zip(decoder.layers, decoder.empty_past(1), strict=True):
        visual, text, _ = layer(visual, text, call, past)
        visual_rows.append(visual)
        text_rows.append(text)
    logits = decoder.next_token_logits(text)[0, -1]
    return FullPass(
        decoder, places, call, visual_rows[:-1], text_rows, visual_index, text_index, logits
    )
