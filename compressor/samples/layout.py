"""Where the visual and the text rows of a prompt are. Found from the image token, never from an offset.

Letters: V visual rows, T text rows, I pictures, N rows of a tile, A rotary axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.errors import DataError
from compressor.facts import ModelFacts

Index = NDArray[np.int64]

MOST_UNKNOWN = 5
"""Tokens without an embedding that an error names."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the rows of a call stand, and by which positions they are rotated.

    Attributes:
        visual_index: [V] places of the visual rows in the whole prompt; an index orders the causal mask.
        text_index: [T] places of the text rows.
        positions: [V + T, A] rotary positions, of visual rows first; None: the places, on one axis.
    """

    visual_index: Index
    text_index: Index
    positions: Index | None = None

    @property
    def rows(self) -> int:
        """V + T."""
        return len(self.visual_index) + len(self.text_index)

    @property
    def end(self) -> int:
        """Place of the row after the last one, in the whole prompt."""
        return int(max(self.text_index[-1], self.visual_index[-1:].max(initial=0))) + 1

    def behind(self, number: int, count: int = 1) -> "Places":
        """Return where text rows stand that follow.

        Args:
            number: of text rows between these rows and them.
            count: T of them.
        """
        steps = np.arange(number, number + count, dtype=np.int64)
        positions = None
        if self.positions is not None:  # text goes on behind the largest, the same on every axis
            axes = self.positions.shape[1]
            positions = np.tile(self.positions.max() + 1 + steps[:, None], (1, axes))
        return Places(visual_index=steps[:0], text_index=self.end + steps, positions=positions)


@dataclass(frozen=True, kw_only=True)
class Layout(Places):
    """The rows of one prompt, or of one later turn.

    Attributes:
        text_ids: [T] tokens of the text rows.
        image_rows: [I] how many of the visual rows are each picture's, in their order.
    """

    text_ids: Index
    image_rows: tuple[int, ...]

    @property
    def images(self) -> int:
        """I."""
        return len(self.image_rows)


def layout_of(
    token_ids: Sequence[int],
    facts: ModelFacts,
    image_tokens: Sequence[int],
    *,
    spell: Callable[[int], str | None] = lambda _: None,
    start: int = 0,
    unfinished: bool = False,
) -> Layout:
    """Split a prompt into visual and text rows; every row that runs comes from here.

    Args:
        token_ids: the prompt with every image expanded to its image tokens.
        facts: of the model that will run it.
        image_tokens: [I] of each picture that comes with these tokens; they need not be as many.
        spell: text of a token, for errors.
        start: place of the first token; the length of the conversation so far in a later turn.
        unfinished: more tokens follow later, so that this part may end with an image; one text row is
            needed all the same.

    Raises:
        DataError: image tokens are not those of the pictures, a token has no embedding, or the prompt does
            not end with text.
    """
    ids = np.asarray(token_ids, dtype=np.int64)
    visual, vocab = ids == facts.image_token_id, facts.decoder.vocab
    count = int(visual.sum())
    problems = []
    if count != sum(image_tokens):
        sizes = dict.fromkeys(image_tokens or [facts.picture_rows])
        problems.append(
            f"the prompt has {count} image tokens (id {facts.image_token_id}), but {len(image_tokens)} "
            f"picture(s) of {' and '.join(map(str, sizes))} rows come with it: give each picture its place "
            "in the prompt, and write no image token into the text"
        )
    unknown = sorted(set(ids[~visual & ((ids < 0) | (ids >= vocab))].tolist()))
    if unknown:
        named = ", ".join(f"{spell(token)!r} (id {token})" for token in unknown[:MOST_UNKNOWN])
        more = f" and {len(unknown) - MOST_UNKNOWN} more" if len(unknown) > MOST_UNKNOWN else ""
        problems.append(
            f"the prompt has tokens without an embedding: {named}{more}; the model knows ids 0 to "
            f"{vocab - 1}, its tokenizer more: write the text without them"
        )
    if visual.all() or (visual[-1] and not unfinished):
        problems.append(
            "the prompt ends with an image; the next token is predicted from text: put a word after it"
        )
    if problems:
        raise DataError(problems)
    places = np.arange(start, start + len(ids), dtype=np.int64)
    return Layout(
        visual_index=places[visual],
        text_index=places[~visual],
        text_ids=ids[~visual],
        image_rows=tuple(image_tokens),
    )


def layout_around(text_ids: Index, image_rows: Sequence[int], before: int = 1) -> Layout:
    """Return the layout of a made-up prompt: text rows, all pictures, the other text rows.

    Args:
        text_ids: [T] any tokens; what they are is not looked at.
        image_rows: [I] visual rows of each picture.
        before: text rows in front of the pictures.
    """
    visual, places = sum(image_rows), np.arange(len(text_ids), dtype=np.int64)
    return Layout(
        visual_index=np.arange(before, before + visual, dtype=np.int64),
        text_index=places + visual * (places >= before),
        text_ids=text_ids,
        image_rows=tuple(image_rows),
    )


def joined(rows: Any, image_rows: Sequence[int]) -> Any:
    """Return what the vision side gives as the decoder takes it: [tiles, N, D] to [B, V, D].

    Args:
        rows: of all tiles of B prompts' pictures, numpy's or torch's, in their order.
        image_rows: [I] how many are each picture's, the same in every prompt.
    """
    return rows.reshape(-1, sum(image_rows), rows.shape[-1])
