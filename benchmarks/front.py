"""The front of a search on the bundled model: fresh questions, one search, its plans."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import vtcompress
from benchmarks.sweep import EXAMPLE, MAX_NEW_TOKENS
from compressor.recipe import Recipe
from compressor.search.results import FRONT_FILE, SearchReport

PICTURES, SEED, KEEP = 100, 4, 0.99
"""Pictures of the questions, each with one of each kind; their seed; share of right answers to keep."""


def search_questions(mnist: Path, path: Path) -> Path:
    """Write questions on pictures of MNIST's training split, unless they are there; return their file."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _example():
            digits, prepare = map(import_module, ("digits", "prepare"))
        pool = digits.load_pool(mnist, "train")
        prepare.write_questions(path, pool, PICTURES, (digits.KINDS,), seed=SEED)
    return path


def search_recipe(questions: Path) -> Recipe:
    """Return the recipe of the search."""
    values = {
        "model.id": str(EXAMPLE / "model"),
        "calibrate.data": questions,
        "compress.auto.keep": KEEP,
        "validate.max_new_tokens": MAX_NEW_TOKENS,
    }
    return vtcompress.load_recipe("auto").override(values)


def searched(questions: Path, folder: Path, budget: float) -> SearchReport:
    """Return a search's report, which is run unless its folder is there.

    Args:
        questions: to search by.
        folder: of the search.
        budget: seconds for it.
    """
    if not (folder / FRONT_FILE).is_file():
        vtcompress.search(search_recipe(questions), folder, budget=budget, progress=True)
    return SearchReport.load(folder / FRONT_FILE)


@contextmanager
def _example() -> Iterator[None]:
    """Let the example's own modules be imported, which is no package."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        yield
    finally:
        sys.path.remove(str(EXAMPLE))
