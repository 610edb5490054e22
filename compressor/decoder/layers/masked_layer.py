"""A decoder layer that computes every head and zeroes what YOPO prunes, as its released code does."""

from typing import cast

import torch
from torch import Tensor, nn

from compressor.decoder.cache import Buffer, KeyValue
from compressor.decoder.layer import RMSNorm
from compressor.decoder.layers.parts import HeadGroup, mlp_of, window_of
from compressor.decoder.ops import LEAST, join_heads
from compressor.decoder.places import Call, Kinds, Rows
from compressor.facts import DecoderDims
from compressor.plan.layer import LayerPlan


class MaskedLayer(nn.Module):
    """A layer with the numbers of YOPO's released code; saves nothing but neurons.

    Args:
        dims: of the decoder.
        plan: of the layer, with `masked`.
        grid: rows and columns of an image's visual tokens; needed for a window.
    """

    def __init__(self, dims: DecoderDims, plan: LayerPlan, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.frozen, self.exited = plan.frozen, False
        self.input_norm = RMSNorm(dims.hidden, dims.rms_norm_eps)
        self.heads = HeadGroup(dims, dims.kv_heads)
        self.output_bias = nn.Parameter(torch.empty(dims.hidden)) if dims.o_bias else None
        self.mlp_norm = RMSNorm(dims.hidden, dims.rms_norm_eps)
        self.mlp = mlp_of(dims, plan)
        self.window = window_of(plan, grid)
        self.off = plan.off
        kept = plan.groups if plan.groups is not None else range(dims.kv_heads)
        # Real flags also while a decoder is laid out on the meta device; they follow its weights later.
        flags = torch.tensor([i not in kept for i in range(dims.kv_heads)], device="cpu")
        self.pruned: Tensor
        self.register_buffer("pruned", flags, persistent=False)

    def forward(
        self, visual: Tensor, text: Tensor, call: Call, past: KeyValue | Buffer
    ) -> tuple[Tensor, Tensor, KeyValue]:
        """Run the layer; see `CutLayer.forward`. Caches stay whole."""
        count = visual.shape[1]
        states = torch.cat([visual, text], dim=1)
        normed = self.input_norm(states)
        present = past.extended(*self.heads.keys_and_values(normed, call.all))
        kinds = cast("Kinds", call.kinds)
        if self.frozen:
            normed = normed.narrow(1, count, text.shape[1])
            text = self._attended(text, normed, call.text, present, kinds.visual, visual=0)
            return visual, text + self.mlp.text_only(self.mlp_norm(text)), present
        rows = call.all
        if self.window is not None:
            rows = rows._replace(
                mask=self.window.masked(rows.visible(), kinds.visual, kinds.numbers, count)
            )
        states = self._attended(states, normed, rows, present, kinds.visual, visual=count)
        visual, text = self.mlp(states, self.mlp_norm(states), count, call)
        return visual, text, present

    def _attended(
        self,
        states: Tensor,
        normed: Tensor,
        rows: Rows,
        present: KeyValue,
        keys_cut: Tensor,
        *,
        visual: int,
    ) -> Tensor:
        """Return rows [B, rows, D], the first of them visual, with what attention adds to them."""
        mixed = attend_masked(
            self.heads.queries(normed, rows),
            present,
            rows.visible(),
            keys_cut=keys_cut,
            rows_cut=visual,
            pruned=self.pruned,
            off=self.off,
        )
        update = self.heads.output(mixed)
        return states + (update if self.output_bias is None else update + self.output_bias)


def attend_masked(
    query: Tensor,
    present: KeyValue,
    mask: Tensor,
    *,
    keys_cut: Tensor,
    rows_cut: int,
    pruned: Tensor,
    off: bool,
) -> Tensor:
    """Attention whose weights on visual keys are zeroed behind the softmax, as YOPO's released code does.

    Args:
        query: [B, H, rows, d].
        present: keys and values [B, G, keys, d].
        mask: [B, 1, rows, keys] bool, before the softmax.
        keys_cut: [B, keys] bool, visual keys.
        rows_cut: how many of the first rows are visual; in pruned heads they get zeros.
        pruned: [G] bool, key/value heads without visual tokens.
        off: whether no head reads visual values.

    Returns:
        [B, rows, H * d].
    """
    groups, size = present.key.shape[1], query.shape[3]
    query = query.unflatten(1, (groups, -1)) * size**-0.5  # [B, G, H / G, rows, d]
    scores = query @ present.key[:, :, None].transpose(-1, -2)
    weights = scores.masked_fill(~mask[:, None], LEAST).softmax(dim=-1)
    gone = pruned[:, None, None, None]  # [G, 1, 1, 1]
    cut = keys_cut[:, None, None, None]  # [B, 1, 1, 1, keys]
    weights = weights.masked_fill(cut if off else cut & gone, 0.0)
    mixed = weights @ present.value[:, :, None]
    rows = mixed.shape[3]
    silent = torch.arange(rows, device=mixed.device)[:, None] < rows_cut  # [rows, 1]
    mixed = mixed.masked_fill(silent & gone, 0.0)
    return join_heads(mixed.flatten(1, 2))
