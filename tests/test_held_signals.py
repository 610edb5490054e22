"""A signal that ends a run finds no moment at which anything would be left behind."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from compressor.disk.held_signals import HeldSignals
from export.artifact.staging import check_place, staged
from tests.artifacts import write_result
from vtcompress.interrupts import Interrupts

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")

Work = Callable[[Path], object]

# Python looks for signals where a function begins, and behind a call of one in C: here of those that change
# folders.
EVENTS = ("call", "c_return")
CHANGING = (
    "mkdir",
    "rename",
    "rmdir",
    "unlink",
    "open",
    "close",
    "rmtree",
    "made_parent",
    "exclusive",
)


def run(work: Work, folder: Path, ended: int | None = None) -> int:
    """Run some work and return how many moments it had; at one of them, counted from 0, SIGTERM comes."""
    seen = 0

    def watch(frame: FrameType, event: str, called: object) -> None:
        nonlocal seen
        name = frame.f_code.co_name if event == "call" else getattr(called, "__name__", "")
        if event in EVENTS and name in CHANGING:
            seen += 1
            if seen - 1 == ended:
                signal.raise_signal(signal.SIGTERM)

    with Interrupts().heard():
        sys.setprofile(watch)
        try:
            work(folder)
        finally:
            sys.setprofile(None)
    return seen


def left(folder: Path) -> list[str]:
    """Return the files and the empty folders in a folder, and what is in `a`."""
    found = [path for path in folder.rglob("*") if path.is_file() or not any(path.iterdir())]
    return sorted(path.read_text() if path.name == "a" else path.name for path in found)


def tried(folder: Path) -> None:
    check_place(folder / "deep" / "out", overwrite=True)


def written(folder: Path) -> None:
    with staged(folder / "deep" / "out", overwrite=True) as staging:
        (staging / "a").write_text("new")


def old(folder: Path) -> None:
    write_result(folder / "deep" / "out", a="old")


def given(folder: Path) -> None:
    (folder / "deep" / "out").mkdir(parents=True)


@pytest.mark.parametrize(
    ("prepare", "work", "before"),
    [
        (Path.mkdir, tried, []),
        (Path.mkdir, written, []),
        (old, written, ["files.json", "old"]),
        (given, written, ["out"]),
    ],
)
def test_a_run_that_a_signal_ends_at_any_moment_leaves_what_was_there_or_the_whole_result(
    tmp_path: Path, prepare: Work, work: Work, before: list[str]
) -> None:
    prepare(tmp_path / "whole")
    moments, after = run(work, tmp_path / "whole"), left(tmp_path / "whole")
    assert moments > 10
    for moment in range(moments):
        prepare(folder := tmp_path / str(moment))
        with pytest.raises(KeyboardInterrupt):
            run(work, folder, moment)
        assert left(folder) in (before, after), moment


class HeardError(Exception):
    """What a handler of the test raises."""


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that were heard; each raises."""
    found: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        del frame
        found.append(number)
        raise HeardError

    before = {one: signal.signal(one, hear) for one in (signal.SIGINT, signal.SIGTERM)}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def test_what_came_while_it_had_to_wait_is_raised_where_signals_pass_on_and_behind_the_block(
    heard: list[int],
) -> None:
    with pytest.raises(HeardError), HeldSignals() as signals:  # noqa: PT012 - what is done in between is told
        try:
            signal.raise_signal(signal.SIGTERM)
            assert heard == []
            signals.pass_on()
            pytest.fail("it was not raised")
        finally:
            assert heard == [signal.SIGTERM]
            signals.wait = True
            signal.raise_signal(signal.SIGINT)
            assert heard == [signal.SIGTERM]
    assert heard == [signal.SIGTERM, signal.SIGINT]


def test_inside_another_block_that_waits_nothing_is_raised_before_that_one_ends(
    heard: list[int],
) -> None:
    with pytest.raises(HeardError), HeldSignals():  # noqa: PT012
        with HeldSignals() as inner:
            inner.pass_on()
            signal.raise_signal(signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM]


def test_signals_are_given_back_and_those_that_nobody_hears_stay_as_they_are(
    heard: list[int],
) -> None:
    listening, hup = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    with HeldSignals():
        assert signal.getsignal(signal.SIGTERM) != listening
        assert signal.getsignal(signal.SIGHUP) == hup
    assert signal.getsignal(signal.SIGTERM) == listening
    assert heard == []


def test_in_another_thread_nothing_is_held() -> None:
    before = signal.getsignal(signal.SIGINT)
    found = []

    def work() -> None:
        with HeldSignals():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
