"""The tables of docs/families.md: what the cases of every family showed, family by method by backend.

    python -m tests.family_matrix           # run the cases of all families, write the tables
    python -m tests.family_matrix FILE ...  # of some families; rows of the others stay
    python -m tests.family_matrix FOLDER    # write what a run showed that had this --basetemp

A case says to the fixture `shows` which cell it is about, and `tests.conftest` notes how it ended. A cell
says "yes" if all its cases passed, or names the refusal that a case met. Nothing is written while a cell of
a family has no case, or one that failed or was skipped. Another table tells which choices among visual tokens
a family's models take; the last is that of `tests.width_table`.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.width_table import read_built, with_built

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "families.md"
BEGIN, END = "<!-- written by python -m tests.family_matrix -->", "<!-- end of the table -->"
TORCH, GRAPHS_RUN, RTX = "torch", ("onnxruntime", "openvino"), "tensorrt-rtx"
TITLES = {
    TORCH: "torch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    RTX: "TensorRT-RTX, built",
}
GATED = ("gates, dynamic", "gates, staged")
CUTS = {
    "identity": "without cuts",
    "frozen": "frozen layers",
    "exit": "exit",
    **{gates: gates for gates in GATED},
    "heads": "heads",
    "neurons": "neurons",
    "window": "window",
    "all": "all together",
}
HEAD = ("family", "in", *CUTS.values())
CHOICES: Mapping[str, Mapping[str, Any]] = {
    "gprune": {"keep": 0.5},
    "divprune": {"keep": 0.5},
    "random": {"keep": 0.5},
    "pool": {"keep": 0.5},
    "visionzip": {"keep": 0.5},
    "cls_knee": {"keep": 0.5},
    "wico": {"weights": ""},
    "wico_plus": {"layer": 2},
    "gamma_mod": {"routers": "", "outputs": 2},
    "mod": {"routers": "", "outputs": 1},
    "fastv": {"layer": 2, "keep": 0.5},
    "skip": {"operators": {"attention": [1]}},
}
"""Methods without columns of their own, as a recipe asks for them; files that are drawn."""
FACTS = "facts"
"""In place of a backend: what a model's facts allow."""
YES, NOT_SHOWN = "yes", "not shown"

Cell = tuple[str, str]
"""A cut and a backend."""
Shown = Mapping[Cell, str]
"""What a cell says: yes, not shown, or the line of a refusal."""


class Table(NamedTuple):
    """A table of the page.

    Attributes:
        begin: the line in front of it.
        end: the line behind it.
        head: its columns.
        keys: how many of them name a row.
    """

    begin: str
    end: str
    head: Sequence[str]
    keys: int


MATRIX = Table(BEGIN, END, HEAD, 2)
TAKEN = Table(
    "<!-- which choices are taken, by python -m tests.family_matrix -->",
    "<!-- end of choices -->",
    ("family", *CHOICES),
    1,
)


def read_shown(
    file: Path, cuts: Iterable[str] = CUTS, backends: Iterable[str] = (*TITLES,)
) -> dict[Cell, str]:
    """Return what the cases of a family showed; nothing of a cell without a case, or with one that failed."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    outcomes: dict[Cell, set[str]] = {}
    refused: dict[Cell, str] = {}
    for line in map(json.loads, lines):
        cell = (line["cut"], line["backend"])
        outcomes.setdefault(cell, set()).add(line["outcome"])
        if line["refused"]:
            refused[cell] = reason_of(line["refused"])
    return {
        (cut, backend): refused.get((cut, backend), YES)
        if outcomes.get((cut, backend)) == {"passed"}
        else NOT_SHOWN
        for cut in cuts
        for backend in backends
    }


def taken_row(family: str, file: Path) -> list[str]:
    """Return a family's row of `TAKEN`."""
    return [f"`{family}`", *read_shown(file, CHOICES, (FACTS,)).values()]


def reason_of(line: str) -> str:
    """Return a refusal without the place that it was met in and names: families and methods share reasons."""
    line = re.sub(r"^(compress\[\d+\]\.\w+\.(\w+: )?|[^:]*: )", "", line.splitlines()[0])
    line = re.sub(r"\bpictures of \w+ (?=are|have)", "pictures ", line)
    line = re.sub(r"\bof \w+ models\b", "of such models", line)
    return re.sub(r"; leave \w+ out$", "", re.sub(r"\btiny-\w+", "the model", line))


def rows_of(family: str, shown: Shown) -> list[list[str]]:
    """Return a family's rows, one a backend; refusals are whole."""
    return [
        [f"`{family}`", title, *(shown[cut, backend] for cut in CUTS)]
        for backend, title in TITLES.items()
    ]


def read_page(text: str, table: Table = MATRIX) -> dict[str, list[list[str]]]:
    """Return each family's rows in a table of the page, refusals in place of their numbers."""
    block = text.partition(table.begin)[2].partition(table.end)[0]
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", block, re.MULTILINE))
    found: dict[str, list[list[str]]] = {}
    for line in block.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == len(table.head):
            whole = [re.sub(r"^refused \((\d+)\)$", lambda m: reasons[m[1]], c) for c in cells]
            found.setdefault(cells[0].strip("`"), []).append(whole)
    return found


def page_with(text: str, rows: Mapping[str, Sequence[Sequence[str]]], table: Table = MATRIX) -> str:
    """Return the page with these families' rows between the markers of a table."""
    begin, end, head, keys = table
    reasons: dict[str, int] = {}

    def short(cell: str) -> str:
        if cell in (YES, NOT_SHOWN):
            return cell
        return f"refused ({reasons.setdefault(cell, len(reasons) + 1)})"

    lines = [[*row[:keys], *map(short, row[keys:])] for family in rows for row in rows[family]]
    drawn = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *lines)]
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    return "\n".join([before + begin, "", *drawn, "", "Refused:", "", *notes, "", end + after])


def not_shown(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return which cells of rows nothing was shown of, as words."""
    return [
        f"{row[0]} {name} in {row[1]}"
        for row in rows
        for name, cell in zip(HEAD, row, strict=True)
        if cell == NOT_SHOWN
    ]


def families_in_order() -> list[str]:
    """Return the names of this tool's own families, in their order."""
    from compressor.families.known import families

    return [family.name for family in families() if family.package is None]


def updated(text: str, folder: Path) -> str:
    """Return the page with the rows of the families and engines whose cases ran in a session.

    Args:
        text: of the page.
        folder: base of the session's temporary folders.

    Raises:
        SystemExit: a cell was not shown, or no family ran; nothing is written then.
    """
    from tests.real_widths import LINES

    if built := read_built(folder):
        text = with_built(text, built, LINES)
    files = {file.stem: file for file in (folder / "shown").glob("*.jsonl")}
    rows = {name: rows_of(name, read_shown(file)) for name, file in files.items()}
    if not rows and not built:
        raise SystemExit(f"{folder}: no case of a family ran there")
    if missing := [cell for family in sorted(rows) for cell in not_shown(rows[family])]:
        raise SystemExit("nothing is written, not shown: " + "; ".join(missing))
    if not rows:
        return text
    taken = {name: [taken_row(name, file)] for name, file in files.items()}
    if TAKEN.begin in text and not any(NOT_SHOWN in row for (row,) in taken.values()):
        text = page_with(text, _in_order(read_page(text, TAKEN) | taken), TAKEN)
    return page_with(text, _in_order(read_page(text) | rows))


def _in_order(rows: Mapping[str, list[list[str]]]) -> dict[str, list[list[str]]]:
    return {name: rows[name] for name in families_in_order() if name in rows}


def judge(request: pytest.FixtureRequest, family: str) -> None:
    """Hold a family's rows on the page to what the cases of its class showed in this session.

    Cells whose backend is not installed here are not judged; neither is a class of which not all cases run.
    """
    from tests.conftest import shared

    own = request.node.getparent(pytest.Class)
    ran = {item.name for item in request.session.items if item.parent is own}
    if missing := {item.name for item in own.collect()} - ran:
        pytest.skip(f"{len(missing)} of {family}'s cases do not run: nothing to judge the page by")
    shown = read_shown(shared(request.config) / "shown" / f"{family}.jsonl")
    wanted = rows_of(family, shown)
    page = read_page(PAGE.read_text(encoding="utf-8")).get(family, [])
    absent = [title for backend, title in TITLES.items() if not _installed(backend)]
    assert [row for row in page if row[1] not in absent] == [
        row for row in wanted if row[1] not in absent
    ], "docs/families.md: write it anew with `python -m tests.family_matrix`"
    if absent:
        pytest.skip(f"not judged, as not installed: {', '.join(absent)}")


def _installed(backend: str) -> bool:
    from importlib.util import find_spec

    return find_spec(backend.replace("-", "_")) is not None


def main(arguments: Sequence[str]) -> None:
    """Run cases, or take a session's folder, and write the page."""
    page = PAGE.read_text(encoding="utf-8")
    if len(arguments) == 1 and Path(arguments[0]).is_dir():
        PAGE.write_text(updated(page, Path(arguments[0])), encoding="utf-8")
        return
    here = Path(__file__).parent
    wide = [here / "test_real_widths.py", here / "test_qwen_vl_engines.py"]
    all_of_them = [*sorted(here.glob("test_family_*.py")), *wide]
    files = list(arguments) or [*map(str, all_of_them)]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "run"
        options = ["-q", f"--basetemp={base}", "-k", "not the_page", "--numprocesses=2"]
        options += [
            "--dist=loadscope",
            "--no-loadscope-reorder",
            "--max-worker-restart=0",
            "-m",
            "",
        ]
        code = subprocess.run([sys.executable, "-m", "pytest", *options, *files], check=False)
        if code.returncode:
            raise SystemExit("nothing is written: cases failed")
        PAGE.write_text(updated(page, base), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
