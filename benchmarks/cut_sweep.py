"""Sweeps YOPO's cuts on the bundled model, each alone and together: right answers against speed and cache.

    python -m benchmarks.cut_sweep [--json FILE] [--plot BASE]

For every choice of kept heads, window and MLP ratio: exact match on the calibration questions and on the
held-out ones for each kind, the prefill ratio predicted and measured in ONNX Runtime beside the naive
original, in turns, and KV bytes. Heads and neurons are chosen on the calibration questions; held-out
questions have no part in any choice. Semantics: removed.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.sweep import (
    EXAMPLE,
    exact_match,
    ratio_cell,
    runtime_of,
    sweep_options,
    timed,
    write_json,
)
from compressor.calibration.resume import Task
from compressor.calibration.run import calibrate
from compressor.families import load
from compressor.methods.yopo.method import Yopo
from compressor.plan.cost import predict, predicted_speedup
from compressor.planner import make_plan
from compressor.samples.questions import read_samples
from export.results.bench import Timing

CHOICES: dict[str, dict[str, Any]] = {
    "no cut": {},
    "heads 0.75": {"heads": {"keep": 0.75}},
    "heads 0.5": {"heads": {"keep": 0.5}},
    "heads 0.25": {"heads": {"keep": 0.25}},
    "heads 0": {"heads": {"keep": 0.0}},
    "window 3": {"window": 3},
    "window 5": {"window": 5},
    "window 7": {"window": 7},
    "MLP 1/2, first": {"mlp_ratio": 2},
    "MLP 1/2, active": {"mlp_ratio": 2, "select": "activation"},
    "MLP 1/4, first": {"mlp_ratio": 4},
    "MLP 1/4, active": {"mlp_ratio": 4, "select": "activation"},
    "window 5, MLP 1/4 active": {"window": 5, "mlp_ratio": 4, "select": "activation"},
    "window 5, MLP 1/4 active, off from 18": {
        "window": 5,
        "mlp_ratio": 4,
        "select": "activation",
        "off_from": 18,
    },
    "heads 0.5, window 5": {"heads": {"keep": 0.5}, "window": 5},
    "heads 0.5, MLP 1/2 active": {"heads": {"keep": 0.5}, "mlp_ratio": 2, "select": "activation"},
    "heads 0.5, window 5, MLP 1/2 active": {
        "heads": {"keep": 0.5},
        "window": 5,
        "mlp_ratio": 2,
        "select": "activation",
    },
    "heads 0.5, MLP 1/2 active, window 5, off from 18": {
        "heads": {"keep": 0.5},
        "mlp_ratio": 2,
        "select": "activation",
        "window": 5,
        "off_from": 18,
    },
}


@dataclass(frozen=True)
class Row:
    """One choice; shares of right answers, ratios original / compressed, as in `benchmarks.exit_sweep`."""

    name: str
    calibration: float
    heldout: float
    kinds: dict[str, float]
    predicted: float
    prefill: Timing
    kv: float


def sweep(rounds: int, heldout_samples: int | None) -> list[Row]:
    """Measure every choice."""
    model = load(str(EXAMPLE / "model"))
    calibration = read_samples(EXAMPLE / "calibration.jsonl")
    heldout = read_samples(EXAMPLE / "heldout.jsonl")[:heldout_samples]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measures = ("head_score", "neuron_activity")
        path = folder / "profile.json"
        profile = calibrate(
            model,
            Task.of(model.facts, model.digest, calibration, "calibration.jsonl", measures),
            path,
        )
        model.processor.save_pretrained(folder)
        for choice, entry in CHOICES.items():
            methods = [Yopo.model_validate(entry)] if entry else []
            plan = make_plan(model.facts, model.digest, methods, profile)
            runtime = runtime_of(model, plan, folder)
            (on_calibration, _), (on_heldout, kinds) = (
                exact_match(runtime, samples) for samples in (calibration, heldout)
            )
            row = Row(
                name=choice,
                calibration=on_calibration,
                heldout=on_heldout,
                kinds=kinds,
                predicted=predicted_speedup(plan),
                prefill=timed(model, plan, rounds).prefill,
                kv=predict(plan).kv_bytes("float32") / predict(plan.naive()).kv_bytes("float32"),
            )
            rows.append(row)
            print(markdown([row]).splitlines()[-1], flush=True)
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Return the sweep as a Markdown table."""
    kinds = list(rows[0].kinds)
    head = [
        "cut",
        "calibration",
        "held-out",
        *kinds,
        "predicted",
        "measured (quartiles)",
        "KV bytes",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [
            row.name,
            f"{row.calibration:.1%}",
            f"{row.heldout:.1%}",
            *(f"{row.kinds[kind]:.1%}" for kind in kinds),
            f"{row.predicted:.2f} x",
            ratio_cell(row.prefill),
            f"{row.kv:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], base: Path) -> None:
    """Draw right answers beside the predicted prefill ratio of every choice."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.34 * len(rows) + 1), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [row.name for row in rows]
    left.barh(names, [100 * row.heldout for row in rows], color="#0b5394")
    left.axvline(100 * rows[0].heldout, color="#666666", linestyle=":")
    left.set(xlabel="exact match on held-out questions, %", xlim=(0, 101))
    right.barh(names, [row.predicted for row in rows], color="#cccccc", label="predicted")
    right.plot([row.prefill.ratio for row in rows], names, "o", color="#0b5394", label="measured")
    right.set(xlabel="prefill: original / compressed")
    right.legend()
    left.invert_yaxis()
    with mpl.rc_context({"svg.hashsalt": "vtcompress"}):
        figure.savefig(base.with_suffix(".svg"), metadata={"Date": None})


def main() -> None:
    """Run the sweep and print the table."""
    options = sweep_options("sweep YOPO's cuts", rounds=25)
    rows = sweep(options.rounds, options.heldout)
    print(markdown(rows))
    if options.json:
        write_json(rows, options.json)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
