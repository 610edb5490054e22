"""Times decoders that some visual rows do not enter, leave, or pass by, beside the naive original.

Run from the repository: `python -m benchmarks.rows`. Needs the extras `compress` and `cpu`. The model, its
random weights and the prompt are those of `benchmarks.decoder`: 24 layers, hidden 896, 729 visual and 64 text
rows, fp32. Each plan is timed in turns with the naive original on the same weights.

What a choice in front costs is in the vision graph and is not timed here: the decoder gets every other row.
Routers are drawn.

Exit code 0 if all wanted bounds hold, 1 if one is missed.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmarks.decoder_calls import Calls
from benchmarks.decoder_models import HIDDEN, TEXT, add_size, facts, in_own_process, random_weights
from benchmarks.interleaved import Clock, Ratio, huge_pages, in_turns, on_huge_pages, ratio
from compressor.methods import CompressEntry, layer_scores, run_rules
from compressor.plan.cost import predict, predicted_speedup
from compressor.plan.plan import Plan, Workload
from compressor.planner import make_plan
from export.backends.onnxruntime import OnnxSession
from export.graphs.spec import GraphSpec, decoder_graph

AT_LEAST = 0.9
ROUTERS = "routers.safetensors"


@dataclass(frozen=True)
class Case:
    """One plan.

    Attributes:
        name: of it.
        compress: the recipe's entries; `routers` stands for a file of drawn ones.
    """

    name: str
    compress: tuple[dict[str, dict[str, object]], ...]


CASES = (
    Case("no method", ()),
    Case("half in front", ({"divprune": {"keep": 0.5}},)),
    Case("fastv at 3, half", ({"fastv": {"layer": 3, "keep": 0.5}},)),
    Case(
        "half in front, of them half at 3",
        ({"divprune": {"keep": 0.5}}, {"fastv": {"layer": 3, "keep": 0.5}}),
    ),
    Case("mod, half in every other layer", ({"mod": {"keep": 0.5, "routers": ROUTERS}},)),
)


def plan_of(case: Case, layers: int, vocab: int, folder: Path) -> Plan:
    """Return the plan of a case; routers lie in the folder."""
    entries = [
        {name: keys | ({"routers": folder / ROUTERS} if "routers" in keys else {})}
        for entry in case.compress
        for name, keys in entry.items()
    ]
    methods = [CompressEntry.model_validate(entry).method for entry in entries]
    return make_plan(facts(layers, vocab), "random", methods, workload=Workload(text=TEXT))


def specs_of(plan: Plan) -> dict[str, GraphSpec]:
    """Return the declarations of a plan's graph and of the naive one."""
    return {
        "naive": decoder_graph(plan.naive(), "float32", "last", name="naive"),
        "fewer": decoder_graph(plan, "float32", "last", name="fewer"),
    }


def build(folder: Path, case: Case, layers: int, vocab: int) -> None:
    """Write both graphs of a case; runs in a process of its own, so that torch is gone before timing."""
    import torch
    from safetensors.torch import save_file

    from compressor.decoder import decoder_from
    from export.writer.weights import SharedWeights
    from export.writer.write import export_decoder, save_graph

    generator = torch.Generator().manual_seed(0)
    routers = {
        f"layers.{i}.router.weight": torch.randn(1, HIDDEN, generator=generator) / HIDDEN**0.5
        for i in range(layers)
    }
    save_file({f"model.{name}": router for name, router in routers.items()}, folder / ROUTERS)
    plan = plan_of(case, layers, vocab, folder)
    tensors = random_weights(plan.model.decoder) | routers
    plans = {"naive": plan.naive(), "fewer": plan}
    with SharedWeights(folder) as weights:
        for name, spec in specs_of(plan).items():
            own = plans[name]
            decoder = decoder_from(own, tensors, scores=layer_scores(own), runs=run_rules(own))
            save_graph(export_decoder(decoder, spec), folder / spec.file, weights)


def main() -> int:
    """Build, time and print every case; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description=__doc__)
    add_size(parser)
    parser.add_argument("--repeats", type=int, default=10, help="rounds (default 10)")
    parser.add_argument("--clock", choices=get_args(Clock), default="wall")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"huge pages: {huge_pages()}")
    print(f"{'case':<34} predicted measured  share  (10% 50% 90%)  KV bytes")
    rows = [_run(case, options) for case in CASES]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0 if all(row["met"] for row in rows) else 1


def _times(folder: Path, plan: Plan, options: argparse.Namespace) -> tuple[Ratio, int]:
    """Return the ratio of prefill times, and the bytes of keys and values behind a prompt."""
    calls = {
        name: Calls(
            OnnxSession(folder, [spec], decoder=spec.name, threads=1),
            plan.image_tokens,
            TEXT,
            plan.model.decoder.hidden,
            kept=plan.rows_kept if name == "fewer" else None,
        )
        for name, spec in specs_of(plan).items()
    }
    times = in_turns({n: c.prefill for n, c in calls.items()}, repeats=options.repeats)
    fewer = calls["fewer"]
    kv = fewer.session.past_bytes(fewer.past)
    return ratio(times["naive"], times["fewer"], options.clock), kv


def _run(case: Case, options: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="vtcompress-bench-") as name:
        in_own_process(build, Path(name), case, options.layers, options.vocab)
        plan = plan_of(case, options.layers, options.vocab, Path(name))
        found, kv = _times(Path(name), plan, options)
    predicted = predicted_speedup(plan)
    share = found.of_least / predicted
    met = share >= AT_LEAST and kv == predict(plan).kv_bytes("float32")
    print(
        f"{case.name:<34} {predicted:8.2f} {found.of_least:8.2f} {share:7.3f} "
        f"({found.low:.2f} {found.middle:.2f} {found.high:.2f}) {kv:>14,} "
        f"{'met' if met else 'MISSED'}",
        flush=True,
    )
    return {
        "case": case.name,
        "predicted": predicted,
        "measured": found.of_least,
        "share": share,
        "rounds": [found.low, found.middle, found.high],
        "kv_bytes": kv,
        "met": met,
    }


if __name__ == "__main__":
    on_huge_pages("benchmarks.rows")
    sys.exit(main())
