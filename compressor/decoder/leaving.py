"""Visual rows that leave at the input of a layer: k of every n go on, by a score.

Letters as in `compressor.decoder.layer`; K visual rows that go on, G key/value heads.
"""

from torch import Tensor, nn

from compressor.contract.choice import LayerRows, LayerScore, highest_places
from compressor.decoder.cache import Filled, Grown
from compressor.decoder.layer import Heads
from compressor.decoder.ops import LEAST
from compressor.decoder.places import Rows
from compressor.plan.kept import Kept


class Leaving(nn.Module):
    """Chooses the visual rows that go on.

    Args:
        kept: how many.
        score: of the visual rows.
    """

    def __init__(self, kept: Kept, score: LayerScore) -> None:
        super().__init__()
        self.kept, self.score = kept, score

    def forward(self, rows: LayerRows) -> Tensor:
        """Return [B, K] which visual rows go on, ascending."""
        count = self.kept.rows(rows.visual.shape[1])
        return highest_places(self.score(rows), count)


def last_row_attention(
    heads: Heads, normed: Tensor, rows: Rows, key: Tensor, keys: Grown | Filled, own: int
) -> Tensor:
    """Return what a call's last text row reads of its visual rows, [B, H, V], after the softmax.

    Args:
        heads: with visual tokens; those without read none, and are not among the H.
        normed: [B, 1, D], the row behind the layer's input norm.
        rows: its mask and rotation.
        key: [B, G, P + S or C, d] keys of all calls.
        keys: how they lie.
        own: V.
    """
    query = (
        heads.queries(normed, rows).unflatten(1, (heads.kv_heads, -1)).squeeze(3)
    )  # [B, G, g, d]
    # Keys first: a transposed cache would be copied in every call.
    scores = key @ query.transpose(2, 3) * query.shape[-1] ** -0.5  # [B, G, keys, g]
    hidden = ~rows.visible().transpose(2, 3)
    read = scores.masked_fill(hidden, LEAST).softmax(dim=2)
    return keys.of_call(read, own, 2).transpose(2, 3).flatten(1, 2)


def heads_with_visual(layer: nn.Module) -> Heads | None:
    """Return the heads of a layer in which visual tokens take part."""
    return layer if isinstance(layer, Heads) else layer.seen  # type: ignore[return-value]
