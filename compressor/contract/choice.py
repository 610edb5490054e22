"""What a rule that chooses among visual rows is given, and what it returns.

Letters: B batch, I tiles of pictures, N visual rows of a tile, K those that go on, V visual rows of a call,
T text rows, H query heads, D hidden size.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True)
class LayerRows:
    """The rows at the input of a layer where some of the visual ones leave.

    Attributes:
        visual: [B, V, D], V may be 0.
        text: [B, T, D].
        attention: returns [B, H, V], what the last text row reads of each visual row in the layer before,
            after the softmax over all keys, in the H heads with visual tokens. Computed when asked for.
    """

    visual: "Tensor"
    text: "Tensor"
    attention: "Callable[[], Tensor]"


class LayerScore(Protocol):
    """Scores visual rows at the input of a layer."""

    def __call__(self, rows: LayerRows) -> "Tensor":
        """Return [B, V]; the highest go on."""
        ...


class Front(NamedTuple):
    """Visual rows in front of the decoder, as the vision side gives them.

    Attributes:
        features: [I, N, D], behind the projector.
    """

    features: "Tensor"


class FrontChoice(NamedTuple):
    """What goes on of them.

    Attributes:
        features: [I, K, D].
        kept: [I, K] int64, which of the N places each row has, ascending.
    """

    features: "Tensor"
    kept: "Tensor"


class FrontRule(Protocol):
    """Chooses the visual rows of each tile that the decoder gets."""

    def __call__(self, rows: Front, count: int) -> FrontChoice:
        """Choose `count` of N rows of every tile; only operators that ONNX, without NonZero and If, has."""
        ...


def highest(rows: Front, scores: "Tensor", count: int) -> FrontChoice:
    """Return the rows of the highest scores, in their order.

    Args:
        rows: of tiles.
        scores: [I, N].
        count: K.
    """
    kept = ranked_places(scores, count)
    return FrontChoice(rows_at(rows.features, kept), kept)


def ranked_places(scores: "Tensor", count: int) -> "Tensor":
    """Return what `highest_places` does, of equals those that come first, for pictures of many rows.

    A row's rank is how many are above it: TensorRT's TopK gives 3840 at most, and a large picture has more.
    """
    import torch

    places = torch.arange(scores.shape[1])
    one, other = scores[:, :, None], scores[:, None]
    above = (other > one) | ((other == one) & (places < places[:, None]))
    stays = above.sum(dim=-1, dtype=torch.int32) < count
    # The place of the k-th that stays: how many come before there are k + 1 of them.
    found = stays.to(torch.int32).cumsum(dim=-1)[:, None] <= torch.arange(count)[:, None]
    return found.sum(dim=-1, dtype=torch.int32).long()


def highest_places(scores: "Tensor", count: int) -> "Tensor":
    """Return the places [I, K] of the highest of scores [I, N], ascending."""
    return scores.topk(count, dim=-1).indices.sort(dim=-1).values


def rows_at(rows: "Tensor", kept: "Tensor") -> "Tensor":
    """Return what stands at places [I, K] of rows [I, N, D], or of [I, N]."""
    places = kept if rows.dim() == 2 else kept[..., None].expand(-1, -1, rows.shape[-1])
    return rows.gather(1, places)
