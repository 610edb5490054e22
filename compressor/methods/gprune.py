"""G-Prune: visual tokens that others stand for leave in front of the decoder, as a graph of tokens says.

Source: "What Kind of Visual Tokens Do We Need? Training-free Visual Token Pruning for Multi-modal Large
Language Models from the Perspective of Graph" (G-Prune, 2025), training-free; the rule is that of the
released code.

Rule, for one grid of N visual tokens f behind the projector: u_i = f_i / |f_i|, s_ij = u_i . u_j. Tokens are
neighbours where s_ij >= 0.5, each its own too. A_ij is the softmax of s_ij / 0.03 over the neighbours of i,
deg_j the number of neighbours of j. Information flows five steps: score_j = (|f| A^5)_j / deg_j. The
int(keep * N) tokens of the highest score stay, in their order, at their places and positions.

A grid is a tile, or a whole picture of a size of its own. Where tiles make up one grid, without its padded
border, that is one and the whole picture another; tokens that end lines are in none, and all of them stay.

Limitations:
- The question is not read: what it asks for may be among what left.
- Each grid is a graph of its own, so a tile with nothing in it keeps as many tokens as any other.
- Of grids of another size than a tile's the share is the tile's: int(keep * N) of N, rounded down again.
- Independent benchmarks found that pruning methods can lose to a random choice: compare with `random`.
- The choice is made in float32, whatever the graph's dtype: exp(1 / 0.03) is beyond float16.
"""

from typing import TYPE_CHECKING, ClassVar

from compressor.contract.choice import Front, FrontChoice, FrontRule, highest
from compressor.contract.front import FrontMethod
from compressor.contract.method import MethodWords
from compressor.facts import ModelFacts
from compressor.schema.values import Cosine, Count, Rate

if TYPE_CHECKING:
    from torch import Tensor

NONE_AT_ALL = -1e4
"""What the softmax takes of tokens that are no neighbours: its exponential is 0, and it is a number."""


def flow_scores(
    features: "Tensor", threshold: float, temperature: float, steps: int
) -> tuple["Tensor", "Tensor"]:
    """Return the scores [I, N] of visual tokens, and of each how many neighbours it has.

    Args:
        features: [I, N, D] float32.
        threshold: least cosine of neighbours.
        temperature: of the softmax.
        steps: of the flow.
    """
    import torch

    sizes = features.norm(dim=-1)  # [I, N]
    units = features / sizes[..., None].clamp_min(1e-12)
    similar = units @ units.transpose(1, 2)  # [I, N, N]
    near = similar >= threshold
    # A token's cosine with itself is 1: taken away, exponentials stay small and their shares the same.
    weights = torch.where(near, (similar - 1) / temperature, NONE_AT_ALL).softmax(dim=-1)
    degree = near.to(features.dtype).sum(dim=1)
    flow = sizes[:, None]
    for _ in range(steps):
        flow = flow @ weights
    return flow[:, 0] / degree.clamp_min(1), degree


class GPrune(FrontMethod):
    """Visual tokens that neighbours stand for leave in front of the decoder (G-Prune).

    Attributes:
        keep: share of a tile's visual tokens that stays, above 0, up to 1; rounded down.
        threshold: least cosine of neighbours, -1 to 1; 0.5 as released.
        temperature: of the softmax over neighbours, above 0; 0.03 as released.
        steps: how often information flows to neighbours, 1 or more; 5 as released.
    """

    name: ClassVar[str] = "gprune"
    words: ClassVar[MethodWords] = MethodWords(
        label="G-Prune",
        paper="G-Prune: What Kind of Visual Tokens Do We Need? Training-free Visual Token Pruning for "
        "Multi-modal Large Language Models from the Perspective of Graph, arXiv 2501.02268",
        front_how=", those that gather most from tokens like them",
    )
    nicknames: ClassVar[tuple[str, ...]] = ("g_prune", "graph_prune")
    by_grid: ClassVar[tuple[str, ...]] = ()
    tried: ClassVar[tuple[float, ...]] = (0.5, 0.25)

    threshold: Cosine = 0.5
    temperature: Rate = 0.03
    steps: Count = 5

    def choice_flops(self, rows: int, kept: int, width: int) -> int:
        """See `FrontMethod.choice_flops`: every two tokens are compared, then information flows."""
        return 2 * rows**2 * (width + self.steps)

    def front_rule(self, facts: ModelFacts) -> FrontRule:
        """Return the rule; see the module."""

        def rule(rows: Front, count: int) -> FrontChoice:
            scores, _ = flow_scores(
                rows.features.float(), self.threshold, self.temperature, self.steps
            )
            return highest(rows, scores, count)

        return rule
