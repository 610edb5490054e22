"""A decoder whose weights lie in files, run a layer at a time: no two layers' weights are in memory together.

For plans in which nothing is decided between layers: rows are chosen, grown, or let go by a gate nowhere.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.decoder.cache import KeyValue
from compressor.decoder.elsewhere import put_back, read_into
from compressor.decoder.model import Begun, Decoder
from compressor.decoder.weights import StoredWeight
from compressor.families.stand_ins import AbsentTensor
from compressor.plan.plan import Plan


def cannot_part(plan: Plan) -> str:
    """Return why a plan's decoder cannot be run a layer at a time; empty: it can."""
    if plan.gates is not None:
        return "gates decide between layers where visual rows leave"
    if layers := [*plan.keeps(), *plan.grows()]:
        return f"which visual rows there are is decided between layers (at layer {min(layers)})"
    return ""


def sharing(decoder: Decoder) -> Decoder:
    """Return another decoder on the same memory, which the first one's later dtypes do not change."""
    same: dict[int, object] = {
        id(weight): nn.Parameter(weight.data, requires_grad=False)
        for weight in decoder.parameters()
    }
    same[id(decoder.plan)] = decoder.plan
    return copy.deepcopy(decoder, same)


@dataclass
class OneCall:
    """One call on its way through the layers.

    Attributes:
        begun: what its layers are given beside the rows.
        visual: rows [B, V, D] at the input of the next layer.
        text: rows [B, T, D] likewise.
        present: keys and values of the layer that ran last, in the order of its caches.
    """

    begun: Begun
    visual: Tensor
    text: Tensor
    present: list[KeyValue] = field(default_factory=list)


class ByLayer:
    """Runs calls a layer at a time, in float32.

    Args:
        decoder: in float32; stand-ins in place of what is stored.
        stored: where weights lie that it has stand-ins for, by their source.
        weights: how the artifact stores its parameters, by their names.

    Attributes:
        decoder: as given.
    """

    def __init__(
        self,
        decoder: Decoder,
        stored: Mapping[str, AbsentTensor],
        weights: Mapping[str, StoredWeight],
    ) -> None:
        self.decoder, self._stored, self._weights = decoder, stored, weights

    @torch.inference_mode()
    def begin(
        self,
        inputs: Sequence[Tensor],
        positions: Tensor | None,
        deepstack: Sequence[Tensor],
        behind: OneCall | None,
    ) -> OneCall:
        """Return a call in front of the first layer.

        Args:
            inputs: as `Decoder.forward` takes them: embeddings and places, of visual and of text rows.
            positions: likewise.
            deepstack: likewise.
            behind: the call whose past this one has; None: there is none.
        """
        visual, text, visual_index, text_index = inputs
        past = self.decoder.empty_past(len(text))
        if behind is not None and behind.begun.kinds is not None:
            past[-1] = behind.begun.kinds.visual
        begun = self.decoder.begin(
            visual, text, visual_index, text_index, past, positions, deepstack
        )
        return OneCall(begun, visual, text)

    @torch.inference_mode()
    def run(self, layer: int, calls: Sequence[OneCall], behind: OneCall | None = None) -> None:
        """Let one layer, whose weights are there, run calls that follow each other.

        Args:
            layer: its index.
            calls: in front of it.
            behind: that this layer ran last, whose past the first of them has; None: there is none.
        """
        past = [
            pair
            for pair, cache in zip(calls[0].begun.pairs, self.decoder.caches, strict=True)
            if cache.layer == layer
        ]
        if behind is not None:
            past = [*behind.present]
        for call in calls:
            places, _, kinds, added = call.begun
            segment = range(layer, layer + 1)
            ran = self.decoder.run(segment, call.visual, call.text, places, past, kinds, added)
            call.visual, call.text, call.present = ran.visual, ran.text, ran.present
            past = [*ran.present]

    @torch.inference_mode()
    def logits(self, call: OneCall) -> Tensor:
        """Return the logits of a call that went through all layers; the weights behind them are there."""
        return self.decoder.next_token_logits(call.text)

    @torch.inference_mode()
    def logits_of(self, rows: Tensor) -> Tensor:
        """Return the logits [T, vocab] of text rows [T, D] behind all layers, each of them."""
        return self.decoder.next_token_logits(rows[:, None])[:, 0]

    @contextmanager
    def weights(self, layer: int | None) -> Iterator[None]:
        """Have the numbers of one layer in memory; None: of what comes behind the layers.

        Raises:
            ModelError: they cannot be read any more.
        """
        prefix = "" if layer is None else f"layers.{layer}."
        names = {
            name: weight
            for name, weight in self._weights.items()
            if name.startswith(prefix) and (prefix or not name.startswith("layers."))
        }
        stand_ins = read_into(self.decoder, names, self._stored)
        try:
            yield
        finally:
            put_back(self.decoder, stand_ins)
