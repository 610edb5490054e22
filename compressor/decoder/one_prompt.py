"""One prompt through a decoder in torch: its greedy answer, and the states of every layer.

Letters: L layers, V visual rows, T text rows, D hidden.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.contract.choice import rows_at
from compressor.decoder.cache import PastTensors
from compressor.decoder.model import Decoder
from compressor.generation.rules import constraints
from compressor.generation.settings import GenerationSettings
from compressor.samples.prompts import PromptRows


@dataclass(frozen=True)
class States:
    """What the layers of a decoder make of one prompt.

    Entry i is what layer i reads, entry L what the last one gives behind the final norm: transformers'
    `hidden_states`. Frozen rows, dead ones included, are equal in the entries before and behind their layer,
    but for deepstack rows that are added behind it; behind an exit, planned or chosen by a gate, entries
    have no visual rows, where some left those that went on, and where they grew what they grew to.

    Attributes:
        visual: L + 1 entries [1, V, D], V 0 behind an exit.
        text: L + 1 entries [1, T, D].
        visual_index: [1, V] places in the prompt of the visual rows that enter.
        visual_places: L + 1 entries [1, V], likewise of the rows that each entry has.
        text_index: [1, T] places of the text rows.
        text_places: L + 1 entries [1, T], likewise; rows that grow in front of them move them on.
        logits: [1, 1 or T, vocab] float32, as the decoder gives them.
    """

    visual: tuple[Tensor, ...]
    text: tuple[Tensor, ...]
    visual_index: Tensor
    visual_places: tuple[Tensor, ...]
    text_index: Tensor
    text_places: tuple[Tensor, ...]
    logits: Tensor

    def in_order(self, entry: int) -> Tensor:
        """Return the rows [1, V + T, D] of one entry in the prompt's order."""
        visual, text = self.visual[entry], self.text[entry]
        index = torch.cat([self.visual_places[entry], self.text_places[entry]], dim=1)
        return torch.cat([visual, text], dim=1)[:, index[0].argsort()]


@torch.inference_mode()
def layer_states(decoder: Decoder, rows: PromptRows, exit_layer: int | None) -> States:
    """Run a prompt and keep what every layer reads.

    Args:
        decoder: a compressed one.
        rows: of the prompt.
        exit_layer: first layer without visual rows, as the plan says; they are handed on unread from there.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    changed: list[Any] = []
    changes = [
        module.register_forward_hook(lambda _, __, rows: changed.append(rows))
        for module in (*decoder.leaving.values(), *decoder.growing.values())
    ]
    given = [
        layer.register_forward_pre_hook(lambda _, rows: kept.append(rows[:2]))
        for layer in decoder.layers
    ]
    made = decoder.layers[-1].register_forward_hook(lambda _, __, rows: kept.append(rows[:2]))
    try:
        logits, _ = _prefill(decoder, rows)
    finally:
        for hook in (*changes, *given, made):
            hook.remove()
    kept[-1] = decoder.norm(kept[-1][0]), decoder.norm(kept[-1][1])
    left = len(kept) if exit_layer is None else exit_layer
    found = [visual if i < left else visual[:, :0] for i, (visual, _) in enumerate(kept)]
    places, text_places, which = [rows.visual_index], [rows.text_index], iter(changed)
    for layer in decoder.plan.layers:
        if layer.keep is not None:
            places[-1] = rows_at(places[-1], next(which))
        if layer.grow is not None:
            _, places[-1], text_places[-1] = next(which)
        places.append(places[-1])
        text_places.append(text_places[-1])
    return States(
        tuple(found),
        tuple(text for _, text in kept),
        rows.visual_index,
        tuple(p[:, : visual.shape[1]] for p, visual in zip(places, found, strict=True)),
        rows.text_index,
        (*text_places,),
        logits,
    )


@torch.inference_mode()
def greedy_tokens(
    decoder: Decoder,
    embedding: Tensor,
    rows: PromptRows,
    prompt: Tensor,
    settings: GenerationSettings,
    ends: Sequence[int],
) -> Iterator[int]:
    """Yield the likeliest tokens after a prompt, one that ends an answer the last.

    Args:
        decoder: a compressed one.
        embedding: [vocab, D].
        rows: of the prompt.
        prompt: [1, V + T] its tokens.
        settings: bar and punish tokens.
        ends: tokens that end an answer.
    """
    rules = constraints(settings, ends)
    sequence = prompt.numpy()
    logits, past = _prefill(decoder, rows)
    nothing, nowhere = rows.visual_embeds[:, :0], rows.visual_index[:, :0]
    for number in count():
        allowed = logits[:, -1].cpu().numpy()
        for rule in rules:
            allowed = rule(allowed, sequence, number)
        token = int(allowed[0].argmax())
        yield token
        if token in ends:
            return
        sequence = np.append(sequence, [[token]], axis=1)
        text = embedding[token][None, None]
        step = rows.layout.behind(number)
        index, positions = (
            None if array is None else torch.from_numpy(array)[None].to(text.device)
            for array in (step.text_index, step.positions)
        )
        logits, past = decoder(nothing, text, nowhere, index, past, positions)


def _prefill(decoder: Decoder, rows: PromptRows) -> tuple[Tensor, PastTensors]:
    *call, positions, deepstack = rows.call
    logits, past = decoder(*call, decoder.empty_past(1), positions, deepstack)
    return logits, past
