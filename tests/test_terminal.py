"""Nothing that a file, a model or data says moves a terminal's cursor or turns words round."""

import ast
import json
import logging
import unicodedata
from pathlib import Path

import pytest

from export.report.text.characters import printable
from vtcompress.cli.main import run_command
from vtcompress.console import Output
from vtcompress.terminal import written_out

ROOT = Path(__file__).parent.parent
CLEARS = "\x1b[2J\x9b31m\u202ecba\u2066\r\x07\u2028"
TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def acts(character: str) -> bool:
    """Say by Unicode's own tables whether a terminal acts on a character."""
    control = (
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character not in "\n\t"
    )
    return control or unicodedata.bidirectional(character) in TURNS


def test_each_character_that_acts_is_written_out_and_no_other() -> None:
    every = [chr(code) for code in range(0x110000)]
    assert [c for c in every if written_out(c) != c] == [c for c in every if acts(c)]
    assert written_out("a\x1b[31mb\u202ec") == "a\\x1b[31mb\\u202ec"


def test_reports_replace_the_same_characters() -> None:
    every = [chr(code) for code in range(0x110000)]
    kept = [c for c in every if printable(c) == c]
    assert kept == [c for c in every if (not acts(c) or c == "\r") and c not in "\ufffe\uffff"]


def test_all_that_is_printed_goes_through_one_place() -> None:
    printing = ("click.echo", "click.secho", "print", "sys.stdout.write", "sys.stderr.write")
    found = {
        path.name
        for path in (ROOT / "vtcompress").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in printing
    }
    assert found == {"terminal.py", "start.py"}  # the second says what is not installed


def test_lines_tables_progress_and_errors_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Output()
    for tell in (out.line, out.always, out.say, out.warn):
        tell(f"a{CLEARS}")
    out.table(f"title{CLEARS}", ["a", f"b{CLEARS}"], [(f"1{CLEARS}", f"x{CLEARS}")])
    list(out.track([1], f"label{CLEARS}", 1))
    assert run_command(["inspect", str(tmp_path / f"no{CLEARS}artifact")]) == 1
    assert run_command(["inspect", f"--{CLEARS}"]) == 2
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert text.count("\\x1b[2J") >= 9
    assert [c for c in text if acts(c)] == []


def test_a_name_of_two_lines_makes_no_second_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a\nExport fidelity: passed"
    assert run_command(["inspect", str(tmp_path / name)]) == 1
    out = Output()
    out.say(name)
    out.warn(name)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert all(r"a\nExport fidelity: passed" in line for line in said)


def test_libraries_logs_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert run_command(["recipes"]) == 0
    logging.getLogger("library").warning(f"read{CLEARS}")
    said = capsys.readouterr().err
    assert "library: read\\x1b[2J" in said
    assert [c for c in said if acts(c)] == []


def test_json_holds_the_very_characters_and_none_that_acts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = {"text": f"\xe9\u4e2d\U0001f600{CLEARS}\x85", "n": [1, None]}
    Output(machine=True).result(document)
    said = capsys.readouterr().out
    assert [c for c in said if acts(c)] == []
    assert "\xe9\u4e2d\U0001f600" in said
    assert json.loads(said) == document
