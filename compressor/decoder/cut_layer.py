"""A decoder layer in which visual rows do less, in YOPO's ways: fewer heads, near neighbours, a narrow MLP.

Source: "Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See" (YOPO, 2024).

Two semantics. `CutLayer` removes: heads are stored in two groups; the pruned one runs on text rows alone, its
cache holds text, and the softmax is over what is left. `MaskedLayer` does what the released code does: what
is cut stays in the softmax's denominator and is zeroed behind it. Windows are the same in both: rows outside
are masked before the softmax.

Letters as in `compressor.decoder.layer`; G key/value heads of a group, m neurons that visual rows use.
"""

from typing import cast

import torch
from torch import Tensor, nn

from compressor.decoder.cache import Buffer, KeyValue
from compressor.decoder.layer import (
    MLP,
    Call,
    Kinds,
    Linear,
    RMSNorm,
    Rows,
    split_heads,
)
from compressor.decoder.near import Window, attend_near
from compressor.decoder.ops import attend, join_heads, rotate
from compressor.facts import DecoderDims
from compressor.plan.plan import LayerPlan


class HeadGroup(nn.Module):
    """Some heads of a layer with their parts of the projections.

    Args:
        dims: of the decoder.
        groups: how many key/value heads; their query heads come with them.
    """

    def __init__(self, dims: DecoderDims, groups: int) -> None:
        super().__init__()
        self.kv_heads, self.heads = groups, groups * (dims.heads // dims.kv_heads)
        width, kv_width = self.heads * dims.head_dim, groups * dims.head_dim
        self.query = Linear(dims.hidden, width, bias=dims.qkv_bias)
        self.key = Linear(dims.hidden, kv_width, bias=dims.qkv_bias)
        self.value = Linear(dims.hidden, kv_width, bias=dims.qkv_bias)
        self.output = Linear(width, dims.hidden, bias=False)

    def queries(self, normed: Tensor, rows: Rows) -> Tensor:
        """[B, rows, D] to rotated queries [B, heads, rows, d]."""
        return rotate(split_heads(self.query(normed), self.heads), rows.cos, rows.sin)

    def keys_and_values(self, normed: Tensor, rows: Rows) -> KeyValue:
        """[B, rows, D] to rotated keys and to values [B, G, rows, d]."""
        key = rotate(split_heads(self.key(normed), self.kv_heads), rows.cos, rows.sin)
        return KeyValue(key, split_heads(self.value(normed), self.kv_heads))

    def mixed(self, normed: Tensor, rows: Rows, present: KeyValue) -> Tensor:
        """Attend from rows [B, rows, D] to all of `present`; return [B, rows, D]."""
        query = self.queries(normed, rows)
        return self.output(join_heads(attend(query, present.key, present.value, rows.mask)))


class NarrowMLP(nn.Module):
    """An MLP whose first neurons serve all rows, the others text rows alone."""

    def __init__(self, dims: DecoderDims, narrow: int) -> None:
        super().__init__()
        self.first = MLP(dims, narrow)
        self.rest = MLP(dims, dims.intermediate - narrow, down_bias=False)

    def forward(self, states: Tensor, normed: Tensor, visual: int) -> tuple[Tensor, Tensor]:
        """Update states [B, V + T, D], `visual` of them V; return visual rows and text rows."""
        sizes = [visual, states.shape[1] - visual]
        of_visual, of_text = (states + self.first(normed)).split(sizes, dim=1)
        return of_visual, of_text + self.rest(normed.narrow(1, *sizes))

    def text_only(self, text: Tensor) -> Tensor:
        """Map normed text rows [B, T, D] to their updates."""
        return self.first(text) + self.rest(text)


class WideMLP(MLP):
    """The whole MLP for both kinds of rows, with the calls of `NarrowMLP`."""

    def forward(  # type: ignore[override]
        self, states: Tensor, normed: Tensor, visual: int
    ) -> tuple[Tensor, Tensor]:
        """See `NarrowMLP.forward`."""
        rows = states + super().forward(normed)
        of_visual, of_text = rows.split([visual, rows.shape[1] - visual], dim=1)
        return of_visual, of_text

    def text_only(self, text: Tensor) -> Tensor:
        """See `NarrowMLP.text_only`."""
        return super().forward(text)


def _mlp(dims: DecoderDims, plan: LayerPlan) -> NarrowMLP | WideMLP:
    return WideMLP(dims) if plan.neurons is None else NarrowMLP(dims, len(plan.neurons))


def _window(plan: LayerPlan, grid: tuple[int, int] | None) -> Window | None:
    if plan.window is None or grid is None:
        return None
    return Window(grid, plan.window, causal=plan.window_causal)


class Near(nn.Module):
    """Attention in which visual rows read their window; a module, for its nodes in a graph to carry its name.

    `export.writer.passes.branch_on_images` puts them under a branch that calls without an image skip.
    """

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def forward(
        self, query: Tensor, new: KeyValue, earlier: KeyValue, present: KeyValue, call: Call
    ) -> Tensor:
        """Attend from all rows; return [B, H, S, d].

        Args:
            query: [B, H, S, d].
            new: keys and values of these rows.
            earlier: where the past's keys and values are.
            present: of the past and of these rows.
            call: of these rows.
        """
        text = call.text.cos.shape[1]
        visual = query.shape[2] - text
        near = KeyValue(new.key.narrow(2, 0, visual), new.value.narrow(2, 0, visual))
        behind = KeyValue(new.key.narrow(2, visual, text), new.value.narrow(2, visual, text))
        kinds = cast("Kinds", call.kinds)
        beside = ((earlier, kinds.before), (behind, kinds.behind))
        of_visual = attend_near(query.narrow(2, 0, visual), near, beside, self.window)
        text_query = query.narrow(2, visual, text)
        of_text = attend(text_query, present.key, present.value, call.text.mask)
        return torch.cat([of_visual, of_text], dim=2)


class CutLayer(nn.Module):
    """A layer with cuts that are real: nothing of what was cut is computed.

    Args:
        dims: of the decoder.
        plan: of the layer.
        grid: rows and columns of an image's visual tokens; needed for a window.
    """

    def __init__(self, dims: DecoderDims, plan: LayerPlan, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.frozen, self.exited = plan.frozen, False
        seen = len(plan.groups) if plan.groups is not None else dims.kv_heads
        self.input_norm = RMSNorm(dims.hidden, dims.rms_norm_eps)
        self.seen = HeadGroup(dims, seen) if seen else None
        self.unseen = HeadGroup(dims, dims.kv_heads - seen) if seen < dims.kv_heads else None
        self.output_bias = nn.Parameter(torch.empty(dims.hidden)) if dims.o_bias else None
        self.mlp_norm = RMSNorm(dims.hidden, dims.rms_norm_eps)
        self.mlp = _mlp(dims, plan)
        window = _window(plan, grid)
        self.near = None if window is None else Near(window)

    def forward(
        self, visual: Tensor, text: Tensor, call: Call, *pasts: KeyValue | Buffer
    ) -> tuple[Tensor | KeyValue, ...]:
        """Run the layer.

        Args:
            visual: [B, V, D], V a multiple of N, or 0.
            text: [B, T, D].
            call: masks and rotations of this call.
            pasts: of the heads with visual tokens, then of those without, text rows alone.

        Returns:
            Visual rows, text rows, and the extended keys and values in the order of `pasts`.
        """
        rest = iter(pasts)
        count = visual.shape[1]
        states = torch.cat([visual, text], dim=1)
        normed = self.input_norm(states)
        normed_text = normed.narrow(1, count, text.shape[1])
        present: list[KeyValue] = []
        updates, text_updates = [], []
        if self.seen is not None:
            new, past = self.seen.keys_and_values(normed, call.all), next(rest)
            present.append(past.extended(*new))
            if self.frozen:
                text_updates.append(self.seen.mixed(normed_text, call.text, present[0]))
            else:
                query = self.seen.queries(normed, call.all)
                mixed = self._attended(query, new, past, present[0], call)
                updates.append(self.seen.output(join_heads(mixed)))
        if self.unseen is not None:
            new = self.unseen.keys_and_values(normed_text, call.alone)
            present.append(next(rest).extended(*new))
            text_updates.append(self.unseen.mixed(normed_text, call.alone, present[-1]))
        if self.output_bias is not None:
            (text_updates if self.frozen else updates).append(self.output_bias)
        if self.frozen:
            text = sum(text_updates, text)
            return visual, text + self.mlp.text_only(self.mlp_norm(text)), *present
        states = sum(updates, states)
        if text_updates:
            visual, text = states.split([count, text.shape[1]], dim=1)
            states = torch.cat([visual, sum(text_updates, text)], dim=1)
        visual, text = self.mlp(states, self.mlp_norm(states), count)
        return visual, text, *present

    def _attended(
        self, query: Tensor, new: KeyValue, past: KeyValue | Buffer, present: KeyValue, call: Call
    ) -> Tensor:
        """Attend from all rows in the heads with visual tokens; return [B, H, S, d]."""
        if self.near is None:
            return attend(query, present.key, present.value, call.all.mask)
        return self.near(query, new, past.within(present), present, call)
