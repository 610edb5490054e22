"""Draws what things cost against their size: a prefill, an export, a calibration.

Run from the repository: `python -m benchmarks.cost_curves --json FILE --plots docs/figures`. Needs the extras
`compress` and `cpu`; reads /proc, so Linux alone.

- prefill: 4 layers of the widths of `benchmarks.decoder` (hidden 896, fp32), random weights, 64 text rows,
  64 to 4,096 visual rows. Every method beside the naive original, in turns, on one thread; predicted are
  FLOPs of these 4 layers. Left out are windows, which need one picture's grid, and gates, whose exits are the
  prompt's.
- export: models of width 256 of 2 to 32 layers through `vtcompress export`, in memory and with `--stream`:
  time of clock and processor, and the highest resident memory of all its processes.
- calibration: 1 to 16 questions on 8 such layers, ShortV's and VTW's measures, in memory and from disk: time
  behind loading, peak memory, and bytes that were read of the decoder's layers.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.calibrating import Calibrated, calibrated
from benchmarks.decoder_calls import Calls
from benchmarks.decoder_models import (
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    TEXT,
    in_own_process,
    random_model,
    random_weights,
)
from benchmarks.interleaved import huge_pages, in_turns, on_huge_pages, ratio
from benchmarks.streaming import vtcompress
from compressor.facts import ModelFacts
from compressor.methods import CompressEntry, layer_scores, run_rules
from compressor.plan.cost import predicted_speedup
from compressor.plan.plan import Plan, Workload
from compressor.planner import make_plan
from compressor.recipe import dump_recipe
from export.backends.onnxruntime import OnnxSession
from export.graphs.spec import decoder_graph
from vtcompress import load_recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAYERS, VOCAB, TILE = 4, 4000, 64
ROUTERS, MASK = "routers.safetensors", "heads.npy"
WIDTH = {
    "hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip
TOWER = {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_hidden_layers": 2,
}  # fmt: skip
CALIBRATED_LAYERS = 8


def methods(folder: Path) -> dict[str, dict[str, dict[str, object]]]:
    """Return a recipe's entry of each method, in words; files that some name lie in the folder."""
    routers, mask = folder / ROUTERS, folder / MASK
    return {
        "frozen in 2 of 4 layers": {"shortv": {"layers": (1, 2)}},
        "exit at layer 2": {"visual_exit": {"layer": 2}},
        "half in front": {"divprune": {"keep": 0.5}},
        "half from layer 1 on": {"fastv": {"layer": 1, "keep": 0.5}},
        "half run every other layer": {"mod": {"keep": 0.5, "routers": routers}},
        "no attention in 1 and 2, no MLP in 2": {
            "skip": {"operators": {"attention": (1, 2), "mlp": (2,)}}
        },
        "half of the heads, 1 in 4 neurons": {
            "yopo": {"heads": {"mask": mask}, "keep_layers": (), "mlp_ratio": 4}
        },
    }


@dataclass(frozen=True)
class Prefill:
    """A method's prefill beside the naive original's.

    Attributes:
        method: in words.
        visual: V.
        predicted: FLOPs of the original / its own.
        measured: least time of the original / its own.
        low, high: 10th and 90th percentile of the ratio inside one round.
        seconds: least time of its own.
    """

    method: str
    visual: int
    predicted: float
    measured: float
    low: float
    high: float
    seconds: float


@dataclass(frozen=True)
class Exported:
    """An export.

    Attributes:
        layers: of the decoder.
        stream: whether it was streamed.
        seconds: wall time.
        processor: seconds of the processor, its processes' all together.
        peak: highest resident memory of its processes, bytes.
        own: of that, what is no page of a file.
    """

    layers: int
    stream: bool
    seconds: float
    processor: float
    peak: int
    own: int


def facts() -> ModelFacts:
    """Return the model of the prefills; a picture of V rows is made of tiles."""
    made = random_model(
        LAYERS, HIDDEN, HEADS, KV_HEADS, INTERMEDIATE, VOCAB, visual=TILE, grid=(8, 8)
    )
    decoder = made.decoder.model_copy(update={"max_positions": 8192})
    return made.model_copy(update={"decoder": decoder})


def plans(folder: Path) -> dict[str, Plan]:
    """Return the plan of each method and the naive one; files that they name are written to the folder."""
    import torch
    from safetensors.torch import save_file

    drawn = torch.Generator().manual_seed(0)
    routers = {
        f"model.layers.{i}.router.weight": torch.randn(1, HIDDEN, generator=drawn) / HIDDEN**0.5
        for i in range(LAYERS)
    }
    save_file(routers, folder / ROUTERS)
    np.save(folder / MASK, np.tile(np.arange(HEADS) < HEADS // 2, (LAYERS, 1)))
    found = {}
    for name, entry in methods(folder).items():
        method = CompressEntry.model_validate(entry).method
        found[name] = make_plan(facts(), "random", [method], workload=Workload(text=TEXT))
    return {"naive": make_plan(facts(), "random", [], workload=Workload(text=TEXT)).naive()} | found


def write(folder: Path) -> None:
    """Write a graph for each method; runs in a process of its own, so that torch is gone before timing."""
    from safetensors.torch import load_file

    from compressor.decoder import decoder_from
    from export.writer.weights import SharedWeights
    from export.writer.write import export_decoder, save_graph

    wanted = plans(folder)
    routers = {n.removeprefix("model."): t for n, t in load_file(folder / ROUTERS).items()}
    tensors = random_weights(facts().decoder) | routers
    with SharedWeights(folder) as weights:
        for number, plan in enumerate(wanted.values()):
            decoder = decoder_from(plan, tensors, scores=layer_scores(plan), runs=run_rules(plan))
            spec = decoder_graph(plan, "float32", "last", name=f"graph_{number}")
            save_graph(export_decoder(decoder, spec), folder / spec.file, weights)


def prefills(sizes: Sequence[int], repeats: int) -> list[Prefill]:
    """Time every method at every number of visual rows, all methods of one number in turns."""
    with tempfile.TemporaryDirectory(prefix="vtcompress-bench-") as name:
        folder = Path(name)
        in_own_process(write, folder)
        wanted = in_own_process(plans, folder)
        sessions = {}
        for number, (method, plan) in enumerate(wanted.items()):
            spec = decoder_graph(plan, "float32", "last", name=f"graph_{number}")
            sessions[method] = OnnxSession(folder, [spec], decoder=spec.name, threads=1)
        found = []
        for visual in sizes:
            calls = {
                method: Calls(
                    sessions[method],
                    visual,
                    TEXT,
                    HIDDEN,
                    kept=visual * plan.front.count // TILE if plan.front is not None else None,
                )
                for method, plan in wanted.items()
            }
            times = in_turns({m: c.prefill for m, c in calls.items()}, repeats=repeats)
            work = Workload(text=TEXT, images=visual // TILE)
            for method, plan in wanted.items():
                rounds = ratio(times["naive"], times[method], "wall")
                sized = plan.model_copy(update={"workload": work})
                one = Prefill(
                    method,
                    visual,
                    predicted_speedup(sized),
                    rounds.of_least,
                    rounds.low,
                    rounds.high,
                    times[method].least("wall"),
                )
                found.append(one)
                print(
                    f"V {visual:>5}  {method:<36} {one.seconds:7.3f} s  predicted {one.predicted:5.2f}  "
                    f"measured {one.measured:5.2f} ({one.low:.2f} to {one.high:.2f})",
                    flush=True,
                )
        return found


def make_model(folder: Path, layers: int) -> Path:
    """Write a narrow model of LLaVA-1.5's kind."""
    from tests.llava_7b import make_llava_7b

    return make_llava_7b(folder, text={**WIDTH, "num_hidden_layers": layers}, vision=TOWER)


def exports(sizes: Sequence[int]) -> list[Exported]:
    """Export a model of each number of layers, in memory and streamed."""
    found = []
    for layers in sizes:
        with tempfile.TemporaryDirectory(prefix="vtcompress-bench-") as name:
            folder = Path(name)
            model = in_own_process(make_model, folder / "model", layers)
            recipe = load_recipe("identity").override({"compress": [{"shortv": {"layers": [1]}}]})
            (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
            for stream in (False, True):
                took = vtcompress(
                    "export", f"--recipe={folder / 'recipe.yaml'}", f"--model={model}",
                    f"--output={folder / str(stream)}", *(["--stream"] if stream else ["--bench-rounds=0"]),
                )  # fmt: skip
                found.append(
                    Exported(layers, stream, took.seconds, took.processor, took.peak, took.own)
                )
                print(
                    f"{layers} layers, {'streamed' if stream else 'in memory'}: {took}", flush=True
                )
    return found


def calibrations(sizes: Sequence[int]) -> list[Calibrated]:
    """Calibrate on each number of questions, in memory and from disk."""
    found = []
    with tempfile.TemporaryDirectory(prefix="vtcompress-bench-") as name:
        model = in_own_process(make_model, Path(name) / "model", CALIBRATED_LAYERS)
        for samples in sizes:
            for stream in (False, True):
                one = in_own_process(calibrated, model, samples, stream)
                found.append(one)
                print(
                    f"{samples} questions, {'from disk' if stream else 'in memory'}: {one.seconds:.1f} s, "
                    f"{one.processor:.1f} s of the processor, "
                    f"peak {one.peak / 1e6:,.0f} MB, {one.read / 1e6:,.0f} MB of layers read",
                    flush=True,
                )
    return found


def draw(
    prefill: Sequence[Prefill],
    exported: Sequence[Exported],
    calibration: Sequence[Calibrated],
    folder: Path,
) -> None:
    """Draw what was measured as `cost_prefill.svg`, `cost_export.svg` and `cost_calibration.svg`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    def lines(
        axes: "Axes", rows: Sequence[Exported | Calibrated], x: str, y: str, unit: float
    ) -> None:
        for stream, words, style in ((False, "in memory", "o-"), (True, "streamed", "s--")):
            mine = [row for row in rows if row.stream is stream]
            values = [getattr(row, y) / unit for row in mine]
            axes.plot([getattr(row, x) for row in mine], values, style, label=words)
        axes.set_ylim(0, None)
        axes.legend()

    figures: dict[str, Figure] = {}
    if prefill:
        figure = figures["cost_prefill"] = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.subplots()
        for number, method in enumerate(dict.fromkeys(row.method for row in prefill)):
            mine = [row for row in prefill if row.method == method]
            colour, places = f"C{number}", [row.visual for row in mine]
            spread = [
                [max(0.0, row.measured - row.low) for row in mine],
                [max(0.0, row.high - row.measured) for row in mine],
            ]
            axes.plot(places, [row.predicted for row in mine], "--", color=colour, linewidth=0.8)
            axes.errorbar(
                places,
                [row.measured for row in mine],
                yerr=spread,
                fmt="o-",
                color=colour,
                label=method,
            )
        axes.set_xscale("log", base=2)
        axes.set(xlabel="visual rows", ylabel="prefill: naive original / its own")
        axes.plot([], [], "k--", linewidth=0.8, label="predicted (FLOPs)")
        axes.legend(fontsize="small")
    for name, rows, x, words in (
        ("cost_export", exported, "layers", "decoder layers"),
        ("cost_calibration", calibration, "samples", "questions"),
    ):
        if not rows:
            continue
        figure = figures[name] = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        lines(left, rows, x, "processor", 1.0)
        left.set(xlabel=words, ylabel="seconds of the processor")
        lines(right, rows, x, "peak", 1e6)
        right.set(xlabel=words, ylabel="peak resident memory, MB")
    for name, figure in figures.items():
        with mpl.rc_context({"svg.hashsalt": "vtcompress"}):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def main() -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost_curves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole = ["prefill", "export", "calibration"]
    parser.add_argument("--only", nargs="+", choices=whole, default=whole)
    parser.add_argument(
        "--visual", nargs="+", type=int, default=[64, 128, 256, 512, 1024, 2048, 4096],
        help=f"visual rows, multiples of {TILE}",
    )  # fmt: skip
    parser.add_argument("--layers", nargs="+", type=int, default=[2, 4, 8, 16, 32], help="exported")
    parser.add_argument("--samples", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=3, help="rounds of prefills (default 3)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path, help="folder of the drawings")
    options = parser.parse_args()
    if any(visual < TILE or visual % TILE for visual in options.visual):
        parser.error(f"--visual: give multiples of {TILE}")
    print(f"huge pages: {huge_pages()}")
    prefill = prefills(options.visual, options.repeats) if "prefill" in options.only else []
    exported = exports(options.layers) if "export" in options.only else []
    calibration = calibrations(options.samples) if "calibration" in options.only else []
    found: dict[str, Sequence[Prefill | Exported | Calibrated]] = {
        "prefill": prefill,
        "export": exported,
        "calibration": calibration,
    }
    if options.json:
        rows = {name: [asdict(row) for row in each] for name, each in found.items()}
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.plots:
        draw(prefill, exported, calibration, options.plots)


if __name__ == "__main__":
    on_huge_pages("benchmarks.cost_curves")
    main()
