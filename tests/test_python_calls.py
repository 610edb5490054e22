"""What Python callers get wrong is said in Python's terms, in one line."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vtcompress
from compressor.errors import BackendError, DataError, RecipeError
from compressor.generation.settings import check_new_tokens, check_positions
from export.runtime.runtime import Runtime
from tests.artifacts import make_artifact


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


@pytest.mark.parametrize("stage", ["calibrate", "compress", "export", "plan", "train_gates"])
def test_a_name_in_place_of_a_recipe_is_refused_with_the_remedy(stage: str, tmp_path: Path) -> None:
    more = {"plan": (), "compress": (None, tmp_path / "x"), "train_gates": ("d", "x")}.get(
        stage, (tmp_path / "x",)
    )
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


@pytest.mark.parametrize("threads", [0, -1])
def test_fewer_threads_than_one_are_refused(threads: int, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=f"^threads: {threads} is not allowed; 1 or more"):
        Runtime.load(tmp_path, threads=threads)


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
