"""Qwen's vision towers on whole pictures: rows in reading order, and a batch of pictures of one size.

transformers' towers take lists of patches in the order of merged blocks, and lengths in tensors, which cannot
be traced. Here a picture is a grid of patches, the batch axis keeps pictures apart, and windows are cut from
the padded grid. Modules and weights are transformers' own.

Letters: I pictures, H and W in pixels, h and w patches in a column and in a row, C width, d head size, m
patches on a visual token's side, N = h * w / m^2 rows, D hidden.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.families.base import VisionEncoder


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
        # Half of a head's frequencies turn by the row and half by the column, at the same speeds. No
        # tensor: on the meta device it would have no values.
        half = projection.shape[0] // self.heads // 2
        theta = config.rope_parameters["rope_theta"]
        self.speeds = tuple(theta ** (-i / half) for i in range(0, half, 2))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels [I, 3, H, W] to visual embeddings [I, N, D]."""
        rows = F.conv2d(pixel_values, self.kernel, stride=self.patch).permute(0, 2, 3, 1)
        cos, sin = self._rotations(rows)
        for block, window in zip(self.blocks, self.windows, strict=True):  # rows [I, h, w, C]
            rows = rows + self._attended(block.attn, block.norm1(rows), (cos, sin), window)
            rows = rows + block.mlp(block.norm2(rows))
        squares = _squares(self.merger.ln_q(rows), self.merge)
        embeds: Tensor = self.merger.mlp(squares.flatten(3).flatten(1, 2))
        return embeds

    def _rotations(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [h * w, d / 2] of patches' angles."""
        _, high, wide, _ = rows.shape
        speeds = torch.tensor(self.speeds, dtype=torch.float32, device=rows.device)
        down, right = (
            torch.arange(count, device=rows.device, dtype=torch.float32)[:, None] * speeds
            for count in (high, wide)
        )
        shape = (high, wide, len(self.speeds))

        def laid(turned: Callable[[Tensor], Tensor]) -> Tensor:
            # In front of the grid, where they are few: the exporter makes constants of so many.
            parts = [turned(down)[:, None].expand(shape), turned(right)[None].expand(shape)]
            return torch.cat(parts, dim=-1).flatten(0, 1).to(rows.dtype)

        return laid(torch.cos), laid(torch.sin)

    def _attended(
        self, attention: Any, normed: Tensor, rotations: tuple[Tensor, Tensor], window: int
    ) -> Tensor:
        """Let patches [I, h, w, C] read each other, all of a picture or those of one window."""
        high, wide = normed.shape[1:3]
        parts = attention.qkv(normed.flatten(1, 2)).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # [I, heads, h * w, d]
        query, key = (_turned(part, *rotations) for part in (query, key))
        if window:
            mixed = _in_windows(query, key, value, (high, wide), window)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = mixed.transpose(1, 2).flatten(2).unflatten(1, (high, wide))
        attended: Tensor = attention.proj(mixed)
        return attended


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads' states [I, heads, h * w, d], whose halves are the two parts of a pair."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


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
        return _squares(rows, side).flatten(3, 4).flatten(0, 2).transpose(1, 2)

    there = torch.ones(high, wide, dtype=torch.bool, device=query.device)
    mask = _squares(F.pad(there, more)[None], side).reshape(1, down * right, 1, 1, side**2)
    mask = mask.expand(pictures, down * right, 1, side**2, side**2).flatten(0, 1)
    mixed = F.scaled_dot_product_attention(cut(query), cut(key), cut(value), attn_mask=mask)
    rows = mixed.reshape(pictures, down, right, heads, side, side, -1)
    rows = rows.permute(0, 3, 1, 4, 2, 5, 6)  # [I, heads, down, side, right, side, d]
    rows = rows.reshape(pictures, heads, down * side, right * side, -1)
    return rows.narrow(2, 0, high).narrow(3, 0, wide).flatten(2, 3)


def _squares(rows: Tensor, side: int) -> Tensor:
    """[I, h, w, ...] to [I, h / side, w / side, side, side, ...]."""
    cells: Tensor = rows.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return cells.transpose(2, 3)
