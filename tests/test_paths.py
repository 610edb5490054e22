"""Paths that no file can have end in one line with the remedy; those of legal length are used."""

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

import vtcompress
from compressor.disk.files import read_text, write_text
from compressor.disk.gate_file import GateFile
from compressor.disk.paths import MOST_NAME_BYTES, check_path, unusable, working_stem
from compressor.errors import ProfileError, VtcompressError
from compressor.families.registry import describe
from compressor.methods.yopo.head_mask import read_head_mask
from compressor.plan.plan import Plan
from compressor.profile import Profile
from compressor.recipe import load_recipe as read_recipe
from compressor.samples.pictures import load_image, pictures_of
from compressor.samples.questions import read_samples
from export.artifact.artifact import Artifact
from tests import facts
from tests.artifacts import make_artifact
from vtcompress.cli.kinds import FILE, FOLDER
from vtcompress.cli.main import run_command
from vtcompress.shipped import load_recipe
from vtcompress.stages.inspect import inspect

LONG = "x." * 150  # with a dot: what base64 has not
COMMANDS = {
    "calibrate": ["--recipe", "identity", "--model", "{model}", "--data", "{data}"],
    "plan": ["--recipe", "identity", "--model", "{model}", "--profile", "{profile}"],
    "compress": ["--recipe", "identity", "--model", "{model}", "--plan", "{plan}"],
    "export": ["--recipe", "identity", "--model", "{model}", "--validate-data", "{data}"],
    "search": ["--recipe", "auto", "--model", "{model}", "--data", "{data}"],
    "sweep": ["--recipe", "identity", "--model", "{model}", "--validate-data", "{data}"],
    "train-gates": ["--recipe", "{gates}", "--model", "{model}", "--data", "{data}"],
    "train-parts": ["--recipe", "mod", "--model", "{model}", "--data", "{data}"],
    "heal": ["--recipe", "identity", "--model", "{model}", "--data", "{data}", "--plan", "{plan}"],
    "validate": ["{artifact}", "--data", "{data}"],
    "bench": ["{artifact}"],
    "generate": ["{artifact}", "--image", "{data}", "--prompt", "x"],
    "inspect": ["{artifact}"],
    "report": ["{artifact}", "--html", "{page}"],
    "compare": ["{artifact}", "--html", "{page}", "--plot", "{page}"],
    "build": ["{artifact}", "--target", "tensorrt-rtx", "--dry-run"],
    "pack": ["{artifact}", "--for", "onnxruntime-genai"],
}
WRITERS = (
    "calibrate",
    "plan",
    "compress",
    "export",
    "search",
    "sweep",
    "train-gates",
    "train-parts",
    "heal",
    "pack",
)
CASES = [
    (command, place)
    for command, given in COMMANDS.items()
    for place in [word for word in given if word.startswith("{")]
    + ["--output"] * (command in WRITERS)
]


@pytest.fixture
def filled(tmp_path: Path, tiny_model: Path, questions: Path) -> Callable[[str], str]:
    """Return a function that fills in a word of a command."""
    gates = tmp_path / "gates.yaml"
    gates.write_text("vtcompress: 1\ncompress: [{dyvte: {gates: g.safetensors}}]\n")
    facts.plan().save(tmp_path / "plan.json")
    facts.profile([(0.1,) * 6]).save(tmp_path / "profile.json")
    given = {
        "model": tiny_model,
        "data": questions,
        "gates": gates,
        "artifact": make_artifact(tmp_path / "artifact"),
        "page": tmp_path / "page",
        "plan": tmp_path / "plan.json",
        "profile": tmp_path / "profile.json",
    }
    return lambda word: word.format(**given)


@pytest.mark.parametrize("where", [LONG, f"missing/{LONG}", "/".join(["x." * 100] * 30)])
@pytest.mark.parametrize(("command", "place"), CASES)
def test_a_path_that_is_too_long_is_one_line(
    filled: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    place: str,
    where: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("compressor.families.load", lambda *_, **__: pytest.fail("model loaded"))
    trains = command in ("train-gates", "train-parts", "heal")
    if trains and place == "--output":
        where += ".safetensors"
    words = [where if word == place else filled(word) for word in COMMANDS[command]]
    if command in WRITERS:
        usual = "out.safetensors" if command in ("train-parts", "heal") else "out"
        words += ["--output", where if place == "--output" else usual]
    before = sorted(tmp_path.rglob("*"))
    assert run_command([command, *words]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(said) == 1, said
    assert said[0].startswith("error: ")
    assert "unexpected" not in said[0]
    if place not in ("{model}", "{gates}"):  # a hub id or a shipped recipe could be meant
        assert "choose a shorter one" in said[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["a\0b", "\ud800", LONG])
def test_a_name_that_no_file_can_have_is_refused_by_all_who_read_and_write(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    assert unusable(path)
    for attempt in (
        lambda: check_path(path),
        lambda: read_text(path, ProfileError),
        lambda: write_text(path, "x"),
        lambda: inspect(path),
    ):
        with pytest.raises(VtcompressError) as caught:
            attempt()
        said = str(caught.value)
        assert "; choose a" in said
        assert "\n" not in said.encode("utf-8").decode()  # and it can be printed
    assert list(tmp_path.iterdir()) == []


def test_the_longest_name_is_written_and_working_names_fit_beside_it(tmp_path: Path) -> None:
    path = tmp_path / ("x" * MOST_NAME_BYTES)
    for text in ("old", "new"):
        write_text(path, text)
    assert path.read_text() == "new"
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert working_stem("out") == "out"
    assert working_stem("x" * 191) != working_stem("x" * 192)
    for long in ("x" * 250, "\U0001f600" * 60, "\udcff" * 250):
        assert len(working_stem(long).encode("utf-8", "surrogateescape")) < 130


def test_a_long_name_of_a_model_is_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vtcompress.stages.report import origin_of

    assert origin_of(LONG, tmp_path).hub_id == LONG
    facts.plan().save(tmp_path / "small" / "plan.json")
    words = ["--recipe", "identity", "--model", LONG, "--compressed", tmp_path / "small"]
    assert run_command(["export", *map(str, words), "--output", str(tmp_path / "out")]) == 1
    assert "unexpected" not in capsys.readouterr().err


@pytest.mark.parametrize("holds", [(), ("notes.txt",)])
def test_inspect_says_what_it_reads_where_a_folder_is_none_of_it(
    tmp_path: Path, holds: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in holds:
        (tmp_path / name).write_text("mine")
    assert run_command(["inspect", str(tmp_path)]) == 1
    what = "is nothing that is known here" if holds else "is empty"
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: {what}; give the folder of a model (it holds config.json), an artifact "
        "(manifest.json), what `compress` wrote (plan.json) or `search` (front.json), or the file "
        "of a plan or profile\n"
    )


@pytest.mark.parametrize("kind", [FILE, FOLDER])
def test_the_home_folder_is_meant_where_no_shell_put_it_in(
    kind: click.Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kind.convert("~/out", None, None) == tmp_path / "out"
    assert kind.convert("./~", None, None) == Path("~")
    assert kind.convert("~no-such-user-here/x", None, None) == Path("~no-such-user-here/x")


def test_a_model_and_a_recipe_below_the_home_folder_are_found(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line, in Python, and in a recipe's own paths."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "q.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(
        "vtcompress: 2\nmodel: {id: ~/model}\ncalibrate: {data: ~/q.jsonl}\n", encoding="utf-8"
    )
    recipe = vtcompress.load_recipe("~/mine.yaml")
    assert recipe.model.id == str(tmp_path / "model")
    assert recipe.calibrate.data == tmp_path / "q.jsonl"
    assert recipe.override({"model.id": "~/model"}).model.id == str(tmp_path / "model")
    assert vtcompress.inspect("~/model")["kind"] == "model"
    plan = ["plan", "--recipe=~/mine.yaml", "--model=~/model", "--output=~/plan.json"]
    assert run_command(plan) == 0
    assert (tmp_path / "plan.json").is_file()


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Fail where a pipe that nobody writes to is waited for."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for ever"))
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def named_pipe(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is a short one
        one.bind(path.name)
        os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a named pipe": named_pipe, "a socket": bound_socket, "a device": device,
}  # fmt: skip
READERS: dict[str, Callable[[Path], object]] = {
    "questions": read_samples,
    "a picture": load_image,
    "a picture of a call": pictures_of,
    "a recipe by name": load_recipe,
    "a recipe": read_recipe,
    "gates": GateFile.read,
    "a head mask": lambda path: read_head_mask(path, facts.plan().model.decoder),
    "a plan": Plan.load,
    "a profile": Profile.load,
    "an artifact": Artifact.open,
    "anything": inspect,
    "a file of a command": lambda path: FILE.convert(str(path), None, None),
}


@pytest.mark.skipif(os.name == "nt", reason="POSIX has them")
@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_neither_file_nor_folder_is_called_what_it_is(
    reader: str, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "special"
    SPECIAL[kind](path)
    with pytest.raises(VtcompressError) as caught:
        READERS[reader](path)
    said = str(caught.value)
    assert f": is {kind}, neither a file nor a folder; choose an ordinary one" in said
    assert str(path) in said
    assert "\n" not in said


@pytest.mark.skipif(os.name == "nt", reason="POSIX has them")
@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("kind", ["a named pipe", "a socket"])
def test_what_is_neither_file_nor_folder_is_not_written_over(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "special"
    SPECIAL[kind](path)
    with pytest.raises(VtcompressError, match=f"is {kind}, neither"):
        write_text(path, "x")
    assert not path.is_file()


@pytest.mark.skipif(os.name == "nt", reason="POSIX has them")
@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pipe_in_a_model_folder_is_not_waited_for(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(VtcompressError, match=f"{name}: is a named pipe, neither a file"):
        describe(str(folder))
