"""Makes contenders, measures each alone and in turns with another; every step in a process of its own."""

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from benchmarks.decoder_models import in_own_process
from benchmarks.decoder_sessions import Array
from benchmarks.interleaved import Ratio, in_turns, ratio
from benchmarks.peers.contenders import HUGGING_FACE, Contender

KIB = 1024
MATMUL_REPEATS = 20


@dataclass(frozen=True)
class Conditions:
    """Of all measurements: size of the model, threads of a call, rounds, and where files lie."""

    folder: Path
    layers: int
    vocab: int
    threads: int
    repeats: int

    def place(self, contender: Contender) -> Path:
        """Return the folder of a contender's files."""
        return self.folder / contender.made


class Judged(NamedTuple):
    """What a contender is judged by: its logits [vocab], and the visual rows that it kept; None: all."""

    logits: Array
    kept: Array | None = None


class Loaded(Protocol):
    """A contender in memory; of the comparison's calls it has those that it can be asked for alone."""

    @property
    def calls(self) -> Mapping[str, Callable[[], object]]:
        """The calls that are timed, by name."""

    def judged(self) -> Judged:
        """Run, and return what is compared with what is expected."""


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how; its functions run in processes of their own.

    Attributes:
        contenders: the reference first.
        calls: what is timed, by name: how often in a round. The first tells the rate of operations.
        wanted: of some calls, how many times as fast the fastest of ours is to be; of others None.
        make_model: writes the model of these layers and vocabulary into a folder.
        load: loads a contender.
        expected: the logits that a plan is to give whose contender kept these visual rows.
        flops: of a contender's first call; None where it cannot be told.
        product: rows, inputs and outputs of the decoder's widest product.
    """

    contenders: tuple[Contender, ...]
    calls: Mapping[str, int]
    wanted: Mapping[str, float | None]
    make_model: Callable[[Path, int, int], None]
    load: Callable[[Contender, Conditions], Loaded]
    expected: Callable[[str | None, Array | None, Conditions], Array]
    flops: Callable[[Contender, Conditions], int | None]
    product: tuple[int, int, int]


@dataclass(frozen=True)
class Row:
    """What was measured of one contender.

    Attributes:
        name: its.
        export_seconds, export_peak: of the process that made it, and its resident memory in bytes at most.
        size: bytes of graph and weights.
        run_peak: resident memory of a process that loads and runs it, bytes.
        ratios: of each call, time of the reference divided by its own.
        seconds: of each call, its shortest time.
        rate: multiply-adds of the first call, times two, in a second; None: not told.
        apart: largest difference of its logits from what is expected, of the largest of these.
    """

    name: str
    export_seconds: float
    export_peak: int
    size: int
    run_peak: int
    ratios: Mapping[str, Ratio]
    seconds: Mapping[str, float]
    rate: float | None
    apart: float


class Bench:
    """Measures contenders beside the reference.

    Args:
        comparison: what is compared.
        conditions: of all measurements.
    """

    def __init__(self, comparison: Comparison, conditions: Conditions) -> None:
        self._comparison, self._conditions = comparison, conditions
        size = (conditions.layers, conditions.vocab)
        in_own_process(comparison.make_model, conditions.folder, *size)
        self._made: dict[str, tuple[float, int]] = {}
        self._expected: dict[str | None, Array] = {}

    def make(self, chosen: Sequence[Contender]) -> None:
        """Write the files of contenders, of each that two share once."""
        for contender in chosen:
            if contender.made in self._made:
                continue
            folder = self._conditions.place(contender)
            folder.mkdir()
            (folder / HUGGING_FACE).symlink_to(self._conditions.folder / HUGGING_FACE)
            self._made[contender.made] = in_own_process(
                _make, contender.make, folder, self._conditions
            )

    def row(self, contender: Contender) -> Row:
        """Measure a contender that was made."""
        run_peak, judged = in_own_process(_run, self._comparison, contender, self._conditions)
        expected = self._expected_of(contender, judged.kept)
        export_seconds, export_peak = self._made[contender.made]
        found = self.beside(self._comparison.contenders[0], contender)
        seconds = {call: least for call, (_, least) in found.items()}
        flops = self._comparison.flops(contender, self._conditions)
        return Row(
            name=contender.name,
            export_seconds=export_seconds,
            export_peak=export_peak,
            size=contender.size(self._conditions.place(contender)),
            run_peak=run_peak,
            ratios={call: times for call, (times, _) in found.items()},
            seconds=seconds,
            rate=None if flops is None else flops / seconds[next(iter(self._comparison.calls))],
            apart=float(np.abs(judged.logits - expected).max() / np.abs(expected).max()),
        )

    def beside(self, slow: Contender, fast: Contender) -> dict[str, tuple[Ratio, float]]:
        """Return how many times longer one takes than the other, of each call that both have.

        Beside each ratio stand the seconds of the other's shortest.
        """
        return in_own_process(_in_turns, self._comparison, slow, fast, self._conditions)

    def matmul_rate(self) -> float:
        """Return what torch reaches of the decoder's widest product in float32, operations a second."""
        return in_own_process(_matmul_rate, *self._comparison.product, self._conditions.threads)

    def _expected_of(self, contender: Contender, kept: Array | None) -> Array:
        if contender.changes not in self._expected:
            self._expected[contender.changes] = in_own_process(
                self._comparison.expected, contender.changes, kept, self._conditions
            )
        return self._expected[contender.changes]


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def _make(
    make: Callable[[Path, int, int], None], folder: Path, conditions: Conditions
) -> tuple[float, int]:
    start = time.perf_counter()
    make(folder, conditions.layers, conditions.vocab)
    return time.perf_counter() - start, _peak()


def _run(
    comparison: Comparison, contender: Contender, conditions: Conditions
) -> tuple[int, Judged]:
    loaded = comparison.load(contender, conditions)
    for call in loaded.calls.values():
        call()
    peak = _peak()
    return peak, loaded.judged()


def _in_turns(
    comparison: Comparison, slow: Contender, fast: Contender, conditions: Conditions
) -> dict[str, tuple[Ratio, float]]:
    both = {n: comparison.load(one, conditions) for n, one in (("slow", slow), ("fast", fast))}
    found = {}
    for call, often in comparison.calls.items():
        if all(call in one.calls for one in both.values()):
            times = in_turns(
                {n: one.calls[call] for n, one in both.items()},
                repeats=conditions.repeats * often,
                # Short calls are repeated, and want more of them before they are steady.
                warm_up=1 if often == 1 else 3,
            )
            found[call] = ratio(times["slow"], times["fast"], "wall"), times["fast"].least("wall")
    return found


def _matmul_rate(rows: int, inputs: int, outputs: int, threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    states, weights = torch.randn(rows, inputs), torch.randn(inputs, outputs)
    times = in_turns({"matmul": lambda: states @ weights}, repeats=MATMUL_REPEATS)["matmul"]
    return 2 * states.numel() * outputs / times.least("wall")
