"""Answers of the bundled model and of plans of it on a device, beside those on the CPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.gpu.profiles import DIGITS

QUESTIONS = 16
# Float32 sums in another order may turn a tie.
LEAST_ALIKE = 15

Sweep = dict[str, Any]


def swept(vtcompress: Callable[..., str], folder: Path, device: str) -> Sweep:
    """Return the sweep that the command line makes on a device; nothing is timed.

    Args:
        vtcompress: runs the command line.
        folder: that the sweep is written to.
        device: as `--device` takes it.
    """
    output = folder / f"sweep-{device}"
    vtcompress(
        "sweep",
        "--recipe=shortv",
        "--recipe=gprune",
        f"--model={DIGITS / 'model'}",
        f"--data={DIGITS / 'calibration.jsonl'}",
        "--samples=16",
        f"--validate-data={DIGITS / 'heldout.jsonl'}",
        f"--validate-samples={QUESTIONS}",
        "--no-measure",
        "--no-baselines",
        f"--device={device}",
        f"--output={output}",
    )
    found: Sweep = json.loads((output / "sweep.json").read_text(encoding="utf-8"))
    return found


def answers_agree(wanted: Sweep, found: Sweep) -> tuple[str, bool]:
    """Return how many questions are right or wrong alike in each point of two sweeps; whether enough."""
    pairs = [*zip(wanted["points"], found["points"], strict=False)]
    if len(wanted["points"]) != len(found["points"]) or any(
        a["label"] != b["label"] for a, b in pairs
    ):
        return "the sweeps have other points", False
    counts = [sum(x == y for x, y in zip(a["hits"], b["hits"], strict=False)) for a, b in pairs]
    words = ", ".join(
        f"{a['label']} {same}/{len(a['hits'])}" for same, (a, _) in zip(counts, pairs, strict=True)
    )
    whole = all(len(a["hits"]) == len(b["hits"]) for a, b in pairs)
    return f"{words} alike; wanted {LEAST_ALIKE}", whole and min(counts) >= LEAST_ALIKE
