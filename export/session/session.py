"""One call for every backend: vision, embedding and decoder on numpy arrays, caches kept by the backend."""

from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from compressor.arrangement import Arrangement
from compressor.plan.plan import Cache
from compressor.samples.layout import Pictured, VisualRows, visual_rows
from export.graphs.spec import GraphSpec, caches_of, in_order, vision_for
from export.session.arrays import Array
from export.session.feeds import CallRows
from export.session.fixed_cache import BLOCK, FixedCaches
from export.session.growing_cache import GrowingCaches
from export.session.outputs import declared_outputs

Past = Any
"""Keys and values in the backend's own form; passed back to the session that returned them. A value: no call
changes it."""


class Session(Protocol):
    """A model that runs; B batch, I images, V visual rows, T text rows, P past."""

    @property
    def reads_question(self) -> bool:
        """Whether gates or a choice among visual rows read the text behind the images."""
        ...

    @property
    def moves_text(self) -> bool:
        """Whether text behind images stands elsewhere in one call with them than in a later one."""
        ...

    @property
    def max_batch(self) -> int | None:
        """Prompts of one call at most; None: as many as memory holds."""
        ...

    @property
    def caches(self) -> tuple[Cache, ...]:
        """Whose keys and values a past holds, pair by pair, in its order."""
        ...

    @property
    def rows_kept(self) -> int | None:
        """K of the N visual rows of a tile, or of as many of a grid, that the vision gives; None: all."""
        ...

    def vision(self, pixel_values: Array, arrangement: Arrangement | None = None) -> VisualRows:
        """Pixels [I, 3, H, W] float32 to visual embeddings [I, N, D], or [V, D] as they are arranged.

        Of pictures `look` does it, which knows what one call takes.
        """
        ...

    def embed(self, input_ids: Array) -> Array:
        """Token ids [B, T] to text embeddings [B, T, D]."""
        ...

    def decode(self, rows: CallRows, past: Past) -> tuple[Array, Past]:
        """Run the decoder on V visual and T text rows; return logits [B, 1 or T, vocab] and the new past."""
        ...

    def empty_past(self, batch: int) -> Past:
        """Return the cache before the first call."""
        ...

    def check_room(self, past: Past, visual: int, text: int) -> None:
        """Refuse V visual and T text rows that caches of fixed size have no room for.

        Args:
            past: that they come behind; None: nothing ran.
            visual: V, of all calls to come.
            text: T, likewise.

        Raises:
            DataError: names the rows, the room and the limit.
        """
        ...

    def past_shapes(self, past: Past) -> tuple[tuple[int, ...], ...]:
        """Return the shape of every cached tensor, in the order of the decoder's inputs.

        Of caches of fixed size filled rows count, not the buffers'.
        """
        ...

    def cached_keys(self, past: Past, layer: int) -> Array:
        """Return the keys [rows, G * d] of a layer's heads with visual tokens, of a batch's first prompt."""
        ...

    def past_bytes(self, past: Past) -> int:
        """Return the size of the keys and values that a past holds; of fixed caches, of the filled rows."""
        ...

    def buffer_bytes(self, past: Past) -> int | None:
        """Return what the buffers of fixed caches occupy now; None: caches grow."""
        ...


def look(session: Session, pictures: Sequence[Pictured]) -> VisualRows:
    """Return the visual rows of pictures, at least one; see `visual_rows`."""
    chooses = session.rows_kept is not None
    return visual_rows(session.vision, pictures, np.concatenate, chooses=chooses)


def cached_rows(caches: Sequence[Cache], shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return how many rows each layer's heads with visual tokens hold; 0 where a layer has no such heads.

    Caches of heads that were made for text alone say nothing of where visual rows left.

    Args:
        caches: whose keys and values a past holds.
        shapes: of its tensors; behind the pairs there may be one that tells visual rows.
    """
    rows = [0] * (1 + max((cache.layer for cache in caches), default=-1))
    keys = shapes[: 2 * len(caches) : 2]
    for cache, shape in zip(caches, keys, strict=True):
        if not cache.part:
            rows[cache.layer] = shape[2]
    return tuple(rows)


def exit_of(rows: Sequence[int], visual: int, text: int) -> int | None:
    """Return the first layer whose heads hold text alone after a prefill; None if there is none.

    Layers may hold fewer visual rows than there are, where some are kept alone: that is no exit.

    A layer without visual heads looks the same before and behind an exit. It is not taken for one, so an
    exit that a gate chose right before such layers is found behind them.

    Args:
        rows: of each layer, as `cached_rows` counts them.
        visual: visual rows so far; 0: nothing could leave.
        text: text rows so far.
    """
    held = enumerate(rows) if visual else ()
    return next((layer for layer, count in held if 0 < count <= text), None)


def place_of(caches: Sequence[Cache], layer: int) -> int:
    """Return which of the caches is that of a layer's heads with visual tokens."""
    return next(i for i, c in enumerate(caches) if c.layer == layer and not c.part)


def in_rows(keys: Array) -> Array:
    """Return the keys [B, G, rows, d] of the first prompt as float32 rows [rows, G * d]."""
    rows: Array = keys[0].swapaxes(0, 1).astype(np.float32)
    return rows.reshape(len(rows), -1)


class Graph(Protocol):
    """One graph of an artifact in a backend; several threads may run it at once."""

    def __call__(self, feeds: Sequence[Any]) -> list[Any]:
        """Run on inputs in declared order: arrays, or values that an earlier call returned."""
        ...


OneGraph = TypeVar("OneGraph", bound=Graph)


class GraphSession(Generic[OneGraph]):
    """An artifact's graphs in one backend behind the session call; loaded when first used.

    Threads may call it at once: graphs see to it that they can, and calls in the same buffers of fixed caches
    wait for each other.

    Args:
        graphs: declarations by name; needs `vision`, `embed` and the decoder or its stages.
        open_graph: loads one of them.
        decoder: name of the decoder graph, `decoder` or `baseline_decoder`.
        block: rows that buffers of fixed caches get more room by.

    Attributes:
        runs: names of the graphs that calls run.
        check_loaded: asked before a graph is loaded and behind it; raises where it is not the one that was
            checked.
    """

    def __init__(
        self,
        graphs: Sequence[GraphSpec],
        open_graph: Callable[[GraphSpec], OneGraph],
        decoder: str = "decoder",
        block: int = BLOCK,
    ) -> None:
        self._specs = {spec.name: spec for spec in graphs}
        self._open_graph = open_graph
        self._decoders = in_order(graphs, decoder)
        self._vision = vision_for(decoder, self._specs)
        self.runs = (self._vision, "embed", *(spec.name for spec in self._decoders))
        fixed = any(spec.fixed for spec in self._decoders)
        self._pasts: FixedCaches | GrowingCaches = (
            FixedCaches(self._decoders, block) if fixed else GrowingCaches(self._decoders)
        )
        self._loaded: dict[str, OneGraph] = {}
        self._loading = RLock()
        self.check_loaded: Callable[[], None] = lambda: None

    def graph(self, name: str) -> OneGraph:
        """Return a loaded graph."""
        with self._loading:
            if name not in self._loaded:
                # Before, too: what is mapped behind the end of a file ends the process.
                self.check_loaded()
                graph = self._open_graph(self._specs[name])
                self.check_loaded()
                self._loaded[name] = graph
            return self._loaded[name]

    @property
    def decoders(self) -> tuple[GraphSpec, ...]:
        """The decoder's graph, or its stages in order."""
        return tuple(self._decoders)

    def put(self, name: str, graph: OneGraph) -> None:
        """Run another graph of the same declaration in place of one of the artifact's."""
        self._loaded[name] = graph

    def load(self) -> None:
        """Load all graphs now, so that the first call is not slower than the next."""
        for name in self.runs:
            self.graph(name)

    @property
    def reads_question(self) -> bool:
        """See `Session.reads_question`."""
        return self._decoders[0].reads_question

    @property
    def moves_text(self) -> bool:
        """See `Session.moves_text`."""
        return self._decoders[0].moves_text

    @property
    def max_batch(self) -> int | None:
        """See `Session.max_batch`."""
        return self._decoders[0].batch

    @property
    def caches(self) -> tuple[Cache, ...]:
        """See `Session.caches`."""
        return caches_of([cached for spec in self._decoders for cached in spec.cached])

    @property
    def rows_kept(self) -> int | None:
        """See `Session.rows_kept`."""
        return self._specs[self._vision].rows_kept

    def vision(self, pixel_values: Array, arrangement: Arrangement | None = None) -> VisualRows:
        """See `Session.vision`."""
        arrays = () if arrangement is None else arrangement.arrays
        found = [as_array(part) for part in self._run(self._vision, [pixel_values, *arrays])]
        return VisualRows.given(found, chooses=self.rows_kept is not None)

    def embed(self, input_ids: Array) -> Array:
        """See `Session.embed`."""
        return as_array(self._run("embed", [input_ids])[0])

    def _run(self, name: str, feeds: list[Any]) -> list[Any]:
        """Run a graph without caches; see `declared_outputs`."""
        return declared_outputs(self._specs[name], feeds, self.graph(name)(feeds))

    def decode(self, rows: CallRows, past: Past) -> tuple[Array, Past]:
        """See `Session.decode`."""
        *stages, last = self._decoders
        with self._pasts.alone(past):
            call = self._pasts.call(past)
            for spec in stages:
                visual, text, gate_logits = call.run(self.graph(spec.name), rows)
                rows = rows._replace(visual=visual, text=text)
                if fires(as_array(gate_logits)):
                    states = spec.outputs[0]
                    rows = rows.without_visual(np.zeros(states.shape({"visual": 0}), states.numpy))
            (logits,) = call.run(self.graph(last.name), rows)
            return as_array(logits), call.present

    def empty_past(self, batch: int) -> Past:
        """See `Session.empty_past`."""
        return self._pasts.empty(batch)

    def check_room(self, past: Past, visual: int, text: int) -> None:
        """See `Session.check_room`."""
        self._pasts.check_room(past, visual, text)

    def past_shapes(self, past: Past) -> tuple[tuple[int, ...], ...]:
        """See `Session.past_shapes`."""
        return self._pasts.shapes(past)

    def cached_keys(self, past: Past, layer: int) -> Array:
        """See `Session.cached_keys`."""
        return in_rows(as_array(self._pasts.keys(past, place_of(self.caches, layer))))

    def past_bytes(self, past: Past) -> int:
        """See `Session.past_bytes`."""
        return self._pasts.filled_bytes(past)

    def buffer_bytes(self, past: Past) -> int | None:
        """See `Session.buffer_bytes`."""
        return self._pasts.buffer_bytes(past)


def fires(gate_logits: Array) -> bool:
    """Return whether a gate's logits [min(V, 1), 2] make the visual rows leave."""
    return bool((gate_logits[:, 1] > gate_logits[:, 0]).any())


def as_array(value: Any) -> Array:
    """Return a backend's value as an array in this process's memory."""
    array: Array = value if isinstance(value, np.ndarray) else value.numpy()
    return array
