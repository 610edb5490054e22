"""What a person sees: bars on a terminal, lines elsewhere, nothing when quiet or for machines."""

import io
import sys

import pytest

from vtcompress.console import Output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test moves by hand."""
    now = [0.0]
    monkeypatch.setattr("vtcompress.console.time.monotonic", lambda: now[0])
    return now


def test_a_long_loop_tells_the_time_left_in_plain_lines_off_a_terminal(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in Output().track(range(4), "measuring", 4):
        clock[0] += 10
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["measuring: 2 of 4, 20 s left", "measuring: 4 done in 40 s"]


def test_a_short_loop_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in Output().track(range(4), "measuring", 4):
        clock[0] += 0.1
    assert capsys.readouterr().err == ""


def test_a_bar_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("vtcompress.console.SHOW_AFTER_SECONDS", -1.0)
    assert list(Output().track(range(3), "measuring", 3)) == [0, 1, 2]
    assert "measuring" in terminal.getvalue()


def test_quiet_says_nothing_and_still_yields(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    out = Output(verbosity=-1)
    out.say("loading")
    for _ in out.track(range(4), "measuring", 4):
        clock[0] += 60
    assert capsys.readouterr() == ("", "")


def test_for_machines_stdout_is_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(machine=True)
    out.table("title", ("a", "b"), [("1", "2")])
    out.line("for people")
    out.result({"a": 1})
    assert capsys.readouterr().out == '{\n "a": 1\n}\n'


def test_for_people_there_is_a_table_and_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.table("title", ("a", "b"), [("1", "[bold]")])
    out.result({"a": 1})
    printed = capsys.readouterr().out
    assert "title" in printed
    assert "[bold]" in printed
    assert '"a"' not in printed
