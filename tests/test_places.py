"""What lies at a place decides whether it may be replaced: this tool's own, and never what a run reads."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.errors import VtcompressError
from compressor.families import describe
from compressor.plan.edits import identity_plan
from export.artifact.artifact import Artifact
from export.artifact.places import check_folder
from export.artifact.staging import check_place
from tests import facts
from tests.artifacts import make_artifact
from vtcompress.cli.main import run_command

Asking = Callable[..., str]
ASKED = [("what is it", "", "a", "a", "a")]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Asking:
    """Return a function that runs a command, expects its refusal in one line and returns that."""

    def ask(*arguments: object) -> str:
        code = run_command([str(argument) for argument in arguments])
        said = capsys.readouterr().err
        assert code == 1, said
        (line,) = [line for line in said.splitlines() if not line.startswith("note: ")]
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return ask


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may come as far as reading a model's weights."""
    monkeypatch.setattr(
        "compressor.families.registry.digest", lambda *_: pytest.fail("weights were read")
    )
    monkeypatch.setattr(
        "compressor.families.load", lambda *_, **__: pytest.fail("a model was loaded")
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def thesis(folder: Path) -> Path:
    """Write a folder of somebody's own work."""
    (folder / "chapters").mkdir(parents=True)
    for name in ("thesis.tex", "chapters/1.tex", "chapters/2.tex"):
        (folder / name).write_text("years of work")
    return folder


@pytest.fixture(params=["export", "compress"])
def writing(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> list[object]:
    """A command that writes a folder, but for its --output."""
    command = [request.param, "--recipe", "identity", "--model", tiny_model]
    if request.param == "compress":
        plan = identity_plan(describe(str(tiny_model)), facts.DIGEST)
        plan.save(tmp_path / "inputs" / "plan.json")
        command += ["--plan", tmp_path / "inputs" / "plan.json"]
    return command


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_folder_of_somebody_elses_is_never_replaced(
    refused: Asking, writing: list[object], tmp_path: Path, overwrite: tuple[str, ...]
) -> None:
    folder = thesis(tmp_path / "thesis")
    before = contents(folder)
    assert refused(*writing, "--output", folder, *overwrite) == (
        f"{folder}: holds 3 files that vtcompress did not write, such as chapters/1.tex; "
        "choose another --output"
    )
    assert contents(folder) == before


def test_the_original_model_is_never_replaced(
    refused: Asking, writing: list[object], tiny_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "models" / "mymodel"
    shutil.copytree(tiny_model, model)
    before = contents(model)
    command = [model if part == tiny_model else part for part in writing]
    assert f"is {model}, which this run reads" in refused(
        *command, "--output", model, "--overwrite"
    )
    assert f"holds {model}, which this run reads" in refused(
        *command, "--output", model.parent, "--overwrite"
    )
    made = make_artifact(model / "out")
    assert f"lies in {model}, which this run reads" in refused(
        *command, "--output", made, "--overwrite"
    )
    shutil.rmtree(made)
    assert contents(model) == before


@pytest.mark.parametrize("where", ["working folder", "parent", "home", "root"])
def test_the_working_folder_home_and_root_are_never_replaced(
    refused: Asking,
    writing: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """Not even where they hold nothing but an artifact."""
    folder = make_artifact(tmp_path / "mine" / "artifact")
    below = folder / "engines"
    below.mkdir()
    if where in ("working folder", "parent"):
        monkeypatch.chdir(folder if where == "working folder" else below)
        said = refused(*writing, "--output", "." if where != "parent" else "..", "--overwrite")
        assert "is the working folder or holds it, and is never replaced" in said
    elif where == "home":
        monkeypatch.setenv("HOME", str(below))
        said = refused(*writing, "--output", folder, "--overwrite")
        assert "is the home folder or holds it, and is never replaced" in said
    else:
        said = refused(*writing, "--output", "/", "--overwrite")
        assert said == (
            "/: is the root of the file system, which is never replaced; choose another --output"
        )
    assert Artifact.open(folder).folder == folder


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a link"])
def test_nothing_is_written_into_the_model_also_where_nothing_lies(
    refused: Asking, writing: list[object], tiny_model: Path, tmp_path: Path, there: str
) -> None:
    model = tmp_path / "mymodel"
    shutil.copytree(tiny_model, model)
    output = model / "deep" / "out"
    if there == "an empty folder":
        output.mkdir(parents=True)
    elif there == "a link":
        output = tmp_path / "link"
        output.symlink_to(model / "deep" / "out")
    before = sorted(model.rglob("*"))
    command = [model if part == tiny_model else part for part in writing]
    assert refused(*command, "--output", output) == (
        f"{output}: lies in {model}, which this run reads, and nothing is written there; "
        "choose another --output"
    )
    assert sorted(model.rglob("*")) == before


def test_nothing_is_written_into_the_compressed_source(refused: Asking, tmp_path: Path) -> None:
    """Nor into one of an earlier version, which has no list of its files."""
    folder = tmp_path / "small"
    facts.plan().save(folder / "plan.json")
    said = refused(
        "export", "--recipe", "identity", "--compressed", folder, "--output", folder / "out"
    )
    assert f"lies in {folder}, which this run reads" in said
    assert [path.name for path in folder.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("command", ["calibrate", "plan", "train-gates", "train-parts", "heal"])
def test_no_file_is_written_into_the_models_folder(
    refused: Asking, tiny_model: Path, questions: Path, tmp_path: Path, command: str
) -> None:
    """A `plan.json` there would make it read as a compressed model, gates as its weights."""
    model, gates = tmp_path / "mymodel", tmp_path / "gates.yaml"
    shutil.copytree(tiny_model, model)
    gates.write_text("vtcompress: 1\ncompress: [{dyvte: {gates: g.safetensors}}]\n")
    recipe = {"train-gates": gates, "train-parts": "mod"}.get(command, "identity")
    name = "x.json" if command in ("calibrate", "plan") else "g.safetensors"
    before = sorted(model.rglob("*"))
    for output in (model / name, model / "deep" / name):
        said = refused(command, "--recipe", recipe, "--data", questions, "--model", model,
                       "--output", output)  # fmt: skip
        assert said.startswith(f"{output}: lies in {model}, which this run reads"), said
    assert sorted(model.rglob("*")) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_what_may_not_be_read_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    closed = tmp_path / "out" / "closed"
    closed.mkdir(parents=True)
    scandir = os.scandir

    def refuse(path: object = ".") -> object:
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(closed))
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", refuse)
    for check in (check_folder, check_place):
        with pytest.raises(VtcompressError, match="closed: cannot be read: Permission denied"):
            check(tmp_path / "out", overwrite=overwrite)


def test_files_that_the_user_put_into_an_artifact_are_named_and_kept(
    refused: Asking, writing: list[object], tmp_path: Path
) -> None:
    folder = make_artifact(tmp_path / "out")
    assert refused(*writing, "--output", folder) == (
        f"{folder}: holds an artifact; choose another --output or add --overwrite to replace it"
    )
    (folder / "notes.txt").write_text("mine")
    (folder / "recipe.yaml").write_text("# what I tried\n")
    before = contents(folder)
    assert refused(*writing, "--output", folder, "--overwrite") == (
        f"{folder}: holds an artifact of vtcompress, and what it did not write: notes.txt, recipe.yaml "
        "(changed since); move that away, or choose another --output"
    )
    assert contents(folder) == before


@pytest.mark.parametrize("flag", ["--data", "--validate-data", "--recipe", "--profile"])
def test_a_folder_that_holds_what_the_run_reads_is_not_replaced(
    refused: Asking, tiny_model: Path, tmp_path: Path, flag: str
) -> None:
    folder = make_artifact(tmp_path / "out", asked=ASKED, profile=facts.profile([(0.1,) * 6]))
    read = {"--recipe": "recipe.yaml", "--profile": "profile.json"}.get(
        flag, "validation/samples.jsonl"
    )
    given = {"--recipe": "identity", "--model": tiny_model, flag: folder / read}
    before = contents(folder)
    options = [part for pair in given.items() for part in pair]
    if flag == "--recipe":
        options += ["--set", "compress=[]"]
    said = refused("export", *options, "--output", folder, "--overwrite")
    assert said == (
        f"{folder}: holds {folder / read}, which this run reads, and is not replaced; "
        "choose another --output"
    )
    assert contents(folder) == before


def test_the_compressed_source_is_not_replaced(refused: Asking, tmp_path: Path) -> None:
    from tests.artifacts import write_result

    folder = write_result(tmp_path / "small", weights="old")
    facts.plan().save(folder / "plan.json")
    said = refused("export", "--recipe", "identity", "--compressed", folder, "--output", folder,
                   "--overwrite")  # fmt: skip
    assert f"is {folder}, which this run reads" in said


def test_a_link_to_a_folder_of_somebody_elses_is_as_that_folder(
    refused: Asking, writing: list[object], tmp_path: Path
) -> None:
    folder = thesis(tmp_path / "thesis")
    (tmp_path / "out").symlink_to(folder)
    said = refused(*writing, "--output", tmp_path / "out", "--overwrite")
    assert "holds 3 files that vtcompress did not write" in said
    assert (tmp_path / "out").is_symlink()
    assert len(contents(folder)) == 3


def test_too_little_room_and_no_permission_are_found_before_weights_are_read(
    refused: Asking, writing: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        assert "0 MiB are free" in refused(*writing, "--output", tmp_path / "out")
    (tmp_path / "file").write_text("no folder")
    assert "cannot write" in refused(*writing, "--output", tmp_path / "file" / "out")
    assert not (tmp_path / "out").exists()


def test_a_compressed_folder_of_an_earlier_version_is_not_called_somebody_elses(
    refused: Asking, writing: list[object], tmp_path: Path
) -> None:
    facts.plan().save(tmp_path / "small" / "plan.json")
    said = refused(*writing, "--output", tmp_path / "small", "--overwrite")
    assert "holds a plan, but no list of what vtcompress wrote" in said


def test_engines_and_what_lies_beside_them_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "engines" / "tensorrt-rtx-SM86"
    folder.mkdir(parents=True)
    document = {"engines_format": 1, "engines": [{"file": "vision.engine"}, 5, {"file": 7}]}
    (folder / "engines.json").write_text(json.dumps(document))
    (folder / "vision.engine").write_bytes(b"x")
    check_folder(folder, overwrite=True)
    with pytest.raises(VtcompressError, match="holds engines; choose"):
        check_folder(folder, overwrite=False)
    (folder / "measured.csv").write_text("mine")
    with pytest.raises(VtcompressError, match=r"what it did not write: measured\.csv"):
        check_folder(folder, overwrite=True)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"files": 5}', '{"manifest_format": 1, "files": [1]}']
)
def test_a_list_that_cannot_be_read_makes_no_folder_this_tools(tmp_path: Path, text: str) -> None:
    folder = thesis(tmp_path / "thesis")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(VtcompressError, match="did not write"):
        check_folder(folder, overwrite=True)


# Files


FILES = {
    "questions": b'{"image": "a.png", "question": "what"}\n',
    "picture": b"\x89PNG\r\n\x1a\n somebody's",
    "page": b"<!DOCTYPE html><html><body>somebody's",
    "weights": b"\x10\x00\x00\x00\x00\x00\x00\x00" + b'{"__metadata__":{"a":"b"}}',
}


@pytest.mark.parametrize("content", FILES)
@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["calibrate", "--recipe", "shortv", "--data", "{data}", "--model", "{model}", "--output"], "x.json"),
        (["calibrate", "--recipe", "shortv", "--data", "{data}", "--model", "{model}", "--output"], "x.png"),
        (["calibrate", "--recipe", "shortv", "--data", "{data}", "--model", "{model}", "--output"], "x.svg"),
        (["plan", "--recipe", "identity", "--model", "{model}", "--output"], "x.json"),
        (["train-gates", "--recipe", "{gates}", "--data", "{data}", "--model", "{model}",
          "--overwrite", "--output"], "x.safetensors"),
        (["train-gates", "--recipe", "{gates}", "--data", "{data}", "--model", "{model}",
          "--overwrite", "--output"], "x.json"),
        (["train-parts", "--recipe", "mod", "--data", "{data}", "--model", "{model}",
          "--overwrite", "--output"], "x.safetensors"),
        (["train-parts", "--recipe", "mod", "--data", "{data}", "--model", "{model}",
          "--overwrite", "--output"], "x.json"),
        (["heal", "--recipe", "identity", "--data", "{data}", "--model", "{model}",
          "--overwrite", "--output"], "x.safetensors"),
        (["heal", "--recipe", "identity", "--data", "{data}", "--model", "{model}",
          "--overwrite", "--output"], "x.json"),
        (["report", "{artifact}", "--html"], "x.html"),
        (["compare", "{artifact}", "{artifact}", "--html"], "x.html"),
        (["compare", "{artifact}", "{artifact}", "--plot"], "x.svg"),
    ],
)  # fmt: skip
def test_no_command_writes_over_a_file_of_somebody_elses(
    refused: Asking,
    tiny_model: Path,
    questions: Path,
    tmp_path: Path,
    command: list[str],
    name: str,
    content: str,
) -> None:
    """Also not where it lies beside the output: a plot of a profile, the report on gates."""
    gates = tmp_path / "gates.yaml"
    gates.write_text("vtcompress: 1\ncompress: [{dyvte: {gates: g.safetensors}}]\n")
    artifact = make_artifact(tmp_path / "artifact", asked=ASKED, loss=facts.loss())
    given = {"data": questions, "model": tiny_model, "gates": gates, "artifact": artifact}
    path = tmp_path / "deep" / name
    path.parent.mkdir()
    path.write_bytes(FILES[content])
    trained = dict.fromkeys(("train-gates", "train-parts", "heal"), "x.safetensors")
    output = {"calibrate": "x.json", **trained}.get(command[0], name)
    said = refused(*[part.format(**given) for part in command], path.with_name(output))
    assert said.startswith(f"{path}: is no file that vtcompress knows as its own, so that ")
    assert path.read_bytes() == FILES[content]
    assert list(path.parent.iterdir()) == [path]


def test_a_result_of_one_kind_does_not_replace_one_of_another(
    refused: Asking, tiny_model: Path, questions: Path, tmp_path: Path
) -> None:
    facts.profile([(0.1,) * 6]).save(tmp_path / "profile.json")
    facts.plan().save(tmp_path / "plan.json")
    common = ("--recipe", "identity", "--model", tiny_model, "--output")
    assert "holds a calibration profile, so that a plan does not replace it" in refused(
        "plan", *common, tmp_path / "profile.json"
    )
    assert "holds a plan, so that a calibration profile does not replace it" in refused(
        "calibrate", "--data", questions, *common, tmp_path / "plan.json"
    )


@pytest.mark.parametrize("name", ["plan.json", "more.html", "deep/profile.json"])
def test_nothing_is_written_into_an_artifact_later(
    refused: Asking, tiny_model: Path, questions: Path, tmp_path: Path, name: str
) -> None:
    """Its manifest names all that is in it: it would be refused from then on."""
    folder = make_artifact(tmp_path / "out")
    common = ("--recipe", "shortv", "--data", questions, "--model", tiny_model, "--output")
    command = {
        "plan.json": ("plan", *common),
        "more.html": ("report", folder, "--html"),
        "deep/profile.json": ("calibrate", *common),
    }[name]
    said = refused(*command, folder / name)
    assert said.startswith(
        f"{folder / name}: lies in {folder}, which is an artifact and would be none"
    )
    assert Artifact.open(folder).folder == folder
    assert "which is an artifact" in refused("export", *common, folder / "deeper")


def test_what_this_tool_wrote_is_known_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But gates and profiles, whose commands are tried where they are trained and measured."""
    artifact = make_artifact(tmp_path / "artifact", asked=ASKED, loss=facts.loss())
    for command, name in (
        (["report", artifact, "--html"], "r.html"),
        (["compare", artifact, artifact, "--html"], "c.html"),
        (["compare", artifact, artifact, "--plot"], "c.svg"),
    ):
        for _ in range(2):
            assert run_command([*map(str, command), str(tmp_path / name)]) == 0, (
                capsys.readouterr().err
            )
        assert (tmp_path / name).stat().st_size > 1000
