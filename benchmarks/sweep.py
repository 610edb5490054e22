"""What sweeps on the bundled model share: data, right answers of a plan, times beside the original."""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel

from compressor.compressed import compress, naive_decoder
from compressor.families import LoadedModel
from compressor.families.registry import picture_form
from compressor.plan.plan import Plan
from compressor.samples.questions import Sample
from compressor.samples.scores import exact
from export.backends.torch_model import TorchSession
from export.checks.bench import bench
from export.checks.loss import measure_answers
from export.graphs.spec import decoder_graph, embed_graph, vision_graph
from export.results.bench import BenchReport, Timing
from export.runtime.runtime import Runtime
from export.writer.weights import SharedWeights
from export.writer.write import export_decoder, export_embed, export_vision, save_graph

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "digits-llava"
MAX_NEW_TOKENS = 16


def sweep_options(description: str, rounds: int) -> argparse.Namespace:
    """Read a sweep's command line, and let torch use one thread.

    Args:
        description: of the sweep.
        rounds: of a timing, by default.

    Returns:
        `rounds`; `heldout`: how many held-out questions, None: all; `json`, `plot`: paths, or None.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--heldout", type=int, default=None, help="how many held-out questions")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="base path of the figure")
    # Two threads on two busy cores can be several times slower than one.
    torch.set_num_threads(1)
    return parser.parse_args()


def write_json(rows: Sequence[object], path: Path) -> None:
    """Write rows, dataclasses that may hold timings, as JSON."""

    def plain(value: object) -> dict[str, object]:
        return value.model_dump() if isinstance(value, BaseModel) else vars(value)

    path.write_text(json.dumps(rows, indent=1, default=plain), encoding="utf-8")


def runtime_of(model: LoadedModel, plan: Plan, folder: Path) -> Runtime:
    """Return a runtime on the plan's decoder in torch; `folder` holds the saved processor."""
    session = TorchSession(compress(model, plan))
    return Runtime.on_session(
        session, folder, model.facts, picture_form(model.processor, model.facts)
    )


def exact_match(runtime: Runtime, samples: Sequence[Sample]) -> tuple[float, dict[str, float]]:
    """Return the share of right answers, overall and for each kind."""
    answers = measure_answers(runtime, samples, MAX_NEW_TOKENS).answers
    right = [exact(a.text, s.answer or "") for a, s in zip(answers, samples, strict=True)]
    kinds = {
        kind: sum(r for r, s in zip(right, samples, strict=True) if s.kind == kind)
        / sum(s.kind == kind for s in samples)
        for kind in sorted({s.kind for s in samples})
    }
    return sum(right) / len(right), kinds


def timed(model: LoadedModel, plan: Plan, rounds: int) -> BenchReport:
    """Time a plan's decoder beside the naive original, in turns, on the plan's workload."""
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
        return bench(folder, specs, plan.model, text=plan.workload.text, rounds=rounds, threads=1)


def ratio_cell(timing: Timing) -> str:
    """Return a ratio with its quartiles for a table."""
    return f"{timing.ratio:.2f} x ({timing.ratio_low:.2f} to {timing.ratio_high:.2f})"


@dataclass(frozen=True)
class Curves:
    """What a sweep draws over one setting.

    Attributes:
        name: of the setting.
        values: of the setting.
        heldout, calibration: shares of right answers.
        predicted: prefill ratio original / compressed.
        measured: the same, median and quartiles.
        shipped: the setting of the shipped recipe; None: none.
    """

    name: str
    values: Sequence[int]
    heldout: Sequence[float]
    calibration: Sequence[float]
    predicted: Sequence[float]
    measured: Sequence[tuple[float, float, float]]
    shipped: int | None


def plot(curves: Curves, base: Path) -> None:
    """Draw right answers and prefill ratios over a setting, as `base`.svg and `base`.png."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = curves.values
    left.plot(x, [100 * v for v in curves.heldout], "o-", label="held-out", color="#0b5394")
    left.plot(x, [100 * v for v in curves.calibration], "x--", label="calibration", color="#e69138")
    if curves.shipped is not None:
        left.axvline(curves.shipped, color="#666666", linestyle=":", label="shipped recipe")
    left.set(xlabel=curves.name, ylabel="exact match, %", ylim=(0, 101))
    right.plot(x, curves.predicted, "k-", label="predicted")
    middle = [ratio for ratio, _, _ in curves.measured]
    spread = [
        [m - low for m, low, _ in curves.measured],
        [high - m for m, _, high in curves.measured],
    ]
    right.errorbar(x, middle, yerr=spread, fmt="o", label="measured", color="#0b5394")
    right.set(xlabel=curves.name, ylabel="prefill: original / compressed", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(x[::2])
        axes.legend()
    with mpl.rc_context({"svg.hashsalt": "vtcompress"}):
        figure.savefig(base.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(base.with_suffix(".png"), dpi=120)
