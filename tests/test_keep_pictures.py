"""Pictures of held-out data: small samples stay in an artifact, all of them, or none, as the recipe says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vtcompress
from compressor.errors import ArtifactError, RecipeError
from compressor.samples.questions import Sample, read_samples
from export.artifact.artifact import Artifact
from export.checks.stored import store_original, stored_original, stored_samples
from export.report.questions import Question, chosen_places
from export.results.answers import Answer, Answers
from vtcompress.cli.main import run_command

ASKED = 14
SECRET = b"52.5163N 13.3777E"


def photo(path: Path, size: tuple[int, int] = (1200, 800)) -> Path:
    """Write a photo that says where it was taken."""
    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()  # description
    Image.fromarray(pixels).save(path, exif=exif, comment=SECRET)
    assert SECRET in path.read_bytes()
    return path


def stored(folder: Path, keep: str, shown: tuple[int, ...]) -> list[Sample]:
    """Store questions on a photo, a small picture and none."""
    source = folder / "source"
    source.mkdir(parents=True)
    large, tiny = photo(source / "a.jpg"), photo(source / "b.jpg", (20, 10))
    samples = [Sample((large, tiny), "both?"), Sample((tiny,), "tiny?"), Sample((), "none?")]
    answers = Answers((Answer(token_ids=(1,), text="x"),) * 3, np.zeros((3, 4), np.float32), 2)
    store_original(folder / "out", samples, answers, keep, shown)  # type: ignore[arg-type]
    return samples


def files(folder: Path) -> list[Path]:
    return [
        p for p in folder.rglob("*") if p.suffix not in (".json", ".jsonl", ".npy") and p.is_file()
    ]


def test_samples_are_small_copies_without_what_a_camera_writes(tmp_path: Path) -> None:
    stored(tmp_path, "samples", (0,))
    kept = files(tmp_path / "out")
    assert len(kept) == 2
    for path in kept:
        assert SECRET not in path.read_bytes()
        with Image.open(path) as image:
            assert max(image.size) <= 320
            assert not image.getexif()
    found = stored_samples(tmp_path / "out")
    assert [(len(row.shown), row.missing) for row in found] == [(2, 2), (0, 1), (0, 0)]
    assert [row.sample.images for row in found] == [(), (), ()]


def test_none_keeps_no_picture_and_all_keeps_them_as_they_are(tmp_path: Path) -> None:
    stored(tmp_path / "none", "none", (0, 1))
    assert files(tmp_path / "none" / "out") == []
    samples = stored(tmp_path / "all", "all", ())
    found, _ = stored_original(tmp_path / "all" / "out")
    assert [[p.read_bytes() for p in row.images] for row in found] == [
        [p.read_bytes() for p in sample.images] for sample in samples
    ]


@pytest.mark.parametrize("keep", ["none", "samples"])
def test_nothing_is_measured_on_pictures_that_are_not_as_they_were(
    tmp_path: Path, keep: str
) -> None:
    """Nor is a question whose picture is gone taken for one without a picture."""
    stored(tmp_path, keep, (0, 1))
    with pytest.raises(ArtifactError, match=r"validate\.keep_pictures\); give `data`"):
        stored_original(tmp_path / "out")


BROKEN = "broken: .*not_kept and small: a number and a list of files"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"not_kept": -1}, BROKEN),
        ({"not_kept": "x"}, BROKEN),
        ({"small": "x"}, BROKEN),
        ({"small": [1]}, BROKEN),
        ({"small": ["../../source/a.jpg"]}, "a.jpg is not in the artifact"),
    ],
)
def test_stored_questions_that_are_broken_or_name_other_files_are_refused(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    stored(tmp_path, "samples", (0,))
    path = tmp_path / "out" / "validation" / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0].update(change)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    with pytest.raises(ArtifactError, match=words):
        stored_original(tmp_path / "out")


def test_another_word_for_keep_is_refused() -> None:
    with pytest.raises(RecipeError, match="keep_pictures"):
        vtcompress.load_recipe("identity").override({"validate.keep_pictures": "some"})


# A whole export


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write questions on photos, more than a report shows."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(ASKED):
        photo(folder / f"{number}.jpg", (400 + number, 380))
        rows.append({"image": f"{number}.jpg", "question": "what is it", "answer": "it"})
    path = folder / "held.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture(scope="module")
def artifact(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = vtcompress.load_recipe("identity").override(
        {"model.id": str(tiny_model), "validate.data": data, "validate.max_new_tokens": 2,
         "validate.samples": 12}
    )  # fmt: skip
    output = tmp_path_factory.mktemp("artifact") / "out"
    vtcompress.export(recipe, output, bench_rounds=0)
    return output


def test_an_export_keeps_small_copies_of_what_its_report_shows(artifact: Path, data: Path) -> None:
    found = stored_samples(artifact)
    answers = Artifact.open(artifact).manifest.loss
    assert answers is not None
    assert (len(found), sum(row.missing for row in found)) == (12, 12)
    assert sum(len(row.small) for row in found) == 10
    assert all(not row.sample.images for row in found)
    originals = {path.read_bytes() for path in data.parent.glob("*.jpg")}
    for path in artifact.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert content not in originals
            assert SECRET not in content
    page = (artifact / "report.html").read_text(encoding="utf-8")
    assert len(re.findall("<img [^>]*data:image", page)) == 10
    shown = chosen_places([Question(row.sample, "x", "x") for row in found])
    assert [place for place, row in enumerate(found) if row.small] == sorted(shown)


def test_the_same_data_given_again_is_measured_without_the_original(
    artifact: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = Artifact.open(artifact).manifest.loss
    found = vtcompress.validate(artifact, data=data)
    assert found.loss == recorded
    assert run_command(["-q", "validate", str(artifact)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "give --data, the data that it was validated on" in said
    assert run_command(["-q", "validate", str(artifact), "--data", str(data)]) in (0, 3)


def test_other_data_needs_the_original_and_is_called_other(
    artifact: Path, data: Path, tmp_path: Path, tiny_model: Path
) -> None:
    other = tmp_path / "other.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    photo(tmp_path / "0.jpg", (399, 380))
    other.write_text(json.dumps({**rows[0], "image": "0.jpg"}) + "\n")
    with pytest.raises(
        ArtifactError, match=r"to this data; it was validated on held\.jsonl: give `model`"
    ):
        vtcompress.validate(artifact, data=other)
    found = vtcompress.validate(artifact, data=other, model=str(tiny_model))
    assert found.loss is not None
    assert (found.loss.data, found.loss.overall.samples) == ("other.jsonl", 1)


def test_with_the_original_alone_fidelity_is_measured_and_loss_said_not_to_be(
    artifact: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_command(["validate", str(artifact), "--model", str(tiny_model)])
    said = capsys.readouterr()
    assert code == 0
    assert "compression loss is not measured: the artifact does not hold the pictures" in said.err
    assert_remedied_by_the_data(said.out)


def assert_remedied_by_the_data(out: str) -> None:
    """Questions there are; so nobody is sent to export again with some."""
    out = " ".join(out.split())
    assert "Compression loss: not run, the artifact does not hold the pictures" in out
    assert "give `data`, the data that it was validated on" in out
    assert "--validate-data" not in out


def test_another_backend_compares_answers_where_the_data_is_given(
    artifact: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--json", "validate", str(artifact), "--backend", "openvino", "--threads", "1"]
    assert run_command(command) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["loss"] is None
    assert "answers are not compared: the artifact does not hold the pictures" in said.err
    assert run_command(command[1:]) == 0
    assert_remedied_by_the_data(capsys.readouterr().out)
    assert run_command([*command, "--data", str(data)]) in (0, 3)
    assert json.loads(capsys.readouterr().out)["loss"]["overall"]["samples"] == 12


def test_a_report_without_pictures_says_so(
    tmp_path: Path,
) -> None:
    from export.report.data import report_data
    from export.report.pages.report import html_report
    from tests import facts
    from tests.artifacts import make_artifact

    folder = make_artifact(tmp_path / "out", asked=[("what", "", "a", "a", "b")], loss=facts.loss())
    manifest = Artifact.open(folder).manifest
    path = folder / "validation" / "samples.jsonl"
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "image": [], "not_kept": 1}) + "\n")
    page = html_report(report_data(folder, manifest))
    assert "its pictures are not kept" in page
    assert "<img" not in page
    assert read_samples(path)[0].question == "what"
