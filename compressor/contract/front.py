"""Methods that choose which visual rows of a tile the decoder gets: what is common to all of them."""

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import Field

from compressor.contract.choice import FrontRule
from compressor.contract.method import Claim, Evidence, Method, Trait, Turn
from compressor.contract.trials import Offering, PlanTrial
from compressor.facts import ModelFacts
from compressor.plan.edits import keep_in_front
from compressor.plan.kept import rows_of_share, why_no_tiles
from compressor.plan.plan import Plan
from compressor.schema.problems import allowed

KeptShare = Annotated[
    float,
    Field(gt=0, le=1),
    allowed("a number above 0, up to 1, the share of a tile's visual tokens"),
]


def why_no_tower(
    facts: ModelFacts, *, class_token: bool = False, layers_read: int | None = None
) -> str | None:
    """Return why a rule cannot read the vision tower of a model; None: it can.

    Args:
        facts: of a model whose rows something may be chosen among.
        class_token: the rule reads that of the tower.
        layers_read: the last of the layers that it reads, from -1 at the end; None: what the projector takes.
    """
    tower, family = facts.tower, facts.family
    if tower is None:
        return f"the family {family} does not tell what its vision tower is like"
    if class_token and not tower.class_token:
        return f"the vision tower of {facts.name} has no class token"
    if not tower.layers:
        return f"the family {family} does not tell what layers of its vision tower make of pictures"
    if facts.token_grid is None and facts.arrangement is None:
        return f"visual tokens of {facts.name} are not the patches of its vision tower alone"
    if facts.arrangement is not None and facts.arrangement.taps > 1:
        return (
            f"a visual token of a large picture of {family} is made of {facts.arrangement.taps} of the "
            "projector's"
        )
    needed = 0 if layers_read is None else tower.layers + 1 + layers_read
    if layers_read is not None and not 1 <= needed <= tower.layers_read:
        return (
            f"layer {layers_read} of the vision tower of {facts.name} is to be read, which has "
            f"{tower.layers} layers, and runs {tower.layers_read}"
        )
    return None


class FrontChooser(Method):
    """A method that says which rows of every tile the decoder gets.

    Places and positions in the prompt, which has n image tokens of each tile as before, are those of n rows.
    Where pictures have grids of their own, the same share of each grid's cells stays.

    Attributes:
        why_by_grid: why its rule needs grids of one size, where `by_grid` says that it does.
    """

    turn: ClassVar[Turn] = Turn.FRONT
    by_grid: ClassVar[tuple[str, ...]] = ("keep",)
    why_by_grid: ClassVar[str] = "its rule is for tiles of one number of visual tokens"

    @classmethod
    def claims(cls, keys: Mapping[str, Any]) -> tuple[Claim, ...]:  # noqa: ARG003 - whatever they say
        """Return that it chooses among visual rows in front of the decoder."""
        return (Claim(Trait.FRONT, cls.name),)

    def problems(self, facts: ModelFacts, evidence: Evidence) -> list[str]:
        """Return what `unfit` does."""
        return self.unfit(facts, evidence.where)

    def unfit(self, facts: ModelFacts, where: str) -> list[str]:
        """Return that the rule does not go with the model's pictures."""
        reason = why_no_tiles(facts) if self.by_grid else None
        if reason is None:
            return []
        given = "".join(f".{key}" for key in self.by_grid if key in self.model_fields_set)
        return [f"{where}{given}: {reason}, and {self.why_by_grid}; leave {self.name} out"]

    @abstractmethod
    def front_rule(self, facts: ModelFacts) -> FrontRule:
        """See `Method.front_rule`."""


class FrontMethod(FrontChooser, Offering):
    """A method that keeps k of the n visual rows of every tile, in front of the decoder.

    Attributes:
        tried: shares that it offers to a search, with its other keys as they usually are.
        keep: share of them that stays, above 0, up to 1.
    """

    tried: ClassVar[tuple[float, ...]] = ()

    keep: KeptShare

    @classmethod
    def offers(cls) -> bool:
        """Return whether it has shares to offer."""
        return bool(cls.tried)

    @classmethod
    def trials(cls, facts: ModelFacts, evidence: Evidence) -> tuple[PlanTrial, ...]:
        """Return the shares that it offers, where the model goes with them."""
        found = (cls(keep=share) for share in cls.tried)
        return tuple(
            PlanTrial(f"{one.keep:g} of visual tokens", partial(one.apply, evidence=evidence))
            for one in found
            if not one.unfit(facts, evidence.where)
        )

    def unfit(self, facts: ModelFacts, where: str) -> list[str]:
        """Return also that no row would be kept."""
        rows, found = facts.tile_rows, super().unfit(facts, where)
        if found or self.rows_kept(facts) >= 1:
            return found
        return [f"{where}.keep: {self.keep:g} of {rows} visual tokens is none; give more"]

    def choice_flops(self, rows: int, kept: int, width: int) -> int | None:  # noqa: ARG002
        """Return the FLOPs of the rule's matrix products; None: not known, no first token is searched.

        Args:
            rows: N that it chooses among.
            kept: K.
            width: D of a row.
        """
        return None

    def rows_kept(self, facts: ModelFacts) -> int:
        """Return k, of the model's tiles: the share, rounded down."""
        return rows_of_share(self.keep, facts.tile_rows)

    def apply(self, plan: Plan, evidence: Evidence) -> Plan:  # noqa: ARG002 - nothing is measured
        """Return the plan with k rows of every tile."""
        return keep_in_front(plan, self.rows_kept(plan.model), self.name, self.asked())
