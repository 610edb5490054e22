"""Caches of fixed size: buffers that calls write into, behind pasts that stay values.

A past is some buffers and how many of their rows are its own. A call behind it writes in place if no other
past that is still alive has more rows in the same buffers; else it copies the filled rows first. So a past
that is kept (`ImagePrefix`, `Conversation`) can begin many sequences, and plain generation copies only where
buffers get more room.

Attention reads a whole buffer, filled or not. So buffers begin with room for the first call and get more in
blocks, up to the most that the artifact allows. Every past in them has its rows at the front, so one buffer
after the other is replaced by another with the same rows: all pasts stay valid, and memory holds one buffer
twice, not all of them.
"""

import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from threading import RLock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compressor.errors import DataError
from compressor.plan.kept import rows_going_on
from compressor.plan.plan import TEXT_PAST
from export.graphs.spec import LENGTH, GraphSpec, TensorSpec, room_of
from export.session.feeds import CallRows, feeds_of
from export.session.growing_cache import bytes_of
from export.session.outputs import declared_outputs

Array = NDArray[Any]

BLOCK = 32
"""Rows that a buffer gets more room by. Fewer would be copied too often, more are read in vain: see
docs/performance.md for 32 to 256."""

MOST_SPARE = 1.1
"""A past that goes on in buffers with so many times the room that it needs gets shorter ones: an earlier
sequence behind the same past, now gone, was longer."""


class Bound(Protocol):
    """A graph bound to buffers."""

    def __call__(self, feeds: Sequence[Any]) -> list[Any]:
        """Run on rows and lengths, in declared order; return the outputs without keys and values."""
        ...


class Buffers:
    """Memory of every cache of one batch.

    Attributes:
        arrays: by the names of the decoder's inputs; the first rows of each are filled.
        bound: graphs that read and write them, by name.
        pasts: that are still alive.
        lock: of a thread whose call reads or writes them.
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.lock: AbstractContextManager[Any] = RLock()
        self.arrays = arrays
        self.bound: dict[str, Bound] = {}
        self.pasts: weakref.WeakSet[FixedPast] = weakref.WeakSet()


class FixedPast:
    """A past: buffers, and how many rows of them it has, by the name of the length."""

    def __init__(self, buffers: Buffers, lengths: Mapping[str, int]) -> None:
        self.buffers, self.lengths = buffers, lengths
        buffers.pasts.add(self)

    @property
    def overtaken(self) -> bool:
        """Whether a past that is still alive has more rows in the same buffers."""
        return any(
            other.lengths[name] > rows
            for other in self.buffers.pasts
            for name, rows in self.lengths.items()
        )


class FixedCaches:
    """Pasts of fixed caches; see the module.

    Args:
        decoders: the decoder graph, or its stages in order.
        block: rows that buffers get more room by.
    """

    def __init__(self, decoders: Sequence[GraphSpec], block: int = BLOCK) -> None:
        self._specs = [spec for graph in decoders for spec in graph.cached]
        self._most = {spec.filled: spec.rows for spec in self._specs}
        self._kept = {name: kept for graph in decoders for name, kept in graph.kept.items()}
        self._block = block

    def empty(self, batch: int) -> FixedPast:
        """Return the past before the first call, in buffers of its own that have no room yet."""
        none = dict.fromkeys((room_of(name) for name in self._most), 0)
        arrays = {s.name: np.zeros(s.shape({"batch": batch, **none}), s.numpy) for s in self._specs}
        return FixedPast(Buffers(arrays), dict.fromkeys(self._most, 0))

    def call(self, past: FixedPast) -> "FixedCall":
        """Return what runs one call behind a past, in its buffers or in a copy of them."""
        return FixedCall(past, self)

    def alone(self, past: FixedPast) -> AbstractContextManager[Any]:
        """Return what keeps other threads from a past's buffers, until the past that a call leaves is made.

        Two calls at once would both find the rows behind it free, and write there.
        """
        return past.buffers.lock

    def make_room(self, past: FixedPast, graph: GraphSpec, rows: Mapping[str, int]) -> None:
        """Give a graph's buffers room for rows: others with the same filled rows, one after the other.

        Args:
            past: that no other past in the same buffers has more rows than.
            graph: whose buffers.
            rows: by the names of their lengths.
        """
        arrays = past.buffers.arrays
        for name, asked in rows.items():
            specs = [spec for spec in graph.cached if spec.filled == name]
            has = {arrays[spec.name].shape[_place(spec)] for spec in specs}
            room = self._rounded(name, asked)
            # They differ if memory ran out while they were replaced.
            if len(has) == 1 and asked <= min(has) <= MOST_SPARE * room:
                continue
            past.buffers.bound.pop(graph.name, None)  # it holds the old ones
            for spec in specs:
                arrays[spec.name] = _with_room(spec, arrays[spec.name], past.lengths[name], room)

    def _rounded(self, name: str, rows: int) -> int:
        return min(-(-rows // self._block) * self._block, self._most[name])

    def copied(self, past: FixedPast, rows: Mapping[str, int]) -> FixedPast:
        """Return a past in buffers of its own, with room for rows by the names of their lengths."""
        arrays = {
            spec.name: _with_room(
                spec,
                past.buffers.arrays[spec.name],
                past.lengths[spec.filled],
                self._rounded(spec.filled, rows[spec.filled]),
            )
            for spec in self._specs
        }
        return FixedPast(Buffers(arrays), past.lengths)

    def check_room(self, past: FixedPast | None, visual: int, text: int) -> None:
        """Refuse rows that do not fit behind a past; None: nothing ran.

        Raises:
            DataError: names the rows, the room and the limit.
        """
        before = past.lengths if past is not None else dict.fromkeys(self._most, 0)
        after = self.longer(before, visual, text)
        problems = [
            f"{after[name]} {'text rows' if name == TEXT_PAST else 'rows'} with the tokens to come are asked "
            f"for; the artifact's KV cache has room for {room} (export.profiles.max_context"
            f"{self._less(name)}): shorten the prompt or the conversation, ask for fewer tokens, or export "
            "it with a larger export.profiles.max_context"
            for name, room in self._most.items()
            if after[name] > room
        ]
        if problems:
            raise DataError(problems)

    def _less(self, name: str) -> str:
        """Return what caches have no room for of the context, in words."""
        if name == TEXT_PAST:
            return " less one image"
        layer = name.removeprefix("past_")
        return f" less what leaves of one image by layer {layer}" if name in self._kept else ""

    def longer(self, lengths: Mapping[str, int], visual: int, text: int) -> dict[str, int]:
        """Return lengths after V visual and T text rows more."""

        def held(name: str) -> int:
            return 0 if name == TEXT_PAST else rows_going_on(visual, self._kept.get(name, ()))

        return {name: rows + text + held(name) for name, rows in lengths.items()}

    def shapes(self, past: FixedPast) -> tuple[tuple[int, ...], ...]:
        """Return the shape that every tensor would have if it held the past's rows alone."""
        found = []
        for spec in self._specs:
            shape = list(past.buffers.arrays[spec.name].shape)
            shape[_place(spec)] = past.lengths[spec.filled]
            found.append(tuple(shape))
        return tuple(found)

    def keys(self, past: FixedPast, number: int) -> Array:
        """Return the filled rows of the keys [B, G, P, d] of one of the caches."""
        spec = self._specs[2 * number]
        return past.buffers.arrays[spec.name][:, :, : past.lengths[spec.filled]]

    def filled_bytes(self, past: FixedPast) -> int:
        """Return the bytes of the past's keys and values."""
        return bytes_of(self._specs, self.shapes(past))

    def buffer_bytes(self, past: FixedPast) -> int:
        """Return the bytes that keys and values occupy now, filled or not."""
        return bytes_of(self._specs, [past.buffers.arrays[s.name].shape for s in self._specs])


class FixedCall:
    """One call on buffers; stages of a gated decoder run one after another."""

    def __init__(self, past: FixedPast, caches: FixedCaches) -> None:
        self._past, self._caches = past, caches
        self._lengths = dict(past.lengths)

    def run(self, graph: Any, rows: CallRows) -> list[Any]:
        """Run a graph on its rows; return its outputs without keys and values.

        Raises:
            DataError: the rows do not fit.
            ArtifactError: it fails, or gives other shapes than it declares.
        """
        spec: GraphSpec = graph.spec
        # States of a stage before are the backend's own values; indices are arrays.
        (batch, visual), (_, text) = rows.visual_index.shape, rows.text_index.shape
        self._caches.check_room(self._past, visual, text)
        if self._past.overtaken:
            needed = self._caches.longer(self._past.lengths, visual, text)
            self._past = self._caches.copied(self._past, needed)
        before = {name: self._past.lengths[name] for name in spec.lengths}
        after = self._caches.longer(before, visual, text)
        filled = {n + LENGTH: np.full(batch, count, np.int64) for n, count in before.items()}
        self._caches.make_room(self._past, spec, after)
        buffers = self._past.buffers
        if spec.name not in buffers.bound:
            buffers.bound[spec.name] = graph.bound(buffers.arrays)
        feeds = feeds_of(spec, rows, filled)
        found = declared_outputs(spec, feeds, buffers.bound[spec.name](feeds))
        self._lengths |= after
        return found

    @property
    def present(self) -> FixedPast:
        """The past that the call leaves."""
        return FixedPast(self._past.buffers, self._lengths)


def _place(spec: TensorSpec) -> int:
    """Return which axis of a cached tensor counts rows: the last but one of keys and values."""
    return 2 if len(spec.axes) > 2 else 1


def _with_room(spec: TensorSpec, array: Array, filled: int, room: int) -> Array:
    """Return a copy of a buffer's filled rows with another room; what is not filled is finite: zero."""
    place = _place(spec)
    shape = list(array.shape)
    shape[place] = room
    # Not zeros: that would write every row twice where memory is used again.
    found = np.empty(shape, spec.numpy)
    before = (slice(None),) * place
    found[(*before, slice(filled))] = array[(*before, slice(filled))]
    found[(*before, slice(filled, None))] = 0
    return found
