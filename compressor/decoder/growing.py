"""Visual rows that become more at the input of a layer: m of the n rows of every tile.

Letters: B batch, s tiles of a call, V = s x n visual rows, T text rows, D hidden.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from compressor.plan.growth import Growth


class More(NamedTuple):
    """The rows of a call behind the place where visual ones became more, and where all now stand.

    Attributes:
        visual: [B, s x m, D].
        visual_index: [B, s x m] int64.
        text_index: [B, T] int64.
    """

    visual: Tensor
    visual_index: Tensor
    text_index: Tensor


def interpolation(count: int, of: int) -> Tensor:
    """Return the matrix [m, n] that resizes n rows to m, linearly, with aligned ends.

    Row r is at t = r (n - 1) / (m - 1), between the rows floor(t) and floor(t) + 1.

    Args:
        count: m, 2 or more.
        of: n.
    """
    # Whole numbers as far as possible, so that a row on one of the n is that one; and real numbers also while
    # a decoder is laid out on the meta device.
    steps = torch.arange(count, device="cpu") * (of - 1)
    lower = steps // (count - 1)
    share = (steps % (count - 1)).double() / (count - 1)
    found = torch.zeros(count, of, dtype=torch.float64, device="cpu")
    rows = torch.arange(count, device="cpu")
    found[rows, lower] = 1 - share
    found[rows, (lower + 1).clamp(max=of - 1)] += share
    return found.float()


class Growing(nn.Module):
    """Makes m of the n visual rows of every tile.

    A call's rows are counted anew from its first place, which is what they would be if every tile had m
    image tokens in the prompt. So where it takes m places, text keeps its own.

    Args:
        grown: n and m.
        tokens: places that a tile takes in the prompt; n of them have a row.
    """

    def __init__(self, grown: Growth, tokens: int) -> None:
        super().__init__()
        self.count, self.of, self.tokens = grown.count, grown.of, tokens
        self.matrix: Tensor
        self.register_buffer("matrix", interpolation(grown.count, grown.of), persistent=False)

    def forward(self, visual: Tensor, visual_index: Tensor, text_index: Tensor) -> More:
        """Map the rows of a call, and their places.

        Args:
            visual: [B, V, D], V may be 0.
            visual_index: [B, V] places of the visual rows that entered.
            text_index: [B, T] places of the text rows, ascending.
        """
        tiles = visual.unflatten(1, (-1, self.of))  # [B, s, n, D]
        # Expanded, because ONNX Runtime refuses to repeat one matrix for no tiles.
        matrix = self.matrix.expand(*tiles.shape[:2], -1, -1)
        grown = (matrix @ tiles).flatten(1, 2)
        first = visual_index.unflatten(1, (-1, self.of)).select(2, 0)  # [B, s], of each tile
        # [B, s, T], a tile lies before a text row.
        before = first[:, :, None] < text_index[:, None, :]
        # Of no tiles there are 0: a row for them, because ONNX Runtime's CUDA sums over no empty axis.
        none = torch.zeros_like(text_index)[:, None]
        tiles_before = torch.cat([none, before.long()], dim=1).sum(1)  # [B, T]
        start = text_index[:, :1] - self.tokens * tiles_before[:, :1]
        begins = start + (~before).sum(2)  # [B, s], as if other tiles were empty
        steps = torch.arange(grown.shape[1], device=visual.device).unflatten(0, (-1, self.count))
        return More(
            grown,
            (begins[:, :, None] + steps).flatten(1),
            text_index + (self.count - self.tokens) * tiles_before,
        )
