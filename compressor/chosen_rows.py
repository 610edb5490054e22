"""The vision side of a plan that keeps some visual rows of every tile: the family's encoder, then the rule.

Letters: I tiles, N visual rows of one, K those that are kept, D hidden size.
"""

from torch import Tensor

from compressor.contract.choice import FrontRule, rows_at
from compressor.families.base import VisionEncoder
from compressor.methods import front_chooser
from compressor.plan.plan import Plan


class ChosenRows(VisionEncoder):
    """A vision encoder of which some rows go on.

    Args:
        tiles: gives all rows [I, N, D].
        rule: chooses among them.
        count: K.
    """

    chooses = True

    def __init__(self, tiles: VisionEncoder, rule: FrontRule, count: int) -> None:
        super().__init__()
        self.tiles = tiles
        self.rule = rule
        self.count = count

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Map pixels [I, 3, H, W] to visual embeddings [I, K, D], deepstack rows likewise, and places.

        The last tensor, [I, K] int64, tells which of the N places each row has.
        """
        rows = self.tiles.front(pixel_values)
        chosen = self.rule(rows, self.count)
        deepstack = (rows_at(added, chosen.kept) for added in rows.deepstack)
        return (chosen.features, *deepstack, chosen.kept)


def vision_of(plan: Plan, tiles: VisionEncoder) -> VisionEncoder:
    """Return the vision encoder of a plan.

    Args:
        plan: says which rows the decoder gets.
        tiles: the family's own encoder, or one that this function gave.

    Raises:
        PlanError: see `front_chooser`.
    """
    whole = tiles.tiles if isinstance(tiles, ChosenRows) else tiles
    if plan.front is None:
        return whole
    rule = front_chooser(plan.front, plan.model).front_rule(plan.model)
    return ChosenRows(whole, rule, plan.front.count).eval()
