"""Caches of fixed size: buffers that calls write into, behind pasts that stay values.

A past is some buffers and how many of their rows are its own. A call behind it writes in place if no other
past that is still alive has more rows in the same buffers; else it copies the filled rows first. So plain
generation never copies, and a past that is kept (`ImagePrefix`, `Conversation`) can begin many sequences.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compressor.errors import DataError
from compressor.plan import TEXT_PAST
from export.graphs import GraphSpec, TensorSpec
from export.growing_cache import bytes_of

Array = NDArray[Any]


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
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
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
    """

    def __init__(self, decoders: Sequence[GraphSpec]) -> None:
        self._specs = [spec for graph in decoders for spec in graph.cached]
        self._capacities = {spec.filled: _rows(spec) for spec in self._specs}

    def empty(self, batch: int) -> FixedPast:
        """Return the past before the first call, in buffers of its own."""
        arrays = {s.name: np.zeros(s.shape({"batch": batch}), s.numpy) for s in self._specs}
        return FixedPast(Buffers(arrays), dict.fromkeys(self._capacities, 0))

    def call(self, past: FixedPast) -> "FixedCall":
        """Return what runs one call behind a past, in its buffers or in a copy of them."""
        return FixedCall(self._copy(past) if past.overtaken else past, self)

    def _copy(self, past: FixedPast) -> FixedPast:
        copied = self.empty(len(next(iter(past.buffers.arrays.values()))))
        for spec in self._specs:
            filled = (slice(None),) * _place(spec) + (slice(past.lengths[spec.filled]),)
            copied.buffers.arrays[spec.name][filled] = past.buffers.arrays[spec.name][filled]
        return FixedPast(copied.buffers, past.lengths)

    def check_room(self, past: FixedPast | None, visual: int, text: int) -> None:
        """Refuse rows that do not fit behind a past; None: nothing ran.

        Raises:
            DataError: names the rows, the room and the limit.
        """
        before = past.lengths if past is not None else dict.fromkeys(self._capacities, 0)
        after = longer(before, visual, text)
        problems = [
            f"{after[name]} {'text rows' if name == TEXT_PAST else 'rows'} with the tokens to come are asked "
            f"for; the artifact's KV cache has room for {room} (export.profiles.max_context"
            f"{' less one image' if name == TEXT_PAST else ''}): shorten the prompt or the conversation, ask "
            "for fewer tokens, or export it with a larger export.profiles.max_context"
            for name, room in self._capacities.items()
            if after[name] > room
        ]
        if problems:
            raise DataError(problems)

    def shapes(self, past: FixedPast) -> tuple[tuple[int, ...], ...]:
        """Return the shape that every tensor would have if it held the past's rows alone."""
        found = []
        for spec in self._specs:
            shape = list(past.buffers.arrays[spec.name].shape)
            shape[_place(spec)] = past.lengths[spec.filled]
            found.append(tuple(shape))
        return tuple(found)

    def filled_bytes(self, past: FixedPast) -> int:
        """Return the bytes of the past's keys and values."""
        return bytes_of(self._specs, self.shapes(past))

    def buffer_bytes(self, past: FixedPast) -> int:
        """Return the bytes that keys and values occupy, filled or not."""
        return bytes_of(self._specs, [past.buffers.arrays[s.name].shape for s in self._specs])


class FixedCall:
    """One call on buffers; stages of a gated decoder run one after another."""

    def __init__(self, past: FixedPast, caches: FixedCaches) -> None:
        self._past, self._caches = past, caches
        self._lengths = dict(past.lengths)

    def run(self, graph: Any, rows: Sequence[Any]) -> list[Any]:
        """Run a graph on its rows; return its outputs without keys and values.

        Raises:
            DataError: the rows do not fit.
        """
        spec: GraphSpec = graph.spec
        # States of a stage before are the backend's own values; indices are arrays.
        (batch, visual), (_, text) = rows[2].shape, rows[3].shape
        self._caches.check_room(self._past, visual, text)
        buffers = self._past.buffers
        if spec.name not in buffers.bound:
            buffers.bound[spec.name] = graph.bound(buffers.arrays)
        before = self._past.lengths
        filled = [np.full(batch, before[name], np.int64) for name in spec.lengths]
        found = buffers.bound[spec.name]([*rows, *filled])
        self._lengths |= longer({name: before[name] for name in spec.lengths}, visual, text)
        return found

    @property
    def present(self) -> FixedPast:
        """The past that the call leaves."""
        return FixedPast(self._past.buffers, self._lengths)


def longer(lengths: Mapping[str, int], visual: int, text: int) -> dict[str, int]:
    """Return lengths after V visual and T text rows more."""
    return {n: rows + text + (0 if n == TEXT_PAST else visual) for n, rows in lengths.items()}


def _place(spec: TensorSpec) -> int:
    """Return which axis of a cached tensor counts rows: the last but one of keys and values."""
    return 2 if len(spec.axes) > 2 else 1


def _rows(spec: TensorSpec) -> int:
    return int(spec.axes[_place(spec)])
