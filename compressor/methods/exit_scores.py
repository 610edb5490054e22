"""Visual exits scored: the KL of every exit layer (VTW), and what gates say after every layer (DyVTE).

Both start from the states of one full pass: until an exit nothing differs from the original. An exit at
layer K then costs a tail of text rows alone, and the tails of all K run through a layer as one batch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from compressor.decoder import Decoder
from compressor.decoder.cache import opened
from compressor.decoder.full_pass import FullPass, kl_divergence
from compressor.decoder.gates import gate_input, gate_selection, margins
from compressor.samples.prompts import PromptRows

if TYPE_CHECKING:
    from compressor.decoder.layer import DecoderLayer


@torch.inference_mode()
def exit_kl(full: FullPass) -> Tensor:
    """Return KL(p_K || p) [L] at the last prompt token, in nats, float64.

    K is the first layer without visual rows, from 0.
    """
    tails = text_tails(full, range(len(full.decoder.layers)))
    return kl_divergence(full.decoder.next_token_logits(tails)[:, -1], full.logits)


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


@torch.inference_mode()
def gate_margins(full: FullPass) -> Tensor:
    """Return the margin of each of the decoder's gates, in the order of their layers; above 0 it fires."""
    selection = gate_selection(full.visual_index, full.text_index, full.text[0].dtype)
    found = [
        margins(gate(gate_input(selection, full.text[int(index) + 1])))
        for index, gate in full.decoder.gates.items()
    ]
    return torch.cat(found)


@torch.inference_mode()
def margins_behind_cuts(decoder: Decoder, rows: PromptRows) -> Tensor:
    """Return the margin of each gate of a compressed decoder on a prompt, as if none before it had fired.

    Args:
        decoder: with gates, and with whatever its plan cuts or freezes beside them.
        rows: of the prompt.
    """
    visual, text = rows.visual_embeds, rows.text_embeds
    places = decoder.places(rows.visual_index, rows.text_index, text.dtype, rows.positions)
    selection = gate_selection(rows.visual_index, rows.text_index, text.dtype)
    pairs, *_ = opened(decoder.empty_past(1), decoder.caches, tells_rows=False)
    found = []
    for segment in decoder.segments[:-1]:
        mine = [p for p, c in zip(pairs, decoder.caches, strict=True) if c.layer in segment]
        visual, text, _ = decoder.run(segment, visual, text, places, mine)
        found.append(margins(decoder.gates[str(segment[-1])](gate_input(selection, text))))
    return torch.cat(found)
