"""The plan that loses least if losses of single changes add up, for every cost, exit and front at once."""

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
        fronts: [F + 1].
    """

    modes: tuple[tuple[float, ...], ...]
    exits: Mapping[int, float]
    fronts: tuple[float, ...]

    def summed(self, choice: Choice) -> float:
        """Return the sum of a choice's single losses."""
        found = sum(row[mode] for row, mode in zip(self.modes, choice.modes, strict=True))
        return found + self.fronts[choice.front] + self.exits.get(choice.leaves, 0.0)


class Proposal(NamedTuple):
    """A choice with what is predicted of it."""

    loss: float
    cost: float
    choice: Choice


class _Part(NamedTuple):
    """Choices with one front and the modes of some methods."""

    front: int
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
        fronts = range(len(candidates.fronts) + 1)
        modes = range(len(candidates.modes) + 1)
        self.original = costs.of(candidates.plan(candidates.nothing).naive()).total
        # By front, mode and layer.
        self.layer_costs = [
            [costs.of(candidates.plan(candidates.everywhere(m, front=f))).layers for m in modes]
            for f in fronts
        ]
        # Of the dead layer in front of the exit, of all layers behind it, and of what is no layer's.
        self.tails: dict[tuple[int, int], float] = {}
        for front in fronts:
            for leaves in (0, *candidates.exits):
                whole = costs.of(candidates.plan(Choice(front, leaves, candidates.nothing.modes)))
                last = (leaves or candidates.layers) - 1
                self.tails[front, leaves] = sum(whole.layers[last:]) + whole.rest
        self._parts: dict[tuple[str, ...], list[_Part]] = {}

    def cost(self, choice: Choice) -> float:
        """Return what a choice costs."""
        last = (choice.leaves or self.candidates.layers) - 1
        table = self.layer_costs[choice.front]
        inner = sum(table[mode][i] for i, mode in enumerate(choice.modes[:last]))
        return inner + self.tails[choice.front, choice.leaves]

    def speedup(self, choice: Choice) -> float:
        """Return the original's cost divided by a choice's."""
        return self.original / self.cost(choice)

    def best(self, cost: float, methods: Collection[str] | None = None) -> list[Proposal]:
        """Return the choice that loses least within a cost for every exit and front, the best of them first.

        Args:
            cost: that is allowed.
            methods: whose changes may be used; None: all.
        """
        found = []
        for part in self._parts_of(methods):
            for leaves in (0, *self.candidates.exits):
                if leaves and methods is not None and self._exit_of(leaves) not in methods:
                    continue
                if (one := self._within(part, leaves, cost)) is not None:
                    found.append(one)
        return sorted(found)

    def least_cost(self, methods: Collection[str] | None = None) -> float:
        """Return what the cheapest choice costs."""
        return min(
            float(part.states[self._inner(leaves)].cost[0]) + self.tails[part.front, leaves]
            for part in self._parts_of(methods)
            for leaves in (0, *self.candidates.exits)
            if not leaves or methods is None or self._exit_of(leaves) in methods
        )

    def neighbours(self, choice: Choice, cost: float) -> list[Proposal]:
        """Return choices within a cost that differ in one or two layers, by rising sum of losses."""
        table, open_layers = self.layer_costs[choice.front], self.candidates.open(choice.leaves)
        now, loss = self.cost(choice), self.losses.summed(choice)
        steps = [
            (
                table[mode][i] - table[choice.modes[i]][i],
                self.losses.modes[i][mode] - self.losses.modes[i][choice.modes[i]],
                i,
                mode,
            )
            for i in open_layers
            for mode in range(len(self.candidates.modes) + 1)
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
        inner, tail = self._inner(leaves), self.tails[part.front, leaves]
        state = least_loss_within(part.states[inner], cost * (1 + ROUNDING) - tail)
        if state is None:
            return None
        options = options_of(part.states, inner, state)
        chosen = [part.modes[i][option] for i, option in enumerate(options)]
        modes = (*chosen, *(0 for _ in range(self.candidates.layers - inner)))
        choice = Choice(part.front, leaves, modes)
        return Proposal(self.losses.summed(choice), self.cost(choice), choice)

    def _parts_of(self, methods: Collection[str] | None) -> list[_Part]:
        names = ("",) if methods is None else tuple(sorted(methods))
        if names not in self._parts:
            self._parts[names] = list(self._made(methods))
        return self._parts[names]

    def _made(self, methods: Collection[str] | None) -> Iterator[_Part]:
        candidates = self.candidates
        allowed = [
            0,
            *(
                n
                for n, c in enumerate(candidates.modes, 1)
                if methods is None or c.method in methods
            ),
        ]
        open_layers = candidates.open()
        modes = tuple(
            tuple(allowed) if i in open_layers else (0,) for i in range(candidates.layers - 1)
        )
        for front in self._fronts(methods):
            costs = [[self.layer_costs[front][m][i] for m in own] for i, own in enumerate(modes)]
            losses = [[self.losses.modes[i][m] for m in own] for i, own in enumerate(modes)]
            yield _Part(front, modes, prefixes(costs, losses))

    def _fronts(self, methods: Collection[str] | None) -> list[int]:
        """Return no front, and of those that cost the same the one that loses least."""
        best: dict[float, int] = {}
        for number, change in enumerate(self.candidates.fronts, 1):
            if methods is not None and change.method not in methods:
                continue
            cost = self.tails[number, 0]
            other = best.setdefault(cost, number)
            if self.losses.fronts[number] < self.losses.fronts[other]:
                best[cost] = number
        return [0, *best.values()]
