"""An error that nobody foresaw: one line, exit code 1, and a private file with the trace and versions."""

import errno
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.version import __version__
from vtcompress.cli import main as module
from vtcompress.cli.main import run_command


@pytest.fixture
def fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Callable[[], object]], list[str]]:
    """Return a function that replaces the list of shipped recipes, and gives the arguments to run it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def replace(by: Callable[[], object]) -> list[str]:
        monkeypatch.setattr("vtcompress.shipped.shipped_recipes", by)
        return ["recipes"]

    return replace


def raising(error: BaseException) -> Callable[[], object]:
    def shipped() -> object:
        raise error

    return shipped


def log_of(err: str) -> Path:
    found = re.search(r"trace: (\S+)$", err.rstrip("\n"))
    assert found, err
    return Path(found[1])


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("first\nsecond"),
        KeyError("a.key"),
        RecursionError("too deep"),
        EOFError("ran out of input"),
        PermissionError(13, "Permission denied", "x"),
        AssertionError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_is_one_line_that_names_command_error_and_log(
    error: Exception,
    fail: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert run_command(fail(raising(error))) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: unexpected in `vtcompress recipes`: {type(error).__name__}")
    assert err.count("\n") == 1
    assert "second" not in err
    assert "report it" in err
    log = log_of(err)
    assert log.parent == tmp_path
    written = log.read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in written
    assert f"vtcompress {__version__}" in written
    assert "numpy " in written


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
def test_the_log_is_private_and_every_failure_has_its_own(
    fail: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    logs = set()
    for _ in range(2):
        run_command(fail(raising(KeyError("x"))))
        logs.add(log_of(capsys.readouterr().err))
    assert len(logs) == 2
    assert {stat.S_IMODE(log.stat().st_mode) for log in logs} == {0o600}


def test_the_stage_that_was_announced_last_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def broken(*_: object, progress: module.Output, **__: object) -> None:
        for quiet_too in progress.track([1], "measuring layers", 1):
            raise ZeroDivisionError(quiet_too)

    monkeypatch.setattr("vtcompress.stages.calibrate.calibrate", broken)
    assert run_command(["-q", "calibrate", "--recipe", "identity"]) == 1
    err = capsys.readouterr().err
    assert (
        'unexpected in `vtcompress calibrate` after "measuring layers": ZeroDivisionError: 1' in err
    )


def test_with_v_the_trace_is_shown_as_well(
    fail: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["-v", *fail(raising(KeyError("x")))]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert log_of(err).is_file()


def test_where_no_log_can_be_written_the_trace_is_shown(
    fail: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    arguments = fail(raising(KeyError("x")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert run_command(arguments) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "no file could be written" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory in `vtcompress recipes`: "),
        (OSError(errno.ENOSPC, "full"), "no space left on the device in `vtcompress recipes`: "),
    ],
)
def test_a_lack_of_memory_or_room_is_not_called_a_fault_of_ours(
    error: Exception,
    said: str,
    fail: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(fail(raising(error))) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {said}")
    assert "report it" not in err


def test_an_error_in_a_thread_is_told_and_is_no_success(
    fail: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    def threaded() -> list[object]:
        thread = threading.Thread(target=raising(ZeroDivisionError("in a thread")))
        thread.start()
        thread.join()
        return []

    before = threading.excepthook
    assert run_command(fail(threaded)) == 1
    assert threading.excepthook is before
    err = capsys.readouterr().err
    assert "ZeroDivisionError: in a thread" in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


def test_an_interrupt_stays_an_interrupt(
    fail: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_command(fail(raising(KeyboardInterrupt()))) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert list(tmp_path.iterdir()) == []


def lines(tmp_path: Path, code: str, **streams: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, **streams
    )  # type: ignore[call-overload]


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
@pytest.mark.parametrize("many", [1, 100_000], ids=["at the end", "in between"])
def test_a_reader_that_leaves_is_no_error_to_report(many: int, tmp_path: Path) -> None:
    code = (
        "import sys, vtcompress.shipped as s; from vtcompress.cli.main import main\n"
        f"s.find_recipe = lambda name: type('F', (), {{'read_text': lambda self, **_: 'x\\n' * {many}}})()\n"
        "sys.stdin.readline()\n"
        "main(['recipes', 'x'])\n"
    )
    process = lines(tmp_path, code, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(b"go\n")
    assert (process.returncode, err) == (1, b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_behind_stdout_is_one_line(tmp_path: Path) -> None:
    code = "from vtcompress.cli.main import main; main(['recipes'])"
    with Path("/dev/full").open("wb") as full:
        process = lines(tmp_path, code, stdout=full)
        _, err = process.communicate()
    assert process.returncode == 1
    assert err.startswith(b"error: ")
    assert b"no space left on the device" in err
    assert err.count(b"\n") == 1
