"""Resident memory of a process, and what an artifact takes of it: measured in a fresh process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compressor.errors import VtcompressError
from compressor.facts import ModelFacts
from compressor.samples.layout import Pictured, layout_around
from export.backends.checked_on import OnnxSession
from export.graphs.spec import GraphSpec
from export.machine.process_status import status_bytes
from export.results.footprint import Footprint
from export.session.feeds import prompt_rows, text_rows
from export.session.session import look

TOKENS = 64
TEXT_ROWS = 8
MOST_SECONDS = 600


def resident_bytes() -> int | None:
    """Return the resident memory of this process; None where the system does not tell."""
    return status_bytes("VmRSS")


def measure_memory(
    folder: Path, graphs: Sequence[GraphSpec], facts: ModelFacts
) -> Footprint | None:
    """Measure an artifact's memory in a process of its own; None where the system does not tell.

    Args:
        folder: of the graphs; needs no manifest yet.
        graphs: `vision`, `embed` and `decoder`.
        facts: of the model.

    Raises:
        VtcompressError: the process failed.
    """
    if resident_bytes() is None:
        return None
    asked = {
        "folder": str(folder),
        "graphs": [spec.model_dump() for spec in graphs],
        "facts": facts.model_dump(mode="json"),
    }
    # The child finds this very package, whatever else lies in the working folder.
    places = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    try:
        done = subprocess.run(  # noqa: S603 - this module in this Python
            [sys.executable, "-P", "-m", __name__],
            input=json.dumps(asked),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise VtcompressError(f"{folder}: measuring memory took over {MOST_SECONDS} s") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise VtcompressError(f"{folder}: measuring memory failed: {reason}")
    return Footprint.model_validate_json(done.stdout)


def run_once(session: OnnxSession, facts: ModelFacts) -> Footprint:
    """Load a session's graphs, run one picture and `TOKENS` steps, and tell the memory on the way."""
    empty = resident_bytes() or 0
    session.load()
    loaded = resident_bytes() or 0
    size, ids = facts.largest_picture, np.zeros(TEXT_ROWS, np.int64)
    layout = layout_around(ids, (facts.largest_rows,), facts=facts)
    pixels = np.zeros((facts.most_tiles, 3, *size), np.float32)
    arranged = facts.made_up_rows(facts.most_tiles, facts.largest_rows)
    seen = look(session, [Pictured(pixels, facts.largest_rows, arranged)])
    text = session.embed(ids[None])
    _, past = session.decode(prompt_rows(layout, text, *seen), session.empty_past(1))
    tokens = max(0, min(TOKENS, facts.decoder.max_positions - layout.end))
    for number in range(tokens):
        _, past = session.decode(text_rows(layout.behind(number), text[:, :1]), past)
    answered = resident_bytes() or 0
    return Footprint(empty_bytes=empty, loaded_bytes=loaded, answered_bytes=answered, tokens=tokens)


def _main() -> None:
    asked = json.loads(sys.stdin.read())
    graphs = [GraphSpec.model_validate(spec) for spec in asked["graphs"]]
    facts = ModelFacts.model_validate(asked["facts"])
    found = run_once(OnnxSession(Path(asked["folder"]), graphs), facts)
    sys.stdout.write(found.model_dump_json())


if __name__ == "__main__":
    _main()
