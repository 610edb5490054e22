"""What a file or folder is that was given in the place of another: told from its first bytes and names."""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from compressor.disk.opening import open_regular
from compressor.disk.paths import shown_path, unusable

Kind = Literal[
    "plan",
    "profile",
    "costs",
    "recipe",
    "data",
    "gates",
    "artifact",
    "compressed",
    "model",
    "search",
    "packed",
]
"""What stages read, by the argument that takes it."""

WORDS: Final[Mapping[str, str]] = {
    "plan": "a plan",
    "profile": "a profile",
    "costs": "measured costs",
    "recipe": "a recipe",
    "data": "a file of questions",
    "gates": "a file of weights",
    "artifact": "an artifact",
    "compressed": "a folder that `vtcompress compress` wrote",
    "model": "the folder of a model",
    "search": "what `vtcompress search` found",
    "packed": "what `vtcompress pack` wrote for a stock client",
}

FRONT, CHOSEN = "front.json", "chosen.json"
"""Of the folder of a search: what it found, and the plan that it chose."""

PACK_FILE = "pack.json"
"""Of a folder for a stock client."""

_HEAD_BYTES = 1 << 16
_STARTS: tuple[tuple[Kind, re.Pattern[bytes]], ...] = (
    ("plan", re.compile(rb'\s*\{.*"plan_format"\s*:', re.DOTALL)),
    ("profile", re.compile(rb'\s*\{.*"profile_format"\s*:', re.DOTALL)),
    ("costs", re.compile(rb'\s*\{.*"costs_format"\s*:', re.DOTALL)),
    ("search", re.compile(rb'\s*\{.*"search_format"\s*:', re.DOTALL)),
    ("recipe", re.compile(rb"(?:.*\n)?vtcompress\s*:", re.DOTALL)),
    ("data", re.compile(rb'\s*\{[^\n]*"question"\s*:')),
    # The length of the header, and the header, which is JSON.
    ("gates", re.compile(rb".{5}\0\0\0\{", re.DOTALL)),
)
# What shows which folder it is; an artifact holds a plan too, and what `compress` wrote a configuration.
_HOLDS: tuple[tuple[Kind, str], ...] = (
    ("packed", PACK_FILE),
    ("artifact", "manifest.json"),
    ("artifact", "vision.onnx"),  # whose manifest is lost, which is told when it is opened
    ("search", FRONT),
    ("compressed", "plan.json"),
    ("model", "config.json"),
)
_FOLDERS = {kind for kind, _ in _HOLDS}
_IN_FOLDERS: Mapping[str, str] = {
    "plan": "plan.json",
    "profile": "profile.json",
    "recipe": "recipe.yaml",
}


def kind_of(path: Path) -> Kind | None:
    """Return what a file or folder is; None: nothing that is known here, or nothing that can be read."""
    with contextlib.suppress(OSError, ValueError):
        if path.is_dir():
            return next((kind for kind, name in _HOLDS if (path / name).is_file()), None)
        if not path.is_file():  # a pipe would be waited for
            return None
        with open_regular(path) as file:
            head = file.read(_HEAD_BYTES)
        return next((kind for kind, start in _STARTS if start.match(head)), None)
    return None


def mistaken(path: Path, wanted: Kind) -> str | None:
    """Return the problem of what cannot be read as what is wanted, with the remedy.

    Args:
        path: that was given.
        wanted: what it should be.

    Returns:
        None: it is not known to be something else, and is no pipe, device or name that no file can have.
    """
    if (reason := unusable(path)) is not None:
        return f"{shown_path(path)}: {reason}"
    kind = kind_of(path)
    if kind in (None, wanted):
        return None
    inside = path / _IN_FOLDERS.get(wanted, os.curdir)
    if kind == "packed":
        remedy = f"its client loads it; give {WORDS[wanted]}"
    elif kind == "search" and wanted == "plan":
        folder = path if path.is_dir() else path.parent
        remedy = f"give one of its plans, such as {folder / CHOSEN}"
    elif path.is_dir() and inside.is_file():
        remedy = f"give the file in it, {inside}"
    elif wanted == "artifact" and kind in ("compressed", "model"):
        remedy = "make an artifact of it with `vtcompress export`"
    elif (kind in _FOLDERS and (kind, wanted) != ("model", "compressed")) or wanted == "artifact":
        remedy = f"give {WORDS[wanted]}"
    else:
        remedy = f"give it as `{kind}`"
    return f"{path}: {WORDS[str(kind)]}, not {WORDS[wanted]}; {remedy}"
