"""What forced answers tell of a greedy one: whether it is right, without one being generated.

A right answer is forced behind the prompt, and at each of its places the likeliest token is known. As long
as these are the answer's own, they are what the model would pick; the first other one is still its pick, and
what would follow is not known. So a greedy answer is known whole where it ends along a forced one, or is cut.

Where it does not, what is known of its beginning decides: an answer that begins otherwise than every right
one is wrong. One that begins as a right one does, in other tokens than the tokenizer writes that in, is left
undecided.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from compressor.samples.scores import exact

NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""How a tokenizer spells the first bytes of a character."""


class ForcedAnswer(NamedTuple):
    """A right answer that was forced on a model.

    Attributes:
        tokens: of the answer as the model would write it, an ending one last; or its first ones, cut at the
            length of an answer.
        likeliest: in front of each of them.
    """

    tokens: tuple[int, ...]
    likeliest: tuple[int, ...]


def picked(forced: ForcedAnswer, ends: Sequence[int], longest: int) -> tuple[tuple[int, ...], bool]:
    """Return the tokens that a greedy answer is known to begin with, and whether they are all of it.

    Args:
        forced: an answer.
        ends: tokens that end one.
        longest: tokens at which one is cut.
    """
    for place, (token, likeliest) in enumerate(zip(*forced, strict=True)):
        known = (*forced.tokens[:place], likeliest)
        if likeliest in ends or len(known) == longest:
            return known, True
        if likeliest != token:
            return known, False
    return forced.tokens, False


def answers_right(
    forced: Sequence[ForcedAnswer],
    answers: Sequence[str],
    ends: Sequence[int],
    longest: int,
    spell: Callable[[Sequence[int]], str],
) -> bool | None:
    """Return whether a model's greedy answer is one of the right ones; None: undecided.

    Args:
        forced: each of the right answers.
        answers: their texts.
        ends: tokens that end an answer.
        longest: tokens at which one is cut.
        spell: the text of tokens, special ones left out.
    """
    found = [picked(one, ends, longest) for one in forced]
    for tokens, whole in found:
        if whole:
            written = spell(tokens)
            return any(exact(written, answer) for answer in answers)
    begun = spell(max((tokens for tokens, _ in found), key=len)).rstrip(NO_CHARACTER).strip()
    return None if any(answer.strip().startswith(begun) for answer in answers) else False
