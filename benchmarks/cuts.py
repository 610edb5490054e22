"""Times decoders with YOPO's cuts beside the naive original: what of the predicted saving comes out.

Run from the repository: `python -m benchmarks.cuts`. Needs the extras `compress` and `cpu`. Random weights,
fp32, vocabulary 1000, 64 text rows; 576 visual rows (24 x 24), and 2,916 (54 x 54) for windows. Each plan is
timed in turns with the naive original on the same weights. `--size`:

- `small`: 8 layers, hidden 1024, 16 heads, MLP 2752.
- `7b`: 3 layers as wide as LLaVA-1.5-7B's: hidden 4096, 32 heads, MLP 11008. Five sessions of
  2.4 GB at a time, and some minutes a case.

A decode step runs behind the prompt, on each graph's own caches; `interleaved.Beside` and `Loads` say how
sessions are compared and how small a difference that can resolve. A step is met if no loss can be resolved.

Without a cut, what is saved are the dead rows of the last layer; every other row contains them too.

Exit code 0 if all wanted bounds hold, 1 if one is missed. The bounds were set for `small`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from benchmarks.decoder_calls import Calls
from benchmarks.decoder_models import in_own_process, random_model, random_weights
from benchmarks.interleaved import (
    Beside,
    Clock,
    Loads,
    Ratio,
    huge_pages,
    in_turns,
    loads,
    on_huge_pages,
    ratio,
)
from compressor.facts import ModelFacts
from compressor.methods.yopo.method import Yopo
from compressor.plan.cost import predict, predicted_speedup
from compressor.plan.plan import Plan, Workload
from compressor.planner import make_plan
from export.backends.onnxruntime import OnnxSession
from export.graphs.spec import GraphSpec, decoder_graph

VOCAB, TEXT = 1000, 64


@dataclass(frozen=True)
class Size:
    """Of the model: how many layers, how wide, and how many decode steps and prefills are timed.

    Attributes:
        layers: how many.
        hidden: D.
        heads: H.
        neurons: m.
        steps: decode steps that count in one load of the sessions.
        prefills: rounds of prefills that count.
    """

    layers: int
    hidden: int
    heads: int
    neurons: int
    steps: int
    prefills: int


SIZES = {
    "small": Size(8, 1024, 16, 2752, steps=50, prefills=10),
    "7b": Size(3, 4096, 32, 11008, steps=20, prefills=4),
}


@dataclass(frozen=True)
class Case:
    """One plan.

    Attributes:
        name: of it.
        side: of the square grid of visual tokens.
        yopo: the recipe's entry; `heads` stands for half of the heads in every layer, `off_from` for the
            middle layer.
        at_least: share of the predicted prefill ratio that must be measured; None: for information.
    """

    name: str
    side: int
    yopo: dict[str, object]
    at_least: float | None = None


CASES = (
    Case("no cut", 24, {}),
    Case("half the visual heads", 24, {"heads": True}, 0.95),
    Case("MLP ratio 2", 24, {"mlp_ratio": 2}, 0.93),
    Case(
        "heads, MLP ratio 4, off from the middle",
        24,
        {"heads": True, "mlp_ratio": 4, "off_from": True},
        0.82,
    ),
    Case("window 5", 24, {"window": 5}),
    Case("window 5, 54 x 54", 54, {"window": 5}, 1.0),
    Case("window 5 and half the heads, 54 x 54", 54, {"window": 5, "heads": True}, 0.95),
)


def facts(size: Size, side: int) -> ModelFacts:
    """Return the benchmark's model with a square grid of visual tokens."""
    return random_model(
        size.layers,
        size.hidden,
        size.heads,
        size.heads,
        size.neurons,
        VOCAB,
        visual=side**2,
        grid=(side, side),
    )


def plan_of(size: Size, case: Case, scratch: Path) -> Plan:
    """Return the plan of a case; head masks lie in `scratch`."""
    entry = dict(case.yopo)
    if entry.pop("heads", False):
        # Every other head, so that none of the parts lies in one piece.
        mask = scratch / "mask.npy"
        np.save(mask, np.tile(np.arange(size.heads) % 2 == 0, (size.layers, 1)))
        entry["heads"] = {"mask": mask}
    if entry.pop("off_from", False):
        entry["off_from"] = size.layers // 2
    methods = [Yopo.model_validate(entry)] if entry else []
    return make_plan(facts(size, case.side), "random", methods, workload=Workload(text=TEXT))


def specs_of(plan: Plan) -> dict[str, GraphSpec]:
    """Return the declarations of a plan's graph and of the naive one."""
    return {
        "naive": decoder_graph(plan.naive(), "float32", "last", name="naive"),
        "cut": decoder_graph(plan, "float32", "last", name="cut"),
    }


def build(folder: Path, size: Size, case: Case) -> None:
    """Write both graphs of a case; runs in a process of its own, so that torch is gone before timing."""
    from compressor.decoder import decoder_from
    from export.writer.weights import SharedWeights
    from export.writer.write import export_decoder, save_graph

    plan = plan_of(size, case, folder)
    tensors = random_weights(plan.model.decoder)
    with SharedWeights(folder) as weights:
        for name, spec in specs_of(plan).items():
            decoder = decoder_from(plan if name == "cut" else plan.naive(), tensors)
            save_graph(export_decoder(decoder, spec), folder / spec.file, weights)


def main() -> int:
    """Build, time and print every case; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuts", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small", help="of the model")
    parser.add_argument("--repeats", type=int, help="prefills that count; default: by size")
    parser.add_argument("--clock", choices=get_args(Clock), default="wall")
    parser.add_argument(
        "--case", type=int, action="append", help="number of a case; may be repeated"
    )
    parser.add_argument(
        "--loads", type=loads, default=8, help="how often sessions are loaded for steps"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"huge pages: {huge_pages()}")
    print(f"{'case':<40} predicted measured  share wanted    (10% 50% 90%)  decode step  KV bytes")
    chosen = [CASES[number] for number in options.case] if options.case else CASES
    rows = [_run(case, options) for case in chosen]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0 if all(row["met"] for row in rows) else 1


def _calls(folder: Path, plan: Plan, spec: GraphSpec) -> Calls:
    session = OnnxSession(folder, [spec], decoder=spec.name, threads=1)
    return Calls(session, plan.visual, TEXT, plan.model.decoder.hidden)


def _prefill_ratio(calls: Mapping[str, Calls], repeats: int, clock: Clock) -> Ratio:
    prefill = in_turns({n: c.prefill for n, c in calls.items()}, repeats=repeats)
    return ratio(prefill["naive"], prefill["cut"], clock)


def _steps(
    folder: Path, plan: Plan, specs: Mapping[str, GraphSpec], options: argparse.Namespace
) -> Beside:
    loaded = [
        _calls(folder, plan, specs[name]) for name in ("naive", "naive", "cut", "cut", "naive")
    ]
    steps = {str(place): calls.step for place, calls in enumerate(loaded) if place}
    times = in_turns(steps, repeats=SIZES[options.size].steps, warm_up=3)
    return Beside.of([times[place].least(options.clock) for place in sorted(times)])


def _run(case: Case, options: argparse.Namespace) -> dict[str, object]:
    size = SIZES[options.size]
    with tempfile.TemporaryDirectory(prefix="vtcompress-bench-") as name:
        folder = Path(name)
        in_own_process(build, folder, size, case)
        plan = plan_of(size, case, folder)
        specs = specs_of(plan)
        calls = {key: _calls(folder, plan, spec) for key, spec in specs.items()}
        found = _prefill_ratio(calls, options.repeats or size.prefills, options.clock)
        kv = calls["cut"].session.past_bytes(calls["cut"].past)
        calls.clear()
        step = Loads(tuple(_steps(folder, plan, specs, options) for _ in range(options.loads)))
    predicted = predicted_speedup(plan)
    share = found.of_least / predicted
    met = case.at_least is None or share >= case.at_least
    met = met and step.met and kv == predict(plan).kv_bytes("float32")
    bound = "" if case.at_least is None else f">= {case.at_least:.2f}"
    print(
        f"{case.name:<40} {predicted:8.2f} {found.of_least:8.2f} {share:7.3f} {bound:<8} "
        f"({found.low:.2f} {found.middle:.2f} {found.high:.2f}) {step.ratio:6.3f} "
        f"(+-{step.resolution:.3f}) {kv:>14,} "
        f"{'met' if met else 'MISSED'}",
        flush=True,
    )
    return {
        "case": case.name,
        "predicted": predicted,
        "measured": found.of_least,
        "share": share,
        "rounds": [found.low, found.middle, found.high],
        "decode_step": step.ratio,
        "decode_step_resolution": step.resolution,
        "kv_bytes": kv,
        "met": met,
    }


if __name__ == "__main__":
    on_huge_pages("benchmarks.cuts")
    sys.exit(main())
