"""A pass of a CLIP or SigLIP tower whose patches are visual rows: what choices among them read of it.

Letters: I tiles, N patches, C width, H heads, d head size, D hidden size; F width of the projector's input.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class PatchStates:
    """See `compressor.contract.choice.TowerPass`.

    Args:
        layers: of the tower, as transformers has them.
        states: its hidden states, one more than layers, [I, first + N, C] each.
        read: those of them that the projector takes, side by side.
        first: 1: a class token stands in front of the patches; 0: none does.
        projector: from F to D.
    """

    def __init__(
        self,
        layers: Any,
        states: Sequence[Tensor],
        read: Sequence[int],
        first: int,
        projector: Any,
    ) -> None:
        self._layers, self._states, self._projector = layers, states, projector
        self._read, self._first = read, first

    def states(self, place: int) -> Tensor:
        """Return the patches [I, N, C] among the tower's hidden states."""
        return self._states[place][:, self._first :]

    def patches(self) -> Tensor:
        """Return what the projector takes of the patches, [I, N, F]."""
        return torch.cat([self.states(place) for place in self._read], dim=-1)

    def class_row(self) -> Tensor:
        """Return what it would take of the class token, [I, 1, F]."""
        return torch.cat([self._states[place][:, :1] for place in self._read], dim=-1)

    def class_attention(self, layer: int) -> Tensor:
        """Return what the class token reads of each patch in a layer, [I, H, N] float32."""
        rows = self._normed(layer)
        query, key = self._queries(layer, rows[:, :1]), self._keys(layer, rows)
        return self._shares(layer, query, key)[:, :, 0, self._first :]

    def attention_received(self, layer: int) -> Tensor:
        """Return what is read of each patch in a layer, [I, N] float32, one head after the other."""
        rows = self._normed(layer)
        heads = zip(
            self._queries(layer, rows).unbind(1), self._keys(layer, rows).unbind(1), strict=True
        )
        found = [self._shares(layer, query, key).mean(dim=1) for query, key in heads]
        return torch.stack(found).mean(dim=0)[:, self._first :]

    def keys(self, layer: int) -> Tensor:
        """Return the keys of the patches in a layer, [I, H, N, d]."""
        return self._keys(layer, self._normed(layer)[:, self._first :])

    def project(self, rows: Tensor) -> Tensor:
        """Return what the projector makes of rows [I, K, F], [I, K, D]."""
        embeds: Tensor = self._projector(rows)
        return embeds

    def layer_of(self, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Return what a layer like the tower's, with other weights, makes of rows [I, n, C]."""
        found: Tensor = torch.func.functional_call(self._layers[-1], dict(weights), (rows, None))
        return found

    def _normed(self, layer: int) -> Tensor:
        """Return what a layer's attention takes, [I, first + N, C]."""
        number = layer % len(self._layers)
        rows: Tensor = self._layers[number].layer_norm1(self._states[number])
        return rows

    def _queries(self, layer: int, rows: Tensor) -> Tensor:
        attention = self._layers[layer].self_attn
        return _by_head(attention, attention.q_proj(rows))

    def _keys(self, layer: int, rows: Tensor) -> Tensor:
        attention = self._layers[layer].self_attn
        return _by_head(attention, attention.k_proj(rows))

    def _shares(self, layer: int, query: Tensor, key: Tensor) -> Tensor:
        """Return the softmax of queries [.., q, d] over keys [.., k, d], [.., q, k] float32."""
        scale: float = self._layers[layer].self_attn.scale
        return (query.float() @ key.float().transpose(-1, -2) * scale).softmax(dim=-1)


def _by_head(attention: Any, rows: Tensor) -> Tensor:
    """Return rows [I, n, C] as [I, H, n, d]."""
    parts: Tensor = rows.unflatten(-1, (attention.num_heads, -1))
    return parts.transpose(1, 2)
