"""Sweeps the share of frozen layers on the bundled model: right answers against speed.

    python -m benchmarks.frozen_sweep [--json FILE] [--plot BASE]

For every number of frozen layers (ShortV's ranking on the calibration questions): exact match on the
calibration questions and on the held-out ones, predicted prefill ratio, and the prefill ratio measured in
ONNX Runtime beside the naive original, in turns. The rule for the shipped recipe reads the calibration
column alone: the largest share that keeps 97% of the original's exact match there.
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
    runtime_of,
    sweep_options,
    timed,
    write_json,
)
from compressor.calibration.resume import Task
from compressor.calibration.run import calibrate
from compressor.families import LoadedModel, load
from compressor.methods.shortv import ranking
from compressor.plan.cost import predicted_speedup
from compressor.plan.edits import freeze, identity_plan
from compressor.plan.plan import Workload
from compressor.profile import Profile
from compressor.samples.questions import Sample, read_samples

KEPT = 0.97


@dataclass(frozen=True)
class Row:
    """One number of frozen layers.

    Attributes:
        frozen: how many layers ShortV freezes; the dead rows of the last layer are frozen in any case.
        calibration: exact match on the calibration questions.
        heldout: exact match on the held-out questions.
        kinds: the same for each kind.
        predicted: prefill FLOPs of the naive original divided by the plan's.
        measured: median ratio of prefill times, with its quartiles.
    """

    frozen: int
    layers: tuple[int, ...]
    calibration: float
    heldout: float
    kinds: dict[str, float]
    predicted: float
    measured: tuple[float, float, float]


def sweep(rounds: int, heldout_samples: int | None) -> list[Row]:
    """Measure every number of frozen layers."""
    model = load(str(EXAMPLE / "model"))
    calibration = read_samples(EXAMPLE / "calibration.jsonl")
    heldout = read_samples(EXAMPLE / "heldout.jsonl")[:heldout_samples]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        profile = calibrate(
            model,
            Task.of(model.facts, model.digest, calibration, "calibration.jsonl"),
            folder / "profile.json",
        )
        model.processor.save_pretrained(folder)
        return [
            _row(model, profile, count, folder, (calibration, heldout), rounds)
            for count in range(model.facts.decoder.layers + 1)
        ]


def _row(
    model: LoadedModel,
    profile: Profile,
    count: int,
    folder: Path,
    data: tuple[Sequence[Sample], Sequence[Sample]],
    rounds: int,
) -> Row:
    layers = ranking(profile.mean("layer_contribution"))[:count]
    workload = Workload(text=profile.typical_text_rows())
    plan = freeze(identity_plan(model.facts, model.digest, workload), layers, "shortv")
    runtime = runtime_of(model, plan, folder)
    (on_calibration, _), (on_heldout, kinds) = (exact_match(runtime, samples) for samples in data)
    prefill = timed(model, plan, rounds).prefill
    row = Row(
        frozen=count,
        layers=layers,
        calibration=on_calibration,
        heldout=on_heldout,
        kinds=kinds,
        predicted=predicted_speedup(plan),
        measured=(prefill.ratio, prefill.ratio_low, prefill.ratio_high),
    )
    print(markdown([row]).splitlines()[-1], flush=True)
    return row


def chosen(rows: Sequence[Row]) -> Row:
    """Return the largest number of frozen layers that keeps 97% of the original on the calibration data."""
    floor = KEPT * rows[0].calibration
    return max((row for row in rows if row.calibration >= floor), key=lambda row: row.frozen)


def markdown(rows: Sequence[Row]) -> str:
    """Return the sweep as a Markdown table."""
    kinds = list(rows[0].kinds)
    head = ["frozen", "calibration", "held-out", *kinds, "predicted", "measured (quartiles)"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        middle, low, high = row.measured
        cells = [
            f"{row.frozen}",
            f"{row.calibration:.1%}",
            f"{row.heldout:.1%}",
            *(f"{row.kinds[kind]:.1%}" for kind in kinds),
            f"{row.predicted:.2f} x",
            f"{middle:.2f} x ({low:.2f} to {high:.2f})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the sweep and print the table and the chosen row."""
    options = sweep_options("sweep the share of frozen layers", rounds=41)
    rows = sweep(options.rounds, options.heldout)
    print(markdown(rows))
    best = chosen(rows)
    layers = len(rows) - 1
    print(
        f"chosen on the calibration questions: {best.frozen} of {layers} layers, {best.frozen / layers:g}"
    )
    if options.json:
        write_json(rows, options.json)
    if options.plot:
        curves = Curves(
            "frozen layers",
            [row.frozen for row in rows],
            [row.heldout for row in rows],
            [row.calibration for row in rows],
            [row.predicted for row in rows],
            [row.measured for row in rows],
            best.frozen,
        )
        plot(curves, options.plot)


if __name__ == "__main__":
    main()
