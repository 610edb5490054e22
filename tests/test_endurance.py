"""A thousand prompts through one runtime: memory stays flat, answers stay the same in any order."""

import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil

from export.runtime.runtime import Runtime
from tests.models import WORDS

PROMPTS, WARM_UP, FIRST, LAST = 1000, 100, 100, 500
GROWTH = 1.03


def test_a_thousand_prompts_through_one_runtime(
    tiny_artifact: Path, questions: Path, counted: Callable[[str, int], None]
) -> None:
    runtime = Runtime.load(tiny_artifact, threads=1)
    pictures = [questions.parent / f"{i}.png" for i in range(6)]
    asked = [
        (f"what is {word}", pictures[at % 6 : at % 6 + images])
        for at, word in enumerate(WORDS[5:20])
        for images in (0, 1, 2)
    ]
    randomly = random.Random(0)
    order = [randomly.randrange(len(asked)) for _ in range(WARM_UP + PROMPTS)]
    process, resident = psutil.Process(), []
    answers: dict[int, set[str]] = defaultdict(set)
    firsts: dict[int, set[bytes]] = defaultdict(set)
    for at in order:
        reply = runtime.answer(*asked[at], max_new_tokens=4)
        answers[at].add(f"{reply.token_ids} {reply.text}")
        firsts[at].add(reply.first_logits.tobytes())
        resident.append(process.memory_info().rss)
    assert len(answers) == len(asked)
    assert all(len(found) == 1 for found in answers.values()), (
        "an answer depends on what came before"
    )
    assert all(len(found) == 1 for found in firsts.values()), "logits depend on what came before"
    assert len({next(iter(found)) for found in answers.values()}) > 5, "all answers are alike"
    before = median(resident[WARM_UP : WARM_UP + FIRST])
    assert median(resident[-LAST:]) <= before * GROWTH, [before, *resident[-LAST::50]]
    counted("prompts through one runtime", PROMPTS)
