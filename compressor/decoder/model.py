"""The decoder on two row groups: visual rows and text rows travel as two tensors from layer to layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compressor.decoder.layer import Call, DecoderLayer, KeyValue, Linear, RMSNorm, Rows
from compressor.decoder.ops import project_tied
from compressor.plan import Plan

__all__ = ["Decoder", "KeyValue"]


class Decoder(nn.Module):
    """A Llama-like decoder whose layers do with visual rows what the plan says.

    Args:
        plan: decides every layer.
        logits: `last` for the logits of the last text row, `all` for those of every text row.
    """

    rope_inv_freq: Tensor

    def __init__(self, plan: Plan, *, logits: str = "last") -> None:
        super().__init__()
        dims = plan.model.decoder
        self.dims = dims
        self.logits = logits
        self.layers = nn.ModuleList(DecoderLayer(dims, layer) for layer in plan.layers)
        self.norm = RMSNorm(dims.hidden, dims.rms_norm_eps)
        if dims.tied_embeddings:
            self.tied_head = nn.Parameter(torch.empty(dims.vocab, dims.hidden))
        else:
            self.head = Linear(dims.hidden, dims.vocab, bias=False)
        # A plain attribute, no buffer: `half()` must not round it.
        self.inv_freq = torch.tensor(dims.rope_inv_freq, dtype=torch.float32)

    def forward(
        self,
        visual_embeds: Tensor,
        inputs_embeds: Tensor,
        visual_index: Tensor,
        text_index: Tensor,
        past: Sequence[KeyValue],
    ) -> tuple[Tensor, list[KeyValue]]:
        """Run one call, a prefill or a decode step.

        Args:
            visual_embeds: [B, V, D], V may be 0.
            inputs_embeds: [B, T, D], T >= 1.
            visual_index: [B, V] int64, place of each row in the whole prompt.
            text_index: [B, T] int64, likewise.
            past: keys and values of earlier calls, one per layer.

        Returns:
            Logits [B, 1 or T, vocab] in float32, and the keys and values to pass to the next call.
        """
        call = self.prepare(
            visual_index, text_index, past_length=past[0].key.shape[2], like=inputs_embeds
        )
        visual, text, present = visual_embeds, inputs_embeds, []
        for layer, layer_past in zip(self.layers, past, strict=True):
            visual, text, layer_present = layer(visual, text, call, KeyValue(*layer_past))
            present.append(layer_present)
        return self.next_token_logits(text), present

    def prepare(
        self, visual_index: Tensor, text_index: Tensor, *, past_length: int, like: Tensor
    ) -> Call:
        """Return masks and rotations of a call; `like` gives the dtype of the rotations."""
        index = torch.cat([visual_index, text_index], dim=1)  # [B, S]
        return Call(
            all=self._rows(index, index, past_length, like.dtype),
            text=self._rows(text_index, index, past_length, like.dtype),
        )

    def _rows(
        self, query_index: Tensor, key_index: Tensor, past_length: int, dtype: torch.dtype
    ) -> Rows:
        # A key of this call is visible if its place is not after the query's; the whole past is.
        visible = key_index[:, None, :] <= query_index[:, :, None]  # [B, rows, S]
        past = visible.new_ones((visible.shape[0], visible.shape[1], past_length))
        # float32 whatever the model's dtype: float16 cannot tell positions above 2048 apart.
        angle = query_index[..., None].to(torch.float32) * self.inv_freq  # [B, rows, d / 2]
        cos, sin = angle.cos() * self.dims.rope_scale, angle.sin() * self.dims.rope_scale
        return Rows(torch.cat([past, visible], dim=2)[:, None], cos.to(dtype), sin.to(dtype))

    def next_token_logits(self, text: Tensor) -> Tensor:
        """[B, T, D] -> [B, 1 or T, vocab] in float32."""
        if self.logits == "last":
            text = text[:, -1:]
        text = self.norm(text)
        tied = self.dims.tied_embeddings
        return (project_tied(text, self.tied_head) if tied else self.head(text)).float()

    def empty_past(self, batch: int) -> list[KeyValue]:
        """Return caches of length 0 in the dtype of the weights."""
        empty = self.norm.weight.new_empty((batch, self.dims.kv_heads, 0, self.dims.head_dim))
        return [KeyValue(empty, empty) for _ in self.layers]
