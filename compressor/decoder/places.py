"""Where the rows of a call stand: their places order the causal mask, their positions turn the rotation.

Letters as in `compressor.decoder.layer`; A axes that positions are counted on.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from compressor.contract.choice import rows_at
from compressor.decoder.cache import NO_PAST, Filled, Grown
from compressor.facts import POSITION_AXES, DecoderDims

Positions = Tensor | tuple[Tensor, Tensor]
"""Rotary positions of a call's rows [B, V + T, A]; in graphs of visual and of text rows, two tensors."""


class Rows(NamedTuple):
    """What a layer must know of a group of rows: mask, rotation, a factor on what the MLP adds."""

    mask: Tensor  # [B, 1, rows, keys] bool; or 0 and -inf, to be added to scores
    cos: Tensor  # [B, rows, d / 2]
    sin: Tensor  # [B, rows, d / 2]
    scale: Tensor | None = None  # [B, rows, 1]; None: 1

    def scaled(self, update: Tensor) -> Tensor:
        """Return what the MLP adds to the rows [B, rows, D]."""
        return update if self.scale is None else update * self.scale

    def visible(self) -> Tensor:
        """Return the mask as bool."""
        return self.mask if self.mask.dtype == torch.bool else self.mask == 0


class Kinds(NamedTuple):
    """Which keys are visual, for layers in which rows read keys of both kinds differently.

    Attributes:
        visual: [B, keys] bool.
        numbers: [B or 1, keys] int64, which row of this call a key is; the past is negative.
        before: [B, 1, 1, V, P or C] bool, which rows of the past are hidden from visual rows in a window.
        behind: [B, 1, 1, V, T] bool, which text rows of this call are hidden from them.
    """

    visual: Tensor
    numbers: Tensor
    before: Tensor
    behind: Tensor


class Call(NamedTuple):
    """One call's queries and what they may read.

    Attributes:
        all: all rows (visual, then text), on the keys of all rows.
        text: text rows, on the keys of all rows.
        alone: text rows, on the keys of text rows.
        places: of the rows.
        kinds: which keys are visual; None: no layer asks.
    """

    all: Rows
    text: Rows
    alone: Rows
    places: "CallPlaces"
    kinds: Kinds | None = None


class CallPlaces(NamedTuple):
    """Places of the rows of one call (visual, then text) in the whole prompt, and their rotations.

    A place orders the causal mask, a position turns the rotation. They are equal unless a call brings
    positions of its own.
    """

    order: Tensor  # [B, S] int64
    cos: Tensor  # [B, S, d / 2]
    sin: Tensor  # [B, S, d / 2]

    def call(
        self,
        text: int,
        keys: Grown | Filled = NO_PAST,
        text_keys: Grown | Filled = NO_PAST,
        kinds: Kinds | None = None,
    ) -> Call:
        """Return masks and rotations of layers for one call.

        Args:
            text: T.
            keys: how the keys of heads with visual tokens lie.
            text_keys: how those of caches that hold text alone lie.
            kinds: which keys are visual; None: no layer asks.
        """
        own, places = self.last(text), keys.places(self.order)
        every = Rows(self.mask(keys, places), self.cos, self.sin)
        # Not a part of that mask, S x S: graphs in which no layer reads it do not make it.
        of_text = Rows(own.mask(keys, places), own.cos, own.sin)
        text_places = text_keys.places(own.order)
        alone = Rows(own.mask(text_keys, text_places), own.cos, own.sin)
        return Call(every, of_text, alone, self, kinds)

    def kinds(
        self, visual_index: Tensor, text_index: Tensor, past_visual: Tensor, keys: Grown | Filled
    ) -> Kinds:
        """Return which keys are visual, and which of the others are hidden from visual rows.

        Args:
            visual_index: [B, V], places of the call's visual rows.
            text_index: [B, T], places of its text rows.
            past_visual: [B, P or C], which rows of the past are visual.
            keys: how the keys lie.
        """
        # No place is negative: two comparisons make fewer nodes than counting rows does.
        flags = torch.cat([visual_index >= 0, text_index < 0], dim=1)
        # Hidden, not visible: turned round once for all layers.
        before = ~keys.past_only(~past_visual)[:, None, None, None]
        return Kinds(
            visual=keys.extended(past_visual, flags),
            numbers=keys.numbers(self.order),
            before=before.expand(-1, 1, 1, visual_index.shape[1], -1),
            behind=(text_index[:, None, :] > visual_index[:, :, None])[:, None, None],
        )

    def last(self, count: int) -> "CallPlaces":
        """Return the places of the last rows, when those before them are gone."""
        first = self.order.shape[1] - count
        return CallPlaces(*(part.narrow(1, first, count) for part in self))

    def chosen(self, rows: Tensor, text: int) -> "CallPlaces":
        """Return the places of some visual rows [B, K] and of all T text rows."""
        own = self.last(text)
        return CallPlaces(
            *(torch.cat([rows_at(a, rows), b], dim=1) for a, b in zip(self, own, strict=True))
        )

    def row(self, keys: Grown | Filled) -> Rows:
        """Return mask and rotation of the last text row alone, on keys that lie so."""
        # Selected, not sliced: of a slice of a named axis TensorRT does not know that it is one row.
        last = CallPlaces(*(part.select(1, -1).unsqueeze(1) for part in self))
        return Rows(last.mask(keys, keys.places(self.order)), last.cos, last.sin)

    def mask(self, keys: Grown | Filled, places: Tensor) -> Tensor:
        """Return [B, 1, S, keys]: a key is visible if its place [B, keys] is not after the query's."""
        visible = places[:, None, :] <= self.order[:, :, None]
        return keys.mask(visible, self.cos.dtype)[:, None]


class Rotary(nn.Module):
    """Rotary frequencies of a decoder.

    Args:
        dims: of the decoder.
    """

    def __init__(self, dims: DecoderDims) -> None:
        super().__init__()
        self.scale = dims.rope_scale
        self.inv_freq: Tensor
        # Real numbers also while a decoder is laid out on the meta device; they follow its weights later.
        inv_freq = torch.tensor(dims.rope_inv_freq, dtype=torch.float32, device="cpu")
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.axes: Tensor | None
        axes = None if dims.rope_axes is None else torch.tensor(dims.rope_axes, device="cpu")
        self.register_buffer("axes", axes, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to a device or to another dtype; the frequencies stay float32."""
        exact = self.inv_freq
        super()._apply(fn, recurse)
        self.inv_freq = exact.to(self.inv_freq.device)
        return self

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [B, S, d / 2] of positions [B, S, A]."""
        # float32 whatever the model's dtype: float16 cannot tell positions above 2048 apart.
        turned = positions.to(torch.float32)
        if self.axes is not None:
            turned = turned.index_select(2, self.axes)
        angle = turned * self.inv_freq  # [B, S, d / 2]
        return (angle.cos() * self.scale).to(dtype), (angle.sin() * self.scale).to(dtype)

    def counted(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the same of positions [B, S] that are equal on every axis, as those of text are."""
        axes = 1 if self.axes is None else POSITION_AXES
        return self(positions[..., None].expand(-1, -1, axes), dtype)

    def places(
        self,
        visual_index: Tensor,
        text_index: Tensor,
        dtype: torch.dtype,
        positions: Positions | None = None,
    ) -> CallPlaces:
        """Return the places of a call's rows, and their rotations.

        Args:
            visual_index: [B, V] places of the visual rows.
            text_index: [B, T] places of the text rows.
            dtype: of the rotations.
            positions: what turns the rotations, A numbers a row: 1, or those that `rope_axes` chooses from.
                None: the places, where A is 1.

        Raises:
            ValueError: A is more than 1, and there are no positions.
        """
        index = torch.cat([visual_index, text_index], dim=1)  # [B, S]
        if positions is None and self.axes is not None:
            raise ValueError("this decoder turns rows on several axes: give the rows' positions")
        if isinstance(positions, tuple):
            positions = torch.cat(positions, dim=1)
        return CallPlaces(index, *self(index[..., None] if positions is None else positions, dtype))
