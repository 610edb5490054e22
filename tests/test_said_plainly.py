"""What the command line says can be done: flags that the command has, files by their names."""

import ast
import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import vtcompress
from compressor.disk.files import make_parent, write_text
from compressor.disk.locks import exclusive
from compressor.errors import BackendError, ProfileError, VtcompressError
from compressor.profile import Profile
from compressor.recipe import Recipe
from export.artifact.staging import staged
from export.backends.registry import check_dtype
from tests import facts
from tests.test_prompts_early import Said
from vtcompress.cli.main import cli, run_command, spoken

ROOT = Path(vtcompress.__file__).parents[1]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
COMMAND = re.compile(r"vtcompress ([a-z][a-z-]*)(?![\w.])")
OTHERS = re.compile(r"pip install [^;,`]*|python -m \w+ [^;,`]*")
"""Words of other programs, whose flags are theirs."""

WRITERS = (
    "calibrate",
    "plan",
    "compress",
    "export",
    "sweep",
    "train-gates",
    "train-parts",
    "heal",
    "build",
    "pack",
    "report",
    "compare",
)
TRAINERS = ("train-gates", "train-parts", "heal")
MODEL = ("calibrate", "plan", "compress", "export", "sweep", *TRAINERS)
OVERWRITERS = ("compress", "export", "sweep", "pack", *TRAINERS)
GATED = ("calibrate", "plan", "compress", "export", "sweep", "validate")
RUNNERS = ("generate", "validate")

# Which commands may print what a module says with a flag, where the sentence names no command itself.
SPEAKERS: dict[str, dict[str, tuple[str, ...]]] = {
    "compressor/recipe.py": {"--trust-remote-code": MODEL},
    "export/backends/compared.py": {"--precision": ("validate",)},
    "export/report/pages/model_card.py": {"--backend": ("generate",)},
    "export/graphs/profiles.py": dict.fromkeys(("--max-context", "--max-images", "--max"), ("build",)),
    "vtcompress/cli/generating.py": dict.fromkeys(
        ("--prompt", "--image", "--chat", "--temperature"), ("generate",)
    ),
    "vtcompress/cli/checking.py": dict.fromkeys(
        ("--precision", "--device", "--gpu", "--backend", "--data", "--model", "--gates", "--weights",
         "--healed", "--trust-remote-code"),
        ("validate",),
    ),
    "vtcompress/cli/serving/command.py": dict.fromkeys(("--api-key", "--api-key-file"), ("serve",)),
    "vtcompress/last_resort.py": {"--api-key": ("serve",)},
    "vtcompress/cli/options.py": {"--set": MODEL, "--over": ("sweep",)},
    "vtcompress/cli/report.py": {"--validate-data": ("export",)},
    "vtcompress/stages/gates/report.py": {"--validate-data": ("train-gates",)},
    "vtcompress/stages/training/report.py": dict.fromkeys(
        ("--minutes", "--learning-rate"), ("train-parts", "heal")
    ),
    "vtcompress/stages/parts/report.py": {"--validate-data": ("export",)},
    "vtcompress/stages/healing/report.py": {"--validate-data": ("export",)},
}  # fmt: skip
# Options of programs that are started, not ours.
STARTED = (
    "export/backends/tensorrt/trtexec.py",
    "export/backends/gpus.py",
    "export/evaluation/lmms.py",
)


def texts(path: Path) -> Iterator[str]:
    """Yield what a module may say: its strings, but for docstrings and the declaration of options."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    passed = {id(inner) for node in ast.walk(tree) for inner in unsaid(node)}
    for node in ast.walk(tree):
        if id(node) in passed:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def unsaid(node: ast.AST) -> Iterable[ast.AST]:
    """Return the nodes inside one that are no messages of their own."""
    match node:
        case ast.Module() | ast.ClassDef() | ast.FunctionDef():
            first = node.body[0] if node.body else None
            return [first.value] if isinstance(first, ast.Expr) else []
        case ast.Expr(value=ast.Constant()):  # a docstring of a constant
            return [node.value]
        case ast.JoinedStr():
            return node.values
        case ast.Call(func=ast.Attribute(attr="option" | "argument" | "group")) | ast.Compare():
            return ast.walk(node)
        case ast.Call(func=ast.Attribute(attr="replace")):
            return node.args
    return []


def options(command: str) -> set[str]:
    return {"--help", *(name for option in cli.commands[command].params for name in option.opts)}


def has(command: str, flag: str) -> bool:
    return any(option == flag or option.startswith(f"{flag}-") for option in options(command))


def said() -> Iterator[tuple[str, str]]:
    for package in ("compressor", "export", "vtcompress"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name not in STARTED:
                yield from ((name, text) for text in texts(path))


def test_messages_name_commands_that_there_are_and_flags_that_these_commands_have() -> None:
    wrong = []
    for module, whole in said():
        text, *others = COMMAND.split(OTHERS.sub("", whole))
        for name, rest in zip(others[::2], others[1::2], strict=True):
            if name in cli.commands:
                wrong += [(module, f, whole) for f in FLAG.findall(rest) if not has(name, f)]
            else:
                text += rest
        for flag in FLAG.findall(text):
            speakers = SPEAKERS.get(module, {}).get(flag)
            if speakers is None:
                wrong.append((module, flag, "say in SPEAKERS which commands print it"))
                continue
            wrong += [
                (module, flag, f"printed by `{command}`, which has no such option: {text}")
                for command in speakers
                if flag in FLAG.findall(spoken(text, command)) and not has(command, flag)
            ]
    assert wrong == []


ARGUMENT = re.compile(r"(?:give|add|another|as|and) `([a-z_.]+)`")
"""What a message of a library asks for: an argument, or a key of the recipe."""

# The options of the command line that say them, and commands that print it.
ARGUMENTS = {
    "output": ("--output", (*OVERWRITERS, "calibrate", "plan")),
    "overwrite": ("--overwrite", (*OVERWRITERS, "calibrate", "build")),
    "data": ("--data", ("validate",)),
    "model": ("--model", (*MODEL, "validate")),
    "gates": ("--gates", GATED),
    "healed": ("--healed", ("validate",)),
    "calibrate.data": ("--data", ("calibrate", "export")),
    "model.id": ("--model", MODEL),
    "validate.data": ("--validate-data", ("sweep",)),
    "score": ("--score", ("validate",)),
}


def test_libraries_ask_for_arguments_which_commands_call_by_their_options() -> None:
    asked = {
        name
        for module, text in said()
        if not module.startswith("vtcompress/cli/")
        for name in ARGUMENT.findall(text)
        if name != "rows"  # of a graph
    }
    assert asked == ARGUMENTS.keys()
    for name, (flag, commands) in ARGUMENTS.items():
        for command in commands:
            assert spoken(f"give `{name}`", command) == f"give {flag}", (command, name)
    assert spoken("choose another `output`", "generate") == "choose another place"
    assert spoken("add `overwrite`", None) == "add `overwrite`"


def test_a_command_in_backticks_is_one_of_ours() -> None:
    unknown = [
        (module, name)
        for module, text in said()
        for name in re.findall(r"`vtcompress ([a-z][a-z-]*)", text)
        if name not in cli.commands
    ]
    assert unknown == []


def test_a_command_without_output_advises_another_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def locked(*_: Any, **__: Any) -> None:
        raise VtcompressError(
            "x: is being written by another run; wait for it or choose another `output`"
        )

    monkeypatch.setattr("export.backends.tensorrt.build.plan_engines", locked)
    monkeypatch.setattr("vtcompress.plan", locked)
    assert run_command(["build", str(tmp_path), "--target", "tensorrt-rtx"]) == 1
    assert capsys.readouterr().err == (
        "error: x: is being written by another run; wait for it or choose another place\n"
    )
    assert run_command(["plan", "--recipe", "identity", "--model", "x"]) == 1
    assert "choose another --output" in capsys.readouterr().err


def test_what_the_system_says_of_a_place_is_said_with_what_to_do_about_it() -> None:
    """The words of an `OSError` alone end no message: `/proc/x: cannot write: No such file or directory`."""
    bare = []
    for package in ("compressor", "export", "vtcompress"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.JoinedStr):
                    continue
                pieces = [ast.unparse(value) for value in node.values]
                said_at = [at for at, piece in enumerate(pieces) if ".strerror" in piece]
                if said_at and ";" not in "".join(pieces[said_at[-1] + 1 :]):
                    bare.append((path.relative_to(ROOT).as_posix(), ast.unparse(node)))
    assert bare == []


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room, or choose another place"),
        (errno.EACCES, "make it writable, or choose another place"),
        (errno.ENOENT, "choose another place"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_with_the_remedy_by_all_that_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    def in_the_block(output: Path) -> None:
        with staged(output):
            fails()

    def locked(output: Path) -> None:
        with exclusive(output):
            pass

    ending = f": cannot write: {os.strerror(number)}; {remedy}"
    for at, write in enumerate((in_the_block, partial(write_text, text="x"), locked)):
        if at:
            monkeypatch.setattr("os.open", fails)
        with pytest.raises(VtcompressError) as caught:
            write(tmp_path / "x")
        assert str(caught.value) == f"{tmp_path / 'x'}{ending}"
    monkeypatch.setattr("pathlib.Path.mkdir", fails)
    with pytest.raises(VtcompressError) as caught:
        make_parent(tmp_path / "y" / "x")
    assert str(caught.value) == f"{tmp_path / 'y'}{ending}"


def test_bench_is_told_of_no_option_that_it_lacks() -> None:
    # What `bench` and `generate` both say of graphs that ONNX Runtime cannot run.
    with pytest.raises(BackendError) as caught:
        check_dtype("onnxruntime", "bfloat16")
    assert all(has("bench", flag) for flag in FLAG.findall(str(caught.value)))


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Return a profile of another model, under a name of its own."""
    path = tmp_path / "q.json"
    facts.profile([[0.1, 0.2]]).save(path)
    return path


def test_a_profile_of_another_model_is_called_by_its_file(
    tiny_model: Path, foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--recipe", "identity", "--model", str(tiny_model), "--profile", str(foreign)]
    plan = tmp_path / "plan.json"
    assert run_command(["plan", *common[:-2], "--output", str(plan)]) == 0
    capsys.readouterr()
    for command in (
        ["plan", "--output", str(tmp_path / "other.json")],
        ["export", "--output", str(tmp_path / "out")],
        ["export", "--plan", str(plan), "--output", str(tmp_path / "out")],
        ["compress", "--plan", str(plan), "--output", str(tmp_path / "out")],
    ):
        assert run_command([*command, *common]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"error: {foreign}: measured on another model")
        assert not (tmp_path / "out").exists()
    # A profile that was made in this process has no file, and the usual name.
    recipe = vtcompress.load_recipe("identity").override({"model.id": str(tiny_model)})
    with pytest.raises(ProfileError, match=r"^profile\.json: measured on another model"):
        vtcompress.plan(recipe, Profile.load(foreign))


def its_own(recipe: Recipe, path: Path) -> Path:
    """Write a profile that belongs to the recipe's model."""
    digest = vtcompress.plan(recipe).model_digest
    profile = facts.profile([[0.1, 0.2]]).model_copy(update={"model_digest": digest})
    profile.save(path)
    return path


def test_calibration_data_that_is_not_read_is_told(
    tiny_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = vtcompress.load_recipe("identity").override({"model.id": str(tiny_model)})
    profile = its_own(bare, tmp_path / "own.json")
    recipe = bare.override({"calibrate.data": questions})
    stop = pytest.fail.Exception
    monkeypatch.setattr(
        "compressor.families.llava.family.LlavaFamily.original",
        lambda *_: pytest.fail("weights were read"),
    )
    out = tmp_path / "out"
    plan = vtcompress.plan(bare)

    def notes(recipe: Recipe, stage: Any) -> list[str]:
        said = Said()
        with contextlib.suppress(stop, VtcompressError):
            stage(recipe, said)
        return [line for line in said.lines if line.startswith("note: ")]

    small = tmp_path / "small"
    small.mkdir()
    plan.save(small / "plan.json")
    export = partial(vtcompress.export, output=out)
    stages: tuple[tuple[str, Any], ...] = (
        ("a plan is made from a profile", lambda r, s: vtcompress.plan(r, profile, progress=s)),
        (f"{profile} is used instead", lambda r, s: export(r, profile=profile, progress=s)),
        ("no method chooses by it", lambda r, s: export(r, progress=s)),
        ("the plan is made already", lambda r, s: export(r, plan=plan, progress=s)),
        (f"{small} has its plan", lambda r, s: export(r, compressed=small, progress=s)),
        ("the plan is made already", lambda r, s: vtcompress.compress(r, plan, out, progress=s)),
    )
    for why, stage in stages:
        assert notes(bare, stage) == []
        assert notes(recipe, stage) == [
            f"note: {questions}: calibration data that is not read: {why}"
        ]
    drawn = bare.override({"calibrate.samples": 5, "calibrate.seed": 7})
    for why, stage in stages:
        assert notes(drawn, stage) == [
            f"note: calibrate.samples: 5: has no effect: {why}",
            f"note: calibrate.seed: 7: has no effect: {why}",
        ]
    # float16 graphs are run on it, so there it is read.
    half = recipe.override({"export.dtype": "float16"})
    assert notes(half, lambda r, s: export(r, progress=s)) == []


def test_a_profile_beside_a_compressed_model_is_refused(
    tiny_model: Path, foreign: Path, tmp_path: Path
) -> None:
    recipe = vtcompress.load_recipe("identity").override({"model.id": str(tiny_model)})
    with pytest.raises(VtcompressError, match="holds plan and profile already"):
        vtcompress.export(recipe, tmp_path / "out", profile=foreign, compressed=tmp_path / "small")
