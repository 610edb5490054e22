"""Answers of one model to the validation questions, and how they are scored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from compressor.facts import Facts
from compressor.samples.pictures import MAX_PIXELS
from compressor.samples.questions import Sample
from compressor.samples.scores import Score
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
        score: by `validate.score`, 0 to 1; None: no right answer is known, or older versions wrote it, which
            knew `exact` alone.
    """

    token_ids: tuple[int, ...]
    text: str
    exit_layer: int | None = None
    kept: tuple[KeptPlaces, ...] | None = None
    score: Annotated[float, Field(ge=0, le=1)] | None = None


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


def scored(samples: Sequence[Sample], answers: Answers, score: Score) -> Answers:
    """Return answers with their scores, in sample order.

    Raises:
        DataError: a score of the user's own failed.
    """
    pairs = zip(samples, answers.answers, strict=True)
    made = (
        answer.model_copy(update={"score": score.of(answer.text, asked)}) for asked, answer in pairs
    )
    return replace(answers, answers=tuple(made))
