"""A seeded part of what `python -m tests.fuzz` damages: every file of a model or artifact that is read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import BEGINS, ENDS, HEAD, PAGE, written
from tests.fuzz_kinds import KINDS
from tests.test_fuzz import CASES, ROOT, Count

PART = 0.004


def test_damaged_files_of_every_kind_are_read_or_refused_in_time_and_memory(
    tiny_model: Path, tiny_artifact: Path, counted: Count
) -> None:
    sources = ["--sources", str(tiny_model), str(tiny_artifact)]
    command = [sys.executable, "-m", "tests.fuzz", "--json", "--part", str(PART), *sources]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [*found] == [kind.name for kind in KINDS]
    counted(CASES, sum(row["tried"] for row in found.values()))


MADE = """
import os, sys
from pathlib import Path
import tests.fuzz
from compressor.errors import VtcompressError
from tests.fuzz_kinds import Kind

tests.fuzz.SECONDS, tests.fuzz.LOOK = 0.5, 0.1


def fails():
    raise VtcompressError("said")


CASES = (
    "1", "fails()", "1/0", "os.abort()", "bytes(3 << 30)", "while True: pass", "os.system('true')"
)


def make(seed):
    return CASES[int(seed.split()[1])] if seed else "1"


read = lambda case: exec(case, globals())
kind = Kind("made", 7, lambda place: (make, read))
print(sorted(tests.fuzz.run(kind, [Path(p) for p in sys.argv[1:]], range(7)).outcomes.items()))
"""
SEEN = (
    "ZeroDivisionError: ", "died", "MemoryError: ", " s of a processor", "os.system",
)  # fmt: skip


def test_what_is_not_held_is_seen(tiny_model: Path, tiny_artifact: Path) -> None:
    """Each way that a case may end in, of cases that are made for it."""
    command = [sys.executable, "-c", MADE, str(tiny_model), str(tiny_artifact)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert "[('not held', 5), ('read', 1), ('refused', 1)]" in done.stdout, done.stderr
    for number, why in enumerate(SEEN, start=2):
        (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"made {number}: ")]
        assert why in line


def test_the_page_has_each_kind_with_all_of_its_cases_held() -> None:
    """Rows are written by `python -m tests.fuzz --write`: a kind that changed is to be run again."""
    table = PAGE.read_text(encoding="utf-8").partition(BEGINS)[2].partition(ENDS)[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    wanted = [f"| `{kind.name}` | {kind.count:,} | {kind.count:,}: " for kind in KINDS]
    assert [row[: len(start)] for row, start in zip(rows, wanted, strict=True)] == wanted


def test_figures_of_a_kind_replace_its_row_alone() -> None:
    first, second = KINDS[0], KINDS[1]
    rows = {k.name: {"tried": k.count, "read": k.count, "longest": 1, "most": 0} for k in KINDS[:2]}
    page = written(f"a\n{BEGINS}{ENDS}b\n", rows)
    held = f"{first.count - 1:,}: {first.count - 1:,} read, 0 refused"
    less = {first.name: rows[first.name] | {"not held": 1, "read": first.count - 1}}
    again = written(page, less)
    assert again.startswith(
        f"a\n{BEGINS}{HEAD}| `{first.name}` | {first.count:,} | {held} | 1.0 s |"
    )
    assert [*set(page.splitlines()) - set(again.splitlines())] == [page.splitlines()[4]]
    with pytest.raises(ValueError, match=f"{second.name}: 1 cases of {second.count}"):
        written(page, {second.name: {"tried": 1}})
