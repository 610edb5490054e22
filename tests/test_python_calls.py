"""What Python callers get wrong is said in Python's terms, in one line."""

import inspect
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vtcompress
from compressor.errors import BackendError, DataError, RecipeError
from compressor.generation.settings import check_new_tokens, check_positions
from compressor.progress import SILENT
from compressor.schema.arguments import check_threads
from export.runtime.runtime import Runtime
from tests.artifacts import make_artifact
from vtcompress.cli.main import cli, run_command
from vtcompress.console import Output, shown


def test_an_override_from_python_speaks_of_no_command_line() -> None:
    with pytest.raises(RecipeError) as caught:
        vtcompress.load_recipe("shortv").override({"foo.bar": 1})
    assert caught.value.problems[0].startswith("override: foo: unknown key")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "null is no mapping of keys, such as {'export.dtype': 'float16'}"),
        ([("export.dtype", "float16")], "is no mapping of keys"),
        ("export.dtype=float16", "is no mapping of keys"),
        ({5: 1}, "5: a key is text, such as 'export.dtype'"),
        ({"compress": {5: 1}}, "5: a key is text"),
        ({"export": {None: 1}}, "null: a key is text"),
        ({b"model.id": "x"}, "b'model.id': a key is text"),
    ],
)
def test_what_gives_no_values_by_key_is_refused_in_one_line(
    given: Any, said: str, tmp_path: Path
) -> None:
    recipe = vtcompress.load_recipe("identity")
    with pytest.raises(RecipeError) as caught:
        recipe.override(given)
    (line,) = caught.value.problems
    assert line.startswith("override: ")
    assert said in line
    if given:
        artifact = make_artifact(tmp_path / "artifact")
        with pytest.raises(RecipeError, match=f"^limits: .*{re.escape(said)}"):
            vtcompress.validate(artifact, limits=given)


@pytest.mark.parametrize(
    "stage",
    [
        "calibrate",
        "compress",
        "export",
        "heal",
        "plan",
        "search",
        "sweep",
        "train_gates",
        "train_parts",
    ],
)
def test_a_name_in_place_of_a_recipe_is_refused_with_the_remedy(stage: str, tmp_path: Path) -> None:
    trained = dict.fromkeys(("train_gates", "train_parts", "heal"), ("d", "x"))
    more = {"plan": (), "compress": (None, tmp_path / "x"), **trained}.get(stage, (tmp_path / "x",))
    with pytest.raises(TypeError) as caught:
        getattr(vtcompress, stage)("shortv", *more)
    assert str(caught.value) == (
        "recipe: 'shortv' is a str, not a recipe; give load_recipe(...) of a name or a file"
    )


@pytest.mark.parametrize("given", [None, 3])
def test_what_is_no_path_of_an_artifact_is_refused_by_type(given: object) -> None:
    with pytest.raises(TypeError) as caught:
        Runtime.load(given)  # type: ignore[arg-type]
    assert str(caught.value) == f"path: {given!r} is no path of an artifact's folder"


STAGES: dict[str, Callable[..., Any]] = {
    "Runtime.load": Runtime.load,
    "bench": vtcompress.bench,
    "validate": vtcompress.validate,
    "validate_backend": partial(vtcompress.validate_backend, backend="openvino"),
    "selftest": vtcompress.selftest,
    "export": lambda path, **given: vtcompress.export(
        vtcompress.load_recipe("identity"), path, **given
    ),
}


IDENTITY = vtcompress.load_recipe("identity")
SHOWING: dict[str, Callable[..., Any]] = {
    **{name: stage for name, stage in STAGES.items() if name != "Runtime.load"},
    "calibrate": partial(vtcompress.calibrate, IDENTITY),
    "compress": lambda path, **given: vtcompress.compress(IDENTITY, None, path, **given),  # type: ignore[arg-type]
    "heal": lambda path, **given: vtcompress.heal(IDENTITY, path, path, **given),
    "load_compressed": vtcompress.load_compressed,
    "merge_profiles": lambda path, **given: vtcompress.merge_profiles([path], path, **given),
    "costs": partial(vtcompress.costs, IDENTITY),
    "pack": lambda path, **given: vtcompress.pack(path, "onnxruntime-genai", path, **given),
    "plan": lambda _, **given: vtcompress.plan(IDENTITY, **given),
    "search": partial(vtcompress.search, IDENTITY),
    "sweep": partial(vtcompress.sweep, IDENTITY),
    "train_gates": lambda path, **given: vtcompress.train_gates(
        vtcompress.load_recipe("dyvte"), path, path, **given
    ),
    "train_parts": lambda path, **given: vtcompress.train_parts(
        vtcompress.load_recipe("mod"), path, path, **given
    ),
}


def test_every_stage_of_python_with_progress_is_asked() -> None:
    having = {
        name
        for name in vtcompress.__all__
        if inspect.isfunction(stage := getattr(vtcompress, name))
        and "progress" in inspect.signature(stage).parameters
    }
    assert having == SHOWING.keys()


@pytest.mark.parametrize("stage", SHOWING)
@pytest.mark.parametrize("given", [1, "yes", [], Output, print])
def test_what_shows_no_progress_is_refused_first(stage: str, given: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError) as caught:
        SHOWING[stage](tmp_path / "none", progress=given)
    assert str(caught.value) == (
        f"progress: {given!r:.60} shows nothing: it has no methods track and say; give True, False, None or "
        "what has them"
    )


def test_progress_is_shown_as_by_a_command_or_not_at_all(tmp_path: Path) -> None:
    assert isinstance(shown(True), Output)
    assert shown(False) is SILENT
    own = Output(verbosity=1)
    assert shown(own) is own
    for given in (True, False):
        with pytest.raises(vtcompress.VtcompressError, match="no such folder"):
            vtcompress.bench(tmp_path / "none", progress=given)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, 3, 100_000])
def test_what_is_no_number_of_threads_that_this_machine_has_is_refused_first(
    stage: str, threads: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(BackendError) as caught:
        STAGES[stage](tmp_path / "none", threads=threads)
    assert str(caught.value) == (
        f"threads: {threads!r} is not allowed; a whole number, 1 to 2, as many as this machine has "
        "processors"
    )


@pytest.mark.parametrize("threads", [None, 1, 2, np.int64(2)])
def test_so_many_threads_as_processors_are_allowed(
    threads: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    check_threads(threads)


def test_no_thread_is_made_by_a_command_that_asks_for_a_hundred_thousand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command with the option; the folder need not be an artifact, for nothing was looked at."""
    given = ["--threads", "100000"]
    asked = {
        "bench": [],
        "validate": [],
        "selftest": [],
        "generate": ["--prompt", "hi"],
        "serve": [],
        "export": ["--recipe", "identity", "--output", str(tmp_path / "out")],
        "sweep": ["--recipe", "identity", "--output", str(tmp_path / "out")],
        "costs": ["--recipe", "identity", "--output", str(tmp_path / "out")],
    }
    having = {
        name
        for name, command in cli.commands.items()
        if any("--threads" in option.opts for option in command.params)
    }
    assert having == asked.keys()
    for command, more in asked.items():
        place = [] if command in ("export", "sweep", "costs") else [str(tmp_path)]
        assert run_command([command, *place, *more, *given]) == 1
        assert capsys.readouterr().err.startswith("error: threads: 100000 is not allowed; ")


@pytest.mark.parametrize(
    ("stage", "name", "value", "allowed"),
    [
        ("bench", "images", 0, "1 or more"),
        ("bench", "text", 0, "1 or more"),
        ("bench", "rounds", "3", "1 or more"),
        ("export", "bench_rounds", -1, "0 or more"),
        ("Runtime.load", "gpu", -1, "0 or more"),
        ("validate_backend", "gpu", True, "0 or more"),
        ("selftest", "gpu", -1, "0 or more"),
    ],
)
def test_other_numbers_are_refused_by_their_names(
    stage: str, name: str, value: object, allowed: str, tmp_path: Path
) -> None:
    with pytest.raises(BackendError) as caught:
        STAGES[stage](tmp_path / "none", **{name: value})
    assert str(caught.value) == f"{name}: {value!r} is not allowed; a whole number, {allowed}"


@pytest.mark.parametrize("given", [0, -1, 1.5, "3", None, True])
def test_a_longest_answer_that_is_none_is_refused_in_one_line(given: object) -> None:
    with pytest.raises(DataError) as caught:
        check_new_tokens(given)
    assert caught.value.problems == (
        f"max_new_tokens: {given!r} is not allowed; a whole number, 1 or more",
    )


def test_a_whole_number_of_an_array_is_a_length() -> None:
    check_new_tokens(np.int64(8))
    with pytest.raises(DataError):
        check_new_tokens(np.float64(8))


def test_a_prompt_that_fills_the_model_is_not_told_to_ask_for_no_token() -> None:
    with pytest.raises(
        DataError, match=r"2 new tokens do not fit: shorten it or ask for at most 1$"
    ):
        check_positions(9, 2, 10)
    with pytest.raises(DataError, match=r"do not fit: shorten it, or give fewer pictures$"):
        check_positions(10, 1, 10)
