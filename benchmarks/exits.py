"""Times decoders that visual tokens leave: a fixed exit, and gates, beside the naive original.

Run from the repository: `python -m benchmarks.exits`. Needs the extras `compress` and `cpu`. All graphs hold
the same random weights: fp32, hidden 896, 14 query heads on 2 key/value heads, MLP 4864; the prefill has 729
visual and 64 text rows, a decode step one text row behind it.

- `naive`: every row in every layer. `identity`: dead visual rows of the last layer frozen.
- `exit`: visual rows gone from the input of the middle layer on.
- `dynamic`: one graph with a gate (hidden width 2048) behind every layer but the last. Its decode step runs
  on caches of a prompt in which no gate fired, and of one that left where `exit` does.

Exit code 0 if all wanted bounds hold, 1 if one is missed or graphs disagree.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from benchmarks.decoder_calls import Calls
from benchmarks.decoder_models import HIDDEN, TEXT, VISUAL, facts, in_own_process, random_weights
from benchmarks.interleaved import (
    Clock,
    Ratio,
    Times,
    huge_pages,
    in_turns,
    on_huge_pages,
    ratio,
)
from compressor.plan.cost import predicted_speedup
from compressor.plan.edits import identity_plan, leave
from compressor.plan.plan import Gates, Plan, Workload
from export.backends.onnxruntime import OnnxSession
from export.graphs.spec import GraphSpec, decoder_graph
from export.session.arrays import Array

if TYPE_CHECKING:
    from collections.abc import Callable

GATE_WIDTH = 2048
TEXT_BEFORE_IMAGE = 35
STEPS_PER_REPEAT = 10
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Wanted:
    """One figure and its bound: `at_most` or `at_least`, the other is None."""

    name: str
    value: float
    rounds: Ratio
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool:
        """Whether the bound holds."""
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    def line(self) -> str:
        """Return one line for people."""
        bound = f"<= {self.at_most}" if self.at_most is not None else f">= {self.at_least}"
        spread = f"{self.rounds.low:.3f}  {self.rounds.middle:.3f}  {self.rounds.high:.3f}"
        verdict = "met" if self.met else "MISSED"
        return f"{self.name:<58} {self.value:6.3f}  {bound:<8} {verdict:<7} {spread}"


def plans(layers: int, vocab: int) -> dict[str, Plan]:
    """Return the plans to compare, by the name of their graph."""
    identity = identity_plan(facts(layers, vocab), "random", Workload(text=TEXT))
    gates = Gates(
        candidates=tuple(range(layers - 1)), mode="dynamic", width=GATE_WIDTH, digest="random"
    )
    return {
        "naive": identity.naive(),
        "identity": identity,
        "exit": leave(identity, layers // 2, "visual_exit"),
        "dynamic": Plan.model_validate({**dict(identity), "gates": gates}),
    }


def specs(layers: int, vocab: int) -> dict[str, GraphSpec]:
    """Return the graphs' declarations by name."""
    chosen = plans(layers, vocab)
    return {name: decoder_graph(p, "float32", "last", name=name) for name, p in chosen.items()}


def build(folder: Path, layers: int, vocab: int) -> None:
    """Write all graphs; runs in a process of its own, so that torch is gone before anything is timed."""
    import torch

    from compressor.decoder import decoder_from
    from export.writer.weights import SharedWeights
    from export.writer.write import export_decoder, save_graph

    chosen = plans(layers, vocab)
    tensors = random_weights(chosen["identity"].model.decoder)
    generator = torch.Generator().manual_seed(1)
    for layer in range(layers - 1):
        name = f"visual_gates_router.{layer}"
        tensors[f"{name}.w1.weight"] = torch.randn(GATE_WIDTH, 2 * HIDDEN, generator=generator)
        # Logits are equal, so no gate fires; what a gate costs does not depend on its weights.
        tensors[f"{name}.w2.weight"] = torch.zeros(2, GATE_WIDTH)
    with SharedWeights(folder) as weights:
        for name, spec in specs(layers, vocab).items():
            decoder = decoder_from(chosen[name], tensors, logits="last")
            save_graph(export_decoder(decoder, spec), folder / spec.file, weights)


def main() -> int:
    """Build, compare, time, print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exits", description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--clock", choices=get_args(Clock), default="wall")
    options = parser.parse_args()
    chosen = plans(options.layers, options.vocab)
    with tempfile.TemporaryDirectory(prefix="vtcompress-bench-") as folder:
        in_own_process(build, Path(folder), options.layers, options.vocab)
        calls = {
            name: Calls(
                OnnxSession(Path(folder), [spec], decoder=name, threads=1),
                VISUAL,
                TEXT,
                HIDDEN,
                TEXT_BEFORE_IMAGE,
            )
            for name, spec in specs(options.layers, options.vocab).items()
        }
    if not _agree(calls):
        return 1
    print(
        f"{options.layers} layers, {VISUAL} visual + {TEXT} text rows; huge pages: {huge_pages()}"
    )
    prefill = in_turns({n: c.prefill for n, c in calls.items()}, repeats=options.repeats)
    steps: dict[str, Callable[[], object]] = {n: call.step for n, call in calls.items()}
    left = calls["exit"].past
    steps["dynamic, left"] = lambda: calls["dynamic"].step(left)
    decode = in_turns(steps, repeats=options.repeats * STEPS_PER_REPEAT, warm_up=3)
    for title, times in (("prefill", prefill), ("decode step", decode)):
        for name, taken in times.items():
            print(f"{title:<12} {name:<14} {1e3 * taken.least(options.clock):9.1f} ms")
    figures = _figures(chosen, prefill, decode, options.clock)
    print(f"\n{'ratio, least times':<58} value   wanted           rounds: 10%  50%  90%")
    print("\n".join(figure.line() for figure in figures))
    return 0 if all(figure.met for figure in figures) else 1


def _agree(calls: dict[str, Calls]) -> bool:
    """Whether graphs that compute the same give the same logits, and the exit gives others."""

    def apart(one: Array, other: Array) -> float:
        return float(np.abs(one - other).max())

    naive, exited = calls["naive"], calls["exit"]
    pairs = {
        "identity, prefill": apart(naive.prefill()[0], calls["identity"].prefill()[0]),
        "dynamic, prefill": apart(naive.prefill()[0], calls["dynamic"].prefill()[0]),
        "dynamic, step": apart(naive.step(), calls["dynamic"].step()),
        "dynamic, left, step": apart(exited.step(), calls["dynamic"].step(exited.past)),
    }
    print("logits apart:", *(f"{name} {value:.1e};" for name, value in pairs.items()))
    differs = apart(naive.prefill()[0], exited.prefill()[0])
    print(f"the exit moves them by {differs:.2f}")
    return all(value <= TOLERANCE for value in pairs.values()) and differs > TOLERANCE


def _figures(
    chosen: dict[str, Plan], prefill: dict[str, Times], decode: dict[str, Times], clock: Clock
) -> list[Wanted]:
    predicted = predicted_speedup(chosen["exit"])
    saved = ratio(prefill["naive"], prefill["exit"], clock)
    reached = f"prefill, naive / exit: {saved.of_least:.2f} of {predicted:.2f} predicted"
    figures = [Wanted(reached, saved.of_least / predicted, saved, at_least=0.9)]
    for name, slow, fast, bound in (
        ("decode step, exit / naive", "exit", "naive", 1.0),
        ("decode step, dynamic / identity, no exit", "dynamic", "identity", 1.05),
        ("decode step, dynamic / exit, after the exit", "dynamic, left", "exit", 1.05),
    ):
        found = ratio(decode[slow], decode[fast], clock)
        figures.append(Wanted(name, found.of_least, found, at_most=bound))
    return figures


if __name__ == "__main__":
    on_huge_pages("benchmarks.exits")
    sys.exit(main())
