"""The calls that decoder benchmarks time: a prefill with one image, and a decode step behind it."""

import numpy as np

from compressor.samples.layout import layout_around
from export.session.arrays import Array
from export.session.feeds import prompt_rows, text_rows
from export.session.session import Past, Session


class Calls:
    """The calls of one graph, on seeded rows.

    Args:
        session: runs the graph.
        visual: V.
        text: T.
        hidden: D.
        before: text rows in front of the image.
        kept: how many of the visual rows the graph gets, evenly spaced; None: all.
    """

    def __init__(
        self,
        session: Session,
        visual: int,
        text: int,
        hidden: int,
        before: int = 1,
        *,
        kept: int | None = None,
    ) -> None:
        rng = np.random.default_rng(0)
        self.session = session
        features = rng.standard_normal((1, visual, hidden), dtype=np.float32)
        embeds = rng.standard_normal((1, text, hidden), dtype=np.float32)
        self.layout = layout_around(np.zeros(text, np.int64), (visual,), before)
        places = None
        if kept is not None:
            places = (np.arange(kept) * visual // kept)[None]
            features = features[:, places[0]]
        self.rows = prompt_rows(self.layout, embeds, (features,), places)
        self.past = self.prefill()[1]

    def prefill(self) -> tuple[Array, Past]:
        """Run the prompt."""
        empty = self.session.empty_past(1)
        return self.session.decode(self.rows, empty)

    def step(self, past: Past | None = None) -> Array:
        """Run one decode step behind the prompt, on its own caches or on given ones."""
        return self.step_at(0, self.past if past is None else past)[0]

    def step_at(self, number: int, past: Past) -> tuple[Array, Past]:
        """Run one decode step behind the prompt and so many steps before it."""
        rows = text_rows(self.layout.behind(number), self.rows.text[:, :1])
        return self.session.decode(rows, past)
