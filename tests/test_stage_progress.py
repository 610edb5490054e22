"""The Python API tells what it does on a terminal, and nothing where its stderr is no terminal."""

import inspect
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vtcompress
from compressor.progress import SILENT

# They read small files alone.
QUICK = {"inspect", "load_recipe", "models"}
STAGES = {
    name: function
    for name in vtcompress.__all__
    if inspect.isfunction(function := getattr(vtcompress, name)) and name not in QUICK
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", sorted(STAGES))
def test_every_stage_takes_a_progress_and_shows_its_own_by_default(name: str) -> None:
    parameter = inspect.signature(STAGES[name]).parameters["progress"]
    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
    assert parameter.default is None


def test_there_are_stages_to_judge() -> None:
    assert {"calibrate", "plan", "compress", "export", "bench", "train_gates"} <= set(STAGES)


@pytest.fixture
def recipe(llava: Callable[[str], Path]) -> vtcompress.Recipe:
    return vtcompress.load_recipe("identity").override({"model.id": str(llava("clip+llama"))})


def told(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    work()
    return stream.getvalue()


def test_on_a_terminal_stages_are_announced(
    recipe: vtcompress.Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = vtcompress.plan(recipe)
    assert "reading the weights" in told(Terminal(), monkeypatch, lambda: vtcompress.plan(recipe))
    folder = tmp_path / "small"
    said = told(Terminal(), monkeypatch, lambda: vtcompress.compress(recipe, plan, folder))
    assert "loading" in said
    assert "loading" in told(Terminal(), monkeypatch, lambda: vtcompress.load_compressed(folder))


def test_elsewhere_and_with_a_progress_of_ones_own_nothing_is_said(
    recipe: vtcompress.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(io.StringIO(), monkeypatch, lambda: vtcompress.plan(recipe)) == ""
    assert told(Terminal(), monkeypatch, lambda: vtcompress.plan(recipe, progress=SILENT)) == ""


def test_without_a_stderr_nothing_is_said(
    recipe: vtcompress.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    vtcompress.plan(recipe)
