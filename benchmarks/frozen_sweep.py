"""Sweeps the share of frozen layers on the bundled model: right answers against speed.

    python -m benchmarks.frozen_sweep [--json FILE] [--plot BASE]

For every number of frozen layers (ShortV's ranking on the calibration questions): exact match on the
calibration questions and on the held-out ones, predicted prefill ratio, and the prefill ratio measured in
ONNX Runtime beside the naive original, in turns. The rule for the shipped recipe reads the calibration
column alone: the largest share that keeps 97% of the original's exact match there.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from compressor.calibration.data import Sample, read_samples
from compressor.calibration.profile import Profile
from compressor.calibration.run import calibrate
from compressor.compressed import compress, naive_decoder
from compressor.cost import predicted_speedup
from compressor.families import LoadedModel, load
from compressor.passes.shortv import ranking
from compressor.plan import Plan, Workload
from compressor.planner import freeze, identity_plan
from export.bench import bench
from export.graphs import decoder_graph, embed_graph, vision_graph
from export.onnx_graph import export_decoder, export_embed, export_vision, save_graph
from export.parity.loss import exact, measure
from export.runtime import Runtime
from export.torch_session import TorchSession
from export.weights import SharedWeights

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "digits-llava"
KEPT = 0.97
MAX_NEW_TOKENS = 16


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


def exact_match(runtime: Runtime, samples: Sequence[Sample]) -> tuple[float, dict[str, float]]:
    """Return the share of right answers, overall and for each kind."""
    answers = measure(runtime, samples, MAX_NEW_TOKENS).answers
    right = [exact(a.text, s.answer or "") for a, s in zip(answers, samples, strict=True)]
    kinds = {
        kind: sum(r for r, s in zip(right, samples, strict=True) if s.kind == kind)
        / sum(s.kind == kind for s in samples)
        for kind in sorted({s.kind for s in samples})
    }
    return sum(right) / len(right), kinds


def measured_ratio(model: LoadedModel, plan: Plan, rounds: int) -> tuple[float, float, float]:
    """Return the measured prefill ratio of a plan: median and quartiles of the rounds."""
    small = compress(model, plan)
    specs = (
        vision_graph(plan.model, "float32"),
        embed_graph(plan.model, "float32"),
        decoder_graph(plan, "float32", "last"),
        decoder_graph(plan.naive(), "float32", "last", name="baseline_decoder"),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with SharedWeights(folder) as weights:
            save_graph(export_vision(small, specs[0]), folder / specs[0].file, weights)
            save_graph(export_embed(small, specs[1]), folder / specs[1].file, weights)
            save_graph(export_decoder(small.decoder, specs[2]), folder / specs[2].file, weights)
            save_graph(
                export_decoder(naive_decoder(small), specs[3]), folder / specs[3].file, weights
            )
        report = bench(folder, specs, plan.model, text=plan.workload.text, rounds=rounds, threads=1)
    return report.prefill.ratio, report.prefill.ratio_low, report.prefill.ratio_high


def sweep(rounds: int, heldout_samples: int | None) -> list[Row]:
    """Measure every number of frozen layers."""
    model = load(str(EXAMPLE / "model"))
    calibration = read_samples(EXAMPLE / "calibration.jsonl")
    heldout = read_samples(EXAMPLE / "heldout.jsonl")[:heldout_samples]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        profile = calibrate(
            model, calibration, folder / "profile.json", data_name="calibration.jsonl"
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
    layers = ranking(profile.layer_contribution())[:count]
    workload = Workload(text=profile.typical_text_rows())
    plan = freeze(identity_plan(model.facts, model.digest, workload), layers, "shortv")
    session = TorchSession(compress(model, plan))
    runtime = Runtime.on_session(session, folder, model.facts, model.processor.image_token)
    (on_calibration, _), (on_heldout, kinds) = (exact_match(runtime, samples) for samples in data)
    row = Row(
        frozen=count,
        layers=layers,
        calibration=on_calibration,
        heldout=on_heldout,
        kinds=kinds,
        predicted=predicted_speedup(plan),
        measured=measured_ratio(model, plan, rounds),
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


def plot(rows: Sequence[Row], base: Path) -> None:
    """Draw right answers and prefill ratios over the number of frozen layers."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    frozen = [row.frozen for row in rows]
    left.plot(frozen, [100 * r.heldout for r in rows], "o-", label="held-out", color="#0b5394")
    left.plot(
        frozen, [100 * r.calibration for r in rows], "x--", label="calibration", color="#e69138"
    )
    left.axvline(chosen(rows).frozen, color="#666666", linestyle=":", label="shipped recipe")
    left.set(xlabel="frozen layers", ylabel="exact match, %", ylim=(0, 101))
    right.plot(frozen, [r.predicted for r in rows], "k-", label="predicted")
    middle = [r.measured[0] for r in rows]
    spread = [
        [r.measured[0] - r.measured[1] for r in rows],
        [r.measured[2] - r.measured[0] for r in rows],
    ]
    right.errorbar(frozen, middle, yerr=spread, fmt="o", label="measured", color="#0b5394")
    right.set(xlabel="frozen layers", ylabel="prefill: original / compressed", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(frozen[::2])
        axes.legend()
    with mpl.rc_context({"svg.hashsalt": "vtcompress"}):
        figure.savefig(base.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(base.with_suffix(".png"), dpi=120)


def main() -> None:
    """Run the sweep and print the table and the chosen row."""
    parser = argparse.ArgumentParser(description="sweep the share of frozen layers")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--heldout", type=int, default=None, help="how many held-out questions")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="base path of .svg and .png")
    options = parser.parse_args()
    # Two threads on two busy cores can be several times slower than one.
    torch.set_num_threads(1)
    rows = sweep(options.rounds, options.heldout)
    print(markdown(rows))
    best = chosen(rows)
    layers = len(rows) - 1
    print(
        f"chosen on the calibration questions: {best.frozen} of {layers} layers, {best.frozen / layers:g}"
    )
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1), encoding="utf-8")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
