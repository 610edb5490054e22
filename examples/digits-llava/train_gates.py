"""Train DyVTE's gates for the bundled model on fresh questions, and report on the held-out ones.

    python train_gates.py --mnist FOLDER

The questions are drawn by another seed than the calibration and the held-out ones, of digits of the
training split, into a temporary folder. Recipe: ``recipes/dyvte.yaml`` with the settings below.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from digits import KINDS, load_pool
from prepare import HERE, write_questions

import vtcompress
from vtcompress.console import Output
from vtcompress.stages.gates.report import show_gates

PICTURES, SEED = 250, 3


def main() -> None:
    """Read the command line, train, write ``gates.safetensors`` and ``gates.json``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=HERE / "gates.safetensors")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    recipe = vtcompress.load_recipe("dyvte").override({"model.id": HERE / "model"})
    out = Output()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "gate-training.jsonl"
        write_questions(data, load_pool(options.mnist, "train"), PICTURES, (KINDS,), seed=SEED)
        report = vtcompress.train_gates(
            recipe,
            data,
            options.output,
            held_out=HERE / "heldout.jsonl",
            overwrite=options.overwrite,
            progress=out,
        )
    show_gates(out, report)


if __name__ == "__main__":
    main()
