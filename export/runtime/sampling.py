"""Picks next tokens: greedy, or drawn at a temperature from the most likely ones. Plain numpy functions.

Rule: p = softmax(logits / temperature); keep the smallest set of most likely tokens whose probabilities
sum to at least `top_p`; draw from it, renormalised. (Holtzman et al., "The Curious Case of Neural Text
Degeneration", 2020.) Letters: B batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from compressor.errors import DataError
from compressor.generation.settings import check_new_tokens
from export.session.arrays import Array

Pick = Callable[[Array], Array]
"""Logits [B, vocab] to tokens [B]."""


class AnswerKeys(TypedDict, total=False):
    """Keyword arguments of what answers: the fields of `AnswerOptions`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    generation_config: bool


@dataclass(frozen=True)
class AnswerOptions:
    """How long an answer may be, and how its tokens are picked.

    Attributes:
        max_new_tokens: longest answer.
        temperature: 0 is greedy; 1 the model's own distribution; less is more cautious.
        top_p: share of the probability that may be drawn from, above 0 and at most 1.
        seed: of the draws; equal seeds give equal answers on one machine.
        generation_config: bar and punish tokens as the model's own generation configuration asks for
            (`compressor.generation`), as transformers' `generate` does; False: the model's logits alone.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    generation_config: bool = True

    def __post_init__(self) -> None:
        check_new_tokens(self.max_new_tokens)
        problems = []
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            problems.append(
                f"temperature: {self.temperature} must be 0 (greedy) or a number above it"
            )
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p: {self.top_p} is outside 0..1; 1 draws from all tokens")
        if self.seed < 0:
            problems.append(f"seed: {self.seed} must not be negative")
        if problems:
            raise DataError(problems)

    def picker(self) -> Pick:
        """Return a fresh picker; its draws start from the seed."""
        if self.temperature == 0:
            return greedy
        rng = np.random.default_rng(self.seed)
        return lambda logits: drawn_tokens(nucleus(logits, self.temperature, self.top_p), rng)


def greedy(logits: Array) -> Array:
    """Return the most likely tokens [B]; of equals the first."""
    tokens: Array = logits.argmax(axis=-1)
    return tokens


def nucleus(logits: Array, temperature: float, top_p: float) -> Array:
    """Return the probabilities [B, vocab] float64 to draw from; 0 outside the most likely tokens."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities = weights / weights.sum(axis=-1, keepdims=True)
    if top_p < 1:
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        ranked = np.take_along_axis(probabilities, order, axis=-1)
        # A token stays if those before it do not reach top_p yet; so the first one always does.
        ranked[ranked.cumsum(axis=-1) - ranked >= top_p] = 0.0
        np.put_along_axis(probabilities, order, ranked, axis=-1)
    kept: Array = probabilities / probabilities.sum(axis=-1, keepdims=True)
    return kept


def drawn_tokens(probabilities: Array, rng: np.random.Generator) -> Array:
    """Draw one token a row [B] by inverting the cumulative distribution."""
    edges = probabilities.cumsum(axis=-1)
    points = rng.random((len(probabilities), 1)) * edges[:, -1:]
    tokens: Array = (edges <= points).sum(axis=-1)
    return tokens
