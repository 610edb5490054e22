"""The search itself: plans for a ladder of speed-ups, measured as wholes, made better, judged, chosen from.

Every plan is found on one half of the questions and judged on the other. Nothing is drawn by chance: with the
same measurements the same plan comes out, and findings are kept, so that a run that was killed ends with the
plan of one that was not. Only an end in time cuts it short, and where, depends on the machine.
"""

import json
from collections.abc import Callable, Collection, Iterable
from math import sqrt
from typing import Protocol

from compressor.contract.searched import SearchedMethod
from compressor.errors import PlanError
from compressor.progress import SILENT, Progress
from compressor.search.additive import Additive
from compressor.search.candidates import Choice
from compressor.search.findings import Half, SearchFindings
from compressor.search.picking import pick, reached
from compressor.search.results import HalfFigures
from compressor.search.tried import SearchOutcome, Tried

LADDER = (1.1, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 4.0, 5.0, 6.0, 8.0)
"""Speed-ups that plans are looked for at."""
BASELINES = (1.5, 2.0, 2.5, 3.0)
"""Speed-ups at which single methods are measured, beside that of the chosen plan."""
BISECTIONS = 4
"""How often the step between the last speed-up that keeps enough and the first that does not is halved."""
MOST_TRIED = 32
"""Exchanges of one plan that are tried without a gain in between."""
COMBINATIONS = 3
"""Exits and choices of rows measured as wholes for one speed-up, of those that lose least by the sums."""
MOST_SWAPS = 16
"""Exchanges that one plan gets."""
HOPELESS = 0.6
"""Share of right answers below which faster plans are not looked at."""


class Wholes(Protocol):
    """Measures plans as wholes."""

    def __call__(self, choice: Choice, half: Half) -> HalfFigures:
        """Return what a plan does to the answers of one half."""
        ...


class Clock:
    """Says whether there is time for another measurement.

    Args:
        findings: know how long the search has taken.
        budget: seconds for all of it; None: as long as it takes.
    """

    def __init__(self, findings: SearchFindings, budget: float | None) -> None:
        self.findings, self.budget = findings, budget
        self.dearest: dict[Half, float] = {"choose": 0.0, "judge": 0.0}
        self.reserved = 0.0

    @property
    def left(self) -> float:
        """Seconds; infinite without a budget."""
        if self.budget is None:
            return float("inf")
        return self.budget - self.findings.seconds

    def allows(self, half: Half) -> bool:
        """Whether a plan can be measured on a half, and what is reserved is still left then."""
        return self.left - self.reserved > self.dearest[half]


class Search:
    """One search.

    Args:
        additive: finds plans by sums.
        wholes: measures them.
        searched: what the recipe asks for.
        where: the entry's place in the recipe; begins every problem.
        findings: keep what was measured.
        budget: seconds for the whole search; None: as long as it takes.
        progress: says what is done, and how long there is.
    """

    def __init__(
        self,
        additive: Additive,
        wholes: Wholes,
        searched: SearchedMethod,
        where: str,
        findings: SearchFindings,
        budget: float | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.additive, self.wholes, self.searched, self.where = additive, wholes, searched, where
        self.findings, self.clock, self.progress = findings, Clock(findings, budget), progress
        self.front: dict[Choice, Tried] = {}
        self.not_tried: list[str] = []
        self.most = additive.original / additive.least_cost()

    def run(self) -> SearchOutcome:
        """Search.

        Raises:
            PlanError: no plan keeps what is asked for, or is as fast; or there was no time for any.
        """
        goal, wanted = self.searched.goal
        if goal == "speedup" and wanted > self.most * (1 + 1e-9):
            reach = int(100 * self.most) / 100
            raise PlanError(
                [
                    f"{self.where}.speedup: {wanted:g} is out of reach; all together gives {reach:.2f}"
                ]
            )
        self._climb({*LADDER, wanted} if goal == "speedup" else LADDER)
        if not self.front:
            raise PlanError(
                [
                    "budget: there was no time to measure one plan as a whole; give more, or fewer questions"
                ]
            )
        self._refine()
        self._better(self._worst_sums(), "exchanges in other plans")
        self._say(f"judging {len(self.front)} plans")
        for tried in self._by_speed():
            self._judge(tried)
        chosen, why = self._pick()
        self.clock.reserved = 0.0
        baselines = self._baselines(chosen)
        self.findings.save()
        return SearchOutcome(self._by_speed(), baselines, chosen, why, self.not_tried)

    def speedup(self, tried: Tried) -> float:
        """Return the predicted speed-up of a plan."""
        return self.additive.speedup(tried.choice)

    def _say(self, what: str) -> None:
        """Say what is done, and how much of the time is left where there is an end."""
        left = "" if self.clock.budget is None else f", {self.clock.left:.0f} s of the budget left"
        self.progress.say(f"{what}{left}")

    def _by_speed(self) -> list[Tried]:
        return sorted(self.front.values(), key=lambda t: (self.speedup(t), t.choice))

    def _measured(self, choice: Choice, half: Half) -> HalfFigures | None:
        """Return what a plan does on a half; None: there is no time to measure it."""
        key = f"{half} {json.dumps(choice, separators=(',', ':'))}"
        if (kept := self.findings.wholes.get(key)) is not None:
            return kept
        if not self.clock.allows(half):
            return None
        before = self.findings.seconds
        found = self.wholes(choice, half)
        spent = self.findings.seconds - before
        self.clock.dearest[half] = max(self.clock.dearest[half], spent)
        # The halves are as large: what one takes, the other will.
        other: Half = "judge" if half == "choose" else "choose"
        self.clock.dearest[other] = self.clock.dearest[other] or spent
        self.findings.keep_whole(key, found)
        return found

    def _reserve(self) -> None:
        """Keep time to judge what there is, and for some of the baselines."""
        self.clock.reserved = (len(self.front) + 4) * self.clock.dearest["judge"]

    def _climb(self, ladder: Iterable[float]) -> None:
        """Measure a plan for each speed-up, from low to high, until nothing is kept."""
        rungs = [speed for speed in sorted(ladder) if speed <= self.most * (1 + 1e-9)]
        for number, speed in enumerate(rungs):
            self._say(f"plans {number + 1} of {len(rungs)}: {speed:g} x")
            found = self._best_at(speed)
            if found is None and self.clock.allows("choose"):
                continue  # the original is that fast: rows of its last layer are dead
            if found is None:
                skipped = ", ".join(f"{s:g}" for s in rungs[number:])
                self.not_tried.append(f"speed-ups of {skipped}: there was no time")
                return
            share = found.chosen_on.overall.share
            wanted = self.searched.speedup or 0.0
            if share is not None and share < HOPELESS and speed >= wanted and rungs[number + 1 :]:
                self.not_tried.append(
                    f"speed-ups above {speed:g}: at that one {share:.1%} of the right answers are kept"
                )
                return

    def _best_at(self, speed: float, methods: Collection[str] | None = None) -> Tried | None:
        """Return the best plan for a speed-up before exchanges; None: no time, or nothing need change."""
        proposals = self.additive.best(self.additive.original / speed, methods)
        best: Tried | None = None
        changed = [p for p in proposals if p.choice != self.additive.candidates.nothing]
        for proposal in changed[: COMBINATIONS if methods is None else 1]:
            figures = self._measured(proposal.choice, "choose")
            if figures is not None and (best is None or figures.kl < best.chosen_on.kl):
                best = Tried(proposal.choice, figures)
        if best is not None and methods is None:
            best = self._take(best)
        return best

    def _take(self, tried: Tried) -> Tried:
        """Put a plan on the front, unless it is there."""
        tried = self.front.setdefault(tried.choice, tried)
        self._reserve()
        return tried

    def _improved(self, tried: Tried, cost: float, enough: Callable[[Tried], bool]) -> Tried:
        """Return a plan within a cost with exchanges that lose less, until it is enough or none helps."""
        best = tried
        if not enough(best):
            self._say(f"exchanges at {self.speedup(best):.2f} x")
        while not enough(best) and best.swaps < MOST_SWAPS:
            better = self._one_better(best, cost)
            if better is None:
                break
            best = better
        if best is not tried:
            self.front.pop(tried.choice, None)
            best = self._take(best)
        return best

    def _one_better(self, tried: Tried, cost: float) -> Tried | None:
        for proposal in self.additive.neighbours(tried.choice, cost)[:MOST_TRIED]:
            figures = self._measured(proposal.choice, "choose")
            if figures is None:
                return None
            if figures.kl < tried.chosen_on.kl:
                return Tried(proposal.choice, figures, swaps=tried.swaps + 1)
        return None

    def _refine(self) -> None:
        """Find the fastest plan that is enough on the half to choose on, or the best for a speed-up."""
        if self.searched.speedup is not None:
            asked = [t for t in self._by_speed() if self._fast_enough(t)]
            if asked:
                best = min(asked, key=lambda t: (t.chosen_on.kl, t.choice))
                self._improved(
                    best, self.additive.original / self.searched.speedup, lambda _: False
                )
            return
        good = self._good
        while True:
            plans = self._by_speed()
            fast = next((t for t in reversed(plans) if good(t)), None)
            beyond = [t for t in plans if fast is None or self.speedup(t) > self.speedup(fast)]
            if not beyond:
                return
            better = self._improved(beyond[0], self.additive.cost(beyond[0].choice), good)
            if not good(better):
                break
        low = 1.0 if fast is None else self.speedup(fast)
        high = self.speedup(better)
        for _ in range(BISECTIONS):
            middle = sqrt(low * high)
            found = self._best_at(middle)
            if found is None and self.clock.allows("choose"):
                return
            if found is None:
                self.not_tried.append(
                    f"speed-ups between {low:.2f} and {high:.2f}: there was no time"
                )
                return
            found = self._improved(found, self.additive.original / middle, good)
            if good(found):
                low = max(middle, self.speedup(found))
            else:
                high = middle

    def _good(self, tried: Tried) -> bool:
        return reached(self.searched, tried.chosen_on)

    def _fast_enough(self, tried: Tried) -> bool:
        return self.speedup(tried) >= (self.searched.speedup or 0.0) * (1 - 1e-9)

    def _worst_sums(self) -> list[Tried]:
        """Return plans that lose much more together than their changes do alone, the worst first."""
        ratio: dict[Choice, float] = {}
        for tried in self.front.values():
            summed = self.additive.losses.summed(tried.choice)
            ratio[tried.choice] = tried.chosen_on.kl / summed if summed > 0 else 1.0
        worst = [t for t in self._by_speed() if ratio[t.choice] > 1.5 and not t.swaps]
        return sorted(worst, key=lambda t: -ratio[t.choice])

    def _better(self, plans: Iterable[Tried], what: str) -> None:
        """Exchange in other plans of the front, one gain each: they show what is lost at other speeds."""
        for tried in plans:
            better = self._one_better(tried, self.additive.cost(tried.choice))
            if better is not None:
                self.front.pop(tried.choice, None)
                self._take(better)
            elif not self.clock.allows("choose"):
                self.not_tried.append(f"{what}: there was no time")
                return

    def _judge(self, tried: Tried) -> None:
        self.clock.reserved = 0.0
        if tried.judged_on is None:
            tried.judged_on = self._measured(tried.choice, "judge")

    def _pick(self) -> tuple[Tried, str]:
        """Return the plan to take, and why.

        Raises:
            PlanError: none keeps what is asked for.
        """
        judged = [t for t in self._by_speed() if t.judged_on is not None]
        if len(judged) < len(self.front):
            count = len(self.front) - len(judged)
            self.not_tried.append(f"{count} plans were not judged: there was no time")
        return pick(self.searched, self.where, judged, self.speedup)

    def _baselines(self, chosen: Tried) -> list[Tried]:
        """Return plans of single methods at some speed-ups, measured on both halves."""
        candidates = self.additive.candidates
        changes = (*candidates.modes, *candidates.exits.values(), *candidates.keeps)
        names = list(dict.fromkeys(change.method for change in changes))
        found: dict[tuple[str, Choice], Tried] = {}
        late: list[str] = []
        for name in names if len(names) > 1 else ():
            self._say(f"{name} alone")
            most = self.additive.original / self.additive.least_cost([name])
            speeds = {*BASELINES, self.speedup(chosen)}
            for speed in sorted(s for s in speeds if s <= most):
                one = self._best_at(speed, [name])
                judged = None if one is None else self._measured(one.choice, "judge")
                if one is None or judged is None:
                    late += [name] * (name not in late)
                    continue
                found[name, one.choice] = Tried(one.choice, one.chosen_on, judged, series=name)
        if late:
            said = f"{', '.join(late)} alone, at all or some of the speed-ups"
            self.not_tried.append(f"{said}: there was no time")
        return list(found.values())
