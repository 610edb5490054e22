"""Where the visual and the text rows of a prompt are. Found from the image token, never from an offset.

Where a decoder turns rows on several axes (`DecoderDims.rope_axes`), a token's rotary position is a time, a
row and a column. Those of a text token are equal, one more than the largest before it. A picture's token has
that number as its time, and as row and column it plus the token's own in the picture.

Letters: S tokens, V visual rows, T text rows, I pictures, N rows of a tile, A rotary axes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compressor.arrangement import LINE_END, Arrangement, side_by_side
from compressor.errors import DataError
from compressor.facts import POSITION_AXES, ModelFacts

Index = NDArray[np.int64]
Grid = tuple[int, int]
"""Rows and columns of a picture's tokens."""

MOST_UNKNOWN = 5
"""Tokens without an embedding that an error names."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the rows of a call stand, and by which positions they are rotated.

    Attributes:
        visual_index: [V] places of the visual rows in the whole prompt; an index orders the causal mask.
        text_index: [T] places of the text rows.
        positions: [V + T, A] rotary positions, of visual rows first; None: the places, A is 1.
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
        tile_places: see `ModelFacts`.
    """

    text_ids: Index
    image_rows: tuple[int, ...]
    tile_places: int | None = None

    @property
    def images(self) -> int:
        """I."""
        return len(self.image_rows)

    def placed(self, kept: Any | None, prompts: int) -> tuple[Index, Index | None]:
        """Return where the visual rows that the decoder gets stand in prompts, and what turns all rows.

        Args:
            kept: of all prompts' pictures, see `VisualRows`; None: every visual row.
            prompts: B, of this layout.

        Returns:
            Places [B, V], and positions [B, V + T, A], of visual rows first; None: the places.
        """
        rows = len(self.visual_index)
        which = np.tile(np.arange(rows), (prompts, 1))
        if kept is not None:
            which = kept.reshape(prompts, -1) - rows * np.arange(prompts)[:, None]
            if self.tile_places is not None:
                tiles = which.shape[1] // self.tile_places
                starts = rows // tiles * np.arange(tiles)[:, None]
                which = np.tile((starts + np.arange(self.tile_places)).reshape(-1), (prompts, 1))
        if self.positions is None:
            return self.visual_index[which], None
        text = np.tile(self.positions[rows:], (prompts, 1, 1))
        return self.visual_index[which], np.concatenate([self.positions[which], text], axis=1)


def layout_of(
    token_ids: Sequence[int],
    facts: ModelFacts,
    image_tokens: Sequence[int],
    *,
    spell: Callable[[int], str | None] = lambda _: None,
    start: int = 0,
    grids: Sequence[Grid] | None = None,
    earlier: Sequence[Grid] = (),
    unfinished: bool = False,
) -> Layout:
    """Split a prompt into visual and text rows; every row that runs comes from here.

    Args:
        token_ids: the prompt with every image expanded to its image tokens.
        facts: of the model that will run it.
        image_tokens: [I] of each picture that comes with these tokens; they need not be as many.
        spell: text of a token, for errors.
        start: place of the first token; the length of the conversation so far in a later turn.
        grids: [I] of each picture; None: the model's own. Read where rows are turned on several axes.
        earlier: grids of the pictures before `start`; likewise.
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
    positions = None
    if facts.decoder.rope_axes is not None:
        first = start + position_shift(earlier)
        positions = _positions(visual, _grids(facts, image_tokens, grids), first)
    return _layout(visual, ids[~visual], image_tokens, start, positions, facts)


def layout_around(
    text_ids: Index,
    image_rows: Sequence[int],
    before: int = 1,
    facts: ModelFacts | None = None,
    grid: Grid | None = None,
) -> Layout:
    """Return the layout of a made-up prompt: text rows, all pictures, the other text rows.

    Args:
        text_ids: [T] any tokens; what they are is not looked at.
        image_rows: [I] visual rows of each picture.
        before: text rows in front of the pictures.
        facts: of the model that will run it; None: it turns rows on one axis.
        grid: of each picture's rows; None: that of the model's made-up pictures.
    """
    count = sum(image_rows)
    visual = np.zeros(len(text_ids) + count, dtype=bool)
    visual[before : before + count] = True
    positions = None
    if facts is not None and facts.decoder.rope_axes is not None:
        made_up = [grid or facts.largest_grid] * len(image_rows)
        positions = _positions(visual, _grids(facts, image_rows, made_up), 0)
    return _layout(visual, text_ids, image_rows, 0, positions, facts)


def position_shift(grids: Sequence[Grid]) -> int:
    """Return what pictures add to the positions of text behind them: its position is its place plus this."""
    return sum(max(rows, columns) - rows * columns for rows, columns in grids)


def _grids(
    facts: ModelFacts, image_tokens: Sequence[int], grids: Sequence[Grid] | None
) -> Sequence[Grid]:
    """Return the grids of pictures of so many tokens; without any given, the model's own."""
    own = [facts.token_grid or (0, 0)] * len(image_tokens)
    found = own if grids is None else grids
    if [rows * columns for rows, columns in found] != list(image_tokens):
        raise ValueError(f"pictures of {image_tokens} tokens are not on grids of {found}")
    return found


def _positions(visual: NDArray[np.bool_], grids: Sequence[Grid], first: int) -> Index:
    """Return the rotary positions [S, A] of tokens, of which `visual` [S] are the pictures'."""
    sizes = [rows * columns for rows, columns in grids]
    steps = (~visual).astype(np.int64)  # how far each token takes those behind it
    ends = np.flatnonzero(visual)[np.cumsum(sizes, dtype=np.int64) - 1]
    steps[ends] = [max(grid) for grid in grids]
    positions = np.repeat((first + np.cumsum(steps) - steps)[:, None], POSITION_AXES, axis=1)
    cells = [np.divmod(np.arange(size), g[1]) for size, g in zip(sizes, grids, strict=True)]
    if cells:
        positions[visual, 1:] += np.concatenate(cells, axis=1).T
    return positions


def _layout(
    visual: NDArray[np.bool_],
    text_ids: Index,
    image_rows: Sequence[int],
    start: int,
    positions: Index | None,
    facts: ModelFacts | None,
) -> Layout:
    takes = np.ones(len(visual), np.int64)
    anew = None if facts is None else facts.tile_places
    if facts is not None and anew is not None:  # rows behind the kept ones of a tile have no place
        numbers = np.arange(int(visual.sum())) % facts.tile_rows
        takes[visual] = numbers < anew
    places = start + np.cumsum(takes) - takes
    return Layout(
        visual_index=places[visual],
        text_index=places[~visual],
        positions=None
        if positions is None
        else np.concatenate([positions[visual], positions[~visual]]),
        text_ids=text_ids,
        image_rows=tuple(image_rows),
        tile_places=anew,
    )


class VisualRows(NamedTuple):
    """Visual rows of tiles or of pictures, numpy's or torch's.

    Attributes:
        features: [tiles, N, D], or [V, D] where they are arranged or pictures differ in size; behind them,
            likewise, what is added to them behind the decoder's first layers, if the vision side gives that.
        kept: which rows these are, if they are some alone. Of tiles, as a vision side gives them: [tiles, K]
            int64, which of its tile's N places each has, ascending; features are then [tiles, K, D]. Of
            pictures: which of all their rows, one number each, numpy's. None: all rows.
    """

    features: tuple[Any, ...]
    kept: Any | None = None

    @classmethod
    def given(cls, parts: Sequence[Any], *, chooses: bool) -> "VisualRows":
        """Return what a vision side gave; one that chooses gives the places last."""
        *features, last = parts
        return cls((*features,), last) if chooses else cls((*features, last))


class Pictured(NamedTuple):
    """A picture as the vision side takes it.

    Attributes:
        pixels: [tiles, 3, H, W], numpy's or torch's.
        rows: visual rows of it.
        arranged: of which rows of its tiles these are made; None: they are its rows.
    """

    pixels: Any
    rows: int
    arranged: Arrangement | None = None


def visual_rows(
    vision: Callable[..., VisualRows],
    pictures: Sequence[Pictured],
    concatenate: Callable[[list[Any]], Any],
    *,
    chooses: bool,
) -> VisualRows:
    """Return the visual rows of pictures. Tiles of one size go through the vision side in one call.

    Args:
        vision: makes them of pixels of tiles [tiles, 3, H, W], and of an arrangement if there is one.
        pictures: at least one.
        concatenate: their library's function.
        chooses: the vision side keeps some rows alone; those of arranged pictures grid by grid.
    """
    if pictures[0].arranged is None:
        sizes: dict[tuple[int, ...], list[int]] = {}
        for place, one in enumerate(pictures):
            sizes.setdefault(tuple(one.pixels.shape[1:]), []).append(place)
        found: dict[int, VisualRows] = {}
        for places in sizes.values():
            some = [pictures[place] for place in places]
            seen = vision(concatenate([one.pixels for one in some]))
            if len(sizes) == 1 and not chooses:
                return seen
            found |= zip(places, _of_each(seen, some), strict=True)
        each = [found[place] for place in range(len(pictures))]
    elif chooses:
        each = [_by_grid(vision, one, concatenate) for one in pictures]
    else:
        arranged = side_by_side([one.arranged for one in pictures if one.arranged is not None])
        return vision(concatenate([one.pixels for one in pictures]), arranged)
    starts = np.cumsum([0, *(one.rows for one in pictures)])
    features = zip(*(rows.features for rows in each), strict=True)
    return VisualRows(
        tuple(concatenate(list(parts)) for parts in features),
        np.concatenate([rows.kept + start for rows, start in zip(each, starts, strict=False)])
        if chooses
        else None,
    )


def _of_each(seen: VisualRows, pictures: Sequence[Pictured]) -> Iterator[VisualRows]:
    """Yield the rows [V, D] of each of the pictures whose tiles were seen together."""
    first = 0
    for one in pictures:
        tiles = len(one.pixels)
        own, starts = slice(first, first + tiles), one.rows // tiles * np.arange(tiles)[:, None]
        yield VisualRows(
            tuple(part[own].reshape(-1, part.shape[-1]) for part in seen.features),
            None if seen.kept is None else (np.asarray(seen.kept[own]) + starts).reshape(-1),
        )
        first += tiles


def _by_grid(
    vision: Callable[..., VisualRows],
    picture: Pictured,
    concatenate: Callable[[list[Any]], Any],
) -> VisualRows:
    """Return the rows of an arranged picture that stay: of each grid those chosen, and all that end lines."""
    arranged = picture.arranged
    if arranged is None:
        raise ValueError("a picture whose rows are not arranged has no grids")
    parts = list(arranged.parts())
    seen = [vision(picture.pixels[part.tiles], part.arranged) for part in parts]
    # Of each grid the vision side gives those of its cells that stay, and behind them what ends lines.
    table = [
        np.append(part.cells, LINE_END)[one.kept] for part, one in zip(parts, seen, strict=True)
    ]
    of_table = np.concatenate(table)
    cells, ends = np.flatnonzero(of_table != LINE_END), arranged.ends
    rows = np.append(cells, np.full_like(ends, len(table[0]) - 1))
    places = np.append(of_table[cells], ends)
    order = np.argsort(places)
    features = zip(*(one.features for one in seen), strict=True)
    return VisualRows(
        tuple(concatenate(list(given))[rows[order]] for given in features), places[order]
    )


def joined(rows: Any, prompts: int) -> Any:
    """Return what the vision side gives as the decoder takes it, [B, V, D].

    Args:
        rows: of all B prompts' pictures, numpy's or torch's, in their order, as `visual_rows` gives them.
        prompts: B, of one layout.
    """
    return rows.reshape(prompts, -1, rows.shape[-1])
