"""One answer while it comes: its pieces of text, its tokens, and how long they took."""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Self

from export.runtime.prompter import Prompter
from export.runtime.sequence import Step
from export.session.session import Past


@dataclass(frozen=True)
class Figures:
    """How an answer ran; times are those of the runtime, without what its reader did between pieces.

    Attributes:
        prompt_rows: visual and text rows of the whole prompt.
        reused_rows: of them, read from an earlier cache instead of run.
        tokens: of the answer, the ending one included.
        first_token_s: from the question to the first token: pictures, vision and prefill included.
        tokens_per_s: of the later tokens; None if there are none.
        kv_bytes: of the cache at the end.
        exit_layer: first layer whose cache holds no visual rows behind the prompt; None: there is none.
    """

    prompt_rows: int
    reused_rows: int
    tokens: int
    first_token_s: float
    tokens_per_s: float | None
    kv_bytes: int
    exit_layer: int | None


class Answering:
    """An iterator over the pieces of text of one answer; its figures grow with it.

    Args:
        steps: picks tokens until the answer has ended; batch 1.
        prompter: turns them into text.
        prompt_rows: of the whole prompt.
        reused_rows: of them, not run.
        prepared_s: what preparing the prompt took.
        cache_bytes: tells the size of a cache.
        exit_layer: tells from the prompt's cache where visual rows left.
        on_end: called once with the tokens and the last cache when the answer ends, is closed or is
            cut off by an error, if it has a token.
    """

    def __init__(
        self,
        steps: Iterator[Step],
        prompter: Prompter,
        *,
        prompt_rows: int,
        reused_rows: int,
        prepared_s: float,
        cache_bytes: Callable[[Past], int],
        exit_layer: Callable[[Past], int | None],
        on_end: Callable[[tuple[int, ...], Past], None] | None = None,
    ) -> None:
        self._steps, self._prompter = steps, prompter
        self._prompt_rows, self._reused_rows = prompt_rows, reused_rows
        self._first_s, self._later_s = prepared_s, 0.0
        self._cache_bytes, self._kv_bytes = cache_bytes, 0
        self._find_exit = exit_layer
        self._exit_layer: int | None = None
        self._on_end = on_end
        self._tokens: list[int] = []
        self._pieces = self._run()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop here; what came so far is the answer."""
        self._pieces.close()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens so far, the ending one included."""
        return tuple(self._tokens)

    @property
    def figures(self) -> Figures:
        """How the answer ran so far."""
        later = len(self._tokens) - 1
        return Figures(
            prompt_rows=self._prompt_rows,
            reused_rows=self._reused_rows,
            tokens=len(self._tokens),
            first_token_s=self._first_s,
            tokens_per_s=later / self._later_s if later > 0 and self._later_s > 0 else None,
            kv_bytes=self._kv_bytes,
            exit_layer=self._exit_layer,
        )

    def _run(self) -> Generator[str]:
        stream = self._prompter.stream()
        past: Past = None
        try:
            while (step := self._timed()) is not None:
                past = step.past
                self._kv_bytes = self._cache_bytes(past)
                if not self._tokens:
                    self._exit_layer = self._find_exit(past)
                self._tokens.append(int(step.tokens[0]))
                if piece := stream.push(self._tokens[-1]):
                    yield piece
            if piece := stream.finish():
                yield piece
        finally:
            if self._tokens and self._on_end is not None:
                self._on_end(self.token_ids, past)

    def _timed(self) -> Step | None:
        started = time.perf_counter()
        step = next(self._steps, None)
        taken = time.perf_counter() - started
        if step is not None:
            if self._tokens:
                self._later_s += taken
            else:
                self._first_s += taken
        return step
