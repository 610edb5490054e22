"""transformers.js in Node: where node and the npm package are found, and a packed folder asked in it."""

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import PackError
from export.clients.client import Answered, CheckQuestion

PACKAGE = "@huggingface/transformers"
INSTALL = (
    f"`npm install {PACKAGE}`, and run this where its node_modules lies or name that in NODE_PATH"
)
LONGEST_S = 3600
"""Seconds after which a run in Node is given up."""


@dataclass(frozen=True)
class Dialogue:
    """A conversation about one picture.

    Attributes:
        turns: questions, one after another.
        image: file of the picture; None: there is none.
        max_new_tokens: longest answer of each turn.
    """

    turns: tuple[str, ...]
    image: Path | None
    max_new_tokens: int


@dataclass(frozen=True)
class NpmPackage:
    """An installed package of npm.

    Attributes:
        folder: it lies in.
    """

    folder: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        """Its package.json."""
        found: dict[str, Any] = json.loads((self.folder / "package.json").read_text("utf-8"))
        return found

    @property
    def version(self) -> str:
        """Its version."""
        return str(self.about["version"])

    @property
    def entry(self) -> Path:
        """The module that Node imports."""
        return self.folder / str(self.about["exports"]["node"]["import"]["default"])


def find_package(name: str = PACKAGE) -> NpmPackage | None:
    """Return an npm package as Node would find it: in `NODE_PATH`, then in `node_modules` here and above."""
    given = os.environ.get("NODE_PATH", "")
    here = Path.cwd()
    folders = [Path(one) for one in given.split(os.pathsep) if one]
    folders += [folder / "node_modules" for folder in (here, *here.parents)]
    found = (folder / name for folder in folders)
    return next((NpmPackage(one) for one in found if (one / "package.json").is_file()), None)


def lacking() -> str:
    """Return what is missing to ask the client, in words; empty: nothing."""
    if shutil.which("node") is None:
        return "node is not installed"
    if find_package() is None:
        return f"the npm package {PACKAGE} is not installed: {INSTALL}"
    return ""


def answers_in_node(
    folder: Path, questions: Sequence[CheckQuestion], pictures: Path
) -> list[Answered] | str:
    """Return what the client answers questions with one picture or none, or why it was not asked.

    Args:
        folder: as `pack` writes it.
        questions: of the self-check.
        pictures: `pictures.mjs` as it was packed.

    Raises:
        PackError: as `ask_in_node`.
    """
    if reason := lacking():
        return reason
    asked = [
        Dialogue((q.question,), next(iter(q.images), None), q.max_new_tokens) for q in questions
    ]
    return [turns[0] for turns in ask_in_node(folder, asked, pictures)]


def ask_in_node(
    folder: Path, conversations: Sequence[Dialogue], pictures: Path
) -> list[list[Answered]]:
    """Ask the client conversations about pictures of a packed folder; `lacking` must be empty.

    Args:
        folder: as `pack` writes it.
        conversations: each about one picture.
        pictures: `pictures.mjs` as it was packed.

    Returns:
        Of each conversation what became of every turn.

    Raises:
        PackError: the client cannot load the folder, or fails over a question.
    """
    node, package = shutil.which("node"), find_package()
    if node is None or package is None:
        raise RuntimeError(lacking())
    job = {
        "client": str(package.entry.resolve()),
        "folder": str(folder.resolve()),
        "pictures": str(pictures.resolve()),
        "conversations": [
            {
                "turns": one.turns,
                "image": one.image and str(one.image.resolve()),
                "max_new_tokens": one.max_new_tokens,
            }
            for one in conversations
        ],
    }
    with as_file(files(__package__) / "ask.mjs") as script:
        ran = subprocess.run(  # noqa: S603 -- the user's own node, and our script
            [node, str(script)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
    if ran.returncode:
        raise PackError([f"{folder}: {PACKAGE} {package.version} fails: {_reason(ran.stderr)}"])
    return [[_answered(turn) for turn in found] for found in json.loads(ran.stdout)]


def _answered(turn: dict[str, Any]) -> Answered:
    pixels = None
    if turn["pixels"] is not None:
        pixels = np.frombuffer(base64.b64decode(turn["pixels"]), np.float32)
        pixels = pixels.reshape(turn["shape"])
    return Answered(turn["text"], tuple(turn["token_ids"]), pixels)


def _reason(errors: str) -> str:
    """Return the line of Node's report that says what was wrong."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    told = (line for line in lines if re.match(r"\w*Error(?: \[\w+\])?: ", line))
    return next(told, lines[-1] if lines else "no words")
