"""Auto: the fastest plan that keeps the answers, found by a search over what all methods offer.

Source: this project's own. Choices for layers under one budget are a knapsack; its relaxation is Everett's
"Generalized Lagrange Multiplier Method for Solving Problems of Optimum Allocation of Resources", 1963.

Rule: every change that a method offers (a layer frozen, an operator left out, fewer neurons or heads, an
exit, fewer visual tokens in front) is measured alone: KL(original || changed) over the tokens of the right
answer, mean over questions. Sums of these and predicted costs make a knapsack, solved for every budget at
once. Plans of some speed-ups are then measured as a whole on one half of the questions and made better by
exchanges; the other half, by which none is made, says what is kept. See `compressor.search`.

Limitations:
- Losses add up as single ones do only while they are small; what is measured as a whole decides.
- The fastest plan that both halves allow is chosen, so that its bound is a little too good.
- With few questions the share that is kept is known roughly: read its bound.
- Questions unlike those of the search may lose more.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from compressor.contract.method import Claim, Evidence, MethodWords, Trait, Turn
from compressor.contract.searched import SearchedMethod
from compressor.plan.plan import Plan


class Auto(SearchedMethod):
    """The fastest plan that keeps the answers; see `SearchedMethod` for its keys."""

    name: ClassVar[str] = "auto"
    words: ClassVar[MethodWords] = MethodWords(label="the search")
    turn: ClassVar[Turn] = Turn.FREEZE
    nicknames: ClassVar[tuple[str, ...]] = ("search",)

    @classmethod
    def claims(cls, keys: Mapping[str, Any]) -> tuple[Claim, ...]:
        """Return that it is the whole of `compress`."""
        return (Claim(Trait.ALONE, cls.name),)

    def apply(self, plan: Plan, evidence: Evidence) -> Plan:
        """Refuse; see `SearchedMethod.apply`."""
        return super().apply(plan, evidence)
