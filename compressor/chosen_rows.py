"""The vision side of a plan that keeps some visual rows of every tile: the family's encoder, then the rule.

Letters: I tiles, N visual rows of one, or of a grid that tiles make up, K those that are kept, D hidden size.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from compressor.arrangement import cells_kept
from compressor.contract.choice import Front, FrontRule, rows_at
from compressor.contract.method import Method
from compressor.families.base import VisionEncoder
from compressor.methods import front_chooser
from compressor.plan.kept import Kept
from compressor.plan.plan import Plan


@dataclass(frozen=True)
class FrontWeights:
    """Weights that a rule reads, of a file of its own.

    Attributes:
        tensors: float32, by the names that the rule has for them.
        digest: sha256 of the file; empty: the rule reads none.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    digest: str = ""

    def beside(self, other: Tensor) -> "FrontWeights":
        """Return the weights in the dtype of a tensor and on its device."""
        return replace(self, tensors={n: tensor.to(other) for n, tensor in self.tensors.items()})


def load_front_weights(methods: Iterable[Method]) -> FrontWeights:
    """Return the weights that the first of the methods reads that reads any; none if none does.

    Raises:
        PlanError: as `Method.front_weights`.
    """
    from safetensors import safe_open

    files = (method.front_weights() for method in methods)
    file = next((file for file in files if file is not None), None)
    if file is None:
        return FrontWeights()
    with safe_open(file.path, framework="pt") as stored:
        tensors = {own: stored.get_tensor(name).float() for own, name in file.names.items()}
    return FrontWeights(tensors, file.digest)


class ChosenRows(VisionEncoder):
    """A vision encoder of which some rows go on.

    Args:
        tiles: gives all rows [I, N, D], or those of one grid and the row that ends lines, [N + 1, D].
        rule: chooses among them.
        kept: how many.
        weights: that the rule reads.
    """

    chooses = True

    def __init__(
        self, tiles: VisionEncoder, rule: FrontRule, kept: Kept, weights: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.tiles = tiles
        self.rule = rule
        self.kept = kept
        # A module's own names have no dots.
        self.names = tuple(weights)
        self.learned = nn.ParameterList(
            nn.Parameter(tensor, requires_grad=False) for tensor in weights.values()
        )

    @property
    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """What the rule reads, by its names for them."""
        return dict(zip(self.names, self.learned, strict=True))

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
        if not arranged:
            return self._chosen(self.tiles.front(pixel_values))
        grid = self.tiles.front_of_grid(pixel_values, *arranged)
        rows = (grid.features, *grid.deepstack)
        cells, *deepstack = (part[:, :-1] for part in rows)
        found = self._chosen(grid._replace(features=cells, deepstack=tuple(deepstack)))
        place = torch.full((1,), rows[0].shape[1] - 1, device=rows[0].device)
        lasts = (*(part[0, -1:] for part in rows), place)
        return tuple(torch.cat([part[0], last]) for part, last in zip(found, lasts, strict=True))

    def _chosen(self, rows: Front) -> tuple[Tensor, ...]:
        """Return what stays of rows [I, N, D], and their places."""
        count = cells_kept(rows.features.shape[1], self.kept.count, self.kept.of)
        chosen = self.rule(rows._replace(weights=self.parameters_by_name), count)
        deepstack = (rows_at(added, chosen.kept) for added in rows.deepstack)
        return (chosen.features, *deepstack, chosen.kept)


def vision_of(
    plan: Plan, tiles: VisionEncoder, weights: FrontWeights | None = None
) -> VisionEncoder:
    """Return the vision encoder of a plan.

    Args:
        plan: says which rows the decoder gets.
        tiles: the family's own encoder, or one that this function gave.
        weights: that the plan's rule reads; None: it reads none.

    Raises:
        PlanError: see `front_chooser`.
        ArtifactError: the plan was made with other weights.
    """
    whole = tiles.tiles if isinstance(tiles, ChosenRows) else tiles
    if plan.front is None:
        return whole
    given = weights or FrontWeights()
    plan.check_front_weights(given.digest)
    rule = front_chooser(plan.front, plan.model).front_rule(plan.model)
    return ChosenRows(whole, rule, plan.front, given.tensors).eval()
