"""Every method on the bundled model at 75, 50 and 25% of the visual tokens, beside baselines: one sweep.

    python -m benchmarks.methods_table --output DIR [--method NAME ..] [--questions 300] [--rounds 15]
        [--no-measure]

Writes what `vtcompress sweep` writes; `sweep.md` holds the table of docs/methods.md. Methods with a share
`keep` of the tokens are found by themselves. The others are given a share of what they cut: layers,
operators, the depth, heads, neurons; one that is not listed here, or reads trained weights that nobody
has, is left out and named. A run that was stopped goes on.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import vtcompress
from benchmarks.sweep import EXAMPLE, MAX_NEW_TOKENS
from compressor.contract.method import Method
from compressor.methods import METHODS
from compressor.recipe import Recipe, parse_recipe

SHARES = (0.75, 0.5, 0.25)
OTHERS: dict[str, tuple[dict[str, Any], ...]] = {
    # Of the layers, operators and depth that visual tokens are worked on, as many stay.
    "shortv": tuple({"frozen": 1 - share} for share in SHARES),
    "skip": tuple({"share": 1 - share} for share in SHARES),
    "visual_exit": tuple({"layer": share} for share in SHARES),
    "yopo": (
        *({"heads": {"keep": share}} for share in SHARES),
        *({"mlp_ratio": ratio, "select": "activation"} for ratio in (2, 4)),
    ),
    "dyvte": ({"gates": EXAMPLE / "gates.safetensors", "gate_width": 32},),
}
"""Entries of methods without a share of the tokens that they keep."""


def entries(method: type[Method]) -> tuple[dict[str, Any], ...]:
    """Return what is asked of a method, an entry a point; none: it is left out."""
    keeps = "keep" in method.model_fields and not method.weights_key
    return OTHERS.get(method.name, tuple({"keep": share} for share in SHARES) if keeps else ())


def recipes(names: Sequence[str] = ()) -> Iterator[Recipe]:
    """Yield a recipe for every point of some methods, baselines aside; no names: of all."""
    for method in (m for m in METHODS if not m.baseline and (not names or m.name in names)):
        for entry in entries(method):
            data = {
                "vtcompress": 2,
                "model": {"id": str(EXAMPLE / "model")},
                "calibrate": {"data": EXAMPLE / "calibration.jsonl", "samples": 64},
                "compress": ({method.name: entry},),
            }
            yield parse_recipe(data, method.name)


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description="every method on the bundled model")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--method", action="append", default=[], help="may be repeated")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-measure", action="store_true")
    options = parser.parse_args()
    # Two threads on two busy cores can be several times slower than one.
    torch.set_num_threads(1)
    if missing := [method.name for method in METHODS if not entries(method)]:
        print(f"left out, as they have no share to sweep: {', '.join(missing)}")
    validation = {
        "validate.data": EXAMPLE / "heldout.jsonl",
        "validate.samples": options.questions,
        "validate.max_new_tokens": MAX_NEW_TOKENS,
    }
    vtcompress.sweep(
        [recipe.override(validation) for recipe in recipes(options.method)],
        options.output,
        measure=not options.no_measure,
        rounds=options.rounds,
        progress=True,
    )


if __name__ == "__main__":
    main()
