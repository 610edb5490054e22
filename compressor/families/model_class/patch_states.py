"""A pass of a tower of square tiles: what choices among visual rows read of its patches.

Letters: I tiles, P patches, N visual rows, each a block of r x r patches (r may be 1), C width, H heads,
d head size, D hidden size; F width of the projector's input.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from compressor.families.model_class.patches import squares


class PatchStates:
    """See `compressor.contract.choice.TowerPass`.

    Exporting may trace how one is made: numbers and texts are given, no values of classes.

    Args:
        layers: of the tower, as transformers has them.
        states: its hidden states, one more than layers, [I, first + P, C] each.
        taken: what the projector takes of them, but for the blocks, [I, first + P, F / (r * r)].
        first: 1: a class token stands in front of the patches; 0: none does.
        projector: from F to D.
        side: patches along the side of a tile.
        block: r.
        attention: what a layer calls its attention.
        norm: what it calls the norm in front of that.
    """

    def __init__(
        self,
        layers: Any,
        states: Sequence[Tensor],
        taken: Tensor,
        first: int,
        projector: Any,
        *,
        side: int,
        block: int = 1,
        attention: str = "self_attn",
        norm: str = "layer_norm1",
    ) -> None:
        self._layers, self._states, self._taken = layers, states, taken
        self._first, self._projector = first, projector
        self._side, self._block = side, block
        self._attention_name, self._norm_name = attention, norm

    def states(self, place: int) -> Tensor:
        """Return the patches [I, P, C] among the tower's hidden states."""
        return self._states[place][:, self._first :]

    def patches(self) -> Tensor:
        """Return what the projector takes of each visual row, [I, N, F]: its patches side by side."""
        rows = self._taken[:, self._first :]
        return rows if self._block == 1 else self._by_block(rows).flatten(2)

    def class_row(self) -> Tensor:
        """Return what it would take of a block of class tokens, [I, 1, F]."""
        token = self._taken[:, :1]
        return token if self._block == 1 else token.repeat(1, 1, self._block**2)

    def class_attention(self, layer: int) -> Tensor:
        """Return what the class token reads of each visual row in a layer, [I, H, N] float32."""
        rows = self._normed(layer)
        query, key = self._queries(layer, rows[:, :1]), self._keys(layer, rows)
        read = self._shares(layer, query, key)[:, :, 0, self._first :]
        return self._means(read.transpose(1, 2)).transpose(1, 2)

    def attention_received(self, layer: int) -> Tensor:
        """Return what is read of each visual row in a layer, [I, N] float32, one head after the other."""
        rows = self._normed(layer)
        heads = zip(
            self._queries(layer, rows).unbind(1), self._keys(layer, rows).unbind(1), strict=True
        )
        found = [self._shares(layer, query, key).mean(dim=1) for query, key in heads]
        return self._means(torch.stack(found).mean(dim=0)[:, self._first :])

    def keys(self, layer: int) -> Tensor:
        """Return the keys of the visual rows in a layer, [I, H, N, d], means over their patches."""
        keys = self._keys(layer, self._normed(layer)[:, self._first :])
        return self._means(keys.transpose(1, 2)).transpose(1, 2)

    def project(self, rows: Tensor) -> Tensor:
        """Return what the projector makes of rows [I, K, F], [I, K, D]."""
        embeds: Tensor = self._projector(rows)
        return embeds

    def layer_of(self, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """See `TowerPass.layer_of`."""
        norm, attention = getattr(self._layers[-1], self._norm_name), self._attention(-1)

        def mapped(name: str, given: Tensor) -> Tensor:
            return linear(given, weights[f"{name}.weight"], weights[f"{name}.bias"])

        def normed(name: str, given: Tensor) -> Tensor:
            own = weights[f"{name}.weight"], weights[f"{name}.bias"]
            return layer_norm(given, given.shape[-1:], *own, norm.eps)

        read = normed("layer_norm1", rows)
        query, key, value = (
            _by_head(attention, mapped(f"self_attn.{name}_proj", read)) for name in "qkv"
        )
        mixed = scaled_dot_product_attention(query, key, value, scale=attention.scale)
        rows = rows + mapped("self_attn.out_proj", mixed.transpose(1, 2).flatten(2))
        inner = mapped("mlp.fc1", normed("layer_norm2", rows))
        return rows + mapped("mlp.fc2", self._layers[-1].mlp.activation_fn(inner))

    def _normed(self, layer: int) -> Tensor:
        """Return what a layer's attention takes, [I, first + P, C]."""
        number = layer % len(self._layers)
        rows: Tensor = getattr(self._layers[number], self._norm_name)(self._states[number])
        return rows

    def _by_block(self, values: Tensor) -> Tensor:
        """Return values of patches [I, P, ...] by visual rows, [I, N, r * r, ...]."""
        grid = values.unflatten(1, (self._side, self._side))
        return squares(grid, self._block).flatten(3, 4).flatten(1, 2)

    def _means(self, values: Tensor) -> Tensor:
        """Return the means [I, N, ...] over the patches of visual rows of values [I, P, ...]."""
        return values if self._block == 1 else self._by_block(values).mean(dim=2)

    def _attention(self, layer: int) -> Any:
        return getattr(self._layers[layer], self._attention_name)

    def _queries(self, layer: int, rows: Tensor) -> Tensor:
        attention = self._attention(layer)
        return _by_head(attention, attention.q_proj(rows))

    def _keys(self, layer: int, rows: Tensor) -> Tensor:
        attention = self._attention(layer)
        return _by_head(attention, attention.k_proj(rows))

    def _shares(self, layer: int, query: Tensor, key: Tensor) -> Tensor:
        """Return the softmax of queries [.., q, d] over keys [.., k, d], [.., q, k] float32."""
        scale: float = self._attention(layer).scale
        return (query.float() @ key.float().transpose(-1, -2) * scale).softmax(dim=-1)


def _by_head(attention: Any, rows: Tensor) -> Tensor:
    """Return rows [I, n, C] as [I, H, n, d]."""
    parts: Tensor = rows.unflatten(-1, (attention.num_heads, -1))
    return parts.transpose(1, 2)
