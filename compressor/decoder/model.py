"""The decoder on two row groups: visual rows and text rows travel as two tensors from layer to layer."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from compressor.decoder.cut_layer import CutLayer, MaskedLayer
from compressor.decoder.gates import Gate, fires, gate_input, gate_selection, rows_asked
from compressor.decoder.layer import Call, DecoderLayer, KeyValue, Linear, RMSNorm, Rows
from compressor.decoder.ops import project_tied
from compressor.dims import DecoderDims
from compressor.plan import TEXT_PAST, LayerPlan, Plan

__all__ = ["Decoder", "KeyValue", "Stage"]


Past = Sequence[KeyValue | Tensor]
"""Keys and values of every cache of the plan, and which rows of the past are visual if it asks."""


class Places(NamedTuple):
    """Who may read whom among the rows of one call (visual, then text), and their rotations."""

    visible: Tensor  # [B, S, S] bool
    cos: Tensor  # [B, S, d / 2]
    sin: Tensor  # [B, S, d / 2]

    def call(
        self,
        past_length: int,
        text: int,
        text_past_length: int = 0,
        past_visual: Tensor | None = None,
    ) -> Call:
        """Return masks and rotations of layers for one call.

        Args:
            past_length: P of heads with visual tokens.
            text: T.
            text_past_length: P of caches that hold text alone.
            past_visual: [B, P] bool, which rows of the past are visual; None: no layer asks.
        """
        rows = Rows(with_past(self.visible, past_length), self.cos, self.sin)
        own = self.last(text)
        alone = Rows(with_past(own.visible, text_past_length), own.cos, own.sin)
        batch, visual = self.visible.shape[0], self.cos.shape[1] - text
        if past_visual is None:
            past_visual = self.visible.new_zeros((batch, 0))
        past = past_visual.shape[1]
        before = ~past_visual[:, None, None].expand(batch, 1, visual, past)
        behind = self.visible.narrow(1, 0, visual).narrow(2, visual, text)[:, None]
        return Call(rows, rows.last(text), alone, past_visual, (before, behind))

    def last(self, count: int) -> "Places":
        """Return the places of the last rows, when those before them are gone."""
        first = self.cos.shape[1] - count
        return Places(
            self.visible.narrow(1, first, count).narrow(2, first, count),
            self.cos.narrow(1, first, count),
            self.sin.narrow(1, first, count),
        )


def with_past(visible: Tensor, past_length: int) -> Tensor:
    """Return [B, rows, keys] as an attention mask [B, 1, rows, P + keys]; the whole past is visible."""
    past = visible.new_ones((visible.shape[0], visible.shape[1], past_length))
    return torch.cat([past, visible], dim=2)[:, None]


class Decoder(nn.Module):
    """A Llama-like decoder whose layers do with visual rows what the plan says.

    With gates a call must be of batch 1: each prompt has an exit of its own.

    Args:
        plan: decides every layer.
        logits: `last` for the logits of the last text row, `all` for those of every text row.
    """

    def __init__(self, plan: Plan, *, logits: str = "last") -> None:
        super().__init__()
        dims = plan.model.decoder
        self.dims = dims
        self.logits = logits
        self.segments = plan.segments()
        self.caches = plan.caches()
        self.tells_rows = plan.tells_rows
        self.layers = nn.ModuleList(
            _layer(dims, layer, plan.model.token_grid) for layer in plan.layers
        )
        self.gates = nn.ModuleDict()
        if plan.gates is not None:
            width = plan.gates.width
            self.gates.update({str(i): Gate(dims.hidden, width) for i in plan.gates.candidates})
        self.norm = RMSNorm(dims.hidden, dims.rms_norm_eps)
        if dims.tied_embeddings:
            self.tied_head = nn.Parameter(torch.empty(dims.vocab, dims.hidden))
        else:
            self.head = Linear(dims.hidden, dims.vocab, bias=False)
        self.inv_freq: Tensor
        # Real numbers also while a decoder is laid out on the meta device; they follow its weights later.
        inv_freq = torch.tensor(dims.rope_inv_freq, dtype=torch.float32, device="cpu")
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the decoder to a device or to another dtype; rotary frequencies stay float32."""
        exact = self.inv_freq
        super()._apply(fn, recurse)
        self.inv_freq = exact.to(self.inv_freq.device)
        return self

    def forward(
        self,
        visual_embeds: Tensor,
        inputs_embeds: Tensor,
        visual_index: Tensor,
        text_index: Tensor,
        past: Past,
    ) -> tuple[Tensor, list[KeyValue | Tensor]]:
        """Run one call, a prefill or a decode step.

        Args:
            visual_embeds: [B, V, D], V may be 0.
            inputs_embeds: [B, T, D], T >= 1.
            visual_index: [B, V] int64, place of each row in the whole prompt.
            text_index: [B, T] int64, likewise.
            past: keys and values of earlier calls, in the order of `Plan.caches`; behind them [B, P] bool,
                which rows of the past are visual, if the plan `tells_rows`.

        Returns:
            Logits [B, 1 or T, vocab] in float32, and the past to pass to the next call.
        """
        places = self.places(visual_index, text_index, inputs_embeds.dtype)
        visual, text, present = visual_embeds, inputs_embeds, []
        past_visual = cast("Tensor", past[-1]) if self.tells_rows else None
        selection = None
        remaining = torch.scalar_tensor(visual_index.shape[1], dtype=torch.int64)
        if self.gates:
            selection = gate_selection(visual_index, text_index, text.dtype)
        for segment in self.segments:
            mine = [
                p for p, cache in zip(past, self.caches, strict=False) if cache.layer in segment
            ]
            visual, text, more = self.run(segment, visual, text, places, mine, past_visual)
            present += more
            if selection is not None and segment.stop < len(self.layers):
                logits = self.gates[str(segment[-1])](gate_input(selection, text))
                remaining, kept = rows_kept(logits, remaining, visual.shape[1])
                visual, places = visual.narrow(1, 0, kept), places.last(kept + text.shape[1])
                selection = selection.narrow(0, 0, rows_asked(remaining))
        if past_visual is not None:
            rows = [past_visual, torch.ones_like(visual_index), torch.zeros_like(text_index)]
            present.append(torch.cat([r.bool() for r in rows], dim=1))
        return self.next_token_logits(text), present

    def run(
        self,
        segment: range,
        visual: Tensor,
        text: Tensor,
        places: Places,
        past: Past,
        past_visual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, list[KeyValue | Tensor]]:
        """Run a segment of layers on their own pasts."""
        caches = [cache for cache in self.caches if cache.layer in segment]
        pairs = [KeyValue(*pair) for pair in past]
        # The first cache of each kind tells the length of all.
        lengths = {
            cache.length == TEXT_PAST: pair.key.shape[2]
            for cache, pair in reversed(list(zip(caches, pairs, strict=True)))
        }
        call = places.call(lengths.get(False, 0), text.shape[1], lengths.get(True, 0), past_visual)
        present: list[KeyValue | Tensor] = []
        for i in segment:
            own = [pair for cache, pair in zip(caches, pairs, strict=True) if cache.layer == i]
            visual, text, *more = self.layers[i](visual, text, call, *own)
            present += more
        return visual, text, present

    def places(self, visual_index: Tensor, text_index: Tensor, dtype: torch.dtype) -> Places:
        """Return who reads whom among the rows of a call, and rotations in `dtype`."""
        index = torch.cat([visual_index, text_index], dim=1)  # [B, S]
        # A key of this call is visible if its place is not after the query's.
        visible = index[:, None, :] <= index[:, :, None]
        # float32 whatever the model's dtype: float16 cannot tell positions above 2048 apart.
        angle = index[..., None].to(torch.float32) * self.inv_freq  # [B, S, d / 2]
        scale = self.dims.rope_scale
        return Places(visible, (angle.cos() * scale).to(dtype), (angle.sin() * scale).to(dtype))

    def next_token_logits(self, text: Tensor) -> Tensor:
        """[B, T, D] -> [B, 1 or T, vocab] in float32."""
        if self.logits == "last":
            text = text[:, -1:]
        text = self.norm(text)
        tied = self.dims.tied_embeddings
        return (project_tied(text, self.tied_head) if tied else self.head(text)).float()

    def empty_past(self, batch: int) -> list[Any]:
        """Return the past before the first call, in the dtype of the weights; see `forward`."""
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
        self.segment = decoder.segments[number]
        self.decoder = decoder

    def forward(
        self,
        visual: Tensor,
        text: Tensor,
        visual_index: Tensor,
        text_index: Tensor,
        past: Past,
    ) -> tuple[Any, ...]:
        """Run one call; arguments as `Decoder.forward`, states of the stage before instead of embeddings.

        Returns:
            Visual states, text states, gate logits [min(V, 1), 2] and the stage's keys and values; the
            last stage: logits and keys and values.
        """
        decoder = self.decoder
        places = decoder.places(visual_index, text_index, text.dtype)
        visual, text, present = decoder.run(self.segment, visual, text, places, past)
        if self.segment.stop == len(decoder.layers):
            return decoder.next_token_logits(text), present
        selection = gate_selection(visual_index, text_index, text.dtype)
        gate = decoder.gates[str(self.segment[-1])]
        return visual, text, gate(gate_input(selection, text)), present


def _layer(dims: DecoderDims, plan: LayerPlan, grid: tuple[int, int] | None) -> nn.Module:
    if plan.masked:
        return MaskedLayer(dims, plan, grid)
    return CutLayer(dims, plan, grid) if plan.cuts else DecoderLayer(dims, plan)


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
