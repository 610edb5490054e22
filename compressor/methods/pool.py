"""Pooling: the grid of visual tokens is cut into blocks, and each becomes its mean. A baseline.

Source: no paper; what methods that look at visual tokens are compared with, beside a random choice.

Rule: a tile's grid of H x W tokens is cut into r x c blocks of neighbours, as even as whole numbers allow:
block row i has the grid's rows from floor(i H / r) up to floor((i + 1) H / r), columns likewise. Of all r and
c with the grid's own proportions, r = round(H sqrt(keep)) and c = round(W sqrt(keep)), at least 1. A block's
token is the mean of its tokens and stands at the place and the position of the middle one (of two, the
first).

Limitations:
- A share is met as well as whole blocks allow: 0.5 of 24 x 24 tokens is 17 x 17 = 289.
- Needs a model whose visual tokens have a grid.
- Blocks differ by one row or column where they do not divide the grid.
"""

import math
from typing import ClassVar

import numpy as np

from compressor.contract.choice import Front, FrontChoice, FrontRule
from compressor.contract.front import FrontMethod
from compressor.contract.method import Evidence, MethodWords
from compressor.facts import ModelFacts
from compressor.plan.plan import Plan


def blocks(size: int, count: int) -> list[range]:
    """Return `count` runs that make up so many rows or columns."""
    return [range(i * size // count, (i + 1) * size // count) for i in range(count)]


def shares(grid: tuple[int, int], counts: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
    """Return the share [K, N] of each token in each block's mean, and the place of each block's middle.

    Args:
        grid: rows and columns of tokens.
        counts: rows and columns of blocks.
    """
    found, middles = [], []
    for rows in blocks(grid[0], counts[0]):
        for columns in blocks(grid[1], counts[1]):
            share = np.zeros(grid, np.float32)
            share[rows.start : rows.stop, columns.start : columns.stop] = 1 / (
                len(rows) * len(columns)
            )
            found.append(share.reshape(-1))
            middles.append(_middle(rows) * grid[1] + _middle(columns))
    return np.stack(found), middles


def _middle(run: range) -> int:
    return run[(len(run) - 1) // 2]


class Pooling(FrontMethod):
    """Blocks of neighbouring visual tokens become one token each, in front of the decoder.

    Attributes:
        keep: share of a tile's visual tokens that there are blocks of, above 0, up to 1; as near as whole
            blocks come.
    """

    name: ClassVar[str] = "pool"
    tried: ClassVar[tuple[float, ...]] = (0.5, 0.25)
    words: ClassVar[MethodWords] = MethodWords(
        label="pooling",
        front_how=", each the mean of a block of neighbours",
        front_undrawn="Each visual token that goes on is the mean of a block of a picture's cells, and "
        "every cell is in a block.",
    )
    baseline: ClassVar[bool] = True
    why_by_grid: ClassVar[str] = "which of them make up a block is written into the graph"

    def unfit(self, facts: ModelFacts, where: str) -> list[str]:
        """Return also that visual tokens have no grid."""
        if facts.token_grid is None and not facts.grids_differ:
            return [
                f"{where}.keep: visual tokens of {facts.name} have no grid, so there are no "
                "neighbours to pool; leave it out"
            ]
        if facts.decoder.deepstack:
            return [
                f"{where}.keep: {facts.name} adds further rows of its vision tower to visual tokens "
                "behind its first layers, and these are not pooled; leave it out"
            ]
        return super().unfit(facts, where)

    def counts(self, facts: ModelFacts) -> tuple[int, int]:
        """Return rows and columns of blocks."""
        rows, columns = facts.token_grid or (1, facts.tile_rows)
        share = math.sqrt(self.keep)
        return max(1, round(rows * share)), max(1, round(columns * share))

    def rows_kept(self, facts: ModelFacts) -> int:
        """Return how many blocks there are."""
        return math.prod(self.counts(facts))

    def notes(self, plan: Plan, evidence: Evidence) -> list[str]:
        """Return how many blocks there are where they are not the share that was asked for."""
        facts = plan.model
        (rows, columns), count = self.counts(facts), self.rows_kept(facts)
        if count == self.keep * facts.tile_rows:
            return []
        return [
            f"{evidence.where}.keep: {self.keep:g} of {facts.tile_rows} visual tokens becomes {rows} x "
            f"{columns} blocks, {count / facts.tile_rows:.3f} of them"
        ]

    def choice_flops(self, rows: int, kept: int, width: int) -> int:
        """See `FrontMethod.choice_flops`: the means are one product."""
        return 2 * kept * rows * width

    def front_rule(self, facts: ModelFacts) -> FrontRule:
        """Return the rule; see the module."""
        table, middles = shares(facts.token_grid or (1, facts.tile_rows), self.counts(facts))

        def rule(rows: Front, count: int) -> FrontChoice:  # noqa: ARG001 - the grid of blocks tells it
            import torch

            # Made anew in every call: the vision encoder may be moved to another dtype between two.
            mean = torch.from_numpy(table).to(rows.features)
            kept = torch.tensor([middles], device=mean.device).expand(rows.features.shape[0], -1)
            return FrontChoice(mean @ rows.features, kept)

        return rule
