"""What a plan costs, layer by layer: what a search adds up, in whatever unit.

Another model of costs has `of` and `unit` and is given to the search in the place of these.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from compressor.arrangement import cells_kept
from compressor.contract.front import FrontMethod
from compressor.contract.method import Method
from compressor.errors import PlanError
from compressor.facts import ModelFacts
from compressor.methods import front_chooser
from compressor.plan.cost import predict
from compressor.plan.measured_cost import MeasuredCosts
from compressor.plan.plan import Plan
from compressor.plan.vision_cost import rows_chosen_among, tile_flops
from compressor.schema.values import SearchTarget


@dataclass(frozen=True)
class PlanCost:
    """Cost of a plan's workload.

    Attributes:
        layers: of each layer; what a layer costs depends on what it does and on the rows that enter it alone.
        rest: of what is no layer's.
    """

    layers: tuple[float, ...]
    rest: float = 0.0

    @property
    def total(self) -> float:
        """Of all of it."""
        return sum(self.layers) + self.rest


class CostModel(Protocol):
    """Predicts what plans cost."""

    @property
    def unit(self) -> str:
        """Of the costs, in words."""
        ...

    def of(self, plan: Plan) -> PlanCost:
        """Return the cost of a plan's workload."""
        ...


class FlopsCost:
    """Predicted FLOPs of the prefill; see `compressor.plan.cost`."""

    unit = "FLOPs"

    def of(self, plan: Plan) -> PlanCost:
        """Return the cost of a plan's workload."""
        cost = predict(plan)
        return PlanCost(cost.layer_flops, cost.head_flops)


class FirstTokenCost:
    """Predicted FLOPs until the first token of a prompt with a picture.

    Vision tower and projector of all tiles, the choice among their rows, and the prefill with its head; the
    embedding of tokens looks rows up and multiplies nothing.
    """

    unit = "FLOPs up to the first token"

    def of(self, plan: Plan) -> PlanCost:
        """Return the cost of a plan's workload.

        Raises:
            PlanError: what its vision side or its choice costs is not known.
        """
        cost, facts = predict(plan), plan.model
        tile = tile_flops(facts)
        if tile is None:
            raise PlanError([_unknown_tower(facts, "first_token")])
        vision = facts.most_tiles * tile + _choice_flops(plan)
        return PlanCost(cost.layer_flops, cost.head_flops + plan.workload.images * vision)


def _choice_flops(plan: Plan) -> int:
    """Return the FLOPs of the choice among the rows of one picture."""
    front, facts = plan.front, plan.model
    if front is None:
        return 0
    method, found = front_chooser(front, facts), 0
    for rows in rows_chosen_among(facts):
        flops = None
        if isinstance(method, FrontMethod):
            kept = cells_kept(rows, front.count, front.of)
            flops = method.choice_flops(rows, kept, facts.decoder.hidden)
        if flops is None:
            raise PlanError([_unknown_choice(front.by, "first_token")])
        found += flops
    return found


def first_token_problems(facts: ModelFacts, methods: Iterable[type[Method]], where: str) -> None:
    """Refuse to search for the first token where something in front of the decoder has no known cost.

    Args:
        facts: of the model.
        methods: whose choices in front may be used.
        where: the target's place in the recipe.

    Raises:
        PlanError: the family does not tell its tower's work, or methods not that of their choice.
    """
    where = f"{where}: first_token"
    problems = [] if tile_flops(facts) is not None else [_unknown_tower(facts, where)]
    problems += [
        _unknown_choice(method.name, where)
        for method in methods
        if issubclass(method, FrontMethod)
        and method(keep=method.tried[0]).choice_flops(1, 1, 1) is None
    ]
    if problems:
        raise PlanError(problems)


def _unknown_tower(facts: ModelFacts, where: str) -> str:
    return (
        f"{where}: the family {facts.family} does not tell what its vision side costs; ask for prefill or "
        "kv_bytes"
    )


def _unknown_choice(name: str, where: str) -> str:
    return (
        f"{where}: {name} does not tell what its choice in front of the decoder costs; name it in "
        "never.methods, or ask for prefill or kv_bytes"
    )


class KvBytesCost:
    """Predicted size of the KV cache behind the prefill, in numbers that it holds: bytes divide out."""

    unit = "KV bytes"

    def of(self, plan: Plan) -> PlanCost:
        """Return the cost of a plan's workload."""
        return PlanCost(predict(plan).layer_kv_values)


@dataclass(frozen=True)
class TimeCost:
    """Predicted time of the prefill, by what a machine took.

    Attributes:
        measured: that machine's.
    """

    measured: MeasuredCosts
    unit = "seconds of this machine"

    def of(self, plan: Plan) -> PlanCost:
        """Return the cost of a plan's workload."""
        return PlanCost(self.measured.seconds_of_layers(plan), self.measured.call_seconds)


COSTS: Final[Mapping[SearchTarget, CostModel]] = {
    "prefill": FlopsCost(),
    "first_token": FirstTokenCost(),
    "kv_bytes": KvBytesCost(),
}
"""What is predicted for each target, unless a search is given something better."""


def speedup(costs: CostModel, plan: Plan) -> float:
    """Return how many times the original's cost is that of a plan."""
    return costs.of(plan.naive()).total / costs.of(plan).total
