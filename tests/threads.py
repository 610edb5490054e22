"""Asks a runtime from many threads at once, and counts answers that are not one thread's.

python -m tests.threads ARTIFACT ...    # 8 threads x 500 answers, in each backend that runs it
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import vtcompress
from export.runtime.runtime import Runtime
from tests.models import make_picture

THREADS, NEW_TOKENS = 8, 6
QUESTIONS = ("what is this", "what is that", "look", "then what is this and what is that")


class Answers:
    """The answers of one runtime: each picture with each question, and each about kept pictures.

    Args:
        runtime: is asked.
        pictures: that are asked about, one at a time.
    """

    def __init__(self, runtime: Runtime, pictures: Sequence[Path]) -> None:
        self.asks: list[Callable[[], Any]] = []
        for picture in pictures:
            kept = runtime.prefill_image(picture)
            for question in QUESTIONS:
                options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS}
                self.asks += [
                    lambda p=picture, q=question, o=options: runtime.answer(q, p, **o),
                    lambda k=kept, q=question, o=options: k.answer(q, **o),
                ]
        self.wanted = [ask() for ask in self.asks]

    def wrong(self, seed: int, count: int) -> int:
        """Ask so many questions in an order of one's own; return how many answers are others."""
        chosen = np.random.default_rng(seed).integers(len(self.asks), size=count)
        return sum(not same(self.asks[i](), self.wanted[i]) for i in chosen)


def same(one: Any, other: Any) -> bool:
    return one.token_ids == other.token_ids and np.array_equal(one.first_logits, other.first_logits)


def wrong_of(answers: Answers, threads: int, count: int) -> int:
    """Return how many answers of threads at once are not one thread's."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda seed: answers.wrong(seed, count), range(threads)))


def main() -> None:
    """Stress artifacts; print how many answers were others."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = [make_picture(Path(folder) / f"{i}.png", seed=70 + i) for i in range(2)]
        for name in sys.argv[1:]:
            for backend in ("onnxruntime", "openvino"):
                try:
                    answers = Answers(Runtime.load(name, threads=1, backend=backend), pictures)
                except vtcompress.VtcompressError as error:
                    print(f"{name} {backend}: {error}")
                    continue
                wrong = wrong_of(answers, THREADS, 500)
                print(
                    f"{name} {backend}: {wrong} of {THREADS * 500} answers are others", flush=True
                )


if __name__ == "__main__":
    main()
