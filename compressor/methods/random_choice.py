"""Random choice: which visual tokens stay is drawn once. What a method that looks at them must beat.

Source: no paper; the baseline of benchmarks of pruning methods, some of which lose to it.

Rule: of the places 0..N-1 of a tile, drawn in a random order by the seed (numpy's default_rng(seed), its
permutation of N), the first int(keep * N) stay, at their places and positions. A larger share keeps what a
smaller one keeps. Where grids differ in size, N is that of the largest, and a grid keeps those of its places
that come first.

Limitations:
- The places are the same in every tile of every picture: they are numbers in the graph, not drawn when it
  runs, so that an artifact answers twice the same. Another seed is another artifact.
"""

from typing import ClassVar

import numpy as np

from compressor.contract.choice import Front, FrontChoice, FrontRule, highest
from compressor.contract.front import FrontMethod
from compressor.contract.method import MethodWords
from compressor.facts import ModelFacts
from compressor.schema.values import Seed


def drawn(rows: int, seed: int) -> list[int]:
    """Return a score for each of so many places: the first drawn has the highest."""
    found: list[int] = (-np.argsort(np.random.default_rng(seed).permutation(rows))).tolist()
    return found


class RandomChoice(FrontMethod):
    """Visual tokens at places that were drawn once stay, the others leave in front of the decoder.

    Attributes:
        keep: share of a tile's visual tokens that stays, above 0, up to 1; rounded down.
        seed: of the draw, 0 to 2**32 - 1.
    """

    name: ClassVar[str] = "random"
    words: ClassVar[MethodWords] = MethodWords(
        label="random choice", front_how=", at places that were drawn once"
    )
    baseline: ClassVar[bool] = True

    by_grid: ClassVar[tuple[str, ...]] = ()
    tried: ClassVar[tuple[float, ...]] = (0.5, 0.25)

    seed: Seed = 0

    def choice_flops(self, rows: int, kept: int, width: int) -> int:
        """See `FrontMethod.choice_flops`: places are drawn before."""
        return 0

    def front_rule(self, facts: ModelFacts) -> FrontRule:
        """Return the rule; see the module."""

        def rule(rows: Front, count: int) -> FrontChoice:
            import torch

            tiles, places = rows.features.shape[:2]
            numbers = [drawn(facts.most_cells, self.seed)]
            scores = torch.tensor(numbers, dtype=torch.float32, device=rows.features.device)
            return highest(rows, scores[:, :places].expand(tiles, -1), count)

        return rule
