"""Every method on the bundled model beside baselines and the front of a search, on held-out questions.

    python -m benchmarks.methods_table --output DIR [--mnist FOLDER] [--budget 12m] [--method NAME ..]
        [--questions 300] [--rounds 15] [--no-measure] [--no-baselines] [--steps 200] [--train-data FILE]

One `vtcompress sweep`: every method at 75, 50 and 25% of the visual tokens, or with a share of what it cuts
(`benchmarks.dials`), and as much of it as is predicted nearest to 1.5, 2, 2.5, 3, 3.5 and 4 times less work;
one that has no share to set is left out and named. With MNIST's four files in a folder it searches first, on
fresh questions of the training split, and every plan of the front is a point, too; the chosen one is judged
on all held-out questions besides, in `DIR-chosen`.

`sweep.md` holds the tables of docs/methods.md, `sweep.svg` is its figure. What methods learn is trained first
(`vtcompress train-parts`, on the calibration questions or on others), into `DIR-parts`, a folder a point;
the search is in `DIR-front`, its questions in `DIR-questions`. A run that was stopped goes on.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import vtcompress
from benchmarks.dials import SPEEDS, Entries, at_speeds, dials, recipe_of
from benchmarks.front import search_questions, search_recipe, searched
from benchmarks.sweep import EXAMPLE, MAX_NEW_TOKENS
from compressor.calibration.resume import Task
from compressor.calibration.run import calibrate
from compressor.contract.asked import method_words
from compressor.contract.learned import PartTraining
from compressor.contract.method import Method
from compressor.families import load
from compressor.methods import METHODS
from compressor.planner import measures_of
from compressor.recipe import Recipe
from compressor.samples.questions import read_samples
from vtcompress.cli.kinds import Duration


def points(method: type[Method]) -> tuple[Entries, ...]:
    """Return what is asked of a method at the three shares, the entries of each point; none: nothing."""
    return tuple(dial.asked(value) for dial in dials(method) for value in dial.values)


def _methods(names: Sequence[str]) -> Iterator[type[Method]]:
    yield from (m for m in METHODS if not m.baseline and (not names or m.name in names))


def recipes(names: Sequence[str] = ()) -> Iterator[Recipe]:
    """Yield a recipe for every point at the three shares, baselines aside; no names: of all methods."""
    for method in _methods(names):
        for asked in points(method):
            yield recipe_of(method.name, asked)


def recipes_at_speeds(names: Sequence[str], profile: Path) -> Iterator[Recipe]:
    """Yield a recipe for every speed that a method meets, where none of the three shares does.

    Args:
        names: of the methods; none: of all.
        profile: file of the calibration that the plans are made by; a run that was stopped goes on with it.
    """
    model, data = load(str(EXAMPLE / "model")), EXAMPLE / "calibration.jsonl"
    asked = [m for recipe in recipes(names) if recipe.gated is None for m in recipe.methods]
    task = Task.of(model.facts, model.digest, read_samples(data), data.name, measures_of(asked))
    found = calibrate(model, task, profile)
    for method in _methods(names):
        yield from at_speeds(method, SPEEDS, model, found)


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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="every method on the bundled model")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--mnist", type=Path, help="its four files; with them, a search comes first"
    )
    parser.add_argument("--budget", default="12m", help="of the search")
    parser.add_argument("--method", action="append", default=[], help="may be repeated")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-measure", action="store_true")
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--steps", type=int, default=200, help="of the training of parts")
    parser.add_argument("--train-data", type=Path, default=EXAMPLE / "calibration.jsonl")
    return parser.parse_args()


def main() -> None:
    """Run the search and the sweep."""
    options = _options()
    # Two threads on two busy cores can be several times slower than one.
    torch.set_num_threads(1)
    output, names = options.output, options.method

    def beside(what: str) -> Path:
        return output.with_name(f"{output.name}-{what}")  # type: ignore[no-any-return]

    if missing := [method.name for method in METHODS if not points(method)]:
        print(f"left out, as they have no share to sweep: {', '.join(missing)}")
    judged: dict[str, Any] = {
        "calibrate.data": EXAMPLE / "calibration.jsonl",
        "calibrate.samples": 64,
        "validate.data": EXAMPLE / "heldout.jsonl",
        "validate.max_new_tokens": MAX_NEW_TOKENS,
    }
    front, plans, chosen = [], [], None
    if options.mnist is not None:
        questions = search_questions(options.mnist, beside("questions") / "search.jsonl")
        budget = Duration().convert(options.budget, None, None)
        report = searched(questions, beside("front"), budget)
        plans = [beside("front") / point.plan for point in report.front]
        chosen = beside("front") / report.chosen_point.plan
        front = [search_recipe(questions).override(judged)]
    every = [*recipes(names), *recipes_at_speeds(names, beside("profile.json"))]
    ruled = [
        with_parts(recipe, beside("parts"), options.train_data, options.steps).override(judged)
        for recipe in every
    ]
    vtcompress.sweep(
        [one.override({"validate.samples": options.questions}) for one in (*front, *ruled)],
        output,
        plans=plans,
        baselines=not options.no_baselines,
        measure=not options.no_measure,
        rounds=options.rounds,
        progress=True,
    )
    if chosen is not None:
        vtcompress.sweep(front, beside("chosen"), plans=[chosen], measure=False, progress=True)


if __name__ == "__main__":
    main()
