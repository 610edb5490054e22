"""`report` and `compare` on the command line, and what `export` leaves in an artifact for people."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import vtcompress
from tests import facts
from tests.artifacts import make_artifact
from tests.conftest import Run
from tests.test_html_report import ASKED, Structure


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    fields = {"measured": facts.measured(), "loss": facts.loss(), "asked": ASKED}
    return [make_artifact(tmp_path / name, **fields) for name in ("a", "b")]


def test_report_prints_markdown_and_writes_html(vt: Run, two: list[Path], tmp_path: Path) -> None:
    code, out, err = vt("report", two[0], "--html", tmp_path / "out.html")
    assert code == 0
    assert out.startswith("# owner/little-model, compressed\n")
    assert "## Sample questions" in out
    assert err == f"written: {tmp_path / 'out.html'}\n"
    assert len(Structure((tmp_path / "out.html").read_text(encoding="utf-8")).all("h1")) == 1


def test_report_gives_figures_as_json(vt: Run, two: list[Path]) -> None:
    code, out, _ = vt("--json", "report", two[0])
    assert code == 0
    assert json.loads(out)["exact_match_kept"] == 0.75


def test_report_refuses_what_is_altered_unless_told_not_to_look(vt: Run, two: list[Path]) -> None:
    plan = two[0] / "plan.json"
    plan.write_text(plan.read_text().replace("shortv", "shortv")[:-1] + " ", encoding="utf-8")
    code, out, err = vt("report", two[0])
    assert (code, out) == (1, "")
    assert "sha256" in err
    code, _, err = vt("report", two[0], "--no-verify")
    assert code == 0
    assert "not verified" in err


def test_report_of_what_is_no_artifact_is_one_line(vt: Run, tmp_path: Path) -> None:
    code, _, err = vt("report", tmp_path)
    assert code == 1
    assert err.count("\n") == 1
    assert "no artifact" in err


def test_compare_prints_a_table_and_writes_page_and_plot(
    vt: Run, two: list[Path], tmp_path: Path
) -> None:
    code, out, err = vt("compare", *two, "--html", tmp_path / "c.html", "--plot", tmp_path / "plot")
    assert code == 0
    assert "1: a" in out
    assert "2: b" in out
    assert "right answers kept" in out
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert Structure((tmp_path / "c.html").read_text(encoding="utf-8")).all("svg")
    assert err.count("written: ") == 2
    code, out, _ = vt("--json", "compare", *two)
    assert [a["name"] for a in json.loads(out)["artifacts"]] == ["a", "b"]


def test_compare_says_what_differs_and_that_nothing_can_be_plotted(
    vt: Run, two: list[Path], tmp_path: Path
) -> None:
    other = make_artifact(tmp_path / "other", model_digest="f" * 64)
    code, out, _ = vt("compare", *two, other)
    assert code == 0
    assert "note: Different models: 1, 2 against 3." in out
    code, out, err = vt("compare", *two, other, "--plot", tmp_path / "plot")
    assert code == 1
    assert "--validate-data" in err
    assert not (tmp_path / "plot.svg").exists()


def test_compare_needs_two(vt: Run, two: list[Path]) -> None:
    assert vt("compare")[0] == 2
    code, _, err = vt("compare", two[0])
    assert code == 1
    assert "at least two" in err


def test_export_leaves_a_report_and_a_model_card_that_the_manifest_names(
    llava: Callable[[str], Path], questions: Path, tmp_path: Path, vt: Run
) -> None:
    model = Path(shutil.copytree(llava("clip+llama"), tmp_path / "model"))
    (model / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n", encoding="utf-8")
    recipe = vtcompress.load_recipe("shortv").override(
        {
            "model.id": str(model),
            "calibrate.data": str(questions),
            "validate.data": str(questions),
            "validate.max_new_tokens": 4,
        }
    )
    artifact = tmp_path / "artifact"
    manifest = vtcompress.export(recipe, artifact, bench_rounds=2)
    assert {"report.md", "report.html", "README.md"} <= manifest.files.keys()
    page = (artifact / "report.html").read_text(encoding="utf-8")
    assert len(Structure(page).all("img")) == 6
    assert page.count("<svg") == 4
    card = (artifact / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    code, out, _ = vt("report", artifact, "--html", tmp_path / "again.html")
    assert code == 0
    assert out.rstrip("\n") == (artifact / "report.md").read_text(encoding="utf-8").rstrip("\n")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page
