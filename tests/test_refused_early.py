"""What a model's small files rule out is refused before its weight files are read even once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vtcompress
from compressor.errors import ArtifactError, GatesError, PlanError, VtcompressError
from compressor.plan.plan import Gates
from compressor.profile import Profile
from tests import facts

IMPOSSIBLE: dict[str, tuple[dict[str, Any], type[VtcompressError], str]] = {
    "a window larger than the grid": ({"yopo": {"window": 25}}, PlanError, "token grid"),
    "a ratio that does not divide": ({"yopo": {"mlp_ratio": 7}}, PlanError, "does not divide"),
    "no such head mask": ({"yopo": {"heads": {"mask": "none.npy"}}}, PlanError, "none.npy"),
    "a layer beyond the last": ({"visual_exit": {"layer": 99}}, PlanError, "99 is outside"),
    "no gates": ({"dyvte": {"gates": "none.safetensors"}}, GatesError, "no such file"),
}


@pytest.mark.parametrize("stage", ["export", "calibrate", "plan"])
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_methods_are_refused_before_any_weight_file_is_read(
    stage: str,
    name: str,
    llava: Callable[[str], Path],
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method, error, words = IMPOSSIBLE[name]
    monkeypatch.setattr(
        "compressor.families.folder.digest", lambda *_, **__: pytest.fail("weights were read")
    )
    recipe = vtcompress.load_recipe("identity").override(
        {"model.id": str(llava("clip+llama")), "calibrate.data": questions, "compress": [method]}
    )
    run = {
        "export": lambda: vtcompress.export(recipe, tmp_path / "out"),
        "calibrate": lambda: vtcompress.calibrate(recipe, tmp_path / "profile.json"),
        "plan": lambda: vtcompress.plan(recipe),
    }[stage]
    with pytest.raises(error, match=words):
        run()
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "profile.json").exists()


PROFILES: dict[str, tuple[dict[str, Any], Profile | None, str]] = {
    "no profile": ({"shortv": {"frozen": 0.5}}, None, "profile"),
    "a profile of other measures": (
        {"visual_exit": {"max_kl": 0.1}}, facts.profile([[0.1, 0.2]]), "exit_kl",
    ),
    "a profile that is not complete": (
        {"shortv": {"frozen": 0.5}}, facts.profile([[0.1, 0.2]], total=2), "1 of 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("plan", "no profile"),
        *((stage, name) for stage in ("export", "plan") for name in list(PROFILES)[1:]),
    ],
)
def test_what_no_plan_can_be_made_from_is_refused_before_any_weight_file_is_read(
    stage: str, name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, profile, words = PROFILES[name]
    monkeypatch.setattr(
        "compressor.families.folder.digest", lambda *_, **__: pytest.fail("weights were read")
    )
    recipe = vtcompress.load_recipe("identity").override(
        {"model.id": str(tiny_model), "compress": [method]}
    )
    run = {
        "export": lambda: vtcompress.export(recipe, tmp_path / "out", profile=profile),
        "plan": lambda: vtcompress.plan(recipe, profile),
    }[stage]
    with pytest.raises(PlanError, match=words):
        run()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model is loaded; its digest may be taken."""
    for place in ("compressor.families.load", "compressor.compressed.load_compressed"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("a model was loaded"))


@pytest.mark.usefixtures("no_loading")
def test_a_plan_or_profile_of_another_model_is_refused_before_the_model_is_loaded(
    tiny_model: Path, tmp_path: Path
) -> None:
    recipe = vtcompress.load_recipe("identity").override({"model.id": str(tiny_model)})
    other = facts.plan([1])
    with pytest.raises(ArtifactError, match="the plan was made for owner/little-model, not for "):
        vtcompress.compress(recipe, other, tmp_path / "out")
    profile = facts.profile([[0.1, 0.2, 0.3, 0.4]])
    with pytest.raises(VtcompressError, match="measured on another model"):
        vtcompress.compress(recipe, vtcompress.plan(recipe), tmp_path / "out", profile=profile)
    gates = Gates(candidates=(1,), mode="dynamic", width=4, digest="a" * 64)
    with pytest.raises(GatesError, match="the recipe names no gates"):
        vtcompress.compress(recipe, other.model_copy(update={"gates": gates}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_another_original_than_an_artifact_was_made_from_is_named_before_it_is_loaded(
    tiny_model: Path,
    tiny_artifact: Path,
    llava: Callable[[str], Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    recipe = vtcompress.load_recipe("identity").override({"model.id": str(tiny_model)})
    small = vtcompress.compress(recipe, vtcompress.plan(recipe), tmp_path / "small")
    request.getfixturevalue("no_loading")
    other = llava("siglip+qwen2, tied, biases")
    words = (
        f"the plan was made for {tiny_model.name}, not for {other.name} \\(digest .*give the model"
    )
    again = recipe.override({"model.id": str(other)})
    with pytest.raises(ArtifactError, match=f"small: {words} that the folder was made from"):
        vtcompress.export(again, tmp_path / "out", compressed=small)
    with pytest.raises(ArtifactError, match=f"tiny: {words} that it was exported from"):
        vtcompress.validate(tiny_artifact, model=str(other))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["export", "export from a plan", "compress"])
def test_a_folder_that_holds_what_is_read_is_not_replaced(
    stage: str, tiny_model: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    recipe = vtcompress.load_recipe("identity").override({"model.id": str(tiny_model)})
    output = Path(shutil.copytree(tiny_artifact, tmp_path / "out"))
    path = output / "profile.json"
    facts.profile([[0.1, 0.2, 0.3, 0.4]]).save(path)
    plan = facts.plan([1])
    run = {
        "export": lambda: vtcompress.export(recipe, output, profile=path, overwrite=True),
        "export from a plan": lambda: vtcompress.export(
            recipe, output, plan=output / "plan.json", overwrite=True
        ),
        "compress": lambda: vtcompress.compress(recipe, plan, output, profile=path, overwrite=True),
    }[stage]
    with pytest.raises(VtcompressError, match=r"holds .*p[a-z]+\.json, which this run reads"):
        run()
    assert path.is_file()
