"""What the repository holds is what was put there on purpose: nothing that a run left behind."""

import subprocess
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
TOP = {
    ".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "benchmarks", "compressor",
    "constraints.txt", "docker", "docs", "examples", "export", "pyproject.toml", "recipes", "tests",
    "vtcompress",
}  # fmt: skip
WRITTEN_BY_HAND = {
    "",
    ".dockerignore",
    ".py",
    ".md",
    ".yaml",
    ".toml",
    ".typed",
    ".j2",
    ".css",
    ".txt",
    ".mjs",
    ".html",
}
"""Endings of files that may lie anywhere below the top."""

MADE = {
    "docs/figures": {".png", ".svg"},
    "examples/digits-llava": {".json", ".jsonl", ".png", ".svg", ".safetensors", ".jinja"},
    "tests/golden": {".json", ".safetensors"},
    "tests/node": {".json"},
}
"""Where files that a program wrote belong, by their endings."""


def strays(names: list[str]) -> list[str]:
    """Return the files that lie where none of their kind belongs."""
    found = []
    for name in names:
        path = PurePosixPath(name)
        known = path.parts[0] in TOP and path.suffix in WRITTEN_BY_HAND
        made = any(
            path.is_relative_to(folder) and path.suffix in kinds for folder, kinds in MADE.items()
        )
        if not (known or made):
            found.append(name)
    return found


def test_nothing_that_a_run_left_behind_is_tracked() -> None:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git, or a copy without its history")
    names = [name for name in listed.stdout.split("\0") if name]
    if not names:
        pytest.skip("nothing is tracked here")
    assert {PurePosixPath(name).parts[0] for name in names} == TOP
    assert strays(names) == []


@pytest.mark.parametrize(
    "name",
    [
        "a.png",
        "plan.json",
        "tests/a.png",
        "export/vision.onnx",
        "tests/golden/a.png",
        "build/manifest.json",
        "examples/a.json",
        "docs/figures/weights.bin",
    ],
)
def test_a_stray_file_is_found_wherever_it_lies(name: str) -> None:
    assert strays([name]) == [name]
