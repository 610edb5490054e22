"""Twenty questions about one picture: looked at once against looked at every time, in turns in one process.

    python -m benchmarks.image_prefix ARTIFACT QUESTIONS.jsonl

Prints least times and the ratio in CPU and in wall seconds; no ratio if any answer differs.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.interleaved import in_turns, ratio
from export.runtime.runtime import Runtime

QUESTIONS = 20


def read(path: Path) -> tuple[Path, list[str]]:
    """Return the first picture and `QUESTIONS` questions, repeated if the file has fewer."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    questions = list(dict.fromkeys(row["question"] for row in rows))
    return path.parent / rows[0]["image"], (questions * QUESTIONS)[:QUESTIONS]


def main() -> None:
    """Time both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=8)
    options = parser.parse_args()
    runtime = Runtime.load(options.artifact, threads=options.threads)
    picture, questions = read(options.questions)

    def full() -> list[tuple[int, ...]]:
        replies = (runtime.answer(q, [picture], max_new_tokens=options.tokens) for q in questions)
        return [reply.token_ids for reply in replies]

    def kept() -> list[tuple[int, ...]]:
        prefix = runtime.prefill_image([picture])
        replies = (prefix.answer(q, max_new_tokens=options.tokens) for q in questions)
        return [reply.token_ids for reply in replies]

    if full() != kept():
        sys.exit("answers differ: no ratio")
    times = in_turns({"full": full, "kept": kept}, repeats=options.repeats)
    print(
        f"{len(questions)} questions, {options.tokens} tokens at most, {options.threads} thread(s), "
        f"{options.repeats} rounds in turns; answers equal"
    )
    for clock in ("cpu", "wall"):
        found = ratio(times["full"], times["kept"], clock)
        full_s, kept_s = times["full"].least(clock), times["kept"].least(clock)
        print(
            f"{clock}: {full_s:.3f} s in full, {kept_s:.3f} s kept, at least; "
            f"ratio {found.middle:.2f} (10th to 90th percentile {found.low:.2f} to {found.high:.2f})"
        )


if __name__ == "__main__":
    main()
