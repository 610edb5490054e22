"""One pass of the original over a prompt whose states every measurement starts from."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from compressor.contract.choice import Front
from compressor.decoder import Decoder
from compressor.decoder.model import added_by
from compressor.decoder.places import Call, CallPlaces

if TYPE_CHECKING:
    from compressor.decoder.layer import DecoderLayer


@dataclass(frozen=True)
class FullPass:
    """States of one prompt in the original's decoder.

    Attributes:
        decoder: that ran.
        places: of its rows, with their rotations.
        call: masks and rotations.
        visual: [L] visual rows [1, V, D] at the input of each layer.
        text: [L + 1] text rows [1, T, D] at the input of each layer, and behind the last.
        added: to the visual rows behind layers, [1, V, D] each; in `visual` already.
        visual_index: [1, V].
        text_index: [1, T].
        logits: [vocab] at the last prompt token.
        fronts: gives what the vision side made of each picture's tiles, anew; nothing where it did not run.
    """

    decoder: Decoder
    places: CallPlaces
    call: Call
    visual: list[Tensor]
    text: list[Tensor]
    added: Mapping[int, Tensor]
    visual_index: Tensor
    text_index: Tensor
    logits: Tensor
    fronts: Callable[[], Iterable[Front]] = tuple


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
    deepstack: Sequence[Tensor] = (),
) -> FullPass:
    """Run a prompt once.

    Args:
        decoder: the original's, nothing frozen that matters to the logits.
        visual: visual embeddings [1, V, D], V >= 1.
        text: text embeddings [1, T, D].
        visual_index: [1, V] places in the prompt.
        text_index: [1, T] places in the prompt.
        positions: [1, V + T, A] rotary positions; see `Decoder.places`.
        deepstack: see `Decoder.forward`.
    """
    places = decoder.rotary.places(visual_index, text_index, text.dtype, positions)
    call = places.call(text.shape[1])
    visual_rows, text_rows = [visual], [text]
    added = added_by(deepstack, decoder.deepstack, visual)
    for i, past in enumerate(decoder.empty_past(1)):
        visual, text, _ = decoder.layers[i](visual, text, call, past)
        visual = visual + added[i] if i in added else visual
        visual_rows.append(visual)
        text_rows.append(text)
    logits = decoder.next_token_logits(text)[0, -1]
    return FullPass(
        decoder, places, call, visual_rows[:-1], text_rows, added, visual_index, text_index, logits
    )


@torch.inference_mode()
def text_tails(full: FullPass, exits: Sequence[int]) -> Tensor:
    """Return the text rows [C, T, D] behind the last layer for exits at C layers.

    Args:
        full: of the prompt.
        exits: first layers without visual rows, ascending.
    """
    decoder = full.decoder
    count = full.text_index.shape[1]
    text_rows = full.places.last(count).call(count).alone
    tails = full.text[0][:0]  # [tails so far, T, D]
    for index, layer in enumerate(decoder.layers):
        if index in exits:
            tails = torch.cat([tails, full.text[index]])
        if len(tails):
            past = decoder.empty_past(len(tails))[index]
            tails, _ = cast("DecoderLayer", layer).text_only(tails, text_rows, past)
    return tails
