"""Sweeps the layer at which visual tokens leave the bundled model: right answers against speed and cache.

    python -m benchmarks.exit_sweep [--json FILE] [--plot BASE]

For every exit layer K, and without an exit: mean KL on the calibration questions, exact match on them and on
the held-out ones for each kind, the prefill ratio predicted and measured in ONNX Runtime beside the naive
original, in turns, the same for a decode step, and KV bytes, measured from the caches. Held-out questions
have no part in any choice.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sweep import (
    EXAMPLE,
    Curves,
    exact_match,
    plot,
    ratio_cell,
    runtime_of,
    sweep_options,
    timed,
    write_json,
)
from compressor.calibration.resume import Task
from compressor.calibration.run import calibrate
from compressor.families import load
from compressor.methods.visual_exit import VisualExit
from compressor.plan.cost import predict, predicted_speedup
from compressor.plan.edits import identity_plan, leave
from compressor.plan.plan import Workload
from compressor.planner import make_plan
from compressor.samples.questions import read_samples
from export.results.bench import Timing
from vtcompress.shipped import load_recipe


@dataclass(frozen=True)
class Row:
    """One exit layer.

    Attributes:
        layer: first layer without visual rows; None: no exit.
        kl: mean KL at the last prompt token on the calibration questions, in nats.
        calibration: exact match on the calibration questions.
        heldout: exact match on the held-out questions.
        kinds: the same for each kind.
        predicted: prefill FLOPs of the naive original divided by the plan's.
        prefill: measured ratio.
        decode_step: measured ratio.
        kv_predicted: KV bytes of the naive original after the prefill, divided by the plan's.
        kv_measured: the same, from the caches that the graphs returned.
    """

    layer: int | None
    kl: float
    calibration: float
    heldout: float
    kinds: dict[str, float]
    predicted: float
    prefill: Timing
    decode_step: Timing
    kv_predicted: float
    kv_measured: float


def sweep(rounds: int, heldout_samples: int | None) -> tuple[list[Row], int | None]:
    """Measure every exit layer; return the rows, and the layer that the shipped recipe finds."""
    model = load(str(EXAMPLE / "model"))
    calibration = read_samples(EXAMPLE / "calibration.jsonl")
    heldout = read_samples(EXAMPLE / "heldout.jsonl")[:heldout_samples]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measures = ("exit_kl",)
        path = folder / "profile.json"
        profile = calibrate(
            model,
            Task.of(model.facts, model.digest, calibration, "calibration.jsonl", measures),
            path,
        )
        model.processor.save_pretrained(folder)
        layers = model.facts.decoder.layers
        original = identity_plan(
            model.facts, model.digest, Workload(text=profile.typical_text_rows())
        )
        for layer in [*range(1, layers), None]:
            plan = original if layer is None else leave(original, layer, "visual_exit")
            runtime = runtime_of(model, plan, folder)
            (on_calibration, _), (on_heldout, kinds) = (
                exact_match(runtime, samples) for samples in (calibration, heldout)
            )
            report = timed(model, plan, rounds)
            row = Row(
                layer=layer,
                kl=0.0 if layer is None else profile.mean("exit_kl")[layer],
                calibration=on_calibration,
                heldout=on_heldout,
                kinds=kinds,
                predicted=predicted_speedup(plan),
                prefill=report.prefill,
                decode_step=report.decode_step,
                kv_predicted=predict(plan.naive()).kv_bytes("float32")
                / predict(plan).kv_bytes("float32"),
                kv_measured=report.kv_bytes_original / report.kv_bytes,
            )
            rows.append(row)
            print(markdown([row]).splitlines()[-1], flush=True)
        (method,) = (m for m in load_recipe("vtw").methods if isinstance(m, VisualExit))
        shipped = make_plan(model.facts, model.digest, [method], profile)
    return rows, shipped.exit_layer


def markdown(rows: Sequence[Row]) -> str:
    """Return the sweep as a Markdown table."""
    kinds = list(rows[0].kinds)
    head = ["K", "KL", "calibration", "held-out", *kinds, "prefill predicted", "prefill measured"]
    head += ["decode step", "KV predicted", "KV measured"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [
            "no exit" if row.layer is None else f"{row.layer}",
            f"{row.kl:.2g}",
            f"{row.calibration:.1%}",
            f"{row.heldout:.1%}",
            *(f"{row.kinds[kind]:.1%}" for kind in kinds),
            f"{row.predicted:.2f} x",
            ratio_cell(row.prefill),
            ratio_cell(row.decode_step),
            f"{row.kv_predicted:.2f} x",
            f"{row.kv_measured:.2f} x",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the sweep and print the table and the shipped recipe's row."""
    options = sweep_options("sweep the layer at which visual tokens leave", rounds=41)
    rows, shipped = sweep(options.rounds, options.heldout)
    print(markdown(rows))
    kept = next(row for row in rows if row.layer == shipped).heldout / rows[-1].heldout
    print(f"the shipped recipe leaves at layer {shipped} and keeps {kept:.1%} of the right answers")
    if options.plot:
        layers = len(rows)  # the last row, without an exit, stands where an exit would be of no use
        curves = Curves(
            "first layer without visual tokens",
            [layers if row.layer is None else row.layer for row in rows],
            [row.heldout for row in rows],
            [row.calibration for row in rows],
            [row.predicted for row in rows],
            [(r.prefill.ratio, r.prefill.ratio_low, r.prefill.ratio_high) for r in rows],
            shipped,
        )
        plot(curves, options.plot)
    if options.json:
        write_json(rows, options.json)


if __name__ == "__main__":
    main()
