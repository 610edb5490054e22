"""Where the visual and the text rows of a prompt are. Found from the image token, never from an offset."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.errors import DataError

Index = NDArray[np.int64]

MOST_UNKNOWN = 5
"""Tokens without an embedding that an error names."""


@dataclass(frozen=True)
class Layout:
    """The rows of one prompt, or of one later turn.

    Attributes:
        visual_index: [V] places of the visual rows in the whole prompt.
        text_index: [T] places of the text rows.
        text_ids: [T] tokens of the text rows.
        images: how many images the visual rows come from.
    """

    visual_index: Index
    text_index: Index
    text_ids: Index
    images: int

    @property
    def rows(self) -> int:
        """V + T."""
        return len(self.visual_index) + len(self.text_index)


def layout_of(
    token_ids: Sequence[int],
    *,
    image_token_id: int,
    visual_tokens: int,
    images: int,
    vocab: int,
    spell: Callable[[int], str | None] = lambda _: None,
    start: int = 0,
    unfinished: bool = False,
) -> Layout:
    """Split a prompt into visual and text rows; every row that runs comes from here.

    Args:
        token_ids: the prompt with every image expanded to N image tokens.
        image_token_id: token whose places are visual rows.
        visual_tokens: N.
        images: pictures that come with these tokens.
        vocab: rows of the embedding table.
        spell: text of a token, for errors.
        start: place of the first token; the length of the conversation so far in a later turn.
        unfinished: more tokens follow later, so that this part may end with an image; one text row is
            needed all the same.

    Raises:
        DataError: image tokens are not those of the pictures, a token has no embedding, or the prompt does
            not end with text.
    """
    ids = np.asarray(token_ids, dtype=np.int64)
    visual = ids == image_token_id
    count = int(visual.sum())
    problems = []
    if count != images * visual_tokens:
        problems.append(
            f"the prompt has {count} image tokens (id {image_token_id}), but {images} picture(s) of "
            f"{visual_tokens} rows come with it: give each picture its place in the prompt, and write no "
            "image token into the text"
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
    return Layout(places[visual], places[~visual], ids[~visual], images)
