"""Times several ONNX Runtime calls in one process, in turns, so that all see the same machine."""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Clock = Literal["wall", "cpu"]
HUGE_PAGES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432"
    ":glibc.malloc.trim_threshold=17179869184"
)


@dataclass(frozen=True)
class Times:
    """Seconds of one call, one entry a round; `cpu` counts all threads of the process."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    def of(self, clock: Clock) -> tuple[float, ...]:
        """Return the seconds by one clock."""
        return self.wall if clock == "wall" else self.cpu

    def least(self, clock: Clock) -> float:
        """Return the shortest round."""
        return min(self.of(clock))

    def median(self, clock: Clock) -> float:
        """Return the middle round."""
        return statistics.median(self.of(clock))


@dataclass(frozen=True)
class Ratio:
    """One call's time divided by another's.

    Attributes:
        of_least: least time by least time.
        low, middle, high: 10th, 50th and 90th percentile of the ratio inside one round.
    """

    of_least: float
    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Beside:
    """Seconds of two graphs' decode steps, each by two sessions.

    A session that is loaded later finds better places in memory and is up to 8% faster at steps of the same
    graph. So one session is loaded for nothing, then usual, other, other, usual, and the sums of each pair
    are compared.

    Attributes:
        usual: of the session that was loaded first of all that count, and of the last.
        other: of those between.
    """

    usual: tuple[float, float]
    other: tuple[float, float]

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Beside":
        """Return the times of four sessions in the order in which they were loaded."""
        first, one, other, last = seconds
        return cls((first, last), (one, other))

    @property
    def ratio(self) -> float:
        """Usual to other: above 1 the other graph is faster."""
        return sum(self.usual) / sum(self.other)


@dataclass(frozen=True)
class Loads:
    """The same comparison with sessions loaded anew each time.

    Where weights and caches come to lie moves a step by some percent, so one comparison says little.
    """

    all: tuple[Beside, ...]

    @property
    def ratio(self) -> float:
        """Mean ratio, usual to other."""
        return statistics.mean(each.ratio for each in self.all)

    @property
    def resolution(self) -> float:
        """What the ratio can resolve: twice its standard error."""
        return 2 * statistics.stdev(each.ratio for each in self.all) / math.sqrt(len(self.all))

    @property
    def met(self) -> bool:
        """Whether the other graph is not slower by more than can be resolved."""
        return self.ratio >= 1 - self.resolution

    def milliseconds(self) -> tuple[float, float]:
        """Return the mean times of the usual and of the other graph."""
        sums = [(sum(each.usual), sum(each.other)) for each in self.all]
        usual, other = (500 * statistics.mean(times) for times in zip(*sums, strict=True))
        return usual, other


def loads(text: str) -> int:
    """Read the argument of `--loads`."""
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(
            "give 2 or more: one says nothing of how far they are apart"
        )
    return number


def in_turns(
    calls: Mapping[str, Callable[[], object]], *, repeats: int, warm_up: int = 1
) -> dict[str, Times]:
    """Time every call once a round; each round begins with the next one.

    Args:
        calls: what to time, by name.
        repeats: rounds that count.
        warm_up: rounds before them that do not.
    """
    names = list(calls)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warm_up + repeats):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            calls[name]()
            wall_spent, cpu_spent = (
                time.perf_counter() - wall_start,
                time.process_time() - cpu_start,
            )
            if turn >= warm_up:
                wall[name].append(wall_spent)
                cpu[name].append(cpu_spent)
    return {name: Times(tuple(wall[name]), tuple(cpu[name])) for name in names}


def ratio(slow: Times, fast: Times, clock: Clock) -> Ratio:
    """Return how many times longer `slow` takes."""
    by_round = [a / b for a, b in zip(slow.of(clock), fast.of(clock), strict=True)]
    tenths = (
        statistics.quantiles(by_round, n=10, method="inclusive")
        if len(by_round) > 1
        else by_round * 9
    )
    return Ratio(slow.least(clock) / fast.least(clock), tenths[0], tenths[4], tenths[8])


def huge_pages() -> str:
    """Return how much of this process's memory lies on huge pages."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return "unknown"
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return f"{kib['AnonHugePages'] / kib['Anonymous']:.0%}"


def on_huge_pages(module: str) -> None:
    """Start anew with a malloc that asks for huge pages, unless the caller has set that up.

    On small pages a decode step, which reads every weight once, was up to 15% slower for whichever
    graph was loaded first: more than the differences to be seen. Weights of up to 32 MiB are kept in one
    heap: mapped one by one, each would begin and end on small pages, and a graph with more and smaller
    weights would have more of them.
    """
    if "GLIBC_TUNABLES" not in os.environ:
        again = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, "GLIBC_TUNABLES": HUGE_PAGES})
