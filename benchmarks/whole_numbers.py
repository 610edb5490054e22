"""Times decoders of artifacts that differ in how weights are stored, in each backend, in turns.

    python -m benchmarks.whole_numbers build/float build/int8 build/int4

The first artifact is what the others are compared with. Each backend and precision in a process of its own,
one thread; rows are random. Prints medians of ratios inside one round, above 1 faster, with quartiles.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.decoder_calls import Calls
from benchmarks.decoder_models import in_own_process
from benchmarks.interleaved import Times, in_turns, on_huge_pages
from export.artifact.artifact import Artifact
from export.backends.registry import open_session

RUNS = (("onnxruntime", "f32"), ("openvino", "f32"), ("openvino", "bf16"))
STEPS = 4
"""Rounds of decode steps beside one of prefills."""


def timed(
    folders: Sequence[Path], backend: str, precision: str, text: int, rounds: int
) -> list[dict[str, Times]]:
    """Return the times of all artifacts in a backend: of prefills, then of decode steps."""
    calls = {}
    for folder in folders:
        artifact = Artifact.open(folder)
        session = open_session(artifact, backend, precision, 1)
        facts = artifact.manifest.model
        calls[str(folder)] = Calls(session, facts.picture_rows, text, facts.decoder.hidden)
    prefill = in_turns({name: each.prefill for name, each in calls.items()}, repeats=rounds)
    steps = {name: partial(each.step) for name, each in calls.items()}
    return [prefill, in_turns(steps, repeats=STEPS * rounds, warm_up=3)]


def main() -> None:
    """Time, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_numbers", description=__doc__)
    parser.add_argument("artifacts", nargs="+", type=Path, help="of one model and plan")
    parser.add_argument("--text", type=int, default=11, help="text rows of the prompt")
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}")
    for backend, precision in RUNS:
        both = in_own_process(
            timed, options.artifacts, backend, precision, options.text, options.rounds
        )
        for call, times in zip(("prefill", "decode step"), both, strict=True):
            first, *others = times
            words = [f"{first} {1e3 * times[first].median('wall'):.2f} ms"]
            for other in others:
                pairs = zip(times[first].wall, times[other].wall, strict=True)
                low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
                words.append(f"{other} {middle:.2f} x ({low:.2f} to {high:.2f})")
            print(f"{backend}, {precision}, {call}: {', '.join(words)}", flush=True)


if __name__ == "__main__":
    on_huge_pages("benchmarks.whole_numbers")
    main()
