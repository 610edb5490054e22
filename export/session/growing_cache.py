"""Caches that grow: every call returns new values, longer than those it was given."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import numpy as np

from export.graphs.spec import PAST_VISUAL, GraphSpec
from export.session.feeds import CallRows, feeds_of
from export.session.outputs import declared_outputs, shape_of


class GrowingCaches:
    """Pasts of growing caches: lists of values, in the order of the decoder's inputs.

    Args:
        decoders: the decoder graph, or its stages in order.
    """

    def __init__(self, decoders: Sequence[GraphSpec]) -> None:
        self._specs = [spec for graph in decoders for spec in graph.cached]

    def empty(self, batch: int) -> list[Any]:
        """Return the past before the first call."""
        sizes = {"batch": batch, "past": 0}
        return [np.zeros(spec.shape(sizes), spec.numpy) for spec in self._specs]

    def alone(self, past: list[Any]) -> AbstractContextManager[Any]:  # noqa: ARG002 - as `FixedCaches`
        """Return nothing that keeps threads apart: no call changes a past."""
        return nullcontext()

    def call(self, past: list[Any]) -> "GrowingCall":
        """Return what runs one call behind a past."""
        return GrowingCall(past)

    def check_room(self, past: list[Any] | None, visual: int, text: int) -> None:
        """Do nothing: they grow as far as the memory goes."""

    def shapes(self, past: list[Any]) -> tuple[tuple[int, ...], ...]:
        """Return the shape of every tensor."""
        return tuple(map(shape_of, past))

    def keys(self, past: list[Any], number: int) -> Any:
        """Return the keys [B, G, P, d] of one of the caches."""
        return past[2 * number]

    def filled_bytes(self, past: list[Any]) -> int:
        """Return the bytes of keys and values."""
        return bytes_of(self._specs, self.shapes(past))

    def buffer_bytes(self, past: list[Any]) -> None:  # noqa: ARG002 - as `FixedCaches`
        """Return None: there are no buffers beside the values."""
        return


class GrowingCall:
    """One call: passes every graph its part of the past, and keeps what comes back."""

    def __init__(self, past: list[Any]) -> None:
        self._rest = iter(past)
        self.present: list[Any] = []

    def run(self, graph: Any, rows: CallRows) -> list[Any]:
        """Run a graph on its rows; return its outputs without keys and values.

        Raises:
            ArtifactError: it fails, or gives other shapes than it declares.
        """
        names = [cached.name for cached in graph.spec.cached]
        past = dict(zip(names, islice(self._rest, len(names)), strict=True))
        feeds = feeds_of(graph.spec, rows, past)
        outputs: list[Any] = declared_outputs(graph.spec, feeds, graph(feeds))
        found = len(outputs) - len(names)
        self.present += outputs[found:]
        return outputs[:found]


def bytes_of(specs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the bytes of keys and values of these shapes."""
    return sum(
        math.prod(shape) * spec.numpy.itemsize
        for shape, spec in zip(shapes, specs, strict=True)
        if spec.name != PAST_VISUAL
    )
