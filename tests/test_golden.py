"""`python -m tests.golden` on the authors' numbers, as a command: passes, prints, and can fail."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def command(*folders: Path) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "tests.golden", *map(str, folders)]
    return subprocess.run(
        arguments, capture_output=True, text=True, cwd=GOLDEN.parent.parent, check=False
    )


@pytest.mark.parametrize("case", ["shortv"])
def test_a_public_case_agrees_within_1e_4_in_torch_and_onnx_runtime(case: str) -> None:
    done = command(GOLDEN / case)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in (
        "torch prefill_logits",
        "onnx prefill_logits",
        "torch decode_logits",
        "onnx decode_logits",
    ):
        assert f"ok   {name}" in done.stdout
    assert "ok   layer contribution" in done.stdout
    assert "ok   layer ranking" in done.stdout
    assert "onnx (60, 60, 60, 60, 60, 60)" in done.stdout


def test_another_choice_of_layers_does_not_agree(tmp_path: Path) -> None:
    """A case whose list differs by one layer must fail: the numbers depend on the method."""
    shutil.copytree(GOLDEN / "shortv", tmp_path / "case")
    path = tmp_path / "case" / "case.json"
    case = json.loads(path.read_text(encoding="utf-8"))
    case["params"]["frozen_layers"] = [0, 4, 5]
    path.write_text(json.dumps(case), encoding="utf-8")
    done = command(tmp_path / "case")
    assert done.returncode == 1
    assert "FAIL torch prefill_logits" in done.stdout
    assert "FAIL onnx prefill_logits" in done.stdout


def test_without_a_folder_the_usage_is_printed() -> None:
    assert command().returncode == 2
