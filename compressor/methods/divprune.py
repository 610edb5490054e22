"""DivPrune: the visual tokens that differ most from each other enter the decoder.

Source: "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models" (2025), training-free.
Written from the paper's rule; no code of the authors was read.

Rule, for one tile of N visual tokens behind the projector: the distance of two tokens is 1 less their cosine.
First stays the token whose nearest neighbour is farthest away. Then, until int(keep * N) stay, the one whose
nearest among those that stay is farthest away. Of equals the one that comes first. They keep their order,
places and positions.

Limitations:
- The question is not read: what it asks for may be among what left.
- Tokens are chosen one after the other: a Scan of as many steps in the vision graph. On a small picture it
  may cost more than it saves; `first token with vision` measures it.
- Every choice depends on those before it: where two tokens are nearly as far, another rounding changes all
  that follow. In bfloat16 (OpenVINO's `bf16`) other tokens stay.
- Distances are computed in float32, whatever the graph's dtype.
- Independent benchmarks found that pruning methods can lose to a random choice: compare with `random`.
"""

from typing import TYPE_CHECKING, ClassVar

from compressor.contract.choice import Front, FrontChoice, FrontRule, rows_at
from compressor.contract.front import FrontMethod
from compressor.contract.method import MethodWords
from compressor.facts import ModelFacts

if TYPE_CHECKING:
    from torch import Tensor

STAYS = -1.0
"""What stands in place of the distance of a token that stays already: none is smaller."""


def farthest(features: "Tensor", count: int) -> "Tensor":
    """Return the places [I, K] of the tokens that the rule chooses, ascending.

    Args:
        features: [I, N, D] float32.
        count: K, 1 or more.
    """
    import torch
    from torch._higher_order_ops.scan import scan

    units = features / features.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    alike = units @ units.transpose(1, 2)  # [I, N, N]
    # Two tokens that are each other's nearest tie for the first place, so both must see one distance: a
    # product may round it in two ways, and which token stays would depend on the processor.
    apart = 1 - torch.maximum(alike, alike.transpose(1, 2))
    rows = features.shape[1]

    def nearer(least: "Tensor", apart: "Tensor", chosen: "Tensor") -> "Tensor":
        """Return how far tokens are from the nearest that stays [I, N], of which `chosen` [I] is another."""
        at = chosen[:, None]
        own = apart.gather(1, at[..., None].expand(-1, 1, rows))[:, 0]
        return torch.minimum(least, own).scatter(1, at, STAYS)

    # OpenVINO 2026.4 takes no Scan whose steps read what is made outside: distances are handed on.
    def step(
        state: "tuple[Tensor, Tensor]", nothing: "Tensor"
    ) -> "tuple[tuple[Tensor, Tensor], Tensor]":
        least, apart = state
        chosen = (least + nothing).argmax(dim=-1)
        return (nearer(least, apart, chosen), apart.clone()), chosen[None]

    # No token is its own neighbour: no distance is above 2. (eye() becomes uint16, which TensorRT-RTX lacks.)
    places = torch.arange(rows, device=apart.device)
    others = torch.where(places[:, None] == places, 3.0, apart)
    first: Tensor = others.amin(dim=-1).argmax(dim=-1)
    least = nearer(torch.full_like(apart[:, 0], 3.0), apart, first)
    if count == 1:
        return first[:, None]
    state, nothing = (least, apart), apart.new_zeros(count - 1, 1)
    if torch.compiler.is_exporting():
        _, later = scan(step, state, nothing)  # [K - 1, 1, I]
    else:  # called by itself, a scan would be compiled
        found = []
        for number in range(count - 1):
            state, chosen = step(state, nothing[number])
            found.append(chosen)
        later = torch.stack(found)
    in_turn = torch.cat([first[None], later.flatten(0, 1)])  # [K, I]
    kept: Tensor = in_turn.transpose(0, 1).sort(dim=-1).values
    return kept


class DivPrune(FrontMethod):
    """The visual tokens that differ most from each other enter the decoder (DivPrune).

    Attributes:
        keep: share of a tile's visual tokens that stays, above 0, up to 1; rounded down.
    """

    name: ClassVar[str] = "divprune"
    tried: ClassVar[tuple[float, ...]] = (0.5, 0.25)
    words: ClassVar[MethodWords] = MethodWords(
        label="DivPrune",
        paper="DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models, arXiv 2503.02175",
        front_how=", those that differ most from each other",
    )
    nicknames: ClassVar[tuple[str, ...]] = ("div_prune",)
    why_by_grid: ClassVar[str] = "how many are chosen one after the other is written into the graph"

    def choice_flops(self, rows: int, kept: int, width: int) -> int:
        """See `FrontMethod.choice_flops`: every two tokens are compared."""
        return 2 * rows**2 * width

    def front_rule(self, facts: ModelFacts) -> FrontRule:
        """Return the rule; see the module."""

        def rule(rows: Front, count: int) -> FrontChoice:
            kept = farthest(rows.features.float(), count)
            return FrontChoice(rows_at(rows.features, kept), kept)

        return rule
