"""What is asked is done, refused or said to have no effect: no option is dropped in silence."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vtcompress
from compressor.errors import BackendError, RecipeError, VtcompressError
from export.backends.tensorrt.build import plan_engines
from export.runtime.runtime import Runtime
from tests.artifacts import make_artifact
from tests.test_prompts_early import Said

Vt = Callable[..., tuple[int, str, str]]


def bare(model: Path, **values: Any) -> vtcompress.Recipe:
    return vtcompress.load_recipe("identity").override({"model.id": str(model), **values})


def notes(stage: Callable[..., Any], *given: Any, **more: Any) -> list[str]:
    """Return the notes of a stage, up to where it loads a model."""
    said = Said()
    with contextlib.suppress(pytest.fail.Exception, VtcompressError):
        stage(*given, **more, progress=said)
    return [line for line in said.lines if line.startswith("note: ")]


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        (["--model", "a"], "model.id=b"),
        (["--revision", "a"], "model={revision: b}"),
        (["--trust-remote-code"], "model.trust_remote_code=false"),
        (["--data", "a.jsonl"], "calibrate.data=b.jsonl"),
        (["--samples", "3"], "calibrate.samples=4"),
        (["--seed", "0"], "calibrate={seed: 4}"),
        (["--gates", "a.safetensors"], "compress[0].dyvte.gates=b.safetensors"),
        (["--dtype", "float16"], "export.dtype=float32"),
        (["--validate-data", "a.jsonl"], "validate.data=b.jsonl"),
        (["--validate-samples", "3"], "validate.samples=4"),
    ],
)
def test_an_option_and_a_setting_of_one_key_are_wrong_usage(
    vt: Vt, option: list[str], setting: str, tmp_path: Path
) -> None:
    recipe = "dyvte" if "gates" in setting else "shortv"
    asked = ["export", "--recipe", recipe, "--output", tmp_path / "out"]
    code, _, err = vt(*asked, *option, "--set", setting)
    assert code == 2
    assert f"{option[0]} and --set" in err
    assert "say the same; give one of them" in err


def test_a_setting_that_is_given_twice_is_wrong_usage_and_two_of_one_section_are_not(
    vt: Vt, tmp_path: Path
) -> None:
    asked = ["plan", "--recipe", "identity", "--output", tmp_path / "plan.json"]
    code, _, err = vt(*asked, "--set", "calibrate.seed=1", "--set", "calibrate.seed=2")
    assert code == 2
    assert "--set calibrate.seed is given twice" in err
    code, _, err = vt(*asked, "--samples", "3", "--set", "calibrate={seed: 2}")
    assert code == 1
    assert "the recipe names no model" in err


def test_a_draw_of_validation_data_that_is_not_there_is_told(
    tiny_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.families.load", lambda *_, **__: pytest.fail("loaded"))
    drawn = {"validate.samples": 5, "validate.seed": 7}
    told = [
        f"note: {key}: {value}: has no effect: there is no validation data"
        for key, value in drawn.items()
    ]
    gated = vtcompress.load_recipe("dyvte").override({"model.id": str(tiny_model)})
    gates = (questions, tmp_path / "gates.safetensors")
    for recipe, expected in ((bare(tiny_model, **drawn), told), (bare(tiny_model), [])):
        assert notes(vtcompress.export, recipe, tmp_path / "out") == expected
    assert notes(vtcompress.train_gates, gated.override(drawn), *gates) == told
    assert notes(vtcompress.train_gates, gated, *gates) == []
    with_data = bare(tiny_model, **drawn, **{"validate.data": questions})
    assert notes(vtcompress.export, with_data, tmp_path / "out") == []


def test_threads_of_an_export_that_times_nothing_are_told(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.families.load", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    export = vtcompress.export
    found = notes(export, bare(tiny_model), tmp_path / "out", bench_rounds=0, threads=2)
    assert found == ["note: threads: 2: has no effect: nothing is timed"]
    assert notes(export, bare(tiny_model), tmp_path / "out", threads=2) == []


@pytest.fixture
def small(tiny_model: Path, tmp_path: Path) -> Path:
    """Return a folder with the plan of a compressed model, and what is read of it before weights."""
    return vtcompress.compress(
        bare(tiny_model), vtcompress.plan(bare(tiny_model)), tmp_path / "small"
    )


def test_what_names_the_original_of_a_compressed_folder_is_read_or_told(
    small: Path, tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "compressor.compressed.load_compressed", lambda *_, **__: pytest.fail("read")
    )
    recipe = vtcompress.load_recipe("identity")
    given = {"model.id": "owner/other", "model.revision": "v1", "model.trust_remote_code": True}
    found = notes(vtcompress.export, recipe.override(given), tmp_path / "out", compressed=small)
    why = "without validation data the original of a folder is not loaded"
    assert found == [f"note: {key}: {value}: has no effect: {why}" for key, value in given.items()]
    assert notes(vtcompress.export, recipe, tmp_path / "out", compressed=small) == []
    # Nothing says that the folder was made of what the recipe names, so the card does not.
    origins = []
    monkeypatch.setattr("vtcompress.stages.export.origin_of", lambda name, _: origins.append(name))
    notes(vtcompress.export, recipe.override(given), tmp_path / "out", compressed=small)
    assert origins == [None]
    # With validation data the original is needed, and was left out in silence.
    asked = recipe.override({"validate.data": questions})
    with pytest.raises(RecipeError, match=r"model\.id: the recipe names no model"):
        vtcompress.export(asked, tmp_path / "out", compressed=small)


def test_options_of_the_original_go_with_it(vt: Vt, tmp_path: Path) -> None:
    files = (["--gates", "x.safetensors"], ["--weights", "x.safetensors"])
    for option in (*files, ["--trust-remote-code"]):
        code, _, err = vt("validate", tmp_path, *option)
        assert code == 2
        assert f"{option[0]} " in err
        assert "--model; give it as well" in err.replace(" alone", "")
    for given in ({"gates": "x"}, {"weights": "x"}, {"trust_remote_code": True}):
        with pytest.raises(VtcompressError, match="is read with the original alone; give model"):
            vtcompress.validate(tmp_path, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_threads_of_engines_are_refused(backend: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="runs on the GPU, in no threads; leave out threads"):
        Runtime.load(tmp_path, backend=backend, threads=1)


def test_a_gpu_for_engines_that_are_built_without_one_is_refused(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    with pytest.raises(BackendError, match="is built without a GPU; leave out `gpu`"):
        plan_engines(artifact, "tensorrt-rtx", gpu=1, dry=True)
