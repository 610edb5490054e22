"""The rows of a call, and what a graph is fed of them: one builder, which reads the graph's declaration.

Letters: B batch, N rows of a picture's tile, V visual rows, T text rows, D hidden, A rotary axes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compressor.samples.layout import Layout, Places, joined
from export.graphs.spec import DEEPSTACK, POSITIONS, ROWS, GraphSpec
from export.session.arrays import Array


class CallRows(NamedTuple):
    """The rows of one decoder call: what they hold, where they stand, what rotates them.

    Attributes:
        visual: [B, V, D] embeddings, or states of a stage before.
        text: [B, T, D] likewise.
        visual_index: [B, V] int64 places in the whole prompt; they order the causal mask.
        text_index: [B, T] int64 likewise.
        positions: [B, V + T, A] int64, rotary, of visual rows first; None: the places.
        deepstack: [B, V, D] for each of the first layers that have such; none without visual rows.
    """

    visual: Any
    text: Any
    visual_index: Array
    text_index: Array
    positions: Array | None = None
    deepstack: tuple[Array, ...] = ()

    def without_visual(self, visual: Any) -> "CallRows":
        """Return the text rows alone, beside `visual` that holds no rows."""
        count, positions = self.visual_index.shape[1], self.positions
        return self._replace(
            visual=visual,
            visual_index=self.visual_index[:, :0],
            positions=None if positions is None else positions[:, count:],
            deepstack=(),
        )


def prompt_rows(
    layout: Layout,
    text: Array,
    features: Sequence[Array] = (),
    kept: Array | None = None,
) -> CallRows:
    """Return the rows of prompts of one layout.

    Args:
        layout: of each of them.
        text: [B, T, D] embeddings.
        features: of all pictures, see `VisualRows`; may be none without images.
        kept: likewise.
    """
    rows = text_rows(layout, text)
    if not layout.images or not features:
        return rows
    visual, *deepstack = (joined(part, len(text)) for part in features)
    visual_index, positions = layout.placed(kept, len(text))
    return rows._replace(
        visual=visual,
        visual_index=visual_index,
        positions=positions,
        deepstack=tuple(deepstack),
    )


def text_rows(places: Places, text: Array) -> CallRows:
    """Return a call on text rows [B, T, D] alone."""
    batch, _, hidden = text.shape
    positions = places.positions
    return CallRows(
        visual=np.zeros((batch, 0, hidden), text.dtype),
        text=text,
        visual_index=np.zeros((batch, 0), np.int64),
        text_index=np.tile(places.text_index, (batch, 1)),
        positions=None if positions is None else np.tile(positions, (batch, 1, 1)),
    )


def feeds_of(spec: GraphSpec, rows: CallRows, kept: Mapping[str, Any]) -> list[Any]:
    """Return what a decoder graph is fed, in declared order, but for buffers that are bound to it.

    Args:
        spec: the graph's declaration.
        rows: of the call.
        kept: by name, what earlier calls left: growing caches, or how many rows of fixed ones are filled.

    Raises:
        ValueError: an input has no value or a value no input; or positions are not the places, and the graph
            has one input for both.
    """
    given = dict(zip(ROWS, rows, strict=False)) | dict(kept)
    names = [t.name for t in spec.inputs if not t.filled]
    places = np.concatenate([rows.visual_index, rows.text_index], axis=1)[..., None]
    if POSITIONS[0] in names and rows.positions is not None:
        of_both = np.split(rows.positions, [rows.visual_index.shape[1]], axis=1)
        given |= zip(POSITIONS, of_both, strict=True)
    elif rows.positions is not None and (rows.positions != places).any():
        raise ValueError(
            f"{spec.name}: turns rotations by places and has no input for other positions; export it anew "
            "from a model that declares them"
        )
    for name in (name for name in names if name.startswith(DEEPSTACK)):
        layer = int(name.removeprefix(DEEPSTACK))
        if layer < len(rows.deepstack):
            given[name] = rows.deepstack[layer]
        elif not rows.visual_index.shape[1]:
            given[name] = rows.visual
    if odd := sorted(given.keys() ^ set(names)):
        raise ValueError(f"{spec.name}: inputs and values are not the same: {', '.join(odd)}")
    return [given[name] for name in names]
