"""Class knee: the visual tokens most like the class token stay, as many as lie in front of the curve's knee.

Source: after "Sparsity Meets Similarity: Leveraging Long-Tail Distribution for Dynamic Optimized Token
Representation in Multimodal Large Language Models" (2024), of which no code was released. The rule is ours.

Rule, for one tile of N patches f and the class token c, as the projector would take them: s_j = cosine of f_j
and c. The k highest stay, at their places and positions. The knee of a tile: its s_j, sorted from the highest
down, are a curve over 1..N, and the knee is the place whose value is farthest from the line between its ends;
so many tokens stay. k is the mean over a question's tiles, then over the calibration questions, rounded.
`keep` gives a share in place of it, and then nothing is measured.

Where a visual token is a block of r x r patches (pixel shuffle), f_j is these side by side, and c as many
class tokens. Where tiles make up one grid, each cell is compared with its own tile's class token; the share
of a tile is that of each grid, the whole picture's apart, tokens that end lines always stay, and `keep` must
be given. The paper has neither: this is ours.

Limitations:
- The paper looks for the knee of every picture anew; a graph has one k.
- The paper drops more tokens inside the decoder, by the question: that is not done here.
- The paper does not say how it finds the point of inflection, nor on which states: fidelity is not claimed.
- The question is not read: what it asks for may be among what left.
- Needs a tower with a class token, whose patches, or square blocks of them, become visual tokens.
- Knees are measured of tiles of one number of tokens alone.
- Cosines are computed in float32, whatever the graph's dtype; in float16 states of the tower are rounded, so
  that another token may stay where two are nearly as high.
- Independent benchmarks found that pruning methods can lose to a random choice: compare with `random`.
"""

import math
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.contract.choice import Front, FrontChoice, FrontRule, TowerPass, highest
from compressor.contract.front import FrontChooser, KeptShare, why_no_tower
from compressor.contract.measure import Drawing, Measure, Measured, MeasureTable, Series
from compressor.contract.method import Evidence, MethodWords
from compressor.facts import ModelFacts
from compressor.plan.edits import keep_in_front
from compressor.plan.kept import rows_of_share, why_no_tiles
from compressor.plan.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor


def class_cosines(tower: TowerPass) -> "Tensor":
    """Return the cosine of each visual token's patches to the class token, [I, N] float32."""
    import torch

    patches, token = tower.patches().float(), tower.class_row().float()
    return torch.cosine_similarity(patches, token, dim=-1)


def knees(scores: "Tensor") -> "Tensor":
    """Return how many of the scores [I, N] of tiles stay up to the knee, itself included, [I] int64."""
    import torch

    curve = scores.double().sort(dim=-1, descending=True).values
    ends = curve[:, :1], curve[:, -1:]
    way = torch.linspace(0, 1, curve.shape[1], dtype=curve.dtype, device=curve.device)
    # What lies between curve and line straight down is, by one factor, the distance to the line.
    return (curve - torch.lerp(*ends, way)).abs().argmax(dim=-1) + 1


def class_knee(full: Any) -> "Tensor":
    """Return the mean knee of a prompt's tiles, [1] float64.

    Args:
        full: `compressor.decoder.full_pass.FullPass` of the prompt.
    """
    import torch

    found = [knees(class_cosines(front.read_tower)) for front in full.fronts()]
    return torch.cat(found).double().mean(dim=0, keepdim=True)


def knee_walk() -> Any:
    """Return how knees are measured: by the vision side alone."""
    from compressor.decoder.walks.walk import BeforeLayers

    return BeforeLayers(class_knee)


def _drawing(measured: Measured, plan: Plan) -> Drawing:
    points = tuple((number, values[0]) for number, values in enumerate(measured.samples))
    found = [Series("knee of a question's tiles", points)]
    if plan.front is not None and plan.front.by == ClsKnee.name:
        level = tuple((number, float(plan.front.count)) for number, _ in points)
        found.append(Series("tokens that stay", level, chosen=True))
    return Drawing("calibration question", "visual tokens of a tile", tuple(found), "dots")


def _table(measured: Measured) -> MeasureTable:
    each = [values[0] for values in measured.samples]
    return MeasureTable(
        f"Knee of the cosines to the class token: {measured.mean[0]:.1f} visual tokens of a tile on average "
        f"of {measured.count} questions, {min(each):.1f} to {max(each):.1f}"
    )


CLASS_KNEE = Measure(
    name="class_knee",
    shape=("prompt",),
    of=class_knee,
    walk=knee_walk,
    chooses="how many visual tokens stay by the knee",
    otherwise=", or give a share (keep)",
    title="knee of cosines to the class token",
    unit="visual tokens of a tile",
    draw=_drawing,
    show=_table,
)


class ClsKnee(FrontChooser):
    """The visual tokens most like the class token stay, as many as calibration finds at the curve's knee.

    Attributes:
        keep: share of a tile's visual tokens that stays, above 0, up to 1, rounded down; None: by the knee.
    """

    name: ClassVar[str] = "cls_knee"
    words: ClassVar[MethodWords] = MethodWords(
        label="class knee (after Sparsity Meets Similarity)",
        paper="Class knee, after: Sparsity Meets Similarity: Leveraging Long-Tail Distribution for Dynamic "
        "Optimized Token Representation in Multimodal Large Language Models, arXiv 2409.01162",
        front_how=", those most like the class token",
    )
    measures: ClassVar[tuple[Measure, ...]] = (CLASS_KNEE,)
    nicknames: ClassVar[tuple[str, ...]] = ("class_knee", "sparsity_meets_similarity")

    by_grid: ClassVar[tuple[str, ...]] = ()

    keep: KeptShare | None = None

    def needs(self) -> tuple[Measure, ...]:
        """Return the knee, unless a share is given."""
        return (CLASS_KNEE,) if self.keep is None else ()

    def unfit(self, facts: ModelFacts, where: str) -> list[str]:
        """Return that the tower or knees cannot be read, or that no token would stay."""
        if (reason := why_no_tower(facts, class_token=True)) is not None:
            return [f"{where}: {reason}; leave {self.name} out"]
        if self.keep is None and (reason := why_no_tiles(facts)) is not None:
            return [
                f"{where}.keep: {reason}, and knees are those of tiles of one number; give a share"
            ]
        if self.rows_kept(facts) == 0:
            return [
                f"{where}.keep: {self.keep:g} of {facts.tile_rows} visual tokens is none; give more"
            ]
        return []

    def rows_kept(self, facts: ModelFacts) -> int | None:
        """Return k where a share is given."""
        return None if self.keep is None else rows_of_share(self.keep, facts.tile_rows)

    def apply(self, plan: Plan, evidence: Evidence) -> Plan:
        """Return the plan with k rows of every tile."""
        count = self.rows_kept(plan.model)
        if count is None:
            count = math.floor(evidence.of(CLASS_KNEE).mean[0] + 0.5)
        return keep_in_front(plan, count, self.name, self.asked())

    def notes(self, plan: Plan, evidence: Evidence) -> list[str]:
        """Return where the knee was found."""
        if self.keep is not None:
            return []
        found = evidence.of(CLASS_KNEE)
        each = [values[0] for values in found.samples]
        return [
            f"{evidence.where}: keeps as many visual tokens of every tile as lie in front of the knee on "
            f"average: {found.mean[0]:.1f} of {plan.model.tile_rows}; of {found.count} calibration questions "
            f"it lies at {min(each):.1f} to {max(each):.1f}"
        ]

    def front_rule(self, facts: ModelFacts) -> FrontRule:
        """Return the rule; see the module."""

        def rule(rows: Front, count: int) -> FrontChoice:
            return highest(rows, class_cosines(rows.read_tower), count)

        return rule
