"""The calls that decoder benchmarks time: a prefill with one image, and a decode step behind it."""

import numpy as np

from export.backends.onnxruntime import OnnxSession
from export.session.arrays import Array
from export.session.session import no_visual


class Calls:
    """The calls of one graph, on seeded rows.

    Args:
        session: runs the graph.
        visual: V.
        text: T.
        hidden: D.
        before: text rows in front of the image.
    """

    def __init__(
        self, session: OnnxSession, visual: int, text: int, hidden: int, before: int = 1
    ) -> None:
        rng = np.random.default_rng(0)
        self.session = session
        self.visual = rng.standard_normal((1, visual, hidden), dtype=np.float32)
        self.text = rng.standard_normal((1, text, hidden), dtype=np.float32)
        places = np.arange(visual + text)[None]
        self.visual_index = places[:, before : before + visual]
        self.text_index = np.delete(places, np.s_[before : before + visual], axis=1)
        self.past = self.prefill()[1]

    def prefill(self) -> tuple[Array, list[object]]:
        """Run the prompt."""
        empty = self.session.empty_past(1)
        return self.session.decode(
            self.visual, self.text, self.visual_index, self.text_index, empty
        )

    def step(self, past: list[object] | None = None) -> Array:
        """Run one decode step behind the prompt, on its own caches or on given ones."""
        return self.step_at(0, self.past if past is None else past)[0]

    def step_at(self, number: int, past: list[object]) -> tuple[Array, list[object]]:
        """Run one decode step behind the prompt and so many steps before it."""
        row = self.text[:, :1]
        visual, visual_index = no_visual(row)
        index = np.array([[self.visual.shape[1] + self.text.shape[1] + number]])
        return self.session.decode(visual, row, visual_index, index, past)
