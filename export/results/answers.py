"""Answers of one model to the validation questions, and which of them are right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from compressor.facts import Facts
from compressor.samples.pictures import MAX_PIXELS
from export.session.arrays import Array

Place = Annotated[int, Field(ge=0)]
Pixels = Annotated[int, Field(ge=1, le=MAX_PIXELS)]


class KeptPlaces(Facts):
    """Which visual tokens of one picture go on into the decoder.

    Attributes:
        size: height and width of the picture in pixels, upright.
        tiles: of each of its tiles the places that are kept, ascending.
    """

    size: tuple[Pixels, Pixels]
    tiles: tuple[tuple[Place, ...], ...]


class Answer(Facts):
    """A greedy answer.

    Attributes:
        token_ids: its tokens, the ending one included.
        text: without special tokens.
        exit_layer: first layer that had no visual rows of the prompt; None if they stayed.
        kept: of each of its pictures, where the plan keeps some visual tokens in front of the decoder and the
            artifact holds the picture for its report.
    """

    token_ids: tuple[int, ...]
    text: str
    exit_layer: int | None = None
    kept: tuple[KeptPlaces, ...] | None = None


@dataclass(frozen=True)
class Answers:
    """Answers of one model to all samples.

    Attributes:
        answers: in sample order.
        logits: [samples, vocab] float32 at the last prompt token.
        max_new_tokens: length at which answers were cut.
    """

    answers: tuple[Answer, ...]
    logits: Array
    max_new_tokens: int


def exact(text: str, answer: str) -> bool:
    """Whether two answers are equal, character for character, white space around them aside.

    This alone is called right: upper case, a full stop or other words make an answer wrong.
    """
    return text.strip() == answer.strip()


def right_one(text: str, answers: Sequence[str]) -> bool:
    """Whether an answer is one of the right ones."""
    return any(exact(text, answer) for answer in answers)
