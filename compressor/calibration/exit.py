"""Visual exits scored: the KL of every exit layer (VTW), and what gates say after every layer (DyVTE).

Both start from the states of one full pass: until an exit nothing differs from the original. An exit at
layer K then costs a tail of text rows alone, and the tails of all K run through a layer as one batch.
"""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from compressor.calibration.full_pass import FullPass, kl_divergence
from compressor.decoder.gates import gate_input, gate_selection

if TYPE_CHECKING:
    from compressor.decoder.layer import DecoderLayer


@torch.inference_mode()
def exit_kl(full: FullPass) -> Tensor:
    """Return KL(p_K || p) [L] at the last prompt token, in nats, float64.

    K is the first layer without visual rows, from 0.
    """
    decoder = full.decoder
    rows = decoder.places(full.visual_index[:, :0], full.text_index, full.text[0].dtype)
    text_rows = rows.call(0, full.text_index.shape[1]).alone
    tails = full.text[0][:0]
    for index, layer in enumerate(decoder.layers):
        tails = torch.cat([tails, full.text[index]])
        past = decoder.empty_past(len(tails))[index]
        tails, _ = cast("DecoderLayer", layer).text_only(tails, text_rows, past)
    return kl_divergence(decoder.next_token_logits(tails)[:, -1], full.logits)


@torch.inference_mode()
def gate_margins(full: FullPass) -> Tensor:
    """Return logit 1 minus logit 0 of each of the decoder's gates, in the order of their layers."""
    selection = gate_selection(full.visual_index, full.text_index, full.text[0].dtype)
    logits = [
        gate(gate_input(selection, full.text[int(index) + 1]))[0]
        for index, gate in full.decoder.gates.items()
    ]
    both = torch.stack(logits)
    return both[:, 1] - both[:, 0]
