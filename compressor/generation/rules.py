"""Bars and punishes next tokens as a model's generation configuration asks for. Plain numpy functions.

Each does what the logits processor of transformers of that name does, in float32, in the order in which
`generate` runs them. Letters: B batch, S rows of the sequences so far, prompt and answer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from compressor.generation.settings import GenerationSettings

Array = NDArray[Any]

Constraint = Callable[[Array, Array, int], Array]
"""Logits [B, vocab], sequences [B, S] and the number of their tokens that are answers', to logits."""


def constraints(settings: GenerationSettings, ends: Sequence[int]) -> tuple[Constraint, ...]:
    """Return what settings ask for, as functions in order; nothing for plain settings.

    Args:
        settings: of the model.
        ends: tokens that end an answer; an answer that has none is not kept from ending.
    """
    found: list[Constraint] = []
    penalty, size = settings.repetition_penalty, settings.no_repeat_ngram_size
    if penalty != 1.0:
        found.append(lambda logits, rows, _: punish_repetition(logits, rows, penalty))
    if size:
        found.append(lambda logits, rows, _: bar_repeated_ngrams(logits, rows, size))
    # A sequence that is just an end is transformers' exception.
    words = [word for word in settings.bad_words_ids if word not in {(end,) for end in ends}]
    if words:
        found.append(lambda logits, rows, _: bar_words(logits, rows, words))
    if settings.min_length or settings.min_new_tokens:

        def keep_going(logits: Array, rows: Array, answered: int) -> Array:
            too_short = rows.shape[1] < settings.min_length or answered < settings.min_new_tokens
            return bar(logits, ends) if too_short else logits

        found.append(keep_going)
    if settings.suppress_tokens:
        found.append(lambda logits, _, __: bar(logits, settings.suppress_tokens))
    if settings.begin_suppress_tokens:
        first = settings.begin_suppress_tokens
        found.append(lambda logits, _, answered: logits if answered else bar(logits, first))
    return tuple(found)


def punish_repetition(logits: Array, sequences: Array, penalty: float) -> Array:
    """Divide logits of tokens that a sequence holds by the penalty; multiply those below 0."""
    held = _mask(logits, sequences)
    punished = np.where(logits < 0, logits * penalty, logits / penalty)
    return np.where(held, punished, logits)


def bar_repeated_ngrams(logits: Array, sequences: Array, size: int) -> Array:
    """Bar tokens that would end a run of `size` tokens that the sequence holds already."""
    length, vocab = sequences.shape[1], logits.shape[1]
    if length < size:
        return logits
    runs = sliding_window_view(sequences, size, axis=1)  # [B, S - size + 1, size]
    begun = sequences[:, None, length + 1 - size :]
    again = (runs[..., :-1] == begun).all(axis=-1)
    return _barred(logits, _mask(logits, np.where(again, runs[..., -1], vocab)))


def bar_words(logits: Array, sequences: Array, words: Sequence[tuple[int, ...]]) -> Array:
    """Bar the last token of each word where the others stand at the end of the sequence."""
    tokens = np.full((len(sequences), len(words)), logits.shape[1])
    for place, (*before, last) in enumerate(words):
        if len(before) <= sequences.shape[1]:
            end = sequences[:, sequences.shape[1] - len(before) :]
            tokens[(end == before).all(axis=1), place] = last
    return _barred(logits, _mask(logits, tokens))


def bar(logits: Array, tokens: Sequence[int]) -> Array:
    """Bar tokens in every row."""
    return _barred(logits, _mask(logits, np.tile(np.array(tokens, np.int64), (len(logits), 1))))


def _mask(logits: Array, tokens: Array) -> Array:
    """Return [B, vocab] bool: which tokens are among those of their row; others than 0..vocab-1 are none."""
    rows, vocab = logits.shape
    mask = np.zeros((rows, vocab + 1), bool)
    spare = np.where((tokens < 0) | (tokens > vocab), vocab, tokens)
    np.put_along_axis(mask, spare, True, axis=1)
    return mask[:, :vocab]


def _barred(logits: Array, mask: Array) -> Array:
    return np.where(mask, np.array(-np.inf, logits.dtype), logits)
