"""The wheel, installed in a clean environment with the base dependencies and the extra `cpu` alone."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vtcompress
from compressor.installing import WHEEL, how_to_install

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return a function that runs the installed environment's Python."""
    folder = tmp_path_factory.mktemp("wheel")
    # `make wheel` makes the environment too.
    make = ["make", "-C", str(ROOT), "wheel", f"PYTHON={sys.executable}"]
    make += [f"VENV={folder / 'env'}", f"DIST={folder}"]
    made = subprocess.run(make, check=True, capture_output=True, text=True)
    wheel = folder / WHEEL
    assert f"pip install '{wheel}[cpu]'" in made.stdout
    python = folder / "env" / "bin" / "python"
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        str(ROOT / "constraints.txt"),
    ]
    subprocess.run([*pip, f"{wheel}[cpu]"], check=True, capture_output=True, text=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(python), *arguments],
            check=True,
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
        )
        return done.stdout

    return run


def test_neither_torch_nor_transformers_is_installed(installed: Callable[..., str]) -> None:
    code = "import importlib.util as u; print([u.find_spec(n) is None for n in ('torch', 'transformers')])"
    assert installed("-c", code).strip() == "[True, True]"


def test_shipped_recipes_are_found_by_name(installed: Callable[..., str]) -> None:
    rows = json.loads(installed("-m", "vtcompress", "--json", "recipes"))
    shipped = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert {row["name"] for row in rows} == shipped
    assert installed("-c", "import vtcompress; print(vtcompress.load_recipe('shortv').methods)")


def test_an_artifact_answers_validates_and_is_timed(
    installed: Callable[..., str], llava: Callable[[str], Path], questions: Path, tmp_path: Path
) -> None:
    recipe = vtcompress.load_recipe("identity").override(
        {
            "model.id": str(llava("clip+llama")),
            "validate.data": str(questions),
            "validate.keep_pictures": "all",
        }
    )
    artifact = tmp_path / "artifact"
    manifest = vtcompress.export(recipe, artifact, bench_rounds=0)
    picture = str(questions.parent / "0.png")
    answer = vtcompress.Runtime.load(artifact).answer(
        "what is it", [Path(picture)], max_new_tokens=6
    )
    tool = ("-m", "vtcompress", "--json")
    asked = ("generate", str(artifact), "--image", picture, "--prompt", "what is it")
    found = json.loads(installed(*tool, *asked, "--max-new-tokens", "6", "--stats"))
    assert found["text"] == answer.text
    assert found["stats"]["tokens"] == len(answer.token_ids)
    checked = json.loads(installed(*tool, "validate", str(artifact)))
    assert manifest.loss is not None
    assert checked["loss"]["overall"]["exact_match"] == manifest.loss.overall.exact_match
    assert json.loads(installed(*tool, "bench", str(artifact), "--rounds", "2"))["rounds"] == 2
    assert json.loads(installed(*tool, "inspect", str(artifact)))["kind"] == "artifact"
    page = tmp_path / "report.html"
    shown = json.loads(installed(*tool, "report", str(artifact), "--html", str(page)))
    assert shown["model"] == manifest.model.name
    assert page.read_text(encoding="utf-8") == (artifact / "report.html").read_text(
        encoding="utf-8"
    )


def test_a_stage_that_needs_torch_says_what_to_install(installed: Callable[..., str]) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failure:
        installed("-m", "vtcompress", "plan", "--recipe", "identity", "--model", "x")
    assert failure.value.returncode == 1
    assert failure.value.stderr == (
        f"error: planning needs packages that are not installed: {how_to_install('compress')}\n"
    )
