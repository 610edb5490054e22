"""`python -m tests.golden` on the authors' numbers, as a command: passes, prints, and can fail."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent / "golden"


def command(*folders: Path) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "tests.golden", *map(str, folders)]
    return subprocess.run(
        arguments, capture_output=True, text=True, cwd=GOLDEN.parent.parent, check=False
    )


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
    case: str, forms: tuple[str, ...], more: list[str]
) -> None:
    done = command(GOLDEN / case)
    assert done.returncode == 0, done.stdout + done.stderr
    for form in forms:
        for name in ("prefill_logits", "decode_logits", "kv lengths"):
            assert f"ok   {form} {name}" in done.stdout
    for line in more:
        assert line in done.stdout


@pytest.mark.parametrize(
    ("case", "key", "value", "missed"),
    [
        ("shortv", "frozen_layers", [0, 4, 5], "prefill_logits"),
        ("vtw", "exit_layer_input", 2, "kv lengths"),
        ("yopo", "window", 3, "prefill_logits"),
    ],
)
def test_another_choice_does_not_agree(
    case: str, key: str, value: object, missed: str, tmp_path: Path
) -> None:
    """A case whose choice differs by one layer must fail: the numbers depend on the method."""
    shutil.copytree(GOLDEN / case, tmp_path / "case")
    path = tmp_path / "case" / "case.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["params"][key] = value
    path.write_text(json.dumps(facts), encoding="utf-8")
    done = command(tmp_path / "case")
    assert done.returncode == 1
    assert f"FAIL torch {missed}" in done.stdout
    assert f"FAIL onnx {missed}" in done.stdout


def test_gates_that_do_not_fire_do_not_agree(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "dyvte", tmp_path / "case")
    path = tmp_path / "case" / "model.safetensors"
    weights = load_file(path)
    silent = {k: torch.zeros_like(v) if k.endswith("w2.weight") else v for k, v in weights.items()}
    save_file(silent, path)
    done = command(tmp_path / "case")
    assert done.returncode == 1
    for form in ("torch", "onnx", "staged"):
        assert f"FAIL {form} prefill_logits" in done.stdout
        assert f"FAIL {form} kv lengths" in done.stdout


def test_without_a_folder_the_usage_is_printed() -> None:
    assert command().returncode == 2
