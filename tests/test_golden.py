"""`python -m tests.golden` on the authors' numbers, as a command: passes, prints, and can fail."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden.__main__ import main

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"


Golden = Callable[[Path], tuple[int, str]]


@pytest.fixture
def golden(capsys: pytest.CaptureFixture[str]) -> Golden:
    """Return a function that runs the command in this process and gives exit code and output."""

    def call(folder: Path) -> tuple[int, str]:
        code = main([str(folder)])
        return code, capsys.readouterr().out

    return call


@pytest.mark.parametrize(
    ("case", "forms", "more"),
    [
        (
            "shortv",
            ("torch", "onnx"),
            ["ok   layer contribution", "ok   layer ranking", "onnx (60, 60, 60, 60, 60, 60)"],
        ),
        ("vtw", ("torch", "onnx"), ["onnx (60, 60, 60, 44, 44, 44)"]),
        ("yopo", ("torch", "onnx"), ["onnx (620, 620, 620, 620, 620, 620)"]),
        ("shortv_qwen2vl_ref", ("torch", "onnx"), ["onnx (71, 71, 71, 71, 71, 71)"]),
        ("vtw_qwen2vl_ref", ("torch", "onnx"), ["onnx (71, 71, 71, 71, 23, 23)"]),
        (
            "dyvte",
            ("torch", "onnx", "staged"),
            [
                f"{form} (620, 620, 44, 44, 44, 44), (620, 44, 44, 44, 44, 44), "
                "(620, 620, 620, 620, 44, 44)"
                for form in ("torch", "onnx", "staged")
            ],
        ),
    ],
)
def test_a_public_case_agrees_within_1e_4_in_every_form(
    case: str, forms: tuple[str, ...], more: list[str], golden: Golden
) -> None:
    code, said = golden(GOLDEN / case)
    assert code == 0, said
    for form in forms:
        for name in ("prefill_logits", "decode_logits", "kv lengths"):
            assert f"ok   {form} {name}" in said
    for line in more:
        assert line in said


@pytest.mark.parametrize(
    ("case", "key", "value", "missed"),
    [
        ("shortv", "frozen_layers", [0, 4, 5], "prefill_logits"),
        ("vtw", "exit_layer_input", 2, "kv lengths"),
        ("yopo", "window", 3, "prefill_logits"),
        ("shortv_qwen2vl_ref", "grid", [8, 6], "decode_logits"),
    ],
)
def test_another_choice_does_not_agree(
    case: str, key: str, value: object, missed: str, golden: Golden, tmp_path: Path
) -> None:
    """A case whose choice differs by one layer must fail: the numbers depend on the method."""
    shutil.copytree(GOLDEN / case, tmp_path / "case")
    path = tmp_path / "case" / "case.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["params"][key] = value
    path.write_text(json.dumps(facts), encoding="utf-8")
    code, said = golden(tmp_path / "case")
    assert code == 1
    assert f"FAIL torch {missed}" in said
    assert f"FAIL onnx {missed}" in said


def test_gates_that_do_not_fire_do_not_agree(golden: Golden, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "dyvte", tmp_path / "case")
    path = tmp_path / "case" / "model.safetensors"
    weights = load_file(path)
    silent = {k: torch.zeros_like(v) if k.endswith("w2.weight") else v for k, v in weights.items()}
    save_file(silent, path)
    code, said = golden(tmp_path / "case")
    assert code == 1
    for form in ("torch", "onnx", "staged"):
        assert f"FAIL {form} prefill_logits" in said
        assert f"FAIL {form} kv lengths" in said


def test_the_command_gives_its_exit_code_and_prints_its_usage_without_a_folder() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.golden"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "usage: python -m tests.golden FOLDER...\n"
