"""Times decode steps and a prefill with caches of fixed size beside growing ones: one process, in turns.

Run from the repository: `python -m benchmarks.fixed_cache`. Needs the extras `compress` and `cpu`. Random
weights, fp32, 8 layers, hidden 1024, 16 heads, MLP 2752, vocabulary 1000, 576 visual rows; identity, and an
exit at layer 4. The prompt has 640 and 960 rows; buffers may have up to 1,024 and 2,048.

Two kinds of steps. `step` runs again and again behind the prompt's past. `run` goes on: 128 steps (64 where
the buffers have no room for more), each behind the one before, from buffers that a prefill made, so that the
copies for more room are in it.

A ratio is growing / fixed: above 1 the fixed cache is faster; `interleaved.Beside` and `Loads` say how
sessions are compared and what that can resolve. Exit code 0 if no ratio of steps is below 1 by
more than can be resolved, and buffers take no more than is planned; 1 otherwise.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmarks.decoder_calls import Calls
from benchmarks.decoder_models import in_own_process, random_model, random_weights
from benchmarks.interleaved import Beside, Clock, Loads, huge_pages, in_turns, loads, on_huge_pages
from compressor.facts import ModelFacts
from compressor.plan.edits import identity_plan, leave
from compressor.plan.plan import Plan
from export.backends.onnxruntime import OnnxSession
from export.graphs.limits import Limits, buffer_bytes
from export.graphs.spec import GraphSpec, decoder_graph
from export.session.fixed_cache import BLOCK

LAYERS, HIDDEN, HEADS, NEURONS, VOCAB, SIDE = 8, 1024, 16, 2752, 1000, 24
VISUAL = SIDE**2
PASTS = (640, 960)
CAPACITIES = (1024, 2048)
PLANS = ("identity", "exit at layer 4")
STEPS_PER_LOAD, RUN_STEPS, PREFILLS = 50, 128, 3
# See `Beside`.
ORDER = ("growing", "growing", "fixed", "fixed", "growing")


def facts() -> ModelFacts:
    """Return the benchmark's model."""
    return random_model(
        LAYERS, HIDDEN, HEADS, HEADS, NEURONS, VOCAB, visual=VISUAL, grid=(SIDE, SIDE)
    )


def plan_of(name: str) -> Plan:
    """Return one of `PLANS`."""
    plan = identity_plan(facts(), "random")
    return plan if name == "identity" else leave(plan, LAYERS // 2, "visual_exit")


def limits_of(capacity: int) -> Limits:
    """Return limits for a context of so many rows."""
    return Limits(
        max_batch=1, max_images=1, max_text=capacity, max_context=capacity, visual_tokens=VISUAL
    )


def specs_of(plan: Plan, capacity: int) -> Mapping[str, GraphSpec]:
    """Return the declarations of a plan's graphs by the kind of their caches."""
    limits = limits_of(capacity)
    return {
        "growing": decoder_graph(plan, "float32", "last", name="growing"),
        "fixed": decoder_graph(plan, "float32", "last", name="fixed", limits=limits),
    }


def build(folder: Path, name: str) -> None:
    """Write the graphs of a plan; runs in a process of its own, so that torch is gone before timing.

    The most rows of a buffer are in the declaration alone, not in the graph.
    """
    from compressor.decoder import decoder_from
    from export.writer.weights import SharedWeights
    from export.writer.write import export_decoder, save_graph

    plan = plan_of(name)
    decoder = decoder_from(plan, random_weights(plan.model.decoder))
    with SharedWeights(folder) as weights:
        for spec in specs_of(plan, CAPACITIES[0]).values():
            save_graph(export_decoder(decoder, spec), folder / spec.file, weights)


def main() -> int:
    """Build, time and print every plan; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fixed_cache", description=__doc__)
    parser.add_argument("--loads", type=loads, default=4, help="of sessions")
    parser.add_argument("--block", type=int, default=BLOCK, help="rows that buffers grow by")
    parser.add_argument("--clock", choices=get_args(Clock), default="wall")
    parser.add_argument("--plan", choices=PLANS, action="append", help="may be repeated")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"huge pages: {huge_pages()}; block: {options.block}")
    print(
        f"{'plan':<16} rows    most  step ms growing fixed   ratio            run ms growing fixed   ratio"
        "            prefill  occupied bytes (most)"
    )
    rows = []
    for name in options.plan or PLANS:
        with tempfile.TemporaryDirectory(prefix="vtcompress-bench-") as scratch:
            in_own_process(build, Path(scratch), name)
            for capacity in CAPACITIES:
                rows += _timed(Path(scratch), name, capacity, options)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0 if all(row["met"] for row in rows) else 1


@dataclass(frozen=True)
class Measured:
    """What one load of sessions gives behind one prompt.

    Attributes:
        step: again and again behind the prompt's past.
        run: steps that go on.
        prefill: of the prompt.
        held: bytes of the buffers at the end of the run.
    """

    step: Beside
    run: Beside
    prefill: Beside
    held: int


def _timed(
    folder: Path, name: str, capacity: int, options: argparse.Namespace
) -> list[dict[str, object]]:
    loaded = [_load(folder, name, capacity, options) for _ in range(options.loads)]
    return [
        _row(name, past, capacity, options.block, [each[past] for each in loaded]) for past in PASTS
    ]


def _load(
    folder: Path, name: str, capacity: int, options: argparse.Namespace
) -> dict[int, Measured]:
    specs = specs_of(plan_of(name), capacity)
    sessions = [
        OnnxSession(folder, [specs[kind]], decoder=kind, threads=1, block=options.block)
        for kind in ORDER
    ]
    for kind, session in zip(ORDER, sessions, strict=True):
        session.graph(kind)
    return {past: _measured(sessions[1:], past, capacity, options.clock) for past in PASTS}


def _row(
    name: str, past: int, capacity: int, block: int, measured: Sequence[Measured]
) -> dict[str, object]:
    step, run, prefill = (
        Loads(tuple(getattr(each, part) for each in measured))
        for part in ("step", "run", "prefill")
    )
    held = max(each.held for each in measured)
    most = buffer_bytes(plan_of(name), limits_of(capacity), 4)
    met = step.met and run.met and held <= most
    print(
        f"{name:<16} {past:>4} {capacity:>7} {_words(step)} {_words(run)} {prefill.ratio:8.2f}  "
        f"{held:,} ({most:,}) {'met' if met else 'MISSED'}",
        flush=True,
    )
    return {
        "plan": name,
        "past": past,
        "most_rows": capacity,
        "block": block,
        "decode_step": _figures(step),
        "run": _figures(run) | {"steps": min(RUN_STEPS, capacity - past)},
        "prefill": prefill.ratio,
        "buffer_bytes": held,
        "most_bytes": most,
        "met": met,
    }


def _measured(sessions: Sequence[OnnxSession], past: int, capacity: int, clock: Clock) -> Measured:
    calls = [Calls(session, VISUAL, past - VISUAL, HIDDEN) for session in sessions]
    steps = in_turns(_by_place([c.step for c in calls]), repeats=STEPS_PER_LOAD, warm_up=3)
    whole = in_turns(_by_place([c.prefill for c in calls]), repeats=PREFILLS)
    going = [_Run(c) for c in calls]
    number = min(RUN_STEPS, capacity - past)
    run = in_turns(_by_place([r.step for r in going]), repeats=number, warm_up=0)
    return Measured(
        step=Beside.of([times.least(clock) for times in steps.values()]),
        run=Beside.of([sum(times.of(clock)) for times in run.values()]),
        prefill=Beside.of([times.least(clock) for times in whole.values()]),
        held=calls[1].session.buffer_bytes(going[1].past) or 0,
    )


def _by_place(calls: Sequence[Callable[[], object]]) -> dict[str, Callable[[], object]]:
    return {str(place): call for place, call in enumerate(calls)}


class _Run:
    """Steps that go on, from a prefill of their own."""

    def __init__(self, calls: Calls) -> None:
        self.calls, self.number = calls, 0
        self.past = calls.prefill()[1]

    def step(self) -> None:
        """Run the next one."""
        _, self.past = self.calls.step_at(self.number, self.past)
        self.number += 1


def _words(times: Loads) -> str:
    growing, fixed = times.milliseconds()
    return f"{growing:15.2f} {fixed:7.2f}  {times.ratio:6.3f} (+-{times.resolution:.3f})"


def _figures(times: Loads) -> dict[str, object]:
    growing, fixed = times.milliseconds()
    return {
        "growing_ms": growing,
        "fixed_ms": fixed,
        "ratio": times.ratio,
        "resolution": times.resolution,
    }


if __name__ == "__main__":
    on_huge_pages("benchmarks.fixed_cache")
    sys.exit(main())
