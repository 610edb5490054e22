"""A window of grid neighbours: which visual rows a visual row reads.

An image's visual tokens form a grid of gh rows and gw columns. A token reads those at most w // 2 rows and
columns away. Band by band: the tokens of a grid row read the w grid rows around it, so that work and memory
grow with V x w x gw, not with V x V. Bands of all rows and images run as one batch.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from compressor.decoder.cache import KeyValue
from compressor.decoder.ops import LEAST, attend
from compressor.decoder.places import Call, Kinds


class Window(nn.Module):
    """Static facts of a window on a grid.

    Args:
        grid: gh, gw.
        side: w, odd, at most the smaller side of the grid.
        causal: read neighbours that come before, and oneself, only.
    """

    def __init__(self, grid: tuple[int, int], side: int, *, causal: bool) -> None:
        super().__init__()
        self.rows, self.columns, self.side, self.causal = *grid, side, causal
        half = side // 2
        # Real numbers also while a decoder is laid out on the meta device; they follow its weights later.
        cpu = torch.device("cpu")
        row = torch.arange(self.rows, device=cpu)
        around = row[:, None] + torch.arange(-half, half + 1, device=cpu)  # [gh, w]
        inside = (around >= 0) & (around < self.rows)
        # Rows beyond the grid are read somewhere inside it, and masked.
        self.bands: Tensor
        self.register_buffer("bands", around.clamp(0, self.rows - 1), persistent=False)  # [gh, w]
        column = torch.arange(self.columns, device=cpu)
        near = (column[:, None] - column).abs() <= half  # [gw, gw']
        # [gh, gw, w, gw']: token (row, column) reads (band, column').
        mask = inside[:, None, :, None] & near[None, :, None, :]
        if causal:
            own = row[:, None] * self.columns + column  # [gh, gw]
            other = around[:, :, None] * self.columns + column  # [gh, w, gw']
            mask = mask & (other[:, None] <= own[:, :, None, None])
        # Turned round here, so that graphs do not turn it in every layer.
        self.hidden: Tensor
        self.register_buffer("hidden", ~mask.flatten(2), persistent=False)  # [gh, gw, w * gw']

    def masked(self, mask: Tensor, visual_keys: Tensor, numbers: Tensor, visual: int) -> Tensor:
        """Return a dense mask [B, 1, S, keys] in which visual rows read their window among visual rows.

        Args:
            mask: of all rows, visual first.
            visual_keys: [B, keys] which keys are visual; other images are no neighbours.
            numbers: [B or 1, keys] which row of this call a key is; the past is negative.
            visual: V.
        """
        earlier = mask.narrow(2, 0, visual)
        row = torch.arange(visual, device=mask.device)[:, None]
        near = self._near(row, numbers[:, None]) & ((numbers >= 0) & (numbers < visual))[:, None]
        near = near[:, None]  # [B or 1, 1, V, keys]
        here = earlier & near if self.causal else near.expand_as(earlier)
        of_visual = (earlier & ~visual_keys[:, None, None]) | here
        rest = mask.narrow(2, visual, mask.shape[2] - visual)
        return torch.cat([of_visual, rest], dim=2)

    def _near(self, row: Tensor, key: Tensor) -> Tensor:
        """Return whether rows and keys, numbered through a call's images, are of one image and near in it."""
        size, half = self.rows * self.columns, self.side // 2
        down = (row % size // self.columns - key % size // self.columns).abs() <= half
        across = (row % self.columns - key % self.columns).abs() <= half
        return (row // size == key // size) & down & across


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


def attend_near(
    query: Tensor, near: KeyValue, beside: Sequence[tuple[KeyValue, Tensor]], window: Window
) -> Tensor:
    """Attention of visual rows to grid neighbours and to rows beside the images, in one softmax.

    Built of products and a softmax, which run on no rows as well (V = 0); an Attention node does not. Scores
    are joined, not keys: a decode step, in which V is 0, then copies no cache.

    Args:
        query: [B, H, V, d].
        near: keys and values [B, G, V, d] of the same rows.
        beside: other keys and values [B, G, R, d], each with what is hidden of it [B, 1, 1, V, R] bool.
        window: of the grid; V is a multiple of its size.

    Returns:
        [B, H, V, d].
    """
    groups, size = near.key.shape[1], query.shape[3]
    grid, band = (window.rows, window.columns), window.side * window.columns
    query = query.unflatten(1, (groups, -1)) * size**-0.5
    # Seven axes: B, G, H / G, images, gh, gw, d.
    tiles = query.unflatten(3, (-1, *grid))

    def bands(states: Tensor) -> Tensor:
        """[B, G, V, d] to [B, G, 1, images, gh, w * gw, d]: the grid rows around each grid row."""
        # Indexed along one axis: with brackets the exporter transposes around a GatherND.
        rows = states.unflatten(2, (-1, *grid)).index_select(3, window.bands.flatten())
        return rows.reshape(rows.shape[0], groups, 1, -1, window.rows, band, size)

    near_scores = tiles @ bands(near.key).transpose(-1, -2)  # [.., gh, gw, w * gw]
    # Masked on four axes: on seven OpenVINO 2026.4 hides other scores, but for a decoder's first layer.
    near_scores = near_scores.reshape(-1, *grid, band).masked_fill(window.hidden, LEAST)
    parts = [near_scores.reshape(*query.shape[:4], band)]  # [B, G, H / G, V, w * gw]
    for other, hidden in beside:
        # The query is turned, not the key: in decode it is empty, and the key is the whole cache.
        scores = (other.key[:, :, None] @ query.transpose(-1, -2)).transpose(-1, -2)
        parts.append(scores.masked_fill(hidden, LEAST))
    share = torch.cat(parts, dim=-1).softmax(dim=-1)
    at = band
    of_near = share.narrow(4, 0, at).unflatten(3, (-1, *grid)) @ bands(near.value)
    mixed = of_near.flatten(3, 5)  # [B, G, H / G, V, d]
    for other, _ in beside:
        rows = other.key.shape[2]
        mixed = mixed + share.narrow(4, at, rows) @ other.value[:, :, None]
        at = at + rows
    return mixed.flatten(1, 2)
