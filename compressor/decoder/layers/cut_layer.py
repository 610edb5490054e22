"""A decoder layer in which visual rows do less, in YOPO's ways: fewer heads, near neighbours, a narrow MLP.

Source: "Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See" (YOPO, 2024).

Two semantics. `CutLayer` removes: heads are stored in two groups; the pruned one runs on text rows alone, its
cache holds text, and the softmax is over what is left. `MaskedLayer` does what the released code does: what
is cut stays in the softmax's denominator and is zeroed behind it. Windows are the same in both: rows outside
are masked before the softmax.

Letters as in `compressor.decoder.layer`; G key/value heads of a group, m neurons that visual rows use.
"""

import torch
from torch import Tensor, nn

from compressor.decoder.cache import Buffer, KeyValue
from compressor.decoder.layer import RMSNorm
from compressor.decoder.layers.near import Near
from compressor.decoder.layers.parts import HeadGroup, mlp_of, window_of
from compressor.decoder.ops import attend, join_heads
from compressor.decoder.places import Call
from compressor.facts import DecoderDims
from compressor.plan.layer import LayerPlan


class CutLayer(nn.Module):
    """A layer with cuts that are real: nothing of what was cut is computed.

    Args:
        dims: of the decoder.
        plan: of the layer.
        grid: rows and columns of an image's visual tokens; needed for a window.
    """

    def __init__(self, dims: DecoderDims, plan: LayerPlan, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.frozen, self.exited, self.without = plan.frozen, False, plan.without
        # Text rows alone attend in heads with visual tokens, too.
        self.text_alone = plan.frozen or plan.without == "attention"
        seen = len(plan.groups) if plan.groups is not None else dims.kv_heads
        self.input_norm = RMSNorm(dims.hidden, dims.rms_norm_eps)
        self.seen = HeadGroup(dims, seen) if seen else None
        self.unseen = HeadGroup(dims, dims.kv_heads - seen) if seen < dims.kv_heads else None
        self.output_bias = nn.Parameter(torch.empty(dims.hidden)) if dims.o_bias else None
        self.mlp_norm = RMSNorm(dims.hidden, dims.rms_norm_eps)
        self.mlp = mlp_of(dims, plan)
        window = window_of(plan, grid)
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
            if self.text_alone:
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
            (text_updates if self.text_alone else updates).append(self.output_bias)
        if self.frozen:
            return visual, self._fed(sum(text_updates, text), call), *present
        states = sum(updates, states)
        if text_updates:
            visual, text = states.split([count, text.shape[1]], dim=1)
            states = torch.cat([visual, sum(text_updates, text)], dim=1)
        if self.without == "mlp":
            visual, text = states.split([count, text.shape[1]], dim=1)
            return visual, self._fed(text, call), *present
        visual, text = self.mlp(states, self.mlp_norm(states), count, call)
        return visual, text, *present

    def _fed(self, text: Tensor, call: Call) -> Tensor:
        return text + call.text.scaled(self.mlp.text_only(self.mlp_norm(text)))

    def _attended(
        self, query: Tensor, new: KeyValue, past: KeyValue | Buffer, present: KeyValue, call: Call
    ) -> Tensor:
        """Attend from all rows in the heads with visual tokens; return [B, H, S, d]."""
        if self.near is None:
            return attend(query, present.key, present.value, call.all.mask)
        return self.near(query, new, past.within(present), present, call)
