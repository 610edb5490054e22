"""Times this project's decoder graphs beside the one that onnxruntime-genai's model builder makes.

Run from the repository: `python -m benchmarks.decoder`. Needs the extras `compress` and `cpu` and the
package `onnxruntime-genai` (install it with `--no-deps`). All graphs hold the same random weights:
fp32, hidden 896, 14 query heads on 2 key/value heads, MLP 4864, no biases; the prefill has 729 visual
and 64 text rows, the decode step one text row on a past of 800.

- `identity`: no compression; only the dead visual rows of the last layer are frozen.
- `naive`: every row in every layer, the original's own work.
- `frozen`: visual rows frozen in 14 of 24 layers.
- `genai`: onnxruntime-genai's builder, uncompressed, embeddings in and logits of the last row out.
- `genai in place`: the same, new keys written into the past's own buffers, as genai's runtime does.

Exit code 0 if all wanted bounds hold, 1 if one is missed or the graphs disagree.
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
from typing import get_args

import numpy as np

from benchmarks.decoder_models import (
    HEAD_DIM,
    HIDDEN,
    KV_HEADS,
    TEXT,
    VISUAL,
    add_size,
    build,
    plans,
)
from benchmarks.decoder_sessions import Array, Call, Graph, Prompt
from benchmarks.interleaved import (
    Clock,
    Ratio,
    Times,
    huge_pages,
    in_turns,
    on_huge_pages,
    ratio,
)
from compressor.plan.cost import predicted_speedup

PAST = 800
TEXT_BEFORE_IMAGE = 35
# A decode step is so short that it can be repeated more often.
STEPS_PER_REPEAT = 10
LOGITS_TOLERANCE = 1e-3
PACKAGES = ("onnxruntime", "onnxruntime-genai", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Figure:
    """One figure of the comparison, and what is wanted of it.

    Attributes:
        value: the ratio of the least times, or that ratio's share of the predicted one.
        rounds: the ratio behind it.
        at_most, at_least: wanted bounds; a figure without any is for information.
    """

    name: str
    value: float
    rounds: Ratio
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool:
        """Whether the figure is as wanted."""
        return not (
            (self.at_most is not None and self.value > self.at_most)
            or (self.at_least is not None and self.value < self.at_least)
        )

    def line(self) -> str:
        """Return one line for people."""
        wanted = ""
        if self.at_most is not None:
            wanted = f"<= {self.at_most:.2f} {'met' if self.met else 'MISSED'}"
        if self.at_least is not None:
            wanted = f">= {self.at_least:.2f} {'met' if self.met else 'MISSED'}"
        spread = f"{self.rounds.low:.3f}  {self.rounds.middle:.3f}  {self.rounds.high:.3f}"
        return f"{self.name:<44} {self.value:6.3f}  {wanted:<14}  {spread}"


def main() -> int:
    """Build, compare, time, print; return the exit code."""
    args = _arguments()
    with tempfile.TemporaryDirectory(prefix="vtcompress-bench-") as folder:
        print(f"building {args.layers} layers, vocabulary {args.vocab}", file=sys.stderr)
        files = build(Path(folder), args.layers, args.vocab)
        graphs = {name: Graph(file, threads=args.threads) for name, file in files.items()}
    prompt, row = prompts(args.layers)
    prefill = {name: graph.call(prompt) for name, graph in graphs.items()}
    step = {name: graph.call(row) for name, graph in graphs.items()}
    step["genai in place"] = graphs["genai"].call(row, in_place=True)
    # Freezing changes a prompt with an image, so the frozen graph is checked on text alone.
    exact = {**prefill, "frozen": graphs["frozen"].call(prompt.as_text())}
    differences = {"prefill": _differences(exact), "decode step": _differences(step)}
    for call, by_graph in differences.items():
        print(f"logits against genai, {call}:", *(f"{n} {d:.1e}" for n, d in by_graph.items()))
    # Not `>`: a NaN must fail too.
    if not all(d <= LOGITS_TOLERANCE for found in differences.values() for d in found.values()):
        print(f"apart by more than {LOGITS_TOLERANCE}: nothing was timed", file=sys.stderr)
        return 1
    conditions = _conditions(args)
    print(conditions)
    prefill_times = in_turns(prefill, repeats=args.repeats)
    step_times = in_turns(step, repeats=args.repeats * STEPS_PER_REPEAT, warm_up=3)
    print(_table(prefill_times, step_times))
    report: dict[str, object] = {
        "settings": {name: value for name, value in vars(args).items() if name != "json"},
        "conditions": conditions,
        "packages": {package: version(package) for package in PACKAGES},
        "logits_difference": differences,
        "prefill": _figures(prefill_times),
        "decode": _figures(step_times),
    }
    passed = True
    for clock in get_args(Clock):
        figures = _compare(args, prefill_times, step_times, clock)
        report[f"ratios_{clock}"] = [{**asdict(figure), "met": figure.met} for figure in figures]
        judged = "" if clock == args.clock else " (for information)"
        print(
            f"\n{f'ratios, {clock} time{judged}':<44}  least  wanted          rounds: 10%  50%  90%"
        )
        print("\n".join(figure.line() for figure in figures))
        if clock == args.clock:
            passed = all(figure.met for figure in figures)
    if args.json:
        args.json.write_text(json.dumps({**report, "passed": passed}, indent=1) + "\n")
    return 0 if passed else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decoder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_size(parser)
    parser.add_argument("--repeats", type=int, default=10, help="rounds (default 10)")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads (default 1)")
    parser.add_argument(
        "--clock",
        choices=get_args(Clock),
        default="wall",
        help="that the bounds are held to (default wall)",
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    if min(args.layers - 1, args.repeats, args.threads, args.vocab) < 1:
        parser.error("--layers must be at least 2, the other numbers at least 1")
    return args


def prompts(layers: int) -> tuple[Prompt, Prompt]:
    """Return the prefill and the decode step, on seeded rows and caches."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return generator.standard_normal(shape, dtype=np.float32)

    def caches(past: int) -> dict[str, Array]:
        names = [f"{i}.{part}" for i in range(layers) for part in ("key", "value")]
        return {name: normal(KV_HEADS, past, HEAD_DIM) for name in names}

    visual = np.arange(TEXT_BEFORE_IMAGE, TEXT_BEFORE_IMAGE + VISUAL)
    prefill = Prompt(normal(VISUAL + TEXT, HIDDEN), visual, caches(0))
    return prefill, Prompt(normal(1, HIDDEN), visual[:0], caches(PAST))


def _differences(calls: Mapping[str, Call]) -> dict[str, float]:
    """Return the largest difference of each call's logits from genai's."""
    expected = calls["genai"].logits()
    return {
        name: float(np.abs(call.logits() - expected).max())
        for name, call in calls.items()
        if name != "genai"
    }


def _compare(
    args: argparse.Namespace, prefill: dict[str, Times], step: dict[str, Times], clock: Clock
) -> list[Figure]:
    plan = plans(args.layers, args.vocab)["frozen"]
    predicted = predicted_speedup(plan)

    def against(
        title: str, times: dict[str, Times], slow: str, fast: str, at_most: float | None
    ) -> Figure:
        rounds = ratio(times[slow], times[fast], clock)
        return Figure(f"{title}: {slow} / {fast}", rounds.of_least, rounds, at_most=at_most)

    saved = ratio(prefill["naive"], prefill["frozen"], clock)
    reached = f"{saved.of_least:.2f} of {predicted:.2f} predicted"
    frozen = f"{len(plan.frozen_layers())} of {args.layers} frozen: {reached}"
    return [
        against("prefill", prefill, "identity", "genai", 1.05),
        against("prefill", prefill, "naive", "genai", None),
        against("decode step", step, "identity", "genai", 1.10),
        against("decode step", step, "identity", "genai in place", None),
        Figure(frozen, saved.of_least / predicted, saved, at_least=0.90),
    ]


def _conditions(args: argparse.Namespace) -> str:
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES[:2])
    return (
        f"{args.layers} layers, {VISUAL} visual + {TEXT} text rows, past {PAST} in decode, fp32\n"
        f"{versions}; threads: {args.threads} of {os.cpu_count()}; "
        f"load average before timing: {os.getloadavg()[0]:.1f}; "
        f"memory on huge pages: {huge_pages()}"
    )


def _figures(times: dict[str, Times]) -> dict[str, dict[str, object]]:
    return {
        name: {
            clock: {"least": t.least(clock), "median": t.median(clock), "all": t.of(clock)}
            for clock in get_args(Clock)
        }
        for name, t in times.items()
    }


def _table(prefill: dict[str, Times], step: dict[str, Times]) -> str:
    """Return seconds of prefill and milliseconds of a decode step, one graph a line."""
    titles = ("prefill wall, s", "prefill CPU, s", "decode wall, ms", "decode CPU, ms")
    lines = [f"{'least / median':<16}" + "".join(f"{title:>18}" for title in titles)]

    def cell(times: Times | None, clock: Clock, unit: float, digits: int) -> str:
        if times is None:
            return ""
        least, median = times.least(clock) / unit, times.median(clock) / unit
        return f"{least:.{digits}f} / {median:.{digits}f}"

    for name, steps in step.items():
        cells = [cell(prefill.get(name), clock, 1, 3) for clock in get_args(Clock)]
        cells += [cell(steps, clock, 1e-3, 1) for clock in get_args(Clock)]
        lines.append(f"{name:<16}" + "".join(f"{text:>18}" for text in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    on_huge_pages("benchmarks.decoder")
    sys.exit(main())
