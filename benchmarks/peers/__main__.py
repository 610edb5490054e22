"""Times this project's graphs beside those of other exporters and runtimes: one model, one prompt.

Run from the repository: `python -m benchmarks.peers` for decoders alone, with `--image` for the first token
from pixels. Needs the extras `compress`, `cpu` and `openvino`; decoders also the package `onnxruntime-genai`
(install it with `--no-deps`).

Decoders: the model, its random weights and the prompt are those of `benchmarks.decoder`: 24 layers, hidden
896, 729 visual and 64 text rows, a decode step on a past of 800.

- `genai`: onnxruntime-genai's builder, fp32 and int4; its graphs in ONNX Runtime.
- `transformers`: its exporters for ONNX (as it is, and fused for ONNX Runtime) and OpenVINO; and torch.
- Ours: `identity`, `frozen` (visual rows frozen in 14 of 24 layers), `half` (the same, and half of the visual
  rows go in), float and int4, in ONNX Runtime and in OpenVINO with its own choice of precision.

`--image`: a LLaVA of random weights, 8 layers of hidden 896 behind a tower of 6 layers of 512, 576 visual and
64 text rows; tower, projector, merging and prefill. genai's builder writes no graph of a LLaVA.

- `torch eager`: transformers' own model, the reference.
- `transformers, ... whole`: its exporter's one graph from pixels and tokens to logits.
- `transformers, ... pieces`: tower, projector and decoder exported one by one and joined by hand.
- Ours: `vtcompress export` and `Runtime`; the same plans, frozen in 5 of 8 layers.

Each is timed beside the reference in turns, in a process of its own; then the fastest of ours beside the
fastest of the others with float weights. Memory is that of a process that loads one and runs it.

Exit code 0 if all wanted bounds hold, 1 if one is missed, or if float32 logits are not as expected: on text
those of `genai`, from pixels those of torch with the same plan.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.decoder import LOGITS_TOLERANCE
from benchmarks.interleaved import Ratio, huge_pages, on_huge_pages
from benchmarks.peers import decoders
from benchmarks.peers.contenders import Contender
from benchmarks.peers.image import comparison as image
from benchmarks.peers.measuring import Bench, Conditions, Row
from benchmarks.peers.showing import head, line, plot, ratio_cell

PACKAGES = ("onnxruntime", "onnxruntime-genai", "openvino", "torch", "transformers")


@dataclass(frozen=True)
class Best:
    """The fastest of ours beside the fastest of the others with float weights, in one call.

    Attributes:
        call: its name.
        ours, other: names.
        found: the other's time divided by ours.
        wanted: at least; None: any.
    """

    call: str
    ours: str
    other: str
    found: Ratio
    wanted: float | None

    @property
    def met(self) -> bool:
        """Whether it is as much as wanted."""
        return self.wanted is None or self.found.of_least >= self.wanted

    def __str__(self) -> str:
        wanted = "" if self.wanted is None else f", wanted {self.wanted:g}: "
        verdict = "" if self.wanted is None else "met" if self.met else "MISSED"
        return f"{self.call}: {self.other} / {self.ours}: {ratio_cell(self.found)}{wanted}{verdict}"


def main() -> int:
    """Make, compare, time, print; return the exit code."""
    args = _arguments()
    compared = image.comparison() if args.image else decoders.comparison()
    layers = args.layers or (image.LAYERS if args.image else decoders.LAYERS)
    reference, *others = compared.contenders
    chosen = [c for c in others if not args.only or any(only in c.name for only in args.only)]
    with tempfile.TemporaryDirectory(prefix="vtcompress-peers-", dir=args.folder) as name:
        size = Conditions(Path(name), layers, args.vocab, args.threads, args.repeats)
        bench = Bench(compared, size)
        bench.make((reference, *chosen))
        conditions = _conditions(size)
        print(conditions)
        matmul = bench.matmul_rate()
        print(f"the MLP's widest product in torch, float32: {matmul / 1e9:.0f} GFLOP/s")
        print(head([*compared.calls], reference.name), flush=True)
        rows = {}
        for contender in (reference, *chosen):
            rows[contender] = bench.row(contender)
            print(line(rows[contender], [*compared.calls]), flush=True)
        best = [_best(call, bound, rows, bench) for call, bound in compared.wanted.items()]
    wrong = [row.name for c, row in rows.items() if c.exact and not row.apart <= LOGITS_TOLERANCE]
    print("\n".join(map(str, best)))
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
        plot(rows, [*compared.calls], args.plot)
    return 0 if not wrong and all(each.met for each in best) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--image", action="store_true", help="the first token from pixels")
    parser.add_argument(
        "--layers",
        type=int,
        help=f"of the decoder, fewer for a quick try (default {decoders.LAYERS}, "
        f"with --image {image.LAYERS})",
    )
    parser.add_argument("--vocab", type=int, default=32_000, help="of decoders (default 32000)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="of a call (default 1)")
    parser.add_argument("--only", action="append", help="of those whose name holds this; repeat it")
    parser.add_argument("--folder", type=Path, help="for some 20 GB of models (default: temporary)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratios to this file")
    return parser.parse_args()


def _conditions(size: Conditions) -> str:
    return (
        f"{size.layers} layers; {', '.join(map(_version, PACKAGES))}; "
        f"threads: {size.threads} of {os.cpu_count()}; "
        f"load average before timing: {os.getloadavg()[0]:.1f}; memory on huge pages: {huge_pages()}"
    )


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def _best(call: str, wanted: float | None, rows: Mapping[Contender, Row], bench: Bench) -> Best:
    def fastest(*, ours: bool) -> Contender:
        them = [c for c in rows if (c.plan is not None) == ours and (ours or not c.whole_numbers)]
        return max(them, key=lambda c: rows[c].ratios[call].of_least)

    ours, other = fastest(ours=True), fastest(ours=False)
    return Best(call, ours.name, other.name, bench.beside(other, ours)[call][0], wanted)


if __name__ == "__main__":
    on_huge_pages("benchmarks.peers")
    sys.exit(main())
