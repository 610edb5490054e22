"""Which option of each layer: the least loss for every cost at once, layer after layer.

Source: Nemhauser and Ullmann, "Discrete Dynamic Programming and Capital Allocation", 1969: only states that
nothing beats in both cost and loss can be part of a best choice, so only these go on to the next layer.

Limitations: where more than `MOST_STATES` of them are left, they are thinned evenly over their costs, so that
the loss found may be above the least by what lies between two neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_STATES = 4096


@dataclass(frozen=True)
class Unbeaten:
    """Choices for the first layers that nothing beats, by rising cost and falling loss.

    Attributes:
        cost: [S].
        loss: [S].
        before: [S] state of one layer less that each goes on from.
        option: [S] of the layer.
    """

    cost: np.ndarray
    loss: np.ndarray
    before: np.ndarray
    option: np.ndarray


START = Unbeaten(np.zeros(1), np.zeros(1), np.zeros(1, np.int64), np.zeros(1, np.int64))


def prefixes(costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]]) -> list[Unbeaten]:
    """Return the states of the first 0, 1, .. L layers.

    Args:
        costs: [L] of each option of each layer; layers may differ in their options.
        losses: likewise.
    """
    found = [START]
    for cost, loss in zip(costs, losses, strict=True):
        found.append(_next(found[-1], np.asarray(cost), np.asarray(loss)))
    return found


def _next(states: Unbeaten, cost: np.ndarray, loss: np.ndarray) -> Unbeaten:
    costs = (states.cost[:, None] + cost).reshape(-1)
    losses = (states.loss[:, None] + loss).reshape(-1)
    order = np.lexsort((losses, costs))
    falling = losses[order]
    least = np.minimum.accumulate(falling)
    keep = order[np.append(True, falling[1:] < least[:-1])]
    if len(keep) > MOST_STATES:
        keep = keep[_thinned(costs[keep])]
    return Unbeaten(costs[keep], losses[keep], keep // len(cost), keep % len(cost))


def _thinned(cost: np.ndarray) -> np.ndarray:
    """Return which states stay: the cheapest, and of each run of costs the one that loses least."""
    step = (cost[-1] - cost[0]) / (MOST_STATES - 1)
    run = np.floor((cost - cost[0]) / step)
    lasts = np.append(run[1:] != run[:-1], True)
    lasts[0] = True
    return np.flatnonzero(lasts)


def least_loss_within(states: Unbeaten, cost: float) -> int | None:
    """Return the state that loses least at no more than a cost; None: all cost more."""
    count = int(np.searchsorted(states.cost, cost, side="right"))
    return count - 1 if count else None


def options_of(found: Sequence[Unbeaten], layers: int, state: int) -> tuple[int, ...]:
    """Return the options of the first layers that a state of so many layers stands for."""
    chosen = []
    for states in reversed(found[1 : layers + 1]):
        chosen.append(int(states.option[state]))
        state = int(states.before[state])
    return tuple(reversed(chosen))
