"""Every method on the bundled model at 75, 50 and 25% of the visual tokens, beside baselines: one sweep.

    python -m benchmarks.methods_table --output DIR [--method NAME ..] [--questions 300] [--rounds 15]
        [--no-measure] [--no-baselines] [--steps 200] [--train-data FILE]

Writes what `vtcompress sweep` writes; `sweep.md` holds the table of docs/methods.md. Methods with a share
`keep` of the tokens are found by themselves. The others are given a share of what they cut: layers,
operators, the depth, heads, neurons; one that is not listed here is left out and named. What methods learn
is trained first (`vtcompress train-parts`, on the calibration questions or on others), into `DIR-parts`, a
folder a point. A run that was stopped goes on.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import vtcompress
from benchmarks.sweep import EXAMPLE, MAX_NEW_TOKENS
from compressor.contract.asked import method_words
from compressor.contract.learned import PartTraining
from compressor.contract.method import Method
from compressor.contract.searched import SearchedMethod
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


TOGETHER: dict[str, tuple[tuple[dict[str, Any], ...], ...]] = {
    "wico": (({"wico": {}},),),
    "wico_plus": (
        *(({"pool": {"keep": share}}, {"wico_plus": {}}) for share in SHARES),
        ({"wico": {}}, {"wico_plus": {}}),
    ),
}
"""Entries of each point of methods that have one setting, or come behind another method."""


def points(method: type[Method]) -> tuple[tuple[dict[str, Any], ...], ...]:
    """Return what is asked of a method, the entries of each point; none: it is left out."""
    if method.name in TOGETHER:
        return TOGETHER[method.name]
    keeps = "keep" in method.model_fields and not issubclass(method, SearchedMethod)
    asked = OTHERS.get(method.name, tuple({"keep": share} for share in SHARES) if keeps else ())
    return tuple(({method.name: entry},) for entry in asked)


def recipes(names: Sequence[str] = ()) -> Iterator[Recipe]:
    """Yield a recipe for every point of some methods, baselines aside; no names: of all."""
    for method in (m for m in METHODS if not m.baseline and (not names or m.name in names)):
        for asked in points(method):
            data = {
                "vtcompress": 2,
                "model": {"id": str(EXAMPLE / "model")},
                "calibrate": {"data": EXAMPLE / "calibration.jsonl", "samples": 64},
                "compress": asked,
            }
            yield parse_recipe(data, method.name)


def with_parts(recipe: Recipe, folder: Path, data: Path, steps: int) -> Recipe:
    """Return a recipe with what its methods learn, trained if that was not done yet."""
    learns = next((method for method in recipe.methods if method.learns), None)
    if learns is None:
        return recipe
    words = " ".join(map(method_words, recipe.methods))
    # Files of one name in folders of their own: a point's label has the name, where names differ.
    file = folder / re.sub(r"[^a-z0-9.]+", "-", words).strip("-") / "trained.safetensors"
    if not file.exists():
        print(f"training: {words}", flush=True)
        train = PartTraining(steps=steps)
        report = vtcompress.train_parts(recipe, data, file, train=train, progress=True)
        print(
            f"KL {report.kl_before:.3f} before, {report.kl_after:.3f} after, {report.seconds:.0f} s"
        )
    return recipe.override({f"compress.{learns.name}.{learns.learns}": file})


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description="every method on the bundled model")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--method", action="append", default=[], help="may be repeated")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-measure", action="store_true")
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--steps", type=int, default=200, help="of the training of parts")
    parser.add_argument("--train-data", type=Path, default=EXAMPLE / "calibration.jsonl")
    options = parser.parse_args()
    # Two threads on two busy cores can be several times slower than one.
    torch.set_num_threads(1)
    if missing := [method.name for method in METHODS if not points(method)]:
        print(f"left out, as they have no share to sweep: {', '.join(missing)}")
    validation = {
        "validate.data": EXAMPLE / "heldout.jsonl",
        "validate.samples": options.questions,
        "validate.max_new_tokens": MAX_NEW_TOKENS,
    }
    parts = options.output.with_name(f"{options.output.name}-parts")
    vtcompress.sweep(
        [
            with_parts(recipe, parts, options.train_data, options.steps).override(validation)
            for recipe in recipes(options.method)
        ],
        options.output,
        baselines=not options.no_baselines,
        measure=not options.no_measure,
        rounds=options.rounds,
        progress=True,
    )


if __name__ == "__main__":
    main()
