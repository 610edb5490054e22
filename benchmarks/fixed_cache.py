"""Times a decode step and a prefill with caches of fixed size beside growing ones: one process, in turns.

Run from the repository: `python -m benchmarks.fixed_cache`. Needs the extras `compress` and `cpu`. Random
weights, fp32, 8 layers, hidden 1024, 16 heads, MLP 2752, vocabulary 1000, 576 visual rows; identity, and an
exit at layer 4. A decode step runs behind a prompt of 640 and of 960 rows; buffers have room for 1,024 and
for 2,048.

A ratio is growing / fixed: above 1 the fixed cache is faster. Exit code 0 if buffers take what is planned and
no decode step behind 960 rows is slower with the smaller buffer, 1 otherwise.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from benchmarks.decoder_calls import Calls
from benchmarks.decoder_models import in_own_process, random_model, random_weights
from benchmarks.interleaved import Clock, huge_pages, in_turns, on_huge_pages, ratio
from compressor.dims import ModelFacts
from compressor.plan import Plan
from compressor.planner import identity_plan, leave
from export.graphs import GraphSpec, decoder_graph
from export.limits import Limits, buffer_bytes
from export.sessions import OnnxSession

LAYERS, HIDDEN, HEADS, NEURONS, VOCAB, SIDE = 8, 1024, 16, 2752, 1000, 24
VISUAL = SIDE**2
PASTS = (640, 960)
CAPACITIES = (1024, 2048)
PLANS = ("identity", "exit at layer 4")
STEPS_PER_REPEAT = 10


def facts() -> ModelFacts:
    """Return the benchmark's model."""
    return random_model(
        LAYERS, HIDDEN, HEADS, HEADS, NEURONS, VOCAB, visual=VISUAL, grid=(SIDE, SIDE)
    )


def plan_of(name: str) -> Plan:
    """Return one of `PLANS`."""
    plan = identity_plan(facts(), "random")
    return plan if name == "identity" else leave(plan, LAYERS // 2, "vtw")


def limits_of(capacity: int) -> Limits:
    """Return limits for a context of so many rows."""
    return Limits(
        max_batch=1, max_images=1, max_text=capacity, max_context=capacity, visual_tokens=VISUAL
    )


def specs_of(plan: Plan) -> Mapping[str, GraphSpec]:
    """Return the declarations of a plan's graphs by the name of their caches."""
    made = {"growing": decoder_graph(plan, "float32", "last", name="growing")}
    for capacity in CAPACITIES:
        name = f"fixed_{capacity}"
        limits = limits_of(capacity)
        made[name] = decoder_graph(plan, "float32", "last", name=name, limits=limits)
    return made


def build(folder: Path, name: str) -> None:
    """Write the graphs of a plan; runs in a process of its own, so that torch is gone before timing."""
    from compressor.decoder import decoder_from
    from export.onnx_graph import export_decoder, save_graph
    from export.weights import SharedWeights

    plan = plan_of(name)
    decoder = decoder_from(plan, random_weights(plan.model.decoder))
    with SharedWeights(folder) as weights:
        for spec in specs_of(plan).values():
            save_graph(export_decoder(decoder, spec), folder / spec.file, weights)


def main() -> int:
    """Build, time and print every plan; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fixed_cache", description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--clock", choices=get_args(Clock), default="wall")
    parser.add_argument("--plan", choices=PLANS, action="append", help="may be repeated")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"huge pages: {huge_pages()}")
    print(
        f"{'plan':<16} rows buffers  decode ms growing fixed  ratio (10% 50% 90%)   prefill  bytes"
    )
    rows = [
        row for name in options.plan or PLANS for row in _run(name, options.repeats, options.clock)
    ]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0 if all(row["met"] for row in rows) else 1


def _run(name: str, repeats: int, clock: Clock) -> list[dict[str, object]]:
    plan = plan_of(name)
    with tempfile.TemporaryDirectory(prefix="vtcompress-bench-") as scratch:
        folder = Path(scratch)
        in_own_process(build, folder, name)
        sessions = {
            key: OnnxSession(folder, [spec], decoder=key, threads=1)
            for key, spec in specs_of(plan).items()
        }
        for key, session in sessions.items():
            session.graph(key)
    return [row for past in PASTS for row in _timed(name, past, sessions, repeats, clock)]


def _timed(
    name: str, past: int, sessions: Mapping[str, OnnxSession], repeats: int, clock: Clock
) -> list[dict[str, object]]:
    plan = plan_of(name)
    calls = {key: Calls(s, VISUAL, past - VISUAL, HIDDEN) for key, s in sessions.items()}
    prefill = in_turns({n: c.prefill for n, c in calls.items()}, repeats=repeats)
    steps = {n: c.step for n, c in calls.items()}
    decode = in_turns(steps, repeats=repeats * STEPS_PER_REPEAT, warm_up=3)
    rows: list[dict[str, object]] = []
    for capacity in CAPACITIES:
        key = f"fixed_{capacity}"
        step = ratio(decode["growing"], decode[key], clock)
        first = ratio(prefill["growing"], prefill[key], clock)
        held = calls[key].session.buffer_bytes(calls[key].past)
        met = held == buffer_bytes(plan, limits_of(capacity), 4)
        if (past, capacity) == (PASTS[-1], CAPACITIES[0]):
            met = met and step.of_least >= 1.0
        growing_ms, fixed_ms = (1e3 * decode[k].least(clock) for k in ("growing", key))
        print(
            f"{name:<16} {past:>4} {capacity:>7}  {growing_ms:17.2f} {fixed_ms:5.2f}  "
            f"{step.of_least:5.2f} ({step.low:.2f} {step.middle:.2f} {step.high:.2f}) "
            f"{first.of_least:8.2f}  {held:,} {'met' if met else 'MISSED'}",
            flush=True,
        )
        rows.append(
            {
                "plan": name,
                "past": past,
                "capacity": capacity,
                "decode_ms": {"growing": growing_ms, "fixed": fixed_ms},
                "decode_step": step.of_least,
                "rounds": [step.low, step.middle, step.high],
                "prefill": first.of_least,
                "buffer_bytes": held,
                "met": met,
            }
        )
    return rows


if __name__ == "__main__":
    on_huge_pages("benchmarks.fixed_cache")
    sys.exit(main())
