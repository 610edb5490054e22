"""One thing given in the place of another is called what it is, in one line with the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import vtcompress
from compressor.disk.gate_file import GateFile
from compressor.disk.mistaken import kind_of, mistaken
from compressor.errors import ProblemsError
from compressor.plan.measured_cost import MeasuredCosts
from compressor.plan.plan import Plan
from compressor.profile import Profile
from compressor.samples.questions import read_samples
from tests import facts
from tests.artifacts import RECIPE, make_artifact
from tests.searches import SEARCHES

Vt = Callable[..., tuple[int, str, str]]
READERS: dict[str, Callable[[Path], Any]] = {
    "plan": Plan.load,
    "profile": Profile.load,
    "costs": MeasuredCosts.load,
    "recipe": vtcompress.load_recipe,
    "data": read_samples,
    "gates": GateFile.read,
    "artifact": vtcompress.Artifact.open,
    "compressed": vtcompress.load_compressed,
}


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Path]:
    """Return one of each kind."""
    places = {
        "plan": tmp_path / "a.json",
        "profile": tmp_path / "b.json",
        "costs": tmp_path / "h.json",
        "search": tmp_path / "front" / "front.json",
        "recipe": tmp_path / "c.yaml",
        "data": tmp_path / "d.jsonl",
        "gates": tmp_path / "e.safetensors",
        "compressed": tmp_path / "f",
        "model": tmp_path / "g",
    }
    facts.plan([1]).save(places["plan"])
    facts.profile([[0.1] * 6]).save(places["profile"])
    facts.costs().save(places["costs"])
    next(iter(SEARCHES.values())).save(places["search"])
    places["recipe"].write_text(f"# mine\n{RECIPE}", encoding="utf-8")
    places["data"].write_text('{"image": "x.png", "question": "what?"}\n', encoding="utf-8")
    save_file({"x": np.zeros(1, np.float32)}, places["gates"])
    for kind in ("compressed", "model"):
        places[kind].mkdir()
        (places[kind] / "config.json").write_text("{}", encoding="utf-8")
    facts.plan([1]).save(places["compressed"] / "plan.json")
    return {"artifact": make_artifact(tmp_path / "artifact"), **places}


def test_each_is_told_from_the_others(given: dict[str, Path], tmp_path: Path) -> None:
    assert {kind: kind_of(path) for kind, path in given.items()} == {k: k for k in given}
    (tmp_path / "empty").write_bytes(b"")
    for other in (tmp_path, tmp_path / "empty", tmp_path / "none", Path("x\0"), Path("n" * 999)):
        assert kind_of(other) is None


@pytest.mark.parametrize("wanted", READERS)
def test_every_reader_calls_every_other_thing_by_its_name_in_one_line(
    wanted: str, given: dict[str, Path]
) -> None:
    for kind, path in given.items():
        if kind == wanted:
            continue
        with pytest.raises(ProblemsError) as caught:
            READERS[wanted](path)
        (problem,) = caught.value.problems
        assert problem == mistaken(path, wanted)  # type: ignore[arg-type]
        assert problem.startswith(f"{path}: ")


def test_remedies_name_the_file_in_a_folder_and_the_argument(given: dict[str, Path]) -> None:
    folder, small = given["artifact"], given["compressed"]
    assert mistaken(given["profile"], "plan") == (
        f"{given['profile']}: a profile, not a plan; give it as `profile`"
    )
    assert mistaken(folder, "plan") == (
        f"{folder}: an artifact, not a plan; give the file in it, {folder / 'plan.json'}"
    )
    assert str(mistaken(folder, "recipe")).endswith(f"the file in it, {folder / 'recipe.yaml'}")
    assert str(mistaken(small, "profile")).endswith("not a profile; give a profile")
    assert str(mistaken(small, "artifact")).endswith(
        "make an artifact of it with `vtcompress export`"
    )
    assert str(mistaken(given["plan"], "artifact")).endswith("not an artifact; give an artifact")
    front = given["search"]
    assert mistaken(front, "costs") == (
        f"{front}: what `vtcompress search` found, not measured costs; give measured costs"
    )
    for place in (front, front.parent):
        chosen = front.parent / "chosen.json"
        assert str(mistaken(place, "plan")).endswith(f"give one of its plans, such as {chosen}")


def test_a_search_is_inspected_by_its_folder_and_its_file(given: dict[str, Path]) -> None:
    for place in (given["search"], given["search"].parent):
        found = vtcompress.inspect(place)
        assert (found["kind"], found["asked"]) == ("search", "keep: 0.97")
    assert str(mistaken(given["model"], "compressed")).endswith("wrote; give it as `model`")


def test_a_command_says_its_own_options(vt: Vt, given: dict[str, Path], tmp_path: Path) -> None:
    asked = ["export", "--recipe", "shortv", "--model", "x", "--output", tmp_path / "out"]
    for option, kind, said in (
        ("--plan", "profile", "a profile, not a plan; give it as --profile"),
        ("--profile", "plan", "a plan, not a profile; give it as --plan"),
        ("--recipe", "profile", "a profile, not a recipe; give it as --profile"),
        ("--recipe", "artifact", f"give the file in it, {given['artifact'] / 'recipe.yaml'}"),
        ("--plan", "artifact", f"give the file in it, {given['artifact'] / 'plan.json'}"),
        ("--data", "recipe", "a recipe, not a file of questions; give it as --recipe"),
        (
            "--compressed",
            "plan",
            "a plan, not a folder that `vtcompress compress` wrote; give it as",
        ),
    ):
        code, _, err = vt(*asked, option, given[kind])
        assert (code, err.count("\n")) == (1, 1), err
        assert err.startswith(f"error: {given[kind]}: ")
        assert said in err


def test_a_command_without_such_an_option_names_none(vt: Vt, given: dict[str, Path]) -> None:
    asked = ["plan", "--recipe", "shortv", "--model", "x", "--output", "out.json"]
    code, _, err = vt(*asked, "--profile", given["plan"])
    assert code == 1
    assert err == f"error: {given['plan']}: a plan, not a profile\n"


def test_an_artifact_whose_manifest_is_lost_is_no_compressed_folder(
    vt: Vt, given: dict[str, Path]
) -> None:
    (given["artifact"] / "manifest.json").unlink()
    (given["artifact"] / "vision.onnx").touch()
    _, _, err = vt("report", given["artifact"])
    assert "vtcompress compress" not in err
    assert "manifest.json" in err
