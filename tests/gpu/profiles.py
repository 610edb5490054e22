"""A calibration of the bundled model on a device, and how near its profile is to the CPU's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIGITS = Path(__file__).parent.parent.parent / "examples" / "digits-llava"
# Of the largest value: float32 sums in another order; an H200 was 2.5e-6 off.
MOST_OFF = 1e-4

Profile = dict[str, Any]


def calibrated(vtcompress: Callable[..., str], folder: Path, device: str) -> Profile:
    """Return the profile that the command line gives on a device.

    Args:
        vtcompress: runs the command line.
        folder: that the profile is written to.
        device: as `--device` takes it.
    """
    output = folder / f"profile-{device}.json"
    vtcompress(
        "calibrate",
        "--recipe=shortv+vtw",
        f"--model={DIGITS / 'model'}",
        f"--data={DIGITS / 'calibration.jsonl'}",
        "--samples=16",
        f"--device={device}",
        f"--output={output}",
    )
    profile: Profile = json.loads(output.read_text(encoding="utf-8"))
    return profile


def agreement_of(wanted: Profile, found: Profile) -> tuple[str, bool]:
    """Return how far two profiles are from each other in each measure, and whether that is near enough."""
    if [s["sample"] for s in wanted["samples"]] != [s["sample"] for s in found["samples"]]:
        return "the profiles are of other samples", False
    words, agree = [], True
    for measure in wanted["measures"]:
        pairs = [
            pair
            for one, other in zip(wanted["samples"], found["samples"], strict=True)
            for pair in zip(one[measure], other[measure], strict=True)
        ]
        largest = max(abs(value) for value, _ in pairs)
        off = [abs(x - y) for x, y in pairs]
        # A value that is no number is not near.
        agree = agree and all(value <= MOST_OFF * largest for value in off)
        words.append(f"{measure} {max(off) / (largest or 1.0):.1e}")
    return f"differ by {', '.join(words)} of the largest value; allowed {MOST_OFF}", agree
