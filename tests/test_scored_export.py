"""Scores from the command line to the files; and warnings where nobody judged."""

import json

import pytest

import vtcompress
from export.report.compare.comparison import compare_artifacts, comparison_table
from tests import facts
from tests.artifacts import make_artifact
from vtcompress.cli.show import show_checks
from vtcompress.console import Output

QUICK = ("--bench-rounds", "0", "--set", "validate.max_new_tokens=4")


@pytest.fixture(scope="module")
def annotated(questions, tmp_path_factory):
    """The questions, each with the answers of several annotators, some of them twice."""
    folder = tmp_path_factory.mktemp("annotated")
    rows = [json.loads(line) for line in questions.read_text().splitlines()][:4]
    for row in rows:
        row["image"] = str(questions.parent / row["image"])
        row["answer"] = [row.get("answer") or "7", "seven", "Seven.", "a 7"]
    path = folder / "annotated.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture(scope="module")
def scored_artifact(tiny_model, annotated, tmp_path_factory):
    """An artifact that was validated by ANLS, made from the command line."""
    from vtcompress.cli.main import run_command

    folder = tmp_path_factory.mktemp("scored") / "artifact"
    arguments = ["-q", "export", "--recipe", "identity", "--model", tiny_model, "--output", folder]
    arguments += ["--validate-data", annotated, "--score", "anls", *QUICK]
    arguments += ["--set", "validate.keep_pictures=all"]
    assert run_command([str(a) for a in arguments]) == 0
    return folder


def test_an_artifact_holds_its_score_and_the_scores_of_all_answers(scored_artifact, annotated, vt):
    manifest = vtcompress.Artifact.open(scored_artifact).manifest
    assert manifest.loss.score == "anls"
    figures = manifest.loss.overall
    assert (figures.answered, figures.right_to_wrong, figures.scores_down) == (4, None, 0)
    for name in ("original", "compressed"):
        stored = json.loads((scored_artifact / f"validation/{name}.json").read_text())
        assert all(0 <= answer["score"] <= 1 for answer in stored["answers"])
    samples = [
        json.loads(x)
        for x in (scored_artifact / "validation/samples.jsonl").read_text().splitlines()
    ]
    given = [json.loads(x) for x in annotated.read_text().splitlines()]
    assert [s["answer"] for s in samples] == [g["answer"] for g in given]
    report = (scored_artifact / "report.md").read_text()
    assert "mean ANLS" in report
    assert "ight answers" not in report.replace("with right answers", "").split("## Recipe")[0]
    code, out, _ = vt("--json", "validate", scored_artifact)
    assert (code, json.loads(out)["loss"]["score"]) == (0, "anls")
    code, out, _ = vt("--json", "validate", scored_artifact, "--score", "vqa")
    assert (code, json.loads(out)["loss"]["score"]) == (0, "vqa")


def test_artifacts_of_different_scores_are_not_to_be_compared(tiny_artifact, scored_artifact):
    comparison = compare_artifacts([tiny_artifact, scored_artifact])
    assert any(
        "Answers scored in different ways: 1 against 2." in note for note in comparison.notes
    )
    assert "score kept" in {row[0] for row in comparison_table(comparison).rows}
    alike = compare_artifacts([scored_artifact, scored_artifact])
    assert "mean ANLS kept" in {row[0] for row in comparison_table(alike).rows}
    assert comparison.kept == "score kept"


def test_too_few_annotators_are_refused_before_a_model_is_loaded(
    tiny_model, questions, tmp_path, vt
):
    code, _, err = vt(
        "export", "--recipe", "identity", "--model", tiny_model, "--output", tmp_path / "a",
        "--validate-data", questions, "--score", "vqa", *QUICK,
    )  # fmt: skip
    assert code == 1
    assert "error: validate.score: vqa: " in err
    assert "loading" not in err
    assert not (tmp_path / "a").exists()


def test_a_score_without_questions_is_noted_and_that_nobody_judges_is_loud(
    tiny_model, tmp_path, vt
):
    arguments = (
        "export",
        "--recipe",
        "identity",
        "--model",
        tiny_model,
        "--output",
        tmp_path / "a",
    )
    code, _, err = vt(*arguments, "--score", "python:no_such_module.f", "--bench-rounds", "0")
    assert code == 0
    assert (
        "note: validate.score: python:no_such_module.f: has no effect: there is no validation data"
        in err
    )
    lines = [line for line in err.splitlines() if line.startswith("WARNING: no held-out questions")]
    assert len(lines) == 2  # before the work and behind it
    for page in ("report.md", "README.md"):
        text = (tmp_path / "a" / page).read_text()
        assert text.index("WARNING: no held-out questions were given") < text.index(
            "of the original's work"
        )


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (None, "no held-out questions were given: nobody judged"),
        (facts.loss(), "no loss limit was set: nobody judged what the answers lost"),
        (facts.loss(max_kl=1.0), ""),
    ],
)
def test_who_is_quiet_is_warned_all_the_same(tmp_path, capsys, loss, words):
    from compressor.plan.plan import Plan

    folder = make_artifact(tmp_path / "a", loss=loss)
    manifest = vtcompress.Artifact.open(folder, verify=False).manifest
    show_checks(Output(verbosity=-1), manifest, Plan.load(folder / "plan.json"))
    said = [line for line in capsys.readouterr().err.splitlines() if "nobody judged" in line]
    assert len(said) == bool(words)
    assert words in "".join(said)


def test_a_sweep_is_scored_by_the_recipe_and_goes_by_means(tiny_model, annotated, tmp_path):
    recipe = vtcompress.load_recipe("pool").override(
        {
            "model.id": str(tiny_model),
            "validate.data": annotated,
            "validate.max_new_tokens": 4,
            "validate.score": "anls",
        }
    )
    report = vtcompress.sweep([recipe], tmp_path / "s", measure=False)
    point = report.points[0]
    assert (point.loss.score, point.hits, len(point.scores)) == ("anls", "", 4)
    assert point.loss.overall.exact_match == pytest.approx(sum(point.scores) / 4)
    assert "mean ANLS" in (tmp_path / "s/sweep.md").read_text()
