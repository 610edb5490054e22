"""The recipes that come with vtcompress: where they are, what each is for, finding one by name."""

import os
from dataclasses import dataclass
from pathlib import Path

from compressor.disk.mistaken import mistaken
from compressor.disk.paths import at_home, shown_path, unusable
from compressor.errors import RecipeError
from compressor.recipe import Recipe
from compressor.recipe import load_recipe as read_recipe
from compressor.schema.problems import nearest, show

MODEL_LINE = "Model: "


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that comes with vtcompress.

    Attributes:
        name: what the command line accepts, such as `shortv`.
        path: its file.
        title: first line of the file's leading comment.
        explanation: the whole leading comment, title included, without the comment signs.
        model: which models it is for, from the comment's line `Model: ...`.
    """

    name: str
    path: Path
    title: str
    explanation: str
    model: str


def recipes_folder() -> Path:
    """Returns the folder of shipped recipes: an installed wheel's, else the repository's."""
    here = Path(__file__).resolve().parent
    installed = here / "recipes"
    return installed if installed.is_dir() else here.parent / "recipes"


def shipped_recipes() -> tuple[ShippedRecipe, ...]:
    """Returns the shipped recipes, ordered by name."""
    return tuple(_described(path) for path in _files())


def find_recipe(name_or_path: str) -> Path:
    """Returns the file of a recipe; an existing file wins over a shipped recipe of the same name.

    Args:
        name_or_path: path of a file, or name of a shipped recipe with or without `.yaml`.

    Raises:
        RecipeError: neither exists; names the nearest shipped recipe.
    """
    name_or_path = at_home(name_or_path)
    # os.path answers False for a name the system refuses; Path.is_file raises for a long one.
    if os.path.isfile(name_or_path):  # noqa: PTH113
        return Path(name_or_path)
    if (reason := unusable(Path(name_or_path))) is not None:
        raise RecipeError([f"{shown_path(Path(name_or_path))}: {reason}"])
    shipped = {file.stem: file for file in _files()}
    name = name_or_path.removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    if (problem := mistaken(Path(name_or_path), "recipe")) is not None:
        raise RecipeError([problem])
    missing = f"{show(name_or_path)}: no such file, and no shipped recipe has this name"
    raise RecipeError([f"{missing}{nearest(name, shipped)} (shipped: {', '.join(shipped)})"])


def _files() -> list[Path]:
    return sorted(recipes_folder().glob("*.yaml"), key=lambda path: path.stem)


def _described(path: Path) -> ShippedRecipe:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" ").rstrip())
    explanation = "\n".join(lines).strip()
    models = [line.removeprefix(MODEL_LINE) for line in lines if line.startswith(MODEL_LINE)]
    return ShippedRecipe(path.stem, path, lines[0], explanation, " ".join(models))


PathLike = str | Path


def load_recipe(name_or_path: PathLike) -> Recipe:
    """Read a recipe file, or a shipped recipe by name.

    Raises:
        RecipeError: there is no such recipe, or it is not valid.
    """
    return read_recipe(find_recipe(str(name_or_path)))
