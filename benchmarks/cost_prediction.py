"""Compares the time that measured costs predict with the measured prefill, for random plans of mixed words.

Run from the repository: `python -m benchmarks.cost_prediction`. Needs the extras `compress` and `cpu`. The
model, its random weights and the prompt are those of `benchmarks.decoder`: 24 layers, hidden 896, 729 visual
rows (on a grid of 27 x 27) and 64 text rows, fp32, one thread.

First the microbenchmark of `vtcompress costs` runs as that command runs it; it sees layers by themselves and
no plan. Then plans are drawn, written (some GB of weights), loaded and timed, all of them in turns. In each
layer of a plan visual rows do everything, or are frozen, go without an operator, are in one of the two
key/value heads, use some of the neurons, or several of these; some plans have windows, some an exit, and in
some half of the rows enter. Not all shares of neurons are those that were measured.

Exit code 0 if every prediction is within 10% of the measured time, 1 if one is not.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from benchmarks.decoder_calls import Calls
from benchmarks.decoder_models import (
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    TEXT,
    VISUAL,
    add_size,
    in_own_process,
    random_model,
    random_weights,
)
from benchmarks.interleaved import Clock, huge_pages, in_turns, on_huge_pages
from compressor.facts import ModelFacts
from compressor.plan.cost import predict
from compressor.plan.dead_rows import freeze_dead_rows
from compressor.plan.edits import identity_plan, keep_in_front, leave
from compressor.plan.layer import LayerPlan
from compressor.plan.measured_cost import MeasuredCosts
from compressor.plan.plan import Plan, Workload
from compressor.schema.sections import ExportSection
from export.backends.onnxruntime import OnnxSession
from export.checks.costs.measure import measure_costs
from export.graphs.spec import decoder_graph

WITHIN = 0.1
REASON = "drawn"
SIDE = 27
WINDOW = 5
SHARES = (1 / 2, 1 / 3, 1 / 8)


def facts(layers: int, vocab: int) -> ModelFacts:
    """Return the model of `benchmarks.decoder` with a grid of visual tokens."""
    return random_model(
        layers, HIDDEN, HEADS, KV_HEADS, INTERMEDIATE, vocab, visual=VISUAL, grid=(SIDE, SIDE)
    )


def drawn_layer(index: int, rng: random.Random, *, windows: bool) -> LayerPlan:
    """Return a layer that does something drawn; see the module."""
    word = rng.choice(["all", "frozen", "attention", "mlp", "cut", "cut"])
    if word == "all":
        return LayerPlan(index=index)
    groups = (0,) if rng.random() < 0.5 else None
    neurons = tuple(range(round(INTERMEDIATE * rng.choice(SHARES))))
    if word == "frozen":
        return LayerPlan(index=index, visual="frozen", reason=REASON, groups=groups)
    if word == "attention":
        return LayerPlan(index=index, without="attention", neurons=rng.choice([neurons, None]))
    if word == "mlp":
        return LayerPlan(index=index, without="mlp", groups=groups)
    window = WINDOW if windows and rng.random() < 0.5 else None
    return LayerPlan(index=index, groups=groups, neurons=neurons, window=window)


def drawn_plan(number: int, layers: int, vocab: int) -> Plan:
    """Return a plan; each number has its own. Every fourth has windows, a third of the others fewer rows."""
    rng = random.Random(number)
    windows = number % 4 == 3
    identity = identity_plan(facts(layers, vocab), "random", Workload(text=TEXT))
    drawn = tuple(drawn_layer(i, rng, windows=windows) for i in range(layers))
    plan = identity.model_copy(update={"layers": freeze_dead_rows(drawn)})
    if number % 3 == 1:
        plan = leave(plan, rng.randrange(layers // 2, layers), REASON)
    if number % 3 == 2 and not windows:
        plan = keep_in_front(plan, VISUAL // 2, REASON, {})
    return Plan.model_validate(plan.model_dump())


def words(plan: Plan) -> str:
    """Return how often a plan says which word."""
    counts = {
        "frozen": sum(layer.frozen for layer in plan.layers),
        "no attention": sum(layer.without == "attention" for layer in plan.layers),
        "no mlp": sum(layer.without == "mlp" for layer in plan.layers),
        "heads": sum(layer.groups is not None for layer in plan.layers),
        "neurons": sum(layer.neurons is not None for layer in plan.layers),
        "windows": sum(layer.window is not None for layer in plan.layers),
        "exited": sum(layer.exited for layer in plan.layers),
    }
    said = [f"{count} {name}" for name, count in counts.items() if count]
    return ", ".join([*said, f"{plan.visual} rows"])


def all_plans(count: int, layers: int, vocab: int) -> dict[str, Plan]:
    """Return the naive original's plan and so many drawn ones, by the names of their graphs."""
    drawn = {f"drawn_{i}": drawn_plan(i, layers, vocab) for i in range(count)}
    return {"naive": drawn_plan(0, layers, vocab).naive(), **drawn}


def write(folder: Path, count: int, layers: int, vocab: int) -> None:
    """Write plans' graphs; runs in a process of its own, so that torch is gone before timing."""
    from compressor.decoder import decoder_from
    from export.writer.weights import SharedWeights
    from export.writer.write import export_decoder, save_graph

    plans = all_plans(count, layers, vocab)
    tensors = random_weights(plans["naive"].model.decoder)
    with SharedWeights(folder) as weights:
        for name, plan in plans.items():
            spec = decoder_graph(plan, "float32", "last", name=name)
            save_graph(
                export_decoder(decoder_from(plan, tensors), spec), folder / spec.file, weights
            )


def measured_costs(layers: int, vocab: int, threads: int, clock: Clock) -> MeasuredCosts:
    """Run the microbenchmark; in a process of its own, as `write`."""
    return measure_costs(
        facts(layers, vocab),
        ExportSection(dtype="float32"),
        text=TEXT,
        threads=threads,
        clock=time.perf_counter if clock == "wall" else time.process_time,
    )


def main() -> int:
    """Measure, predict and compare; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost_prediction", description=__doc__
    )
    add_size(parser)
    parser.add_argument("--plans", type=int, default=10, help="how many are drawn (default 10)")
    parser.add_argument(
        "--passes", type=int, default=3, help="how often each is loaded and timed (default 3)"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=get_args(Clock), default="wall")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"huge pages: {huge_pages()}; {options.clock} time")
    costs = in_own_process(
        measured_costs, options.layers, options.vocab, options.threads, options.clock
    )
    print(f"{costs.measured_on.words}; layers explain their own times within {costs.misfit:.1%}")
    plans = all_plans(options.plans, options.layers, options.vocab)
    with tempfile.TemporaryDirectory(prefix="vtcompress-bench-") as name:
        in_own_process(write, Path(name), options.plans, options.layers, options.vocab)
        seconds = _times(Path(name), plans, options)
    print(f"{'plan':<78} predicted measured  ratio  by FLOPs")
    rows = [_row(name, plan, costs, seconds) for name, plan in plans.items()]
    if options.json:
        found = {"costs": costs.model_dump(mode="json"), "plans": rows}
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    off = max(abs(float(str(row["ratio"])) - 1) for row in rows)
    print(f"largest difference: {off:.1%}, wanted: {WITHIN:.0%}")
    return 0 if off <= WITHIN else 1


def _times(
    folder: Path, plans: Mapping[str, Plan], options: argparse.Namespace
) -> dict[str, float]:
    """Return the least seconds of each plan's prefill; all are loaded anew in each pass."""
    found: dict[str, float] = {}
    for _ in range(options.passes):
        for name, plan in plans.items():
            spec = decoder_graph(plan, "float32", "last", name=name)
            session = OnnxSession(folder, [spec], decoder=name, threads=options.threads)
            hidden, kept = plan.model.decoder.hidden, plan.rows_kept
            calls = Calls(session, plan.image_tokens, TEXT, hidden, kept=kept)
            # The calls' making ran the prompt once.
            times = in_turns({name: calls.prefill}, repeats=2, warm_up=0)[name]
            least = times.least(options.clock)
            found[name] = min(least, found.get(name, least))
    return found


def _row(
    name: str, plan: Plan, costs: MeasuredCosts, seconds: Mapping[str, float]
) -> dict[str, object]:
    """Print and return what came of a plan."""
    # What FLOPs alone would say, at the speed of the naive original.
    by_flops = seconds["naive"] * predict(plan).flops / predict(plan.naive()).flops
    predicted, measured = costs.seconds(plan), seconds[name]
    said = "naive original" if name == "naive" else words(plan)
    ratio, of_flops = predicted / measured, by_flops / measured
    print(f"{said:<78} {predicted:9.3f} {measured:8.3f} {ratio:6.3f} {of_flops:9.3f}", flush=True)
    return {
        "plan": said,
        "predicted": predicted,
        "measured": measured,
        "ratio": ratio,
        "ratio_by_flops": of_flops,
    }


if __name__ == "__main__":
    on_huge_pages("benchmarks.cost_prediction")
    sys.exit(main())
