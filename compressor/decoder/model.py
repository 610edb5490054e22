"""The decoder on two row groups: visual rows and text rows travel as two tensors from layer to layer."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from compressor.contract.choice import LayerRows, LayerScore, RunRule, rows_at
from compressor.decoder.cache import NO_PAST, Buffer, KeyValue, PastTensors, opened
from compressor.decoder.gates import Gate, fires, gate_input, gate_selection, rows_asked
from compressor.decoder.growing import Growing
from compressor.decoder.layer import DecoderLayer, Linear, RMSNorm
from compressor.decoder.layers.kinds import layer_of
from compressor.decoder.leaving import (
    Leaving,
    heads_with_visual,
    last_row_attention,
)
from compressor.decoder.ops import project_tied
from compressor.decoder.places import CallPlaces, Kinds, Positions, Rotary
from compressor.plan.dead_rows import deepstack_layers
from compressor.plan.plan import TEXT_PAST, Plan

__all__ = ["Decoder", "KeyValue", "Stage"]


NO_SCORES: Mapping[int, LayerScore] = MappingProxyType({})
"""Of a decoder in which no visual rows leave at a layer by a score."""

NO_RUNS: Mapping[int, RunRule] = MappingProxyType({})
"""Of a decoder whose layers all visual rows run that are there."""

NOTHING_ADDED: Mapping[int, Tensor] = MappingProxyType({})
"""Rows [B, V, D] to add to the visual rows behind a layer, by its index: none."""


class Begun(NamedTuple):
    """What a call's layers are given beside its rows.

    Attributes:
        places: where the rows stand.
        pairs: keys and values of the past, in the order of the caches.
        kinds: which keys are visual; None: no layer asks.
        added: what is added to the visual rows behind layers.
    """

    places: CallPlaces
    pairs: list[KeyValue | Buffer]
    kinds: Kinds | None
    added: Mapping[int, Tensor]


class Ran(NamedTuple):
    """What a run of layers made.

    Attributes:
        visual: rows [B, V, D].
        text: rows [B, T, D].
        present: keys and values, in the order of the caches.
        entered: [B, T, D] text rows at the input of the last layer.
    """

    visual: Tensor
    text: Tensor
    present: list[KeyValue]
    entered: Tensor


class Decoder(nn.Module):
    """A Llama-like decoder whose layers do with visual rows what the plan says.

    With gates a call must be of batch 1: each prompt has an exit of its own.

    Args:
        plan: decides every layer.
        logits: `last` for the logits of the last text row, `all` for those of every text row.
        scores: by which visual rows go on at the inputs of layers, for each layer where some leave.
        runs: how visual rows are chosen that run layers alone, for each such layer.

    Raises:
        ValueError: a layer where rows leave has no score, or one that some run no rule.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        logits: str = "last",
        scores: Mapping[int, LayerScore] = NO_SCORES,
        runs: Mapping[int, RunRule] = NO_RUNS,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.dims = dims = plan.model.decoder
        self.logits = logits
        self.segments = plan.segments()
        self.caches = plan.caches()
        self.tells_rows = plan.tells_rows
        self.some_run = tuple(plan.runs())
        self.deepstack = deepstack_layers(plan)
        self.rotary = Rotary(dims)
        self.layers = nn.ModuleList(
            layer_of(layer, plan.model, self.rotary, runs.get(layer.index)) for layer in plan.layers
        )
        self.gates = nn.ModuleDict()
        if plan.gates is not None:
            width = plan.gates.width
            self.gates.update({str(i): Gate(dims.hidden, width) for i in plan.gates.candidates})
        if lacking := plan.keeps().keys() - scores.keys():
            raise ValueError(f"no score of visual rows for layers {sorted(lacking)}")
        self.leaving = nn.ModuleDict(
            {str(i): Leaving(kept, scores[i]) for i, kept in plan.keeps().items()}
        )
        self.growing = nn.ModuleDict(
            {str(i): Growing(grown, plan.model.places_of_tile) for i, grown in plan.grows().items()}
        )
        self.norm = RMSNorm(dims.hidden, dims.rms_norm_eps)
        if dims.tied_embeddings:
            self.tied_head = nn.Parameter(torch.empty(dims.vocab, dims.hidden))
        else:
            self.head = Linear(dims.hidden, dims.vocab, bias=False)

    def forward(
        self,
        visual_embeds: Tensor,
        inputs_embeds: Tensor,
        visual_index: Tensor,
        text_index: Tensor,
        past: PastTensors,
        positions: Positions | None = None,
        deepstack: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[KeyValue | Tensor]]:
        """Run one call, a prefill or a decode step.

        Args:
            visual_embeds: [B, V, D], V may be 0.
            inputs_embeds: [B, T, D], T >= 1.
            visual_index: [B, V] int64, place of each row in the whole prompt.
            text_index: [B, T] int64, likewise.
            past: keys and values of earlier calls, in the order of `Plan.caches`; behind them [B, P] bool,
                which rows of the past are visual, if the plan `tells_rows`. With fixed caches: buffers
                [B, H_kv, C, d] and [B, C], and behind them [B] int64 for each of `length_names`, how many
                rows are filled.
            positions: see `Rotary.places`.
            deepstack: see `added_by`, of the layers that `deepstack_layers` tells.

        Returns:
            Logits [B, 1 or T, vocab] in float32, and the past to pass to the next call; with fixed caches
            the buffers alone: the caller counts their rows.

        Raises:
            ValueError: positions are given, and rows that grow count them anew.
        """
        places, pairs, kinds, added = self.begin(
            visual_embeds, inputs_embeds, visual_index, text_index, past, positions, deepstack
        )
        visual, text = visual_embeds, inputs_embeds
        present: list[KeyValue | Tensor] = []
        selection = None
        remaining = torch.scalar_tensor(visual_index.shape[1], dtype=torch.int64)
        if self.gates:
            selection = gate_selection(visual_index, text_index, text.dtype)
        ran = Ran(visual, text, [], text)
        for segment in self.segments:
            if str(segment.start) in self.leaving:
                rows = self._go_on(segment.start, ran, places, pairs)
                visual, places = rows_at(visual, rows), places.chosen(rows, text.shape[1])
                added = {i: rows_at(more, rows) for i, more in added.items()}
            if str(segment.start) in self.growing:
                grow = self.growing[str(segment.start)]
                visual, *moved = grow(visual, visual_index, text_index)
                places = self.rotary.places(moved[0], moved[1], text.dtype)
            mine = [p for p, c in zip(pairs, self.caches, strict=True) if c.layer in segment]
            ran = self.run(segment, visual, text, places, mine, kinds, added)
            visual, text = ran.visual, ran.text
            present += ran.present
            if selection is not None and segment.stop < len(self.layers):
                logits = self.gates[str(segment[-1])](gate_input(selection, text))
                remaining, kept = rows_kept(logits, remaining, visual.shape[1])
                visual, places = visual.narrow(1, 0, kept), places.last(kept + text.shape[1])
                added = {i: rows.narrow(1, 0, kept) for i, rows in added.items()}
                selection = selection.narrow(0, 0, rows_asked(remaining))
        if kinds is not None:
            present.append(kinds.visual)
        return self.next_token_logits(text), present

    def begin(
        self,
        visual_embeds: Tensor,
        inputs_embeds: Tensor,
        visual_index: Tensor,
        text_index: Tensor,
        past: PastTensors,
        positions: Positions | None = None,
        deepstack: Sequence[Tensor] = (),
    ) -> Begun:
        """Return what the layers of a call are given beside its rows; arguments and errors as `forward`."""
        if self.growing and positions is not None:
            raise ValueError("where visual rows grow, positions are counted from places: give none")
        places = self.rotary.places(visual_index, text_index, inputs_embeds.dtype, positions)
        pairs, past_visual, keys = opened(past, self.caches, tells_rows=self.tells_rows)
        kinds = None
        if past_visual is not None:
            kinds = places.kinds(visual_index, text_index, past_visual, keys)
        return Begun(places, pairs, kinds, added_by(deepstack, self.deepstack, visual_embeds))

    def _go_on(
        self, layer: int, ran: Ran, places: CallPlaces, pairs: Sequence[KeyValue | Buffer]
    ) -> Tensor:
        """Return which visual rows [B, K] go on at the input of a layer behind those that ran."""
        before, visual = self.layers[layer - 1], ran.visual.shape[1]
        # Of its caches the one of heads with visual tokens comes first; what ran last comes last.
        pasts = [p for p, c in zip(pairs, self.caches, strict=True) if c.layer == layer - 1]

        def attention() -> Tensor:
            heads = heads_with_visual(before)
            if heads is None:
                return ran.text.new_zeros((ran.text.shape[0], self.dims.heads, visual))
            keys, key = pasts[0].keys(), ran.present[-len(pasts)].key
            normed = cast("DecoderLayer", before).input_norm(ran.entered[:, -1:])
            return last_row_attention(heads, normed, places.row(keys), key, keys, visual)

        rows: Tensor = self.leaving[str(layer)](LayerRows(ran.visual, ran.text, attention))
        return rows

    def run(
        self,
        segment: range,
        visual: Tensor,
        text: Tensor,
        places: CallPlaces,
        pairs: Sequence[KeyValue | Buffer],
        kinds: Kinds | None = None,
        added: Mapping[int, Tensor] = NOTHING_ADDED,
    ) -> Ran:
        """Run a segment of layers on their own caches; visual rows get what is added behind each."""
        caches = [cache for cache in self.caches if cache.layer in segment]
        # The first cache of each kind tells how the keys of all lie; layers that some rows run see to theirs.
        lie = {
            cache.length == TEXT_PAST: pair.keys()
            for cache, pair in reversed(list(zip(caches, pairs, strict=True)))
            if cache.length == TEXT_PAST or cache.layer not in self.some_run
        }
        call = places.call(text.shape[1], lie.get(False, NO_PAST), lie.get(True, NO_PAST), kinds)
        present: list[KeyValue] = []
        entered = text
        for i in segment:
            own = [pair for cache, pair in zip(caches, pairs, strict=True) if cache.layer == i]
            entered = text
            visual, text, *more = self.layers[i](visual, text, call, *own)
            visual = visual + added[i] if i in added else visual
            present += more
        return Ran(visual, text, present, entered)

    def next_token_logits(self, text: Tensor) -> Tensor:
        """[B, T, D] -> [B, 1 or T, vocab] in float32."""
        if self.logits == "last":
            text = text[:, -1:]
        text = self.norm(text)
        tied = self.dims.tied_embeddings
        return (project_tied(text, self.tied_head) if tied else self.head(text)).float()

    def empty_past(self, batch: int) -> list[Any]:
        """Return the growing past before the first call, in the dtype of the weights; see `forward`."""
        size, new = self.dims.head_dim, self.norm.weight.new_empty
        empty = {c.groups: new((batch, c.groups, 0, size)) for c in self.caches}
        pairs = [KeyValue(empty[cache.groups], empty[cache.groups]) for cache in self.caches]
        told = [new((batch, 0), dtype=torch.bool)] if self.tells_rows else []
        return [*pairs, *told]


class Stage(nn.Module):
    """One run of a gated decoder's layers with the gate behind it; the last one ends in the logits.

    Args:
        decoder: the whole one; weights are shared with it.
        number: of the stage, from 0.
    """

    def __init__(self, decoder: Decoder, number: int) -> None:
        super().__init__()
        self.plan = decoder.plan
        self.segment = decoder.segments[number]
        self.caches = tuple(cache for cache in decoder.caches if cache.layer in self.segment)
        self.deepstack = tuple(i for i in decoder.deepstack if i in self.segment)
        self.decoder = decoder

    def forward(
        self,
        visual: Tensor,
        text: Tensor,
        visual_index: Tensor,
        text_index: Tensor,
        past: PastTensors,
        positions: Positions | None = None,
        deepstack: Sequence[Tensor] = (),
    ) -> tuple[Any, ...]:
        """Run one call; arguments as `Decoder.forward`, states of the stage before instead of embeddings.

        Returns:
            Visual states, text states, gate logits [min(V, 1), 2] and the stage's keys and values; the
            last stage: logits and keys and values.
        """
        decoder = self.decoder
        places = decoder.rotary.places(visual_index, text_index, text.dtype, positions)
        pairs, *_ = opened(past, self.caches, tells_rows=False)
        added = added_by(deepstack, self.deepstack, visual)
        visual, text, present, _ = decoder.run(
            self.segment, visual, text, places, pairs, added=added
        )
        if self.segment.stop == len(decoder.layers):
            return decoder.next_token_logits(text), present
        selection = gate_selection(visual_index, text_index, text.dtype)
        gate = decoder.gates[str(self.segment[-1])]
        return visual, text, gate(gate_input(selection, text)), present


def added_by(
    deepstack: Sequence[Tensor], layers: Sequence[int], visual: Tensor
) -> Mapping[int, Tensor]:
    """Return what is added to the visual rows [B, V, D] behind each layer.

    Args:
        deepstack: rows [B, V, D] for each of the layers, or for more of the decoder's first ones; may be none
            where V is 0.
        layers: that have some which somebody reads.
        visual: the rows.

    Raises:
        ValueError: there are visual rows, and not one tensor for each layer.
    """
    if len(deepstack) == len(layers):
        return dict(zip(layers, deepstack, strict=True))
    if len(deepstack) > max(layers, default=-1):
        return {layer: deepstack[layer] for layer in layers}
    if deepstack or visual.shape[1]:
        raise ValueError(
            f"{len(deepstack)} tensors of deepstack rows, layers {[*layers]} need one each"
        )
    return NOTHING_ADDED


def rows_kept(gate_logits: Tensor, remaining: Tensor, visual: int) -> tuple[Tensor, int]:
    """Return how many visual rows go on behind a gate, none if it fires: as a tensor and as a size.

    The tensor carries the count from gate to gate, so that every size is a fresh symbol to the exporter:
    products of sizes would nest.
    """
    remaining = remaining * ~fires(gate_logits)
    kept: int = remaining.item()  # type: ignore[assignment]
    torch._check(kept >= 0)  # noqa: SLF001 - the documented way to bound a size for torch.export
    torch._check(kept <= visual)  # noqa: SLF001
    return remaining, kept
