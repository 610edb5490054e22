"""What reports is off before a program can import it, and the block on it leaves all as it was."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from threading import Barrier, Thread
from types import ModuleType

import pytest

from compressor.telemetry import SWITCHES
from export.backends.unreported import REPORTERS, unreported

ROOT = Path(__file__).resolve().parent.parent
(REPORTER,) = REPORTERS
# Importing onnxruntime writes below the home folder before anybody can stop it.
AT_IMPORT = ("onnxruntime", "openvino")


def after_import(**given: str) -> list[str]:
    """Return the switches of a new process that has imported `vtcompress` and nothing else."""
    code = f"import os, vtcompress; print(*(os.environ.get(n) for n in {list(SWITCHES)}))"
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | given,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_importing_vtcompress_alone_sets_the_switches_and_leaves_a_choice_alone() -> None:
    assert after_import() == ["1", "1"]
    assert after_import(ORT_DISABLE_TELEMETRY="0") == ["0", "1"]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The imported modules, without the package that reports; put back afterwards."""
    monkeypatch.setitem(sys.modules, REPORTER, ModuleType(REPORTER))
    del sys.modules[REPORTER]
    return sys.modules


def test_what_reports_cannot_be_imported_inside_and_can_afterwards(
    modules: dict[str, ModuleType],
) -> None:
    with unreported(), pytest.raises(ImportError):
        __import__(REPORTER)
    assert REPORTER not in modules


@pytest.mark.parametrize("there", [ModuleType(REPORTER), None])
def test_a_module_or_block_that_was_there_before_is_there_again(
    modules: dict[str, ModuleType | None], there: ModuleType | None
) -> None:
    modules[REPORTER] = there
    with unreported():
        assert modules[REPORTER] is None
    assert modules[REPORTER] is there


def test_blocks_that_overlap_hold_until_the_last_one_ends(
    modules: dict[str, ModuleType],
) -> None:
    first, second = unreported(), unreported()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert modules[REPORTER] is None
    second.__exit__(None, None, None)
    assert REPORTER not in modules


def test_threads_that_import_at_once_leave_all_as_it_was(modules: dict[str, ModuleType]) -> None:
    failed: list[BaseException] = []
    together = Barrier(8)

    def work() -> None:
        try:
            for _ in range(50):
                together.wait()
                with unreported():
                    assert modules[REPORTER] is None
        except BaseException as failure:  # noqa: BLE001 - told by the test's own thread
            failed.append(failure)
            together.abort()

    threads = [Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert REPORTER not in modules


def test_tests_and_benchmarks_import_what_reports_no_sooner_than_they_use_it() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("tests", "benchmarks", "examples", "compressor", "export", "vtcompress")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        for name in names(node)
        if name.split(".")[0] in AT_IMPORT
    ]
    assert found == []


def names(node: ast.stmt) -> list[str]:
    """Return the modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []
