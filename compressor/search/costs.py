"""What a plan costs, layer by layer: what a search adds up, in whatever unit.

Another model of costs has `of` and `unit` and is given to the search in the place of these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from compressor.plan.cost import predict
from compressor.plan.measured_cost import MeasuredCosts
from compressor.plan.plan import Plan
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


COSTS: Final[Mapping[SearchTarget, CostModel]] = {"prefill": FlopsCost(), "kv_bytes": KvBytesCost()}
"""What is predicted for each target, unless a search is given something better."""


def speedup(costs: CostModel, plan: Plan) -> float:
    """Return how many times the original's cost is that of a plan."""
    return costs.of(plan.naive()).total / costs.of(plan).total
