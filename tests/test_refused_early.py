"""What a model's small files rule out is refused before its weight files are read even once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vtcompress
from compressor.errors import GatesError, PlanError, VtcompressError

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
        "compressor.families.folder.digest", lambda *_: pytest.fail("weights were read")
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
