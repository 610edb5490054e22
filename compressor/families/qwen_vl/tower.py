"""Qwen's vision towers on whole pictures: rows in reading order, and a batch of pictures of one size.

transformers' towers take lists of patches in the order of merged blocks, and lengths in tensors, which cannot
be traced. Here a picture is a grid of patches, the batch axis keeps pictures apart, and windows are cut from
the padded grid. Modules and weights are transformers' own.

Letters: I pictures, H and W in pixels, h and w patches in a column and in a row, C width, d head size, m
patches on a visual token's side, N = h * w / m^2 rows, D hidden.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.families.base import VisionEncoder
from compressor.families.model_class.patches import rotations, squares, turned


class PatchGrid(VisionEncoder):
    """A tower of Qwen2-VL or Qwen2.5-VL.

    Args:
        tower: transformers' own.
        window: side of the windows that layers attend in, in patches; 0: all look everywhere.
        everywhere: layers that do in spite of it.
    """

    def __init__(self, tower: Any, *, window: int = 0, everywhere: Sequence[int] = ()) -> None:
        super().__init__()
        config = tower.config
        self.blocks, self.merger = tower.blocks, tower.merger
        self.heads, self.patch, self.merge = (
            config.num_heads,
            config.patch_size,
            config.spatial_merge_size,
        )
        self.windows = [0 if i in everywhere else window for i in range(len(self.blocks))]
        projection = tower.patch_embed.proj.weight.detach()  # [C, 3, frames, patch, patch]
        # A picture is a film of equal frames.
        self.kernel = nn.Parameter(projection.sum(2), requires_grad=False)
        self.bias = tower.patch_embed.proj.bias
        # Half of a head's frequencies turn by the row and half by the column, at the same speeds. No
        # tensor: on the meta device it would have no values.
        half = projection.shape[0] // self.heads // 2
        theta = config.rope_parameters["rope_theta"]
        self.speeds = tuple(theta ** (-i / half) for i in range(0, half, 2))

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map pixels [I, 3, H, W] to visual embeddings [I, N, D]."""
        *_, rows = self._states(pixel_values)
        embeds: Tensor = self.merger.mlp(self._merged(self.merger.ln_q(rows)))
        return embeds

    def _states(self, pixel_values: Tensor) -> Iterator[Tensor]:
        """Yield what each layer makes of the patches, [I, h, w, C]."""
        rows = F.conv2d(pixel_values, self.kernel, self.bias, stride=self.patch)
        rows = self._placed(rows.permute(0, 2, 3, 1))
        cos, sin = self._rotations(rows)
        for block, window in zip(self.blocks, self.windows, strict=True):
            rows = rows + self._attended(block.attn, block.norm1(rows), (cos, sin), window)
            rows = rows + block.mlp(block.norm2(rows))
            yield rows

    def _placed(self, rows: Tensor) -> Tensor:
        """Return patches [I, h, w, C] with what tells them where they lie, before any rotation."""
        return rows

    def _merged(self, rows: Tensor) -> Tensor:
        """Return the patches [I, h, w, C] of each visual token side by side, [I, N, m^2 * C]."""
        return squares(rows, self.merge).flatten(3).flatten(1, 2)

    def _rotations(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [h * w, d / 2] of patches' angles."""
        high, wide = rows.shape[1:3]
        return rotations((high, wide), self.speeds, self.speeds, rows)

    def _attended(
        self, attention: Any, normed: Tensor, rotations: tuple[Tensor, Tensor], window: int
    ) -> Tensor:
        """Let patches [I, h, w, C] read each other, all of a picture or those of one window."""
        high, wide = normed.shape[1:3]
        parts = attention.qkv(normed.flatten(1, 2)).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # [I, heads, h * w, d]
        query, key = (turned(part, *rotations) for part in (query, key))
        if window:
            mixed = _in_windows(query, key, value, (high, wide), window)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = mixed.transpose(1, 2).flatten(2).unflatten(1, (high, wide))
        attended: Tensor = attention.proj(mixed)
        return attended


class DeepPatchGrid(PatchGrid):
    """The tower of Qwen3-VL: learned places beside the rotations, and rows of inner layers for the decoder.

    The places are learned for one square grid, which is stretched over that of each picture, corners on
    corners.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__(tower)
        config = tower.config
        self.table, self.side = tower.pos_embed, math.isqrt(config.num_position_embeddings)
        indexes = [*config.deepstack_visual_indexes]
        self.inner = tuple(sorted(indexes))
        self.inner_mergers = nn.ModuleList(
            tower.deepstack_merger_list[indexes.index(layer)] for layer in self.inner
        )

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map pixels [I, 3, H, W] to visual embeddings [I, N, D], and to as many of each inner layer."""
        states = [*self._states(pixel_values)]
        found = [_projected(self.merger, self._merged(self.merger.norm(states[-1])))]
        mergers: Iterable[Any] = self.inner_mergers
        for layer, merger in zip(self.inner, mergers, strict=True):  # here the norm is over m^2 * C
            found.append(_projected(merger, merger.norm(self._merged(states[layer]))))
        return tuple(found)

    def _placed(self, rows: Tensor) -> Tensor:
        _, high, wide, _ = rows.shape
        grid = self.table.weight[: self.side**2].unflatten(0, (1, self.side, self.side))
        stretched = F.interpolate(
            grid.permute(0, 3, 1, 2), (high, wide), mode="bilinear", align_corners=True
        )
        return rows + stretched.permute(0, 2, 3, 1)


def _projected(merger: Any, rows: Tensor) -> Tensor:
    """[I, N, m^2 * C] to [I, N, D]."""
    embeds: Tensor = merger.linear_fc2(merger.act_fn(merger.linear_fc1(rows)))
    return embeds


def _in_windows(
    query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int], side: int
) -> Tensor:
    """Attend within squares of patches, as `scaled_dot_product_attention`; those at the edges are smaller.

    Args:
        query: [I, heads, h * w, d].
        key: likewise.
        value: likewise.
        grid: h and w.
        side: of a square.
    """
    (pictures, heads), (high, wide) = query.shape[:2], grid
    down, right = (high + side - 1) // side, (wide + side - 1) // side
    more = (0, right * side - wide, 0, down * side - high)

    def cut(part: Tensor) -> Tensor:
        """[I, heads, h * w, d] to [I * squares, heads, side^2, d]."""
        rows = F.pad(part.transpose(1, 2).unflatten(1, grid), (0, 0, 0, 0, *more))
        return squares(rows, side).flatten(3, 4).flatten(0, 2).transpose(1, 2)

    there = torch.ones(high, wide, dtype=torch.bool, device=query.device)
    mask = squares(F.pad(there, more)[None], side).reshape(1, down * right, 1, 1, side**2)
    mask = mask.expand(pictures, down * right, 1, side**2, side**2).flatten(0, 1)
    mixed = F.scaled_dot_product_attention(cut(query), cut(key), cut(value), attn_mask=mask)
    rows = mixed.reshape(pictures, down, right, heads, side, side, -1)
    rows = rows.permute(0, 3, 1, 4, 2, 5, 6)  # [I, heads, down, side, right, side, d]
    rows = rows.reshape(pictures, heads, down * side, right * side, -1)
    return rows.narrow(2, 0, high).narrow(3, 0, wide).flatten(2, 3)
