"""The table of docs/clients.md: how many answers of stock clients to 60 held-out questions are the runtime's.

    python -m tests.clients_table              # export, pack, ask, write the table
    python -m tests.clients_table CLIENT ...   # of some clients; rows of the others stay
    python -m tests.clients_table --export     # export alone, into build/clients

The artifacts are the bundled model's, each with one cut; they are kept in `build/clients`.
"""

import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import vtcompress
from compressor.errors import PackError
from compressor.samples.questions import read_samples
from export.artifact.artifact import Artifact
from export.clients.check import outcome_of, runtime_answers
from export.clients.client import CheckQuestion, Client
from export.clients.pack import refusals
from export.clients.packing import Packing
from export.clients.registry import CLIENTS

ROOT = Path(__file__).parent.parent
PAGE, BUILT = ROOT / "docs" / "clients.md", ROOT / "build" / "clients"
EXAMPLE = ROOT / "examples" / "digits-llava"
BEGIN, END = "<!-- written by python -m tests.clients_table -->", "<!-- end of the table -->"
ASKED, NEW_TOKENS = 60, 16
FROZEN = [2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]
LAYERS, HEADS, GROUP = 20, 6, 2

CUTS: Mapping[str, Mapping[str, Any]] = {
    "identity": {"compress": []},
    "shortv": {"compress": [{"shortv": {"layers": FROZEN}}]},
    "exit": {"compress": [{"visual_exit": {"layer": 13}}]},
    "heads": {"compress": [{"yopo": {"heads": {"mask": ""}}}]},
    "mlp": {"compress": [{"yopo": {"mlp_ratio": 2}}]},
    "keep k": {"compress": [{"random": {"keep": 0.5}}]},
    "int4": {"compress": [], "export.weights": "int4"},
    "float16": {"compress": [{"visual_exit": {"layer": 13}}], "export.dtype": "float16"},
}


def export_all() -> None:
    """Export the artifacts that are not there yet."""
    BUILT.mkdir(parents=True, exist_ok=True)
    kept = np.ones((LAYERS, HEADS), bool)
    kept[5:12, :GROUP] = kept[12:, GROUP:] = False  # whole groups of queries, in two numbers
    np.save(BUILT / "keep.npy", kept)
    for name, keys in CUTS.items():
        if (BUILT / name).exists():
            continue
        given = {**keys, "model.id": str(EXAMPLE / "model")}
        if name == "heads":
            given["compress"] = [{"yopo": {"heads": {"mask": str(BUILT / "keep.npy")}}}]
        recipe = vtcompress.load_recipe("identity").override(given)
        vtcompress.export(recipe, BUILT / name, bench_rounds=0, progress=True)


def questions() -> list[CheckQuestion]:
    """Return the first held-out questions."""
    samples = read_samples(EXAMPLE / "heldout.jsonl")[:ASKED]
    return [CheckQuestion(one.question, one.images, NEW_TOKENS) for one in samples]


def cell(client: Client, artifact: Artifact, asked: list[CheckQuestion], wanted: list[Any]) -> str:
    """Return how many of the answers are the runtime's, or that a client refuses the artifact."""
    if refusals(client, artifact):
        return "refused"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "packed"
        try:
            vtcompress.pack(artifact.folder, client.name, place, check=False)
        except PackError as failure:
            return f"refused: {failure}"
        found = client.check(Packing(artifact), place, asked)
    if isinstance(found, str):
        return found
    rows = outcome_of(asked, wanted, found, client.pixel_limit)
    if "token ids" in rows.differs or "pixels" in rows.differs:
        return f"differs: {', '.join(rows.differs)}"
    return f"{sum(row.wanted == row.found for row in rows.answers)}/{len(asked)}"


def table_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the cells of clients, by their names."""
    asked = questions()
    found: dict[str, list[str]] = {name: [] for name in names}
    for cut in CUTS:
        artifact = Artifact.open(BUILT / cut)
        wanted = runtime_answers(artifact, asked)
        for name, cells in found.items():
            cells.append(cell(CLIENTS[name], artifact, asked, wanted))
            print(cut, name, cells[-1], flush=True)
    return found


def written(page: str, found: Mapping[str, list[str]]) -> str:
    """Return the page with the table in it; rows of other clients stay."""
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    rows = {
        cells[0]: cells[1:]
        for line in page[start:end].splitlines()
        if len(cells := [one.strip() for one in line.strip("|").split("|")]) == len(CUTS) + 1
    }
    rows = {name: cells for name, cells in rows.items() if name in CLIENTS} | dict(found)
    ordered = [(name, *rows[name]) for name in CLIENTS if name in rows]
    lines = [("client", *CUTS), ("---",) * (len(CUTS) + 1), *ordered]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{page[:start]}\n{table}\n{page[end:]}"


def main(arguments: list[str]) -> None:
    warnings.simplefilter("ignore")
    export_all()
    if arguments == ["--export"]:
        return
    found = table_of(arguments or [n for n, c in CLIENTS.items() if not re.search("web", n)])
    PAGE.write_text(written(PAGE.read_text("utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
