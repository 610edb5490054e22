"""The plan that loses least if losses of single changes add up, for every cost, exit and choice of rows."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from compressor.search.candidates import Choice, PlanSpace
from compressor.search.costs import CostModel
from compressor.search.knapsack import Unbeaten, least_loss_within, options_of, prefixes

ROUNDING = 1e-12
"""Share by which sums of costs may differ that are taken in another order."""


@dataclass(frozen=True)
class SingleLosses:
    """KL(original || changed) of single changes, in nats; 0 of what changes nothing.

    Attributes:
        modes: [L][M + 1] of each mode of each layer; layers that are not open have 0 alone.
        exits: by the first layer without visual rows.
        keeps: [K + 1] of choices among visual rows.
    """

    modes: tuple[tuple[float, ...], ...]
    exits: Mapping[int, float]
    keeps: tuple[float, ...]

    def summed(self, choice: Choice) -> float:
        """Return the sum of a choice's single losses."""
        found = sum(row[mode] for row, mode in zip(self.modes, choice.modes, strict=True))
        return found + self.keeps[choice.keeps] + self.exits.get(choice.leaves, 0.0)


class Proposal(NamedTuple):
    """A choice with what is predicted of it."""

    loss: float
    cost: float
    choice: Choice


class _Part(NamedTuple):
    """Choices with one choice among visual rows and the modes of some methods."""

    keeps: int
    modes: tuple[tuple[int, ...], ...]
    states: list[Unbeaten]


class Additive:
    """Predicts losses and costs of choices as sums, and finds the best.

    Args:
        candidates: to choose among.
        costs: predicts.
        losses: of single changes.
    """

    def __init__(self, candidates: PlanSpace, costs: CostModel, losses: SingleLosses) -> None:
        self.candidates, self.losses = candidates, losses
        keeps = range(len(candidates.keeps) + 1)
        self.original = costs.of(candidates.plan(candidates.nothing).naive()).total
        # By choice among visual rows, mode and layer.
        self.layer_costs = [
            {
                mode: costs.of(candidates.plan(candidates.everywhere(mode, keeps=k))).layers
                for mode in candidates.modes_with(k)
            }
            for k in keeps
        ]
        # Of the dead layer in front of the exit, of all layers behind it, and of what is no layer's.
        self.tails: dict[tuple[int, int], float] = {}
        for number in keeps:
            for leaves in candidates.exits_with(number):
                whole = costs.of(candidates.plan(Choice(number, leaves, candidates.nothing.modes)))
                last = (leaves or candidates.layers) - 1
                self.tails[number, leaves] = sum(whole.layers[last:]) + whole.rest
        self._parts: dict[tuple[str, ...], list[_Part]] = {}

    def cost(self, choice: Choice) -> float:
        """Return what a choice costs."""
        last = (choice.leaves or self.candidates.layers) - 1
        table = self.layer_costs[choice.keeps]
        inner = sum(table[mode][i] for i, mode in enumerate(choice.modes[:last]))
        return inner + self.tails[choice.keeps, choice.leaves]

    def speedup(self, choice: Choice) -> float:
        """Return the original's cost divided by a choice's."""
        return self.original / self.cost(choice)

    def best(self, cost: float, methods: Collection[str] | None = None) -> list[Proposal]:
        """Return for every exit and choice of rows the plan that loses least within a cost, the best first.

        Args:
            cost: that is allowed.
            methods: whose changes may be used; None: all.
        """
        found = []
        for part in self._parts_of(methods):
            for leaves in self.candidates.exits_with(part.keeps):
                if leaves and methods is not None and self._exit_of(leaves) not in methods:
                    continue
                if (one := self._within(part, leaves, cost)) is not None:
                    found.append(one)
        return sorted(found)

    def least_cost(self, methods: Collection[str] | None = None) -> float:
        """Return what the cheapest choice costs."""
        return min(
            float(part.states[self._inner(leaves)].cost[0]) + self.tails[part.keeps, leaves]
            for part in self._parts_of(methods)
            for leaves in self.candidates.exits_with(part.keeps)
            if not leaves or methods is None or self._exit_of(leaves) in methods
        )

    def neighbours(self, choice: Choice, cost: float) -> list[Proposal]:
        """Return choices within a cost that differ in one or two layers, by rising sum of losses."""
        table, open_layers = self.layer_costs[choice.keeps], self.candidates.open(choice.leaves)
        now, loss = self.cost(choice), self.losses.summed(choice)
        steps = [
            (
                table[mode][i] - table[choice.modes[i]][i],
                self.losses.modes[i][mode] - self.losses.modes[i][choice.modes[i]],
                i,
                mode,
            )
            for i in open_layers
            for mode in self.candidates.modes_with(choice.keeps)
            if mode != choice.modes[i]
        ]
        room = cost * (1 + ROUNDING) - now
        found = []
        for at, (cost_1, loss_1, i, mode_1) in enumerate(steps):
            if cost_1 <= room:
                found.append(Proposal(loss + loss_1, now + cost_1, choice.with_mode(i, mode_1)))
            for cost_2, loss_2, j, mode_2 in steps[at + 1 :]:
                # Both must do something for it: one alone is there already.
                if j != i and cost_1 + cost_2 <= room and (cost_1 < 0) is not (cost_2 < 0):
                    both = choice.with_mode(i, mode_1).with_mode(j, mode_2)
                    found.append(Proposal(loss + loss_1 + loss_2, now + cost_1 + cost_2, both))
        return sorted(found)

    def _inner(self, leaves: int) -> int:
        """Return how many layers have options in front of the dead one."""
        return (leaves or self.candidates.layers) - 1

    def _exit_of(self, leaves: int) -> str:
        return self.candidates.exits[leaves].method

    def _within(self, part: _Part, leaves: int, cost: float) -> Proposal | None:
        inner, tail = self._inner(leaves), self.tails[part.keeps, leaves]
        state = least_loss_within(part.states[inner], cost * (1 + ROUNDING) - tail)
        if state is None:
            return None
        options = options_of(part.states, inner, state)
        chosen = [part.modes[i][option] for i, option in enumerate(options)]
        modes = (*chosen, *(0 for _ in range(self.candidates.layers - inner)))
        choice = Choice(part.keeps, leaves, modes)
        return Proposal(self.losses.summed(choice), self.cost(choice), choice)

    def _parts_of(self, methods: Collection[str] | None) -> list[_Part]:
        names = ("",) if methods is None else tuple(sorted(methods))
        if names not in self._parts:
            self._parts[names] = list(self._made(methods))
        return self._parts[names]

    def _made(self, methods: Collection[str] | None) -> Iterator[_Part]:
        candidates = self.candidates
        open_layers, inner = candidates.open(), range(candidates.layers - 1)
        for keeps in self._keeps(methods):
            allowed = tuple(
                mode
                for mode in candidates.modes_with(keeps)
                if not mode or methods is None or candidates.modes[mode - 1].method in methods
            )
            modes = tuple(allowed if i in open_layers else (0,) for i in inner)
            costs = [[self.layer_costs[keeps][m][i] for m in own] for i, own in enumerate(modes)]
            losses = [[self.losses.modes[i][m] for m in own] for i, own in enumerate(modes)]
            yield _Part(keeps, modes, prefixes(costs, losses))

    def _keeps(self, methods: Collection[str] | None) -> list[int]:
        """Return no choice of rows, and of those of equal costs in all layers the one that loses least."""
        best: dict[tuple[float, ...], int] = {}
        for number, change in enumerate(self.candidates.keeps, 1):
            if methods is not None and change.method not in methods:
                continue
            cost = (*self.layer_costs[number][0], self.tails[number, 0])
            other = best.setdefault(cost, number)
            if self.losses.keeps[number] < self.losses.keeps[other]:
                best[cost] = number
        return [0, *best.values()]
