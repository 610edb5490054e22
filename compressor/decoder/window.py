"""A window of grid neighbours: which visual rows a visual row reads.

An image's visual tokens form a grid of gh rows and gw columns. A token reads those at most w // 2 rows and
columns away. Band by band: the tokens of a grid row read the w grid rows around it, so that work and memory
grow with V x w x gw, not with V x V. Bands of all rows and images run as one batch.
"""

import torch
from torch import Tensor, nn


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
