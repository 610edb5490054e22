"""What a rule that chooses among visual rows is given, and what it returns.

Letters: B batch, I tiles of pictures, N visual rows of a tile, K those that go on, V visual rows of a call,
T text rows, H heads, d head size, D hidden size; C width of a vision tower, F of what the projector takes.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


class TowerPass(Protocol):
    """What a vision tower made of tiles, each of whose visual rows is one patch or a block of r x r.

    What it tells of a visual row is the mean over its patches, unless it says otherwise; in front of the
    projector they are put side by side. Visual rows are in their order, patches (P = N r r) row by row of the
    tile. Nothing is computed before it is asked for. Layers count from 0, or from -1 at the end.
    """

    def states(self, place: int) -> "Tensor":
        """Return the patches [I, P, C] of a hidden state: 0 in front of layer 0, -1 at the end."""
        ...

    def patches(self) -> "Tensor":
        """Return what the projector takes of each visual row, [I, N, F], its patches side by side."""
        ...

    def class_row(self) -> "Tensor":
        """Return what it would take of a block of class tokens, of a tower that has one.

        Of each tile, [I, 1, F]; of each visual row, [1, N, F], where several tiles make up one grid.
        """
        ...

    def class_attention(self, layer: int) -> "Tensor":
        """Return what the class token reads of each visual row in a layer, [I, H, N] float32.

        Behind the softmax over all rows of the tower.
        """
        ...

    def attention_received(self, layer: int) -> "Tensor":
        """Return what is read of each visual row in a layer, [I, N] float32: mean over heads and patches."""
        ...

    def keys(self, layer: int) -> "Tensor":
        """Return the keys of the visual rows in a layer, [I, H, N, d]."""
        ...

    def project(self, rows: "Tensor") -> "Tensor":
        """Return what the projector makes of rows [I, K, F], [I, K, D]."""
        ...

    def layer_of(self, weights: "Mapping[str, Tensor]", rows: "Tensor") -> "Tensor":
        """Return what a layer like the tower's, with other weights, makes of rows [I, n, C].

        Heads, activation and norms' epsilon are the tower's. Attention, then MLP, a norm in front of each and
        the rows added behind. The weights' names are those that CLIP's layers have (`layer_norm1`,
        `self_attn.q_proj` and so on), all with biases, whatever the tower calls its own.
        """
        ...


@dataclass(frozen=True)
class RunRule:
    """How a router chooses the visual rows that run a layer, and what becomes of the rows there.

    A router is a matrix: it maps the D numbers of a row to a few, as many as the plan says.

    Attributes:
        weigh: maps a router's numbers [.., outputs] to a row's weight [..]; the highest weights run.
        normed: routers read rows behind the layer's input norm, not as they come.
        scales: `mlp`: a weight multiplies what the MLP adds, to text rows too; `update`: what the whole layer
            adds to visual rows.
        renumbered: positions count the rows of the layer's own past and of those that run, not their places.
    """

    weigh: "Callable[[Tensor], Tensor]"
    normed: bool
    scales: Literal["mlp", "update"]
    renumbered: bool


class Front(NamedTuple):
    """Visual rows in front of the decoder, as the vision side gives them.

    Attributes:
        features: [I, N, D], behind the projector.
        deepstack: [I, N, D] of each of the decoder's first layers to which the tower adds rows.
        tower: there if the model's facts have a `tower` that tells its layers.
        weights: of `Method.front_weights`, by the file's names for them.
    """

    features: "Tensor"
    deepstack: "tuple[Tensor, ...]" = ()
    tower: TowerPass | None = None
    weights: "Mapping[str, Tensor]" = MappingProxyType({})

    @property
    def read_tower(self) -> TowerPass:
        """The tower, for a rule that reads it.

        Raises:
            TypeError: the encoder gives none, though the model's facts have one.
        """
        if self.tower is None:
            raise TypeError("the vision encoder gives no tower, though the model's facts have one")
        return self.tower


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

    places = torch.arange(scores.shape[1], device=scores.device)
    one, other = scores[:, :, None], scores[:, None]
    above = (other > one) | ((other == one) & (places < places[:, None]))
    stays = above.sum(dim=-1, dtype=torch.int32) < count
    # The place of the k-th that stays: how many come before there are k + 1 of them.
    turn = torch.arange(count, device=scores.device)[:, None]
    found = stays.to(torch.int32).cumsum(dim=-1)[:, None] <= turn
    return found.sum(dim=-1, dtype=torch.int32).long()


def highest_places(scores: "Tensor", count: int) -> "Tensor":
    """Return the places [I, K] of the highest of scores [I, N], ascending."""
    return scores.topk(count, dim=-1).indices.sort(dim=-1).values


def rows_back(rows: "Tensor", kept: "Tensor", changed: "Tensor") -> "Tensor":
    """Return rows [I, N, D] with others [I, K, D] in the places [I, K]."""
    return rows.scatter(1, kept[..., None].expand_as(changed), changed)


def rows_at(rows: "Tensor", kept: "Tensor") -> "Tensor":
    """Return what stands at places [I, K] of rows [I, N, D], or of [I, N]."""
    places = kept if rows.dim() == 2 else kept[..., None].expand(-1, -1, rows.shape[-1])
    return rows.gather(1, places)
