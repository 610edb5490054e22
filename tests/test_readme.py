"""The README's example runs as written, and its commands and links exist."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.methods import METHOD_NAMES
from vtcompress.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs_as_written(
    llava: Callable[[str], Path],
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shutil.copytree(llava("clip+llama"), tmp_path / "my-llava")
    shutil.copytree(questions.parent, tmp_path, dirs_exist_ok=True)
    shutil.copy(questions, tmp_path / "heldout.jsonl")
    shutil.copy(tmp_path / "0.png", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "my-llava-shortv" / "manifest.json").is_file()
    figures, *answers = capsys.readouterr().out.splitlines()
    assert float(figures.split()[0]) > 1
    assert len(answers) == 2, "each answer stands on a line of its own"


def test_every_command_of_the_readme_exists() -> None:
    named = set(re.findall(r"^(?:\| `|vtcompress )([a-z_-]+)", README, re.MULTILINE))
    named |= set(re.findall(r"`([a-z]+)`, `bench`", README))
    assert {"calibrate", "plan", "compress", "export", "generate", "inspect"} <= named
    assert named <= set(cli.commands) | set(METHOD_NAMES)


def test_every_link_to_a_file_of_this_repository_leads_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_commands_of_the_demo_are_those_that_the_readme_shows() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    names = dict(re.findall(r"^(\w+) := (.*)$", makefile, re.MULTILINE))
    (target,) = re.findall(r"^demo: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    run = re.sub(r"\$\((\w+)\)", lambda name: names[name[1]], target)
    run = run.replace("$(VENV)", names["VENV"]).replace(f"{names['VENV']}/bin/", "")
    (shown,) = re.findall(r"`make demo` runs this.*?```console\n(.*?)```", README, re.DOTALL)
    assert _commands(shown) == [
        {word for word in command if word != "--overwrite"} for command in _commands(run)
    ]


def _commands(text: str) -> list[set[str]]:
    """Return the words of each command of this tool."""
    lines = text.replace("\\\n", " ").splitlines()
    words = (shlex.split(line) for line in lines)
    return [{*found} for found in words if found and found[0] == "vtcompress"]
