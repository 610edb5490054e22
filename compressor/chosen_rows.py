"""The vision side of a plan that keeps some visual rows of every tile: the family's encoder, then the rule.

Letters: I tiles, N visual rows of one, or of a grid that tiles make up, K those that are kept, D hidden size.
"""

import torch
from torch import Tensor

from compressor.contract.choice import Front, FrontRule, rows_at
from compressor.families.base import VisionEncoder
from compressor.methods import front_chooser
from compressor.plan.kept import Kept
from compressor.plan.plan import Plan


class ChosenRows(VisionEncoder):
    """A vision encoder of which some rows go on.

    Args:
        tiles: gives all rows [I, N, D], or those of one grid and the row that ends lines, [N + 1, D].
        rule: chooses among them.
        kept: how many.
    """

    chooses = True

    def __init__(self, tiles: VisionEncoder, rule: FrontRule, kept: Kept) -> None:
        super().__init__()
        self.tiles = tiles
        self.rule = rule
        self.kept = kept

    def forward(
        self,
        pixel_values: Tensor,
        row_index: Tensor | None = None,
        row_weight: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Map pixels [I, 3, H, W] to visual embeddings [I, K, D], deepstack rows likewise, and places.

        The last tensor, [I, K] int64, tells which of the N places each row has. Where rows are arranged, the
        tiles are those of one grid, and all is without I. Of what `row_index` names, the last row ends lines:
        it is not chosen among and comes behind those that are kept, at place N.
        """
        arranged = [given for given in (row_index, row_weight) if given is not None]
        rows = self.tiles.features(pixel_values, *arranged)
        if not arranged:
            return self._chosen(rows)
        found = self._chosen(tuple(part[None, :-1] for part in rows))
        place = torch.full((1,), rows[0].shape[0] - 1)
        lasts = (*(part[-1:] for part in rows), place)
        return tuple(torch.cat([part[0], last]) for part, last in zip(found, lasts, strict=True))

    def _chosen(self, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what stays of rows [I, N, D], and their places."""
        features, *deepstack = rows
        chosen = self.rule(Front(features), self.kept.rows(features.shape[1]))
        return (chosen.features, *(rows_at(part, chosen.kept) for part in deepstack), chosen.kept)


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
    return ChosenRows(whole, rule, plan.front).eval()
