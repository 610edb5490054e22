"""How large the steps of a training are and when it is judged: by a number of steps, or by the clock.

The learning rate grows over the first `WARM_UP` steps, stays, and falls to 0 over the last two fifths
(warm-up, stable, decay: "MiniCPM", Hu et al., 2024). Until it falls nothing depends on how many steps there
will be: by the clock, the number is settled when three fifths of the time are over, from what the steps took
so far. So a training by the clock anneals however slow the machine is, and the same number of steps, asked
for as such, repeats it to the last bit. Where later steps take longer than those before, the time ends it
all the same, while steps are not yet small; that is told, and is what no number of steps repeats.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

WARM_UP = 10
"""Steps over which the learning rate grows."""
LOOKS = 4
"""How often a training is judged: at the start, where the rate begins to fall, half way down, at the end."""
AIM = 0.97
"""Share of the time that steps are planned for: they do not all take the same."""

clock: Callable[[], float] = time.monotonic
"""Seconds since some time ago."""


def falls_from(steps: int) -> int:
    """Return the step from which on the learning rate falls."""
    return steps - 2 * steps // 5


def steps_that_fall_from(step: int) -> int:
    """Return the largest number of steps of which the rate falls from one on."""
    return 5 * step // 3


def share_of_rate(number: int, steps: int | None) -> float:
    """Return the share of the learning rate that a step has.

    Args:
        number: of the step, from 0.
        steps: how many there will be; None: not settled yet, so that the rate does not fall yet.
    """
    share = min(1.0, (number + 1) / WARM_UP)
    first = number if steps is None else falls_from(steps)
    return share if steps is None or number <= first else share * (steps - number) / (steps - first)


@dataclass
class Pace:
    """The pace of one training, which may go on from a checkpoint.

    Attributes:
        steps: how many there will be; None: not settled yet.
        seconds: that there are; None: as many as the steps take.
        spent: seconds of earlier runs.
        look: seconds of one judging; 0 before the first.
        looking: seconds of all judgings so far.
        began: when this run began, by `clock`.
    """

    steps: int | None
    seconds: float | None = None
    spent: float = 0.0
    look: float = 0.0
    looking: float = 0.0
    began: float = field(init=False)

    def __post_init__(self) -> None:
        """Begin now."""
        self.began = clock()

    @property
    def elapsed(self) -> float:
        """Seconds that the training has taken, all runs together."""
        return self.spent + clock() - self.began

    @property
    def share(self) -> float:
        """Share of the time that is over, 1 at most; 0 where time is not limited."""
        return 0.0 if self.seconds is None else min(1.0, self.elapsed / self.seconds)

    def kept(self) -> tuple[float, ...]:
        """Return what a run that goes on takes back: numbers alone."""
        settled = -1 if self.steps is None else self.steps
        return (settled, self.elapsed, self.look, self.looking)

    def take_back(self, settled: float, spent: float, look: float, looking: float) -> None:
        """Take what `kept` gave."""
        self.steps = None if settled < 0 else int(settled)
        self.spent, self.look, self.looking = spent, look, looking
        self.began = clock()

    def looked(self, seconds: float) -> None:
        """Note what a judging took."""
        self.looking += seconds
        self.look = max(self.look, seconds)

    def settle(self, taken: int) -> None:
        """Settle how many steps there will be, if it is time to.

        Args:
            taken: steps so far.
        """
        if self.seconds is None or self.steps is not None:
            return
        steps = steps_that_fall_from(taken + 1)
        if steps * self._step(taken) + LOOKS * self.look >= AIM * self.seconds:
            self.steps = steps_that_fall_from(taken)

    def over(self, taken: int) -> bool:
        """Return whether there is no time for another step and the last judging.

        Args:
            taken: steps so far.
        """
        if self.seconds is None:
            return False
        return self.elapsed + self._step(taken) + self.look > self.seconds

    def looks(self) -> frozenset[int]:
        """Return before which steps, as far as is settled, the training is judged."""
        if self.steps is None:
            return frozenset({0})
        first = falls_from(self.steps)
        return frozenset({0, first, (first + self.steps) // 2})

    def _step(self, taken: int) -> float:
        return (self.elapsed - self.looking) / taken if taken else 0.0
