"""Times this project's decoders beside those of other exporters and runtimes: one model, one prompt.

Run from the repository: `python -m benchmarks.peers`. Needs the extras `compress`, `cpu` and `openvino`, and
the package `onnxruntime-genai` (install it with `--no-deps`). The model, its random weights and the prompt
are those of `benchmarks.decoder`: 24 layers, hidden 896, 729 visual and 64 text rows, a decode step on a past
of 800.

- `genai`: onnxruntime-genai's builder, fp32 and int4; its graphs in ONNX Runtime.
- `transformers`: its exporters for ONNX (as it is, and fused for ONNX Runtime) and OpenVINO; and torch.
- Ours: `identity`, `frozen` (visual rows frozen in 14 of 24 layers), `half` (the same, and half of the visual
  rows go in), float and int4, in ONNX Runtime and in OpenVINO with its own choice of precision.

Each is timed beside `genai` in turns, in a process of its own; then the fastest of ours beside the fastest of
the others with float weights. Memory is that of a process that loads one and runs it.

Exit code 0 if all wanted bounds hold, 1 if one is missed, or if logits on text are not those of `genai`.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.decoder import LOGITS_TOLERANCE
from benchmarks.decoder_models import add_size
from benchmarks.interleaved import Ratio, huge_pages, on_huge_pages
from benchmarks.peers.contenders import Contender, contenders
from benchmarks.peers.measuring import Bench, Conditions, Row

WANTED = {"prefill": 4.0, "decode": 3.0}
PACKAGES = ("onnxruntime", "onnxruntime-genai", "openvino", "torch", "transformers")
OURS, OTHERS = "#0b5394", "#999999"


@dataclass(frozen=True)
class Best:
    """The fastest of ours beside the fastest of the others with float weights, in one call.

    Attributes:
        call: `prefill` or `decode`.
        ours, other: names.
        found: the other's time divided by ours.
    """

    call: str
    ours: str
    other: str
    found: Ratio

    @property
    def met(self) -> bool:
        """Whether it is as much as wanted."""
        return self.found.of_least >= WANTED[self.call]


def main() -> int:
    """Make, compare, time, print; return the exit code."""
    args = _arguments()
    conditions = _conditions(args)
    print(conditions)
    reference, *others = contenders()
    chosen = [c for c in others if not args.only or any(only in c.name for only in args.only)]
    with tempfile.TemporaryDirectory(prefix="vtcompress-peers-", dir=args.folder) as name:
        size = Conditions(Path(name), args.layers, args.vocab, args.threads, args.repeats)
        bench = Bench(size, reference)
        matmul = bench.matmul_rate()
        print(f"the MLP's widest product in torch, float32: {matmul / 1e9:.0f} GFLOP/s\n{HEAD}")
        rows = {}
        for contender in (reference, *chosen):
            rows[contender] = bench.row(contender)
            print(_line(rows[contender]), flush=True)
        best = [_best(call, rows, bench) for call in WANTED]
    wrong = [row.name for c, row in rows.items() if c.exact and not row.apart <= LOGITS_TOLERANCE]
    for each in best:
        print(
            f"{each.call}: {each.other} / {each.ours}: {_cell(each.found)}, "
            f"wanted {WANTED[each.call]:g}: {'met' if each.met else 'MISSED'}"
        )
    if wrong:
        print(f"logits apart by more than {LOGITS_TOLERANCE}: {', '.join(wrong)}", file=sys.stderr)
    if args.json:
        report = {
            "conditions": conditions,
            "matmul": matmul,
            "rows": [asdict(row) for row in rows.values()],
            "best": [asdict(each) for each in best],
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        _plot(rows, args.plot)
    return 0 if not wrong and all(each.met for each in best) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_size(parser)
    parser.add_argument("--repeats", type=int, default=7, help="rounds (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="of a call (default 1)")
    parser.add_argument("--only", action="append", help="of those whose name holds this; repeat it")
    parser.add_argument("--folder", type=Path, help="for some 20 GB of models (default: temporary)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratios to this file")
    return parser.parse_args()


def _conditions(args: argparse.Namespace) -> str:
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        f"{args.layers} layers; {versions}; threads: {args.threads} of {os.cpu_count()}; "
        f"load average before timing: {os.getloadavg()[0]:.1f}; memory on huge pages: {huge_pages()}"
    )


def _best(call: str, rows: Mapping[Contender, Row], bench: Bench) -> Best:
    def fastest(*, ours: bool) -> Contender:
        them = [c for c in rows if (c.plan is not None) == ours and (ours or not c.whole_numbers)]
        return max(them, key=lambda c: getattr(rows[c], call).of_least)

    ours, other = fastest(ours=True), fastest(ours=False)
    (prefill, _), decode = bench.beside(other, ours)
    return Best(call, ours.name, other.name, prefill if call == "prefill" else decode)


HEAD = (
    f"{'genai / it':<32}{'prefill (10% 50% 90%)':>26}{'decode step':>26}{'GFLOP/s':>9}"
    f"{'MB':>7}{'run MB':>8}{'export s':>9}{'MB':>7}{'logits':>9}"
)


def _cell(found: Ratio) -> str:
    return f"{found.of_least:.2f} ({found.low:.2f} {found.middle:.2f} {found.high:.2f})"


def _line(row: Row) -> str:
    """Return one line for people."""
    return (
        f"{row.name:<32}{_cell(row.prefill):>26}{_cell(row.decode):>26}{row.rate / 1e9:9.0f}"
        f"{row.size / 1e6:7.0f}{row.run_peak / 1e6:8.0f}{row.export_seconds:9.0f}"
        f"{row.export_peak / 1e6:7.0f}{row.apart:9.1e}"
    )


def _plot(rows: Mapping[Contender, Row], file: Path) -> None:
    """Draw the ratios of prefill and decode step, ours in colour, with the spread of rounds."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.34 * len(rows) + 1.2), layout="constrained")
    names = [row.name for row in rows.values()]
    colours = [OTHERS if c.plan is None else OURS for c in rows]
    for axes, call in zip(figure.subplots(1, 2, sharey=True), WANTED, strict=True):
        found: list[Ratio] = [getattr(row, call) for row in rows.values()]
        spread = [
            [max(0.0, r.of_least - r.low) for r in found],
            [max(0.0, r.high - r.of_least) for r in found],
        ]
        axes.barh(names, [r.of_least for r in found], xerr=spread, color=colours, ecolor="#333333")
        axes.axvline(1, color="#333333", linewidth=0.8)
        axes.set(xlabel=f"{call}: time of genai, fp32 / its own")
        axes.invert_yaxis()
    with mpl.rc_context({"svg.hashsalt": "vtcompress"}):
        figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    on_huge_pages("benchmarks.peers")
    sys.exit(main())
