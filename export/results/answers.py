"""Answers of one model to the validation questions, and which of them are right."""

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.facts import Facts
from export.session.arrays import Array


class Answer(Facts):
    """A greedy answer.

    Attributes:
        token_ids: its tokens, the ending one included.
        text: without special tokens.
        exit_layer: first layer that had no visual rows of the prompt; None if they stayed.
    """

    token_ids: tuple[int, ...]
    text: str
    exit_layer: int | None = None


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
