"""VisionZip: the visual tokens that the vision tower itself looks at stay, and the rest is merged into a few.

Source: "VisionZip: Longer is Better but Not Necessary in Vision Language Models" (VisionZip, 2024),
training-free. Written from the published rule; where paper and released code differ, as released.

Rule, for one tile of N patches: what the class token reads of each in the tower's last but one layer, mean
over heads, ranks them; the highest are dominant tokens and stay as they are. Of a tower without class token
it is what is read of each on average. Of the M others, in their order, every (M // c)-th from the first on is
a target, c in all. Each token that is neither goes to the target whose key is most like its own: keys of that
layer, mean over heads, by cosine. A contextual token is its target and the mean of those that went to it,
added. All of that is done in front of the projector. int(keep * N) tokens stay, of which int(contextual *
that) are contextual: 10 of 64, as published.

Where a visual token is a block of r x r patches, side by side in front of the projector (pixel shuffle), what
is read of it is the mean over its patches, its key their mean key, and it is ranked, stays or is merged as a
whole: targets and means are rows of r * r patches, N blocks of a tile. The paper has no such tower: this is
ours.

Dominant tokens keep their places and positions; a contextual one has those of its target.

Limitations:
- The question is not read: what it asks for may be among what was merged.
- The released code lets the class token itself in, as one of the dominant. It has no place among a tile's
  tokens: here a patch more stays in its stead.
- The sum of target and mean, as released, is longer than a token: the projector was not trained on such. The
  paper also trains the projector anew; that is not done here.
- Without class token every patch reads every other, one head after the other: N x N numbers at a time.
- Needs a tower whose patches, or square blocks of them, become visual tokens.
- Merging needs tiles of one number of tokens: pictures with grids of their own are refused.
- Attention is computed in float32, whatever the graph's dtype; in float16 states of the tower are rounded, so
  that another token may stay where two are nearly as high.
- Independent benchmarks found that pruning methods can lose to a random choice: compare with `random`.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from compressor.contract.choice import Front, FrontChoice, FrontRule, TowerPass, rows_at
from compressor.contract.front import FrontMethod, why_no_tower
from compressor.contract.method import MethodWords
from compressor.facts import ModelFacts
from compressor.plan.kept import rows_of_share
from compressor.schema.problems import allowed

if TYPE_CHECKING:
    from torch import Tensor

LAYER = -2
"""Of the tower: the last but one."""

MergedShare = Annotated[
    float,
    Field(ge=0, lt=1),
    allowed("a number from 0, below 1, the share of the tokens that stay"),
]


def zipped(
    rows: "Tensor", scores: "Tensor", keys: "Tensor", dominant: int, contextual: int
) -> tuple["Tensor", "Tensor"]:
    """Return dominant and contextual rows [I, K, F] in the order of their places, and these, [I, K] int64.

    Args:
        rows: [I, N, F].
        scores: [I, N]; the highest are dominant.
        keys: [I, N, d], by which the others are merged.
        dominant: how many, 1 or more.
        contextual: how many; 0: the others are dropped.
    """
    import torch

    order = scores.topk(scores.shape[1], dim=-1).indices
    kept = order[:, :dominant].sort(dim=-1).values
    found = rows_at(rows, kept)
    if contextual:
        others = order[:, dominant:].sort(dim=-1).values  # [I, M]
        step = others.shape[1] // contextual
        chosen = range(0, contextual * step, step)
        merged = [i for i in range(others.shape[1]) if i not in chosen]
        targets = others[:, : contextual * step : step]
        made = rows_at(rows, targets)
        if merged:
            made = made + _means(rows, keys, targets, others[:, torch.tensor(merged)])
        found, kept = torch.cat([found, made], dim=1), torch.cat([kept, targets], dim=1)
    kept, places = kept.sort(dim=-1)
    return rows_at(found, places), kept


def _means(rows: "Tensor", keys: "Tensor", targets: "Tensor", merged: "Tensor") -> "Tensor":
    """Return the mean [I, c, F] of the rows that go to each target, 0 where none does.

    Args:
        rows: [I, N, F].
        keys: [I, N, d].
        targets: places [I, c].
        merged: places [I, R].
    """
    import torch

    units = torch.nn.functional.normalize(keys.float(), dim=-1)
    alike = rows_at(units, merged) @ rows_at(units, targets).transpose(1, 2)  # [I, R, c]
    numbers = torch.arange(targets.shape[1], device=targets.device)
    goes = (alike.argmax(dim=-1, keepdim=True) == numbers).to(rows.dtype)
    sums = goes.transpose(1, 2) @ rows_at(rows, merged)
    return sums / goes.sum(dim=1)[..., None].clamp_min(1)


class VisionZip(FrontMethod):
    """Dominant visual tokens stay, the others become a few contextual ones (VisionZip).

    Attributes:
        keep: share of a tile's visual tokens that stays, dominant and contextual, above 0, up to 1; rounded
            down.
        contextual: share of these that others are merged into, from 0, below 1; rounded down. Published: 10
            of 64.
    """

    name: ClassVar[str] = "visionzip"
    words: ClassVar[MethodWords] = MethodWords(
        label="VisionZip",
        paper="VisionZip: Longer is Better but Not Necessary in Vision Language Models, arXiv 2412.04467",
        front_how=", those that the vision tower reads most, and means of the others",
        front_undrawn="Cells that do not go on by themselves are merged into some that do: none is left out.",
    )
    nicknames: ClassVar[tuple[str, ...]] = ("vision_zip",)

    contextual: MergedShare = 0.16

    def unfit(self, facts: ModelFacts, where: str) -> list[str]:
        """Return also that the tower cannot be read, or that the layer is not read."""
        found = super().unfit(facts, where)
        reason = None if found else why_no_tower(facts, layers_read=LAYER)
        return found if reason is None else [f"{where}: {reason}; leave {self.name} out"]

    def front_rule(self, facts: ModelFacts) -> FrontRule:
        """Return the rule; see the module."""
        contextual = rows_of_share(self.contextual, self.rows_kept(facts))
        by_class = facts.tower is not None and facts.tower.class_token

        def scores(tower: TowerPass) -> "Tensor":
            if by_class:
                return tower.class_attention(LAYER).mean(dim=1)
            return tower.attention_received(LAYER)

        def rule(rows: Front, count: int) -> FrontChoice:
            tower = rows.read_tower
            keys = tower.keys(LAYER).mean(dim=1)
            found, kept = zipped(
                tower.patches(), scores(tower), keys, count - contextual, contextual
            )
            return FrontChoice(tower.project(found), kept)

        return rule
