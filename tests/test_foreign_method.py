"""Packages whose method, or what it measures, is wrong: one line that names the package, before anything is
written; and profiles of packages that are not installed any more."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compressor.contract.measure import Measure
from compressor.contract.method import Evidence, Method
from compressor.errors import PlanError, ProfileError
from compressor.methods import MEASURES
from compressor.methods.shortv import CONTRIBUTION
from compressor.plan.edits import freeze
from compressor.plan.plan import Plan
from compressor.planner import make_plan
from compressor.profile import Profile
from tests.decoders import plan_of
from tests.test_toy_method import ROOT, Toy, installed, small_rows, vtcompress
from vtcompress import calibrate, load_recipe

OWN = """
from dataclasses import replace
from tests.test_toy_method import SMALL, Method, MethodWords, Toy, Turn, small_rows
"""


def brought(folder: Path, code: str) -> Path:
    """Return a folder of packages, one of which brings the class `Own` of this code."""
    site = installed(folder / "site", "own_rows:Own")
    (site / "own_rows.py").write_text(OWN + code)
    return site


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "class Own(Method):\n    name = 'own'\n    apply = Toy.apply",
            "does not define words, turn",
        ),
        (
            "class Own(Method):\n    name, words, turn = 'own', MethodWords('Own'), Turn.CUT",
            "does not define apply",
        ),
        ("class Own(Toy):\n    name = 'my rows!'", "has the name 'my rows!'; a name is of a-z"),
        ("class Own(Toy):\n    name = 'dead'", "has the name dead, which means something else"),
        ("class Own(Toy):\n    name = 'vtw'", "has the name vtw, which means something else"),
        ("class Own(Toy):\n    name = 'method'", "has the name method, which means something else"),
        ("class Own(Toy):\n    name = 'copy'", "has the name copy, which means something else"),
        (
            "class Own(Toy):\n    measures = (replace(SMALL, name='layer_contribution'),)",
            "has a measure of the name layer_contribution, as the method shortv that is there already",
        ),
        (
            "replace(SMALL, shape=('layers', 'heads', 'neurons'))",
            "cannot be loaded: ValueError: measure toy_magnitude: shape",
        ),
        ("replace(SMALL, shape=('heads',))", "the first is layers, gates or prompt"),
    ],
)
def test_a_class_that_would_fail_later_is_refused_when_it_is_loaded(
    code: str, said: str, tmp_path: Path
) -> None:
    site = brought(tmp_path, code)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from compressor.methods import UNUSABLE; print(*UNUSABLE, sep='\\n')",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (site, ROOT)))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("package toy-rows: its method own_rows:Own (entry point 'toy'")
    assert said in line
    assert line.endswith("; remove or upgrade toy-rows")


def gives(made: object) -> Method:
    """Return a method whose answer is this, or of this function of the plan."""

    class Wrong(Toy):
        package = "toy-rows 0.3"

        def apply(self, plan: Plan, evidence: Evidence) -> Plan:  # noqa: ARG002
            found: Any = made(plan) if callable(made) else made
            return found  # type: ignore[no-any-return]

    return Wrong()


def exit_at_once(plan: Plan) -> Plan:
    first, *rest = plan.layers
    return plan.model_copy(update={"layers": (first.turned("exited", "toy"), *rest)})


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "compress[0].toy: the method (package toy-rows 0.3) gave no plan, but None"),
        (
            lambda plan: freeze(plan, [0], "Toy"),
            "compress[0].toy: the method (package toy-rows 0.3) gave layers the reason Toy; the reason is "
            "its own name",
        ),
        (
            exit_at_once,
            "compress[0].toy (package toy-rows 0.3): what was made is no plan: visual rows enter layer 0, "
            "and layers after an exit are exited too",
        ),
    ],
)
def test_a_method_that_makes_no_plan_is_told_with_its_package(made: object, said: str) -> None:
    plan = plan_of("identity")
    with pytest.raises(PlanError) as caught:
        make_plan(plan.model, plan.model_digest, [gives(made)])
    assert caught.value.problems == (said,)


def test_an_error_in_a_package_names_it_and_not_this_tool(tiny_model: Path, tmp_path: Path) -> None:
    own = "class Own(Toy):\n    def apply(self, plan, evidence):\n        return plan.layers[99]\n"
    recipe = tmp_path / "own.yaml"
    recipe.write_text("vtcompress: 2\ncompress:\n  - toy: {}\n")
    asked = ["--recipe", recipe, "--model", tiny_model, "--output", "plan.json"]
    done = vtcompress(brought(tmp_path, own), "plan", *asked, cwd=tmp_path)
    assert done.returncode == 1
    said = "`vtcompress plan`, in code of the package toy-rows 0.3: IndexError: tuple index out of range"
    assert f"unexpected in {said}; please report it to those who make toy-rows 0.3" in done.stderr
    assert not (tmp_path / "plan.json").exists()


def measured(
    measure: Measure, model: Path, questions: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> Profile:
    """Return a profile of a model, for which a measure takes the place of that of its name."""
    monkeypatch.setitem(MEASURES, measure.name, measure)  # type: ignore[arg-type]
    recipe = load_recipe("shortv").override(
        {"model.id": str(model), "calibrate.data": str(questions), "calibrate.samples": 2}
    )
    return calibrate(recipe, path)


@pytest.mark.parametrize(
    ("of", "gave"),
    [
        (lambda full: small_rows(full)[1:], "[1]"),
        (lambda full: small_rows(full)[:, None], "[2, 1]"),
        (lambda full: small_rows(full).sum(), "[]"),
        (lambda full: small_rows(full).tolist(), "list"),
    ],
    ids=["a layer less", "an axis more", "no axis", "no tensor"],
)
def test_a_measure_of_another_shape_is_told_and_writes_no_profile(
    of: Callable[[Any], Any],
    gave: str,
    tiny_model: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = replace(CONTRIBUTION, of=of)
    with pytest.raises(ProfileError) as caught:
        measured(wrong, tiny_model, questions, tmp_path / "p.json", monkeypatch)
    assert caught.value.problems == (
        f"layer_contribution: its function gave {gave} for a prompt, where a tensor [layers] with 2 layers "
        "is asked for; mend or remove the method shortv",
    )
    assert not (tmp_path / "p.json").exists()


def test_a_measure_of_one_axis_may_keep_its_mean_alone(
    tiny_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = measured(CONTRIBUTION, tiny_model, questions, tmp_path / "each.json", monkeypatch)
    wanted = each.mean(CONTRIBUTION.name)
    mean = replace(CONTRIBUTION, kept="mean")
    found = measured(mean, tiny_model, questions, tmp_path / "mean.json", monkeypatch)
    assert Profile.load(tmp_path / "mean.json") == found
    assert found.mean(mean.name) == pytest.approx(wanted, rel=1e-4)


def test_what_an_absent_package_measured_is_one_line_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vtcompress.cli.main import run_command

    sample = {"visual": 4, "text": 3, "toy_magnitude": [1.0, 2.0]}
    named: dict[str, Any] = {
        "model": "m",
        "model_digest": "d",
        "data": "q",
        "data_digest": "e",
        "layers": 2,
    }
    named["profile_format"] = 1
    profile = {**named, "total": 2, "measures": ["toy_magnitude"], "samples": [sample, sample]}
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile))
    assert run_command(["inspect", str(path)]) == 1
    assert capsys.readouterr().err == (
        f"error: {path}: holds toy_magnitude, which no method here measures; install the package whose "
        "method does, or make it anew with `vtcompress calibrate`\n"
    )


def test_two_packages_with_one_name_are_both_named(tmp_path: Path) -> None:
    site = installed(tmp_path / "site")
    other = site / "zeal-2.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: zeal\nVersion: 2.0\n")
    (other / "entry_points.txt").write_text("[vtcompress.methods]\nzeal = zeal:Own\n")
    (site / "zeal.py").write_text(f"{OWN}\nclass Own(Toy):\n    pass\n")
    recipe = tmp_path / "own.yaml"
    recipe.write_text("vtcompress: 2\ncompress:\n  - toy: {}\n")
    done = vtcompress(site, "plan", "--recipe", recipe, "--model", tmp_path, cwd=tmp_path)
    assert "package zeal: its method zeal:Own" in done.stderr
    assert "of a method that is there already (package toy-rows 0.3)" in done.stderr
