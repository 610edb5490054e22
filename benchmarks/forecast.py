"""What exports take of the processor, beside what is forecast of them, and the constants that fit best.

    python -m benchmarks.forecast [--rounds 2]

Each export is `vtcompress export --recipe identity` in float32, a process of its own, of a narrow model of
LLaVA-1.5's kind; streamed, and in memory without timing. The machine's pace is asked before and behind each;
seconds are told in those of a machine whose pace is `STEP`, by the mean of both. The constants of
`vtcompress/stages/checks/forecast_time.py` are to be the least of this table: no export may take less.
"""

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.decoder_models import in_own_process
from benchmarks.streaming import vtcompress
from tests.llava_7b import make_llava_7b
from tests.models import Variant, make_llava
from vtcompress.stages.checks.forecast import numbers_in
from vtcompress.stages.checks.forecast_time import (
    BASE,
    LAYER,
    NUMBERS,
    STEP,
    TOWER_LAYER,
    step_seconds,
)


class Shape(NamedTuple):
    """Of a model: layers of decoder and tower, and the decoder's width."""

    layers: int
    tower: int
    width: int


NARROW = 64
SHAPES = (Shape(2, 2, NARROW), Shape(12, 2, NARROW), Shape(2, 12, NARROW), Shape(4, 2, 2048))


class Taken(NamedTuple):
    """An export.

    Attributes:
        shape: of its model.
        numbers: of its weights.
        stream: whether it was streamed.
        seconds: of the processor.
        before, after: the machine's pace, seconds of the fixed piece of work.
    """

    shape: Shape
    numbers: int
    stream: bool
    seconds: float
    before: float
    after: float

    @property
    def amounts(self) -> tuple[int, int, int, int]:
        """What each constant is multiplied with."""
        return 1, self.shape.layers, self.shape.tower, self.numbers

    @property
    def paced(self) -> float:
        """Seconds on a machine whose pace is `STEP`."""
        return self.seconds * 2 * STEP / (self.before + self.after)

    @property
    def forecast(self) -> float:
        """What is forecast for that machine."""
        of = constants(self.stream)
        return sum(one * count for one, count in zip(of, self.amounts, strict=True))

    def __str__(self) -> str:
        shape = f"{self.shape.layers} decoder and {self.shape.tower} tower layers, width {self.shape.width}"
        pace = f"pace {1e3 * self.before:.1f} and {1e3 * self.after:.1f} ms, so {self.paced:.1f} s"
        return (
            f"{how(self.stream)}, {shape}, {self.numbers / 1e6:.0f} million numbers: {self.seconds:.1f} s, "
            f"{pace}; forecast {self.forecast:.1f} s"
        )


def how(stream: bool) -> str:
    """Return the words for how an export was made."""
    return "streamed" if stream else "in memory"


def constants(stream: bool) -> tuple[float, float, float, float]:
    """Return the constants of the forecast: of any export, a decoder layer, a tower layer, a number."""
    return BASE[stream], LAYER[stream], TOWER_LAYER[stream], NUMBERS[stream]


def make(folder: Path, shape: Shape) -> Path:
    """Write a model of random weights: narrow ones of 16 visual tokens and 48 words, else 576 and 32,064."""
    if shape.width == NARROW:
        return make_llava(folder, Variant(layers=shape.layers, tower_layers=shape.tower))
    text = {
        "hidden_size": shape.width, "intermediate_size": 43 * shape.width // 16,
        "num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": shape.layers,
    }  # fmt: skip
    vision = {
        "hidden_size": NARROW, "intermediate_size": 2 * NARROW, "num_attention_heads": 4,
        "num_hidden_layers": shape.tower,
    }  # fmt: skip
    return make_llava_7b(folder, text=text, vision=vision)


def taken(model: Path, shape: Shape, output: Path, *, stream: bool) -> Taken:
    """Export a model once."""
    before = step_seconds()
    took = vtcompress(
        "export", "--recipe=identity", f"--model={model}", f"--output={output}",
        "--dtype=float32", "--overwrite", "--stream" if stream else "--bench-rounds=0",
    )  # fmt: skip
    numbers = numbers_in(model, "float32" if shape.width == NARROW else "float16")
    return Taken(shape, numbers, stream, took.processor, before, step_seconds())


def fitted(rows: list[Taken]) -> list[float]:
    """Return the constants that fit some exports best, by the square of what they miss of each."""
    amounts = np.array([row.amounts for row in rows]) / [[row.paced] for row in rows]
    found, *_ = np.linalg.lstsq(amounts, np.ones(len(rows)), rcond=None)
    return [float(one) for one in found]


def main() -> None:
    """Export, print, fit."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forecast",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=2, help="exports of each kind (default 2)")
    options = parser.parse_args()
    found: list[Taken] = []
    with tempfile.TemporaryDirectory(prefix="vtcompress-bench-") as name:
        folder = Path(name)
        models = {
            shape: in_own_process(make, folder / f"model{number}", shape)
            for number, shape in enumerate(SHAPES)
        }
        for _ in range(options.rounds):
            for shape, model in models.items():
                for stream in (False, True):
                    row = taken(model, shape, folder / "out", stream=stream)
                    found.append(row)
                    print(row, flush=True)
    for stream in (False, True):
        rows = [row for row in found if row.stream is stream]
        of_all, layer, tower, number = fitted(rows)
        least = min(row.paced / row.forecast for row in rows)
        print(
            f"{how(stream)}: {of_all:.2f} s, {layer:.2f} s a decoder layer, {tower:.2f} s a tower layer, "
            f"{1e9 * number:.1f} s a thousand million numbers; measured / forecast {least:.2f} at least"
        )


if __name__ == "__main__":
    main()
