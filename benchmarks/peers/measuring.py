"""Makes contenders, measures each alone and in turns with another; every step in a process of its own."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.decoder import STEPS_PER_REPEAT
from benchmarks.decoder_models import HIDDEN, INTERMEDIATE, TEXT, VISUAL, in_own_process
from benchmarks.decoder_sessions import Array
from benchmarks.interleaved import Ratio, in_turns, ratio
from benchmarks.peers.contenders import HUGGING_FACE, Contender, make_model, our_plans
from benchmarks.peers.running import Loaded
from compressor.plan.cost import predict

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


@dataclass(frozen=True)
class Row:
    """What was measured of one contender.

    Attributes:
        name: its.
        export_seconds, export_peak: of the process that made it, and its resident memory in bytes at most.
        size: bytes of graph and weights.
        run_peak: resident memory of a process that loads and runs it, bytes.
        prefill, decode: time of the reference divided by its own.
        rate: multiply-adds of its prefill, times two, in a second.
        apart: largest difference of its logits on text from the reference's, of the largest of these.
    """

    name: str
    export_seconds: float
    export_peak: int
    size: int
    run_peak: int
    prefill: Ratio
    decode: Ratio
    rate: float
    apart: float


class Bench:
    """Measures contenders beside a reference.

    Args:
        conditions: of all measurements.
        reference: what others are timed beside.
    """

    def __init__(self, conditions: Conditions, reference: Contender) -> None:
        self._conditions, self._reference = conditions, reference
        in_own_process(make_model, conditions.folder, conditions.layers, conditions.vocab)
        self._made: dict[str, tuple[float, int]] = {}
        self._expected = self._alone(reference)[1]

    def row(self, contender: Contender) -> Row:
        """Make a contender, and measure it."""
        run_peak, logits = self._alone(contender)
        seconds, export_peak = self._made[contender.made]
        (prefill, least), decode = self.beside(self._reference, contender)
        return Row(
            name=contender.name,
            export_seconds=seconds,
            export_peak=export_peak,
            size=contender.size(self._conditions.folder / contender.made),
            run_peak=run_peak,
            prefill=prefill,
            decode=decode,
            rate=self._flops(contender) / least,
            apart=float(np.abs(logits - self._expected).max() / np.abs(self._expected).max()),
        )

    def beside(self, slow: Contender, fast: Contender) -> tuple[tuple[Ratio, float], Ratio]:
        """Return how many times longer one takes than the other, prefill and decode step.

        Beside the ratio of prefills stand the seconds of the other's shortest.
        """
        return in_own_process(_in_turns, slow, fast, self._conditions)

    def matmul_rate(self) -> float:
        """Return what torch reaches of the MLP's widest product in float32, operations a second."""
        return in_own_process(_matmul_rate, self._conditions.threads)

    def _alone(self, contender: Contender) -> tuple[int, Array]:
        folder = self._conditions.folder / contender.made
        if contender.made not in self._made:
            folder.mkdir()
            (folder / HUGGING_FACE).symlink_to(self._conditions.folder / HUGGING_FACE)
            self._made[contender.made] = in_own_process(
                _make, contender.make, folder, self._conditions
            )
        return in_own_process(_run, contender, self._conditions)

    def _flops(self, contender: Contender) -> int:
        plans = our_plans(self._conditions.layers, self._conditions.vocab)
        return predict(plans[contender.plan or "naive"]).flops


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def _make(
    make: Callable[[Path, int, int], None], folder: Path, conditions: Conditions
) -> tuple[float, int]:
    start = time.perf_counter()
    make(folder, conditions.layers, conditions.vocab)
    return time.perf_counter() - start, _peak()


def _loaded(contender: Contender, conditions: Conditions) -> Loaded:
    folder = conditions.folder / contender.made
    return Loaded(contender, folder, conditions.layers, conditions.threads)


def _run(contender: Contender, conditions: Conditions) -> tuple[int, Array]:
    loaded = _loaded(contender, conditions)
    loaded.prefill()
    loaded.step()
    peak = _peak()
    return peak, loaded.text_logits()


def _in_turns(
    slow: Contender, fast: Contender, conditions: Conditions
) -> tuple[tuple[Ratio, float], Ratio]:
    both = {"slow": _loaded(slow, conditions), "fast": _loaded(fast, conditions)}
    prefill = in_turns({n: one.prefill for n, one in both.items()}, repeats=conditions.repeats)
    steps = in_turns(
        {n: one.step for n, one in both.items()},
        repeats=conditions.repeats * STEPS_PER_REPEAT,
        warm_up=3,
    )
    return (
        (ratio(prefill["slow"], prefill["fast"], "wall"), prefill["fast"].least("wall")),
        ratio(steps["slow"], steps["fast"], "wall"),
    )


def _matmul_rate(threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    rows, weights = torch.randn(VISUAL + TEXT, HIDDEN), torch.randn(HIDDEN, INTERMEDIATE)
    times = in_turns({"matmul": lambda: rows @ weights}, repeats=MATMUL_REPEATS)["matmul"]
    return 2 * rows.numel() * INTERMEDIATE / times.least("wall")
