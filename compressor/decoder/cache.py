"""How a call extends caches, and where its keys then lie.

Growing caches come back longer. A fixed cache is a buffer of C rows. The first of them are filled, how many a
tensor tells; a call writes its rows behind them. Rows beyond are masked, whatever finite numbers they hold.

Letters as in `compressor.decoder.layer`; C rows that a buffer has room for; `keys` is P + S, or C.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from compressor.decoder.ops import LEAST, write_rows
from compressor.plan.plan import Cache, length_names

FAR = 2**31 - 1
"""Place of a key that no row reads: behind every row."""


class Grown(NamedTuple):
    """Keys of growing caches: P rows of the past, then the call's.

    Attributes:
        past: P.
    """

    past: int

    def numbers(self, index: Tensor) -> Tensor:
        """Return which of the call's rows [B, S] each key is, [1, P + S]; the past is negative."""
        keys = self.past + index.shape[1]
        return (torch.arange(keys, device=index.device) - self.past)[None]

    def places(self, index: Tensor) -> Tensor:
        """Return the places of the keys, [B, P + S], from those of the call's rows [B, S]; the past is -1."""
        past = index.new_full((index.shape[0], self.past), -1)
        return torch.cat([past, index], dim=1)

    def mask(self, visible: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: ARG002 - where `Filled` differs
        """Return which keys rows read, [B, S, keys], as attention takes it."""
        return visible

    def extended(self, flags: Tensor, more: Tensor) -> Tensor:
        """Return what is known of the past's rows [B, P], followed by the same of the call's [B, S]."""
        return torch.cat([flags, more], dim=1)

    def past_only(self, flags: Tensor) -> Tensor:
        """Return those of the flags [B, P] that concern the past: all."""
        return flags

    def of_call(self, values: Tensor, count: int, axis: int) -> Tensor:
        """Return what an axis of all keys has of the first rows of the call, so many of them."""
        return values.narrow(axis, self.past, count)


NO_PAST = Grown(0)


class Filled(NamedTuple):
    """Keys of fixed caches: the past's rows, the call's, and rows that nothing was written to.

    Attributes:
        filled: [B] int64, how many rows the past has; a batch shares one layout, so all are equal.
        capacity: C.
    """

    filled: Tensor
    capacity: int

    def numbers(self, index: Tensor) -> Tensor:
        """As `Grown.numbers`, [1, C]; S and more is nothing."""
        return torch.arange(self.capacity, device=index.device) - self.filled[:1, None]

    def places(self, index: Tensor) -> Tensor:
        """As `Grown.places`, [B, C]; nothing is `FAR`."""
        numbers = self.numbers(index)
        places = torch.where(numbers < 0, -1, self._laid(index))
        return torch.where(numbers < index.shape[1], places, FAR)

    def mask(self, visible: Tensor, dtype: torch.dtype) -> Tensor:
        """As `Grown.mask`, as 0 and a least score to be added to scores.

        TensorRT-RTX 1.7 fails to build Attention nodes that share a bool mask of this kind. Minus infinity,
        because what lies in rows that nothing was written to may give any score; in float16, where every
        infinity in a graph counts as an overflow, the least score of other masks: earlier calls left rows
        there whose scores are like others'.
        """
        least = LEAST if dtype == torch.float16 else float("-inf")
        nothing = torch.zeros((), dtype=dtype, device=visible.device)
        return nothing.where(visible, least)

    def extended(self, flags: Tensor, more: Tensor) -> Tensor:
        """As `Grown.extended`, with flags [B, C] written in place; what nothing was written to is False."""
        numbers = self.numbers(more)
        here = (numbers >= 0) & (numbers < more.shape[1])
        return self.past_only(flags) | (self._laid(more) & here)

    def past_only(self, flags: Tensor) -> Tensor:
        """As `Grown.past_only`, of flags [B, C] those in front of the call's rows."""
        return flags & (self.numbers(flags) < 0)

    def of_call(self, values: Tensor, count: int, axis: int) -> Tensor:
        """As `Grown.of_call`."""
        rows = torch.arange(count, device=values.device) + self.filled[:1]
        return values.index_select(axis, rows)

    def _laid(self, rows: Tensor) -> Tensor:
        """Return the call's rows [B, S] laid where their keys are, [B, C]; elsewhere anything.

        By gathering, not by a scatter: TensorRT scatters into caches alone.
        """
        return rows.index_select(1, self.numbers(rows)[0].clamp(0, rows.shape[1] - 1))


class KeyValue(NamedTuple):
    """Keys and values of one layer, [B, H_kv, length, d] each, rotated, in order of arrival."""

    key: Tensor
    value: Tensor

    def extended(self, key: Tensor, value: Tensor) -> "KeyValue":
        """Return these followed by the new ones along the length."""
        return KeyValue(torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2))

    def within(self, present: "KeyValue") -> "KeyValue":  # noqa: ARG002 - where `Buffer` differs
        """Return the past alone."""
        return self

    def keys(self) -> Grown | Filled:
        """Return how the keys of a call behind this past lie."""
        return Grown(self.key.shape[2])


class Buffer(NamedTuple):
    """A fixed cache: keys and values [B, H_kv, C, d], of which the first `filled` [B] rows count."""

    key: Tensor
    value: Tensor
    filled: Tensor

    def extended(self, key: Tensor, value: Tensor) -> KeyValue:
        """Return the buffers with the new ones written behind the filled rows; in a graph, in place."""
        return KeyValue(
            write_rows(self.key, key, self.filled), write_rows(self.value, value, self.filled)
        )

    def within(self, present: KeyValue) -> KeyValue:
        """Return the past where it still is once `present` was written: in front of the new rows."""
        return present

    def keys(self) -> Grown | Filled:
        """See `KeyValue.keys`."""
        return Filled(self.filled, self.key.shape[2])


PastTensors = Sequence[tuple[Tensor, ...] | Tensor]
"""Keys and values of every cache of the plan; if it asks, [B, P] bool, which rows of the past are visual;
with fixed caches, [B] int64 for each of `length_names`, how many rows of them are filled."""


class Opened(NamedTuple):
    """A past taken apart.

    Attributes:
        pairs: keys and values, in the order of the caches.
        visual: which rows of the past are visual [B, P]; None: no layer asks.
        keys: how the keys lie that `visual` speaks of.
    """

    pairs: list[KeyValue | Buffer]
    visual: Tensor | None
    keys: Grown | Filled


def opened(past: PastTensors, caches: Sequence[Cache], *, tells_rows: bool) -> Opened:
    """Take a past apart: whether its caches grow or are fixed is told by the lengths behind them."""
    pairs = [KeyValue(*pair) for pair in past[: len(caches)]]
    rest = cast("list[Tensor]", list(past[len(caches) :]))
    visual = rest.pop(0) if tells_rows else None
    told = 0 if visual is None else visual.shape[1]
    if not rest:
        return Opened([*pairs], visual, Grown(told))
    filled = dict(zip(length_names(caches, tells_rows=tells_rows), rest, strict=True))
    buffers = [Buffer(*p, filled[c.length]) for p, c in zip(pairs, caches, strict=True)]
    return Opened([*buffers], visual, Filled(filled.get("past", rest[0]), told))
