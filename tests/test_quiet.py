"""With -q a command prints its results alone: lines, no tables; errors and missed limits are told always."""

from pathlib import Path

import pytest

from export.artifact.artifact import Artifact
from tests import facts
from tests.artifacts import make_artifact
from tests.conftest import Run
from tests.test_html_report import PROFILE
from vtcompress.cli.main import cli
from vtcompress.stages.validate import Validation

BORDERS = "┏┃│└─━"
KEPT = facts.figures(agreement=1.0, exact_match=1.0, equal_answers=8, right_to_wrong=0)
EVERYTHING = {
    "profile": PROFILE,
    "measured": facts.measured(),
    "fidelity": facts.fidelity(),
    "loss": facts.loss((), max_kl=0.5).model_copy(update={"overall": KEPT}),
}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[object]]:
    """Arguments of every command that shows something; stages that would take long give made-up results."""
    artifact = make_artifact(tmp_path / "artifact", **EVERYTHING)
    other = make_artifact(tmp_path / "other", **EVERYTHING)
    manifest = Artifact.open(artifact, verify=False).manifest
    recipe = ["--recipe", "shortv", "--model", "x"]
    for name, result in {
        "calibrate": PROFILE,
        "plan": facts.plan([1, 2]),
        "compress": artifact,
        "export": manifest,
        "validate": Validation(manifest.fidelity, manifest.loss),
        "bench": manifest.measured,
    }.items():
        monkeypatch.setattr(f"vtcompress.{name}", lambda *_, found=result, **__: found)
    plan = tmp_path / "plan.json"
    facts.plan([1, 2]).save(plan)
    return {
        "calibrate": [*recipe, "--output", tmp_path / "profile.json"],
        "plan": [*recipe, "--output", tmp_path / "new.json"],
        "compress": [*recipe, "--plan", plan, "--output", tmp_path / "small"],
        "export": [*recipe, "--output", artifact],
        "validate": [artifact],
        "bench": [artifact],
        "inspect": [plan],
        "recipes": [],
        "models": [],
        "compare": [artifact, other],
        "report": [artifact],
    }


# What the result is, a line each.
RESULTS: dict[str, tuple[str, ...]] = {
    "calibrate": ("written: ",),
    "plan": ("prefill, predicted: ", "written: "),
    "compress": ("written: ",),
    "export": (
        "prefill: ", "decode step: ", "first token with vision: ", "export fidelity: passed",
        "compression loss: passed", "written: ",
    ),
    "validate": ("export fidelity: passed", "compression loss: passed"),
    "bench": ("prefill: ", "decode step: ", "first token with vision: "),
    "compare": ("1: artifact: measured prefill 1.60 x", "2: other: measured prefill 1.60 x"),
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_quiet_prints_the_result_lines_and_nothing_else(
    name: str, vt: Run, made: dict[str, list[object]]
) -> None:
    code, out, err = vt("-q", name, *made[name])
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == len(RESULTS[name]), out
    for line, start in zip(lines, RESULTS[name], strict=True):
        assert line.startswith(start)
    assert not set(out) & set(BORDERS)


@pytest.mark.parametrize(
    "name", ["calibrate", "plan", "export", "bench", "inspect", "recipes", "models", "compare"]
)
def test_tables_are_printed_unless_quiet(name: str, vt: Run, made: dict[str, list[object]]) -> None:
    assert set(vt(name, *made[name])[1]) & set(BORDERS)
    assert not set(vt("-q", name, *made[name])[1]) & set(BORDERS)


def test_quiet_lists_of_facts_and_recipes_are_lines_for_a_script(
    vt: Run, made: dict[str, list[object]]
) -> None:
    assert "shortv" in vt("-q", "recipes")[1].splitlines()
    assert "kind: plan" in vt("-q", "inspect", *made["inspect"])[1].splitlines()


def test_what_is_asked_for_as_text_is_the_result(vt: Run, made: dict[str, list[object]]) -> None:
    assert vt("-q", "recipes", "shortv")[1] == vt("recipes", "shortv")[1]
    assert vt("-q", "report", *made["report"])[1] == vt("report", *made["report"])[1]


def test_for_machines_quiet_changes_nothing(vt: Run, made: dict[str, list[object]]) -> None:
    for name in ("plan", "validate", "bench", "recipes", "compare"):
        assert vt("-q", "--json", name, *made[name])[1] == vt("--json", name, *made[name])[1]


def test_a_missed_limit_and_an_error_are_told_to_the_quiet_too(
    vt: Run, made: dict[str, list[object]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missed = facts.loss(("mean KL is 2",), [facts.figures("count")], max_kl=0.001)
    monkeypatch.setattr("vtcompress.validate", lambda *_, **__: Validation(None, missed))
    code, out, err = vt("-q", "validate", *made["validate"])
    assert code == 3
    assert "compression loss: FAILED" in out
    assert "missed: mean KL is 2" in err
    code, out, err = vt("-q", "report", tmp_path / "nowhere")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")


def test_every_command_that_prints_is_judged_here(made: dict[str, list[object]]) -> None:
    elsewhere = {
        "completion",
        "costs",
        "doctor",
        "generate",
        "search",
        "sweep",
        "train-gates",
        "train-parts",
        "heal",
        "build",
        "merge-profiles",
        "serve",
        "selftest",
        "pack",
    }
    assert set(cli.commands) == set(made) | elsewhere


def test_quiet_doctor_names_each_backend_in_a_line(vt: Run) -> None:
    code, out, _ = vt("-q", "doctor")
    assert code == 0
    assert out.splitlines()[0].startswith("onnxruntime: ")
    assert len(out.splitlines()) == 5
