"""How to install this tool, as texts and messages say it: from a clone or a wheel, never from an index."""

import re
import tomllib
from pathlib import Path

import pytest

from compressor.errors import MissingExtraError
from compressor.installing import WHEEL, how_to_install, wheel_command
from compressor.version import __version__

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "benchmarks",
    "compressor",
    "docs",
    "examples",
    "export",
    "recipes",
    "tests",
    "vtcompress",
)
KINDS = {".css", ".html", ".j2", ".md", ".py", ".toml", ".txt", ".yaml", ""}
TEXTS = sorted(
    path
    for place in (*ROOT.glob("*"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*")))
    for path in [place]
    if path.is_file()
    and path.suffix in KINDS
    # What a release said stays said; this file spells what it looks for.
    and path.name != "CHANGELOG.md"
    and path != Path(__file__)
)
# An extra of the bare name, or the bare name where an installer takes a requirement.
INDEX = re.compile(
    r"vtcompress\[|\b(?:pipx?3?|uv(?: pip| tool)?|conda|poetry) (?:install|add|run)\s+"
    r"(?:-\S+\s+)*['\"`]*vtcompress(?![-\w])"
)


def found_in(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if INDEX.search(line)]


def test_no_text_tells_to_install_from_an_index() -> None:
    assert len(TEXTS) > 200
    told = {
        str(path.relative_to(ROOT)): lines
        for path in TEXTS
        if (lines := found_in(path.read_text(encoding="utf-8", errors="replace")))
    }
    assert told == {}


@pytest.mark.parametrize(
    "text",
    [
        "pip install 'vtcompress[cpu]'",
        "pip install vtcompress",
        "env/bin/pip install -q --pre vtcompress==1",
        "f\"pip install 'vtcompress[{extra}]'\"",
        "otherwise 'vtcompress[cpu]'",
        "uv pip install vtcompress",
        "pipx install vtcompress",
    ],
)
def test_such_a_text_would_be_seen(text: str) -> None:
    assert found_in(text)


@pytest.mark.parametrize(
    "text", [how_to_install("cpu"), wheel_command("cpu"), "pip install '.[cpu]'  # vtcompress"]
)
def test_a_clone_and_a_wheel_are_not_an_index(text: str) -> None:
    assert not found_in(text)


def test_every_wheel_that_a_text_names_is_the_one_that_is_made() -> None:
    named = {
        name
        for path in TEXTS
        for name in re.findall(
            r"vtcompress-\d[^-\s]*-[\w-]+\.whl", path.read_text("utf-8", "replace")
        )
    }
    assert named == {WHEEL}
    assert __version__ in WHEEL


def test_every_extra_that_a_text_names_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(project["project"]["optional-dependencies"])
    named = {
        extra
        for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "Makefile")
        for group in re.findall(r"(?:\.whl|'\.)\[([\w,]+)\]'", path.read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    assert {"compress", "cpu", "rtx", "gpu"} <= named <= extras


def test_a_missing_extra_says_both_ways() -> None:
    told = str(MissingExtraError("planning", "compress"))
    assert "pip install '.[compress]' in a clone" in told
    assert f"pip install '{WHEEL}[compress]'" in told
