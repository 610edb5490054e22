"""One sequence of tokens on its way: what is left to run of it, what ran, and each step after that.

Letters: B batch.
"""

from dataclasses import dataclass

from compressor.samples.layout import Layout
from export.runtime.images import SeenPicture
from export.session.arrays import Array
from export.session.session import Past


@dataclass(frozen=True)
class Prompt:
    """A prompt ready to run.

    Attributes:
        layout: its rows.
        seen: its pictures.
        ids: tokens of the whole sequence, those that ran before included.
    """

    layout: Layout
    seen: tuple[SeenPicture, ...]
    ids: tuple[int, ...]

    @property
    def end(self) -> int:
        """Place of the row after its last one, in the whole sequence."""
        return self.layout.end

    @property
    def layout_key(self) -> bytes:
        """Equal for prompts that can run as one batch."""
        layout = self.layout
        turned = b"" if layout.positions is None else layout.positions.tobytes()
        indices = (layout.visual_index.tobytes(), layout.text_index.tobytes(), turned)
        # Of grids of another shape other numbers of rows may stay.
        arranged = [one.arrangement.ends.tolist() for one in self.seen if one.arrangement]
        return b"|".join((repr((layout.image_rows, arranged)).encode(), *indices))


@dataclass(frozen=True)
class Step:
    """One decoding step.

    Attributes:
        tokens: [B] picked.
        logits: [B, vocab] float32 that they were picked from.
        past: cache of every row before these tokens.
    """

    tokens: Array
    logits: Array
    past: Past


@dataclass(frozen=True)
class Cached:
    """Rows of one sequence that ran already.

    Attributes:
        ids: their tokens, images expanded.
        images: among them.
        past: their keys and values; None if nothing ran.
    """

    ids: tuple[int, ...] = ()
    images: int = 0
    past: Past = None

    def begins(self, ids: tuple[int, ...]) -> bool:
        """Whether a longer sequence starts with exactly these rows."""
        return len(self.ids) < len(ids) and ids[: len(self.ids)] == self.ids


NOTHING = Cached()
