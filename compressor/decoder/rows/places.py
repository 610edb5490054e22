"""Places of a call's rows: what orders the causal mask, and what turns rotations.

Letters as in `compressor.decoder.layer`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from compressor.contract.choice import rows_at
from compressor.decoder.cache import NO_PAST, Filled, Grown
from compressor.decoder.layer import Call, Kinds, Rows


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
        return Call(every, of_text, alone, kinds)

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
