"""Methods that choose which visual rows of a tile the decoder gets: what is common to all of them."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from compressor.contract.choice import FrontRule
from compressor.contract.method import Claim, Evidence, Method, Trait, Turn
from compressor.facts import ModelFacts
from compressor.plan.edits import keep_in_front
from compressor.plan.kept import rows_of_share
from compressor.plan.plan import Plan
from compressor.schema.problems import allowed

KeptShare = Annotated[
    float,
    Field(gt=0, le=1),
    allowed("a number above 0, up to 1, the share of a tile's visual tokens"),
]


class FrontMethod(Method):
    """A method that keeps k of the n visual rows of every tile, in front of the decoder.

    The rows keep their places and positions in the prompt, which has n image tokens of each tile as before.
    Where pictures have grids of their own, the same share of each grid's cells stays.

    Attributes:
        keep: share of them that stays, above 0, up to 1.
        why_by_grid: why its rule needs grids of one size, where `by_grid` says that it does.
    """

    turn: ClassVar[Turn] = Turn.KEEP
    by_grid: ClassVar[tuple[str, ...]] = ("keep",)
    why_by_grid: ClassVar[str] = "its rule is for tiles of one number of visual tokens"

    keep: KeptShare

    @classmethod
    def claims(cls, keys: Mapping[str, Any]) -> tuple[Claim, ...]:  # noqa: ARG003 - whatever they say
        """Return that it chooses among visual rows in front of the decoder."""
        return (Claim(Trait.FRONT, cls.name),)

    def problems(self, facts: ModelFacts, evidence: Evidence) -> list[str]:
        """Return that the rule does not go with the model's pictures, or that no row would be kept."""
        if facts.grids_differ and self.by_grid:
            return [
                f"{evidence.where}.keep: pictures of {facts.family} have grids of their own, so different "
                f"numbers of visual tokens, and {self.why_by_grid}; leave {self.name} out"
            ]
        rows = facts.tile_rows
        if self.rows_kept(facts) < 1:
            return [
                f"{evidence.where}.keep: {self.keep:g} of {rows} visual tokens is none; give more"
            ]
        return []

    def rows_kept(self, facts: ModelFacts) -> int:
        """Return k, of the model's tiles: the share, rounded down."""
        return rows_of_share(self.keep, facts.tile_rows)

    def apply(self, plan: Plan, evidence: Evidence) -> Plan:  # noqa: ARG002 - nothing is measured
        """Return the plan with k rows of every tile."""
        return keep_in_front(plan, self.rows_kept(plan.model), self.name, self.asked())

    @abstractmethod
    def front_rule(self, facts: ModelFacts) -> FrontRule:
        """See `Method.front_rule`."""
