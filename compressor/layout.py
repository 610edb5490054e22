"""Where the visual and the text rows of a prompt are. Found from the image token, never from an offset."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.errors import DataError

Index = NDArray[np.int64]


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
    start: int = 0,
    unfinished: bool = False,
) -> Layout:
    """Split a prompt into visual and text rows.

    Args:
        token_ids: the prompt with every image expanded to N image tokens.
        image_token_id: token whose places are visual rows.
        visual_tokens: N.
        start: place of the first token; the length of the conversation so far in a later turn.
        unfinished: more tokens follow later, so that this part may end with an image; one text row is
            needed all the same.

    Raises:
        DataError: image tokens are no multiple of N, or the prompt does not end with text.
    """
    ids = np.asarray(token_ids, dtype=np.int64)
    visual = ids == image_token_id
    count = int(visual.sum())
    problems = []
    if count % visual_tokens:
        problems.append(
            f"the prompt has {count} image tokens; an image takes {visual_tokens}: "
            "give whole images only, and write no image token into the text"
        )
    if visual.all() or (visual[-1] and not unfinished):
        problems.append(
            "the prompt ends with an image; the next token is predicted from text: put a word after it"
        )
    if problems:
        raise DataError(problems)
    places = np.arange(start, start + len(ids), dtype=np.int64)
    return Layout(places[visual], places[~visual], ids[~visual], count // visual_tokens)
