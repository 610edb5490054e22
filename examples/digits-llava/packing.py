"""Many questions about one picture in one sequence, each as if it were asked alone.

Letters in shapes: B pictures, L sequence length, T scored positions.

A packed sequence is the shared prefix ``<s> USER: <image>*64`` followed by the questions
``text ASSISTANT: answer``. Each question sees the prefix and itself, and its position ids continue
right after the prefix, so that the decoder computes for it exactly what it computes for the prompt
with this question only. All pictures of a batch get the same kinds of question in the same order,
so that one mask [L, L] serves the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from digits import BOS, EOS, IMAGE, KINDS, PAD, VOCABULARY, DigitPool, ask, draw, sample_grid
from torch import Tensor

VISUAL_TOKENS = 64
PREFIX = (BOS, "USER:", *[IMAGE] * VISUAL_TOKENS)
LENGTH = 160
QUESTION_TOKENS = dict(zip(KINDS, (10, 6, 7, 7, 7, 9), strict=True))
IDS = {word: index for index, word in enumerate(VOCABULARY)}


@dataclass(frozen=True)
class Batch:
    """One packed batch.

    Attributes:
        pixels: normalised pictures [B, 3, 64, 64].
        cells: the class of each visual token's cell [B, 64]; 10 is an empty cell.
        ids: token ids [B, L].
        positions: position ids [L].
        mask: additive attention mask [L, L].
        scored: indices into L of the positions whose next token is scored [T].
        targets: the next tokens there [B, T].
        segments: which question a scored position belongs to [T].
        kinds: the kind of each question.
    """

    pixels: Tensor
    cells: Tensor
    ids: Tensor
    positions: Tensor
    mask: Tensor
    scored: Tensor
    targets: Tensor
    segments: Tensor
    kinds: tuple[str, ...]


def choose_kinds(rng: np.random.Generator, weights: np.ndarray) -> tuple[str, ...]:
    """Return kinds drawn with the given weights until a sequence of LENGTH is full."""
    room = LENGTH - len(PREFIX)
    kinds = []
    while True:
        kind = KINDS[rng.choice(len(KINDS), p=weights / weights.sum())]
        room -= QUESTION_TOKENS[kind]
        if room < 0:
            return tuple(kinds)
        kinds.append(kind)


def draw_pictures(
    rng: np.random.Generator, pool: DigitPool, count: int, low: int, high: int
) -> tuple[list[np.ndarray], Tensor, Tensor]:
    """Return ``count`` grids of low..high digits, their pictures and their visual tokens' cells."""
    grids = [sample_grid(rng, int(rng.integers(low, high + 1))) for _ in range(count)]
    pictures = np.stack([draw(rng, pool, grid) for grid in grids])  # [B, 64, 64, 3]
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    cells = torch.from_numpy(np.stack(grids)) % 11  # EMPTY becomes 10
    tokens = cells.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)  # [B, 64]
    return grids, pixels.contiguous(), tokens


def pack(
    rng: np.random.Generator,
    pool: DigitPool,
    count: int,
    low: int,
    high: int,
    kinds: tuple[str, ...],
) -> Batch:
    """Return a batch of ``count`` pictures of low..high digits with questions of these kinds."""
    grids, pixels, cells = draw_pictures(rng, pool, count, low, high)
    ids = torch.full((count, LENGTH), IDS[PAD])
    ids[:, : len(PREFIX)] = torch.tensor([IDS[word] for word in PREFIX])
    positions = torch.arange(LENGTH)
    visible = torch.eye(LENGTH, dtype=torch.bool)
    visible[:, : len(PREFIX)] = True
    visible[: len(PREFIX)].tril_()
    scored, segments, targets = [], [], []
    start = len(PREFIX)
    for index, kind in enumerate(kinds):
        stop = start + QUESTION_TOKENS[kind]
        questions = [ask(rng, grid, kind) for grid in grids]
        words = [f"{q.text} ASSISTANT: {q.answer} {EOS}".split() for q in questions]
        rows = torch.tensor([[IDS[word] for word in each] for each in words])  # [B, stop-start+1]
        ids[:, start:stop] = rows[:, :-1]
        positions[start:stop] = torch.arange(len(PREFIX), len(PREFIX) + stop - start)
        visible[start:stop, start:stop] = torch.ones(stop - start, stop - start).tril().bool()
        answered = len(questions[0].answer.split()) + 1
        scored += range(stop - answered, stop)
        segments += [index] * answered
        targets.append(rows[:, -answered:])
        start = stop
    mask = torch.zeros(LENGTH, LENGTH).masked_fill_(~visible, float("-inf"))
    return Batch(
        pixels,
        cells,
        ids,
        positions,
        mask,
        torch.tensor(scored),
        torch.cat(targets, 1),
        torch.tensor(segments),
        kinds,
    )
