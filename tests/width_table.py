"""The second table of docs/families.md: engines of published widths, as `tests.test_real_widths` built them.

A case says to the fixture `builds` which cell it is about, and tells its figures at its end; `tests.conftest`
notes how it ended. A row is written from a run that showed all of its cells, or not at all.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

BEGIN, END = "<!-- real widths, by python -m tests.family_matrix -->", "<!-- end of real widths -->"
FOLDER = "widths"
TILES, OWN_SIZES = "of its tiles", "of sizes of their own"
VISION, IDENTITY, CUT = "vision graph", "decoder", "decoder, all together"
GRAPHS = (VISION, IDENTITY, CUT)
HEAD = ("family", "real widths of", "for pictures", *GRAPHS)
UNSHOWN = "not shown"

Line = tuple[str, str, str]
"""What a row is about: family, model, pictures."""


def cell(figures: Mapping[str, float]) -> str:
    """Return what a cell says of an engine."""
    size, seconds = figures["bytes"] / 2**20, figures["seconds"]
    nodes = f", {figures['nodes']:.0f} nodes a layer" if "nodes" in figures else ""
    return f"{size:,.0f} MiB in {seconds:.0f} s{nodes}"


def read_built(folder: Path) -> dict[Line, dict[str, str]]:
    """Return the cells of the rows that a session had cases of.

    Args:
        folder: base of the session's temporary folders.
    """
    rows: dict[Line, dict[str, str]] = {}
    for file in sorted((folder / FOLDER).glob("*.jsonl")):
        for case in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            row = rows.setdefault(tuple(case["line"]), dict.fromkeys(GRAPHS, UNSHOWN))
            if case["outcome"] == "passed":
                row[case["graph"]] = cell(case["figures"])
    return rows


def rows_on(text: str) -> dict[Line, list[str]]:
    """Return the cells of the page's rows."""
    found: dict[Line, list[str]] = {}
    for line in text.partition(BEGIN)[2].partition(END)[0].splitlines():
        cells = [part.strip() for part in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == len(HEAD):
            family, model, pictures = cells[:3]
            found[family.strip("`"), model, pictures] = cells[3:]
    return found


def with_built(text: str, built: Mapping[Line, Mapping[str, str]], wanted: Iterable[Line]) -> str:
    """Return the page with the rows of a session; those that it had no cases of stay.

    Args:
        text: of the page.
        built: what `read_built` gave.
        wanted: the rows, in their order.

    Raises:
        SystemExit: a cell was not shown, in this session or on the page.
    """
    known = rows_on(text) | {line: list(row.values()) for line, row in built.items()}
    rows = {line: known.get(line, [UNSHOWN] * len(GRAPHS)) for line in wanted}
    if missing := without_figures(rows):
        raise SystemExit("nothing is written, not shown: " + "; ".join(missing))
    lines = [[f"`{family}`", *rest, *rows[family, *rest]] for family, *rest in rows]
    table = ["| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *lines)]
    before, _, after = text.partition(BEGIN)
    return "\n".join([before + BEGIN, "", *table, "", END + after.partition(END)[2]])


def without_figures(rows: Mapping[Line, Sequence[str]]) -> list[str]:
    """Return which cells of rows say nothing, as words."""
    return [
        f"{graph} of {model}, pictures {pictures}"
        for (_, model, pictures), row in rows.items()
        for graph, said in zip(GRAPHS, row, strict=True)
        if not re.match(r"[\d,]+ MiB in \d+ s", said)
    ]
