"""Ctrl-C, SIGTERM and SIGHUP end a command as an error does: cleaned up, in one line, with a code each."""

import contextlib
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Run
from vtcompress import start
from vtcompress.console import Output, shown
from vtcompress.interrupts import SETTLES_SECONDS, Interrupts

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")

ROOT = Path(__file__).parent.parent
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A command that writes a folder slowly, and takes a second to clean up. What is ignored where the tests run,
# in the background perhaps, is not ignored by it, but for the signals that are its arguments.
SLOW = """
import signal, sys, time
from pathlib import Path
import vtcompress
from export.artifact.staging import staged
from vtcompress.cli.main import main

def slow(*_, **__):
    with staged(Path("out")) as folder:
        (folder / "half").write_text("x")
        try:
            print("writing", flush=True)
            time.sleep(60)
        finally:
            print("cleaning", flush=True)
            time.sleep(1)
            print("cleaned", flush=True)

vtcompress.bench = slow
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN if str(number.value) in sys.argv else signal.SIG_DFL)
main(["bench", "."])
"""


@pytest.fixture
def began(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Return a function that begins the slow command in an empty folder, with signals that it ignores."""
    running: list[subprocess.Popen[str]] = []

    def begin(*ignored: signal.Signals) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW, *(str(number.value) for number in ignored)],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        running.append(process)
        assert said_next(process) == "writing"
        assert len(list(tmp_path.glob(".out.vtcompress-staging-*"))) == 1
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def said_next(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "ended by SIGTERM"),
        (signal.SIGHUP, "ended by SIGHUP"),
    ],
)
def test_a_signal_that_ends_a_command_leaves_nothing_but_its_line_and_code(
    number: signal.Signals,
    line: str,
    began: Callable[..., "subprocess.Popen[str]"],
    tmp_path: Path,
) -> None:
    process = began()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, f"{line}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_of_a_closing_terminal_does_not_stop_the_cleaning(
    began: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    process = began()
    process.send_signal(signal.SIGHUP)
    assert said_next(process) == "cleaning"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (129, "cleaned\n", "ended by SIGHUP\n")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_ignored(
    began: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    """As under `nohup`."""
    process = began(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert list(tmp_path.iterdir()) == []


def test_a_command_gives_the_signals_back_and_python_calls_take_none(vt: Run) -> None:
    handlers = [signal.getsignal(number) for number in SIGNALS]
    hook = sys.unraisablehook
    shown(None)
    shown(Output())
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert vt("recipes")[0] == 0
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert sys.unraisablehook is hook


Handlers = dict[int, Callable[[int, None], None]]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Output, Handlers]]:
    """A command's output while signals are taken over, and what is called for each."""
    handlers: Handlers = {}
    monkeypatch.setattr("signal.getsignal", lambda _: signal.SIG_DFL)
    monkeypatch.setattr("signal.signal", lambda number, handler: handlers.update({number: handler}))
    out = Output(verbosity=-1)
    with out.doing.interrupts.heard():
        yield out, handlers


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_that_a_library_swallowed_is_raised_at_the_next_step(
    heard: tuple[Output, Handlers], number: signal.Signals
) -> None:
    out, handlers = heard
    steps = out.track(range(4), "measuring", 4)
    assert next(steps) == 0
    with contextlib.suppress(KeyboardInterrupt):  # the library
        handlers[number](number, None)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    with pytest.raises(KeyboardInterrupt):
        out.say("checking")


def test_a_signal_that_comes_again_much_later_is_raised_again(
    heard: tuple[Output, Handlers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first may have been swallowed where no step follows."""
    _, handlers = heard
    now = [100.0]
    monkeypatch.setattr("vtcompress.interrupts.time.monotonic", lambda: now[0])
    end = handlers[signal.SIGTERM]
    with pytest.raises(KeyboardInterrupt):
        end(signal.SIGTERM, None)
    end(signal.SIGHUP, None)
    now[0] += SETTLES_SECONDS + 1
    with pytest.raises(KeyboardInterrupt):
        end(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):  # whoever sits at the terminal need not wait
        handlers[signal.SIGINT](signal.SIGINT, None)


def test_an_interrupt_that_no_signal_sent_is_one_of_the_user() -> None:
    assert (str(Interrupts()), Interrupts().code) == ("interrupted", 130)


def test_an_interrupt_where_python_cannot_raise_it_leaves_no_trace_and_is_raised_at_the_next_step(
    heard: tuple[Output, Handlers], capsys: pytest.CaptureFixture[str]
) -> None:
    out, handlers = heard

    class Fleeting:
        """Nothing but a thing to refer to."""

    def told(_: object) -> None:
        handlers[signal.SIGINT](signal.SIGINT, None)

    thing = Fleeting()
    weak = weakref.ref(thing, told)
    del thing
    assert weak() is None
    assert capsys.readouterr().err == ""
    with pytest.raises(KeyboardInterrupt):
        out.doing.interrupts.check()
    broken = Fleeting()
    kept = weakref.ref(broken, lambda _: 1 / 0)
    del broken
    assert kept() is None
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_ctrl_c_while_the_command_loads_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopping:
        """In place of a module that takes long to import."""

        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "vtcompress.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "vtcompress.cli.main", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Stopping, *sys.meta_path])
    with pytest.raises(SystemExit) as caught:
        start.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
