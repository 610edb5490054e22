"""The forward pass of transformers' Llava for packed sequences, compiled a layer at a time.

It uses the very parameters of a ``LlavaForConditionalGeneration``, so a trained model is saved as
it is; ``check_packing.py`` compares both passes. Letters in shapes: B pictures, L positions,
D hidden, H query heads, K key and value heads, E head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from packing import VISUAL_TOKENS, Batch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

HEAD_SIZE = 16
EPS = 1e-5


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return attention [B, L, H*E] of query [B, H, L, E] on key and value [B, K, L, E].

    Plain matrix products: at this size their backward pass is several times faster on a processor
    than that of the fused kernel. Heads that share a key are rows of one product.
    """
    batch, heads, length, size = query.shape
    groups = heads // key.shape[1]
    rows = query.reshape(batch * heads // groups, groups * length, size)
    scores = rows @ key.reshape(-1, length, size).transpose(1, 2)  # [B*K, groups*L, L]
    scores = scores.float() * size**-0.5
    if mask is not None:
        scores = (scores.view(-1, groups, length, length) + mask).view(scores.shape)
    mixed = scores.softmax(-1).to(value.dtype) @ value.reshape(-1, length, size)
    return mixed.view(batch, heads, length, size).transpose(1, 2).reshape(batch, length, -1)


def vision_layer(hidden: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """Return one CLIP encoder layer of hidden [B, 65, D]."""
    n1w, n1b, qw, qb, kw, kb, vw, vb, ow, ob, n2w, n2b, uw, ub, dw, db = weights
    batch, length, width = hidden.shape
    normed = F.layer_norm(hidden, (width,), n1w, n1b, EPS)
    projected = (F.linear(normed, w, b) for w, b in ((qw, qb), (kw, kb), (vw, vb)))
    split = (each.view(batch, length, -1, HEAD_SIZE).transpose(1, 2) for each in projected)
    hidden = hidden + F.linear(attend(*split), ow, ob)
    normed = F.layer_norm(hidden, (width,), n2w, n2b, EPS)
    return hidden + F.linear(F.gelu(F.linear(normed, uw, ub)), dw, db)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return heads [B, H, L, E] turned by their positions; cos and sin are [L, E]."""
    first, second = heads.float().chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return (heads * cos + turned * sin).to(heads.dtype)


def decoder_layer(
    hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor, weights: tuple[Tensor, ...]
) -> Tensor:
    """Return one Llama layer of hidden [B, L, D]."""
    n1, qw, kw, vw, ow, n2, gw, uw, dw = weights
    batch, length, width = hidden.shape
    normed = F.rms_norm(hidden, (width,), n1, EPS)
    query, key, value = (
        F.linear(normed, each).view(batch, length, -1, HEAD_SIZE).transpose(1, 2)
        for each in (qw, kw, vw)
    )
    mixed = attend(rotate(query, cos, sin), rotate(key, cos, sin), value, mask)
    hidden = hidden + F.linear(mixed, ow)
    normed = F.rms_norm(hidden, (width,), n2, EPS)
    return hidden + F.linear(F.silu(F.linear(normed, gw)) * F.linear(normed, uw), dw)


class FastForward:
    """Packed forward passes over the parameters of a transformers model."""

    def __init__(self, model: LlavaForConditionalGeneration, compiled: bool = True) -> None:
        """Collect the parameters of ``model``; compile the two kinds of layer if asked to."""
        self.model = model
        tower, text = model.model.vision_tower, model.model.language_model
        self.vision_weights = [
            tuple(
                tensor
                for part in (
                    *(layer.layer_norm1, layer.self_attn.q_proj, layer.self_attn.k_proj),
                    *(layer.self_attn.v_proj, layer.self_attn.out_proj),
                    *(layer.layer_norm2, layer.mlp.fc1, layer.mlp.fc2),
                )
                for tensor in (part.weight, part.bias)
            )
            for layer in tower.encoder.layers
        ]
        self.decoder_weights = [
            tuple(
                part.weight
                for part in (
                    *(layer.input_layernorm, layer.self_attn.q_proj, layer.self_attn.k_proj),
                    *(layer.self_attn.v_proj, layer.self_attn.o_proj),
                    *(layer.post_attention_layernorm, layer.mlp.gate_proj),
                    *(layer.mlp.up_proj, layer.mlp.down_proj),
                )
            )
            for layer in text.layers
        ]
        wrap = torch.compile if compiled else lambda function, **_: function
        self.vision_layer = wrap(vision_layer, dynamic=False)
        self.decoder_layer = wrap(decoder_layer, dynamic=False)

    def see(self, pixels: Tensor) -> Tensor:
        """Return the tower's features [B, 64, D] of pixels [B, 3, 64, 64], CLS dropped."""
        tower = self.model.model.vision_tower
        hidden = tower.pre_layrnorm(tower.embeddings(pixels))
        for weights in self.vision_weights:
            hidden = self.vision_layer(hidden, weights)
        return hidden[:, 1:]

    def project(self, features: Tensor) -> Tensor:
        """Return the visual tokens [B, 64, D] that the decoder gets for the tower's features."""
        return self.model.model.multi_modal_projector(features)

    def name(self, visual: Tensor, words: Tensor) -> Tensor:
        """Return the cosine of each visual token and each word's embedding: [B, 64, words]."""
        embedded = self.model.model.language_model.embed_tokens(words)
        return F.normalize(visual.float(), dim=-1) @ F.normalize(embedded, dim=-1).T

    def answer(self, visual: Tensor, batch: Batch) -> Tensor:
        """Return logits [B, T, vocabulary] at the scored positions of a packed batch."""
        text = self.model.model.language_model
        embedded = text.embed_tokens(batch.ids)
        start = int((batch.ids[0] == self.model.config.image_token_id).nonzero()[0])
        parts = (embedded[:, :start], visual, embedded[:, start + VISUAL_TOKENS :])
        hidden = torch.cat([part.float() for part in parts], 1)  # [B, L, D]
        cos, sin = (each[0] for each in text.rotary_emb(hidden, batch.positions[None]))
        for weights in self.decoder_weights:
            hidden = self.decoder_layer(hidden, batch.mask, cos, sin, weights)
        return self.model.lm_head(text.norm(hidden[:, batch.scored]))
