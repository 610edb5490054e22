"""One call of each graph on numbers made by a formula.

Whatever a device does to pictures and prompts, these go into its graphs as they went into those of the
machine that exported.

Letters: V visual rows, T text rows, D hidden.
"""

import math
from dataclasses import dataclass

import numpy as np

from compressor.errors import ArtifactError, MissingExtraError, VtcompressError
from compressor.facts import ModelFacts
from compressor.samples.layout import Pictured, layout_around
from export.checks.known.answers import KnownGraphs
from export.checks.known.observe import TOP, is_refusal
from export.checks.known.sums import Logits, Sums, as_stored_number
from export.session.arrays import Array
from export.session.feeds import CallRows, prompt_rows
from export.session.session import Session, look

TEXT = 9
SMALL_GRID = (4, 6)
"""Rows and columns of the made-up picture's tokens, where pictures have sizes of their own."""


@dataclass
class MadeCalls:
    """What a session's graphs give of the made-up calls, as far as they come.

    Attributes:
        vision: features [rows, D] of made-up pixels; None: it was not reached, as of all that follow.
        kept: which rows are kept; None: all.
        embedded: [1, T, D] of made-up tokens.
        rows: the decoder's call.
        logits: [vocab] at its last row.
        at: the part that was at work last.
        error: that ended it.
        refused: see `Observed`.
    """

    vision: tuple[Array, ...] | None = None
    kept: Array | None = None
    embedded: Array | None = None
    rows: CallRows | None = None
    logits: Array | None = None
    at: str = "vision"
    error: str = ""
    refused: bool = False


def made_calls(
    session: Session, facts: ModelFacts, known: KnownGraphs | None = None, *, decoder: bool = True
) -> MadeCalls:
    """Run the made-up calls.

    Args:
        session: runs them.
        facts: of the model.
        known: sizes of the made-up visual rows, and which are kept; None: as the vision graph gives them.
        decoder: run that too.
    """
    found = MadeCalls()
    try:
        _run(found, session, facts, known, decoder=decoder)
    except MissingExtraError:
        raise  # nothing ran, so that nothing is wrong
    except VtcompressError as error:
        found.error = str(error)
        found.refused = is_refusal(error)
    return found


def _run(
    found: MadeCalls,
    session: Session,
    facts: ModelFacts,
    known: KnownGraphs | None,
    *,
    decoder: bool,
) -> None:
    grid = facts.largest_grid
    if facts.sizes_differ and facts.visual_tokens >= math.prod(SMALL_GRID):
        grid = SMALL_GRID
    count = math.prod(grid)
    if grid == facts.largest_grid:  # rows of tiles may be arranged
        count = facts.largest_rows // facts.most_tiles
    pixels = noise((1, 3, *facts.picture_on(grid)), 1)
    seen = look(session, [Pictured(pixels, count, facts.made_up_rows(1, count))])
    found.vision, found.kept = seen.features, seen.kept
    found.at = "decoder"
    ids = (np.arange(TEXT) * 7919 + 11) % facts.decoder.vocab
    found.embedded = session.embed(ids[None])
    sizes = known.sizes if known else root_mean_squares(seen.features)
    if len(sizes) != len(seen.features):
        raise ArtifactError(
            [f"the vision graph gives {len(seen.features)} arrays, known are {len(sizes)}"]
        )
    made = tuple(
        (noise(part.shape, number) * size).astype(part.dtype)
        for number, (part, size) in enumerate(zip(seen.features, sizes, strict=True), 2)
    )
    kept = seen.kept
    if known is not None and known.kept is not None and kept is not None:
        of_known = np.array(known.kept, np.int64)
        # Others are told as such; here they must be places of the picture.
        kept = of_known if fits(of_known, kept, count) else kept
    layout = layout_around(ids, (count,), facts=facts, grid=grid)
    found.rows = prompt_rows(layout, found.embedded, made, kept)
    if decoder:
        session.check_room(None, found.rows.visual_index.shape[1], TEXT)
        logits, _ = session.decode(found.rows, session.empty_past(1))
        found.logits = logits[0, -1]


def fits(places: Array, kept: Array, count: int) -> bool:
    """Whether numbers are places among the rows of a picture, as many as are kept."""
    inside = bool(((places >= 0) & (places < count)).all())
    return inside and places.shape == np.asarray(kept).shape


def root_mean_squares(features: tuple[Array, ...]) -> tuple[float, ...]:
    """Return the root mean square of each array."""
    squares = (float(np.square(part.astype(np.float64)).mean()) for part in features)
    return tuple(as_stored_number(math.sqrt(square)) for square in squares)


def noise(shape: tuple[int, ...], number: int) -> Array:
    """Return float32 numbers from -1.7 to 1.7, of root mean square 1: the same on every machine.

    Args:
        shape: of the array.
        number: which of the arrays of this shape.
    """
    place = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(number << 32)
    # The steps of splitmix64 (Steele, Lea and Flood, 2014), which wrap around.
    mixed = (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    share = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(40)).astype(np.float64) / 2**24
    found: Array = ((2 * share - 1) * math.sqrt(3)).astype(np.float32).reshape(shape)
    return found


def known_graphs(found: MadeCalls) -> KnownGraphs | None:
    """Return what is kept of made-up calls; None: they did not come to what can be kept."""
    if found.vision is None or found.embedded is None:
        return None
    return KnownGraphs(
        vision=tuple(Sums.of(part) for part in found.vision),
        kept=None if found.kept is None else tuple(np.asarray(found.kept).tolist()),
        sizes=root_mean_squares(found.vision),
        embedded=Sums.of(found.embedded[0]),
        logits=None if found.logits is None else Logits.of(found.logits, TOP),
    )
