"""Times the compressed decoder beside the naive original: one process, interleaved, ratios with their spread.

Absolute times hold for this machine at this moment only; the ratios are what counts. What is told of the
rounds is one of them, the one in the middle: the round whose ratio is the median.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from compressor.dims import Facts, ModelFacts, Positive
from compressor.progress import SILENT, Progress
from export.graphs import GraphSpec
from export.sessions import Array, OnnxSession, Past, cached_rows, exit_of, no_visual

# Third quartile of the rounds' ratios over the first, on a busy machine; a quiet one gives 1.01 to 1.05.
UNSTEADY_SPREAD = 1.2

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(gt=0, lt=1e9, allow_inf_nan=False)]


class Timing(Facts):
    """One kind of call, original against compressed; for `statistic` see `BenchReport`.

    Attributes:
        original_ms: wall time of the naive original in the round in the middle.
        compressed_ms: wall time of the compressed graph in the same round.
        ratio: original_ms / compressed_ms, the median of the rounds' ratios; above 1 is faster.
        ratio_low: first quartile of the rounds' ratios.
        ratio_high: third quartile.
    """

    original_ms: Milliseconds
    compressed_ms: Milliseconds
    ratio: Ratio
    ratio_low: Ratio
    ratio_high: Ratio

    @property
    def steady(self) -> bool:
        """Whether the rounds agree well enough for the ratio to mean something."""
        return self.ratio_high <= UNSTEADY_SPREAD * self.ratio_low


class BenchReport(Facts):
    """Times of one prompt, what they were taken with, and the caches that its prefill left.

    Attributes:
        images: of the prompt.
        visual: V of the prompt.
        text: T of the prompt.
        rounds: how often each call was timed.
        threads: of one operator.
        processor: of the machine, if it tells.
        statistic: what the times are: of the round whose ratio is the median, or, in artifacts of format 1,
            the least of the rounds, of which the ratio is not the ratio.
        kv_bytes_original: KV cache after the original's prefill.
        kv_bytes: of the compressed one.
        kv_buffer_bytes_original: what buffers of fixed caches occupied in the original; None: caches grow.
        kv_buffer_bytes: of the compressed one, likewise.
        kv_layers: rows that each layer's heads with visual tokens hold after the compressed prefill; 0 where
            a layer has no such heads.
        prefill: decoder alone.
        decode_step: one token after the prefill.
        first_token: from pixels to the first token: vision, embedding and prefill.
    """

    images: int
    visual: int
    text: int
    rounds: int
    threads: int
    processor: str
    statistic: Literal["least", "middle round"] = "least"
    kv_bytes_original: Positive
    kv_bytes: Positive
    kv_buffer_bytes_original: Positive | None = None
    kv_buffer_bytes: Positive | None = None
    kv_layers: tuple[int, ...]
    prefill: Timing
    decode_step: Timing
    first_token: Timing

    @property
    def exit_layer(self) -> int | None:
        """First layer whose heads held no visual rows of this prompt; None if they stayed."""
        return exit_of(self.kv_layers, self.visual + self.text)


def bench(
    folder: Path,
    graphs: Sequence[GraphSpec],
    facts: ModelFacts,
    *,
    images: int = 1,
    text: int = 64,
    rounds: int = 15,
    threads: int = 1,
    progress: Progress = SILENT,
) -> BenchReport:
    """Time prefill, decode step and first token of both decoders of an artifact, in turns.

    Args:
        folder: the artifact.
        graphs: its graphs; both `decoder` and `baseline_decoder`.
        facts: of the model.
        images: in the prompt.
        text: T of the prompt.
        rounds: how often each is timed, after one call to warm up.
        threads: of one operator. One is least disturbed on a shared machine.
        progress: shows the rounds.
    """
    sides = [
        OnnxSession(folder, graphs, decoder=name, threads=threads)
        for name in ("baseline_decoder", "decoder")
    ]
    prompt = _Prompt(facts, images, text)
    timed = [_timed(side, prompt) for side in sides]
    seconds: dict[str, list[list[float]]] = {name: [[], []] for name in timed[0].calls}
    for number in progress.track(range(rounds + 1), "timing", rounds + 1):
        for name, taken in seconds.items():
            for side, (calls, _) in enumerate(timed):
                start = time.perf_counter()
                calls[name]()
                if number:  # the first round warms up
                    taken[side].append(time.perf_counter() - start)
    timings = {name: _timing(*taken) for name, taken in seconds.items()}
    pasts = [(session, filled) for session, (_, filled) in zip(sides, timed, strict=True)]
    original, compressed = (session.past_bytes(filled) for session, filled in pasts)
    buffers = [session.buffer_bytes(filled) for session, filled in pasts]
    return BenchReport(
        images=images,
        visual=images * facts.visual_tokens,
        text=text,
        rounds=rounds,
        threads=threads,
        processor=processor_name(),
        statistic="middle round",
        kv_bytes_original=original,
        kv_bytes=compressed,
        kv_buffer_bytes_original=buffers[0],
        kv_buffer_bytes=buffers[1],
        kv_layers=cached_rows(sides[1].caches, sides[1].past_shapes(timed[1].filled)),
        **timings,
    )


class _Prompt:
    """Seeded pixels and tokens of one prompt: a text row, the images, the other text rows."""

    def __init__(self, facts: ModelFacts, images: int, text: int) -> None:
        rng = np.random.default_rng(0)
        size, visual = facts.image_size, images * facts.visual_tokens
        self.pixels = rng.standard_normal((images, 3, size, size)).astype(np.float32)
        self.ids = rng.integers(0, facts.decoder.vocab, (1, text))
        self.visual_index = np.arange(1, 1 + visual, dtype=np.int64)[None]
        places = np.arange(text, dtype=np.int64)
        self.text_index = (places + visual * (places > 0))[None]
        self.next_index = np.array([[visual + text]], dtype=np.int64)


class _Timed(NamedTuple):
    """What is timed of one decoder, and the cache that its prefill leaves."""

    calls: dict[str, Callable[[], object]]
    filled: Past


def _timed(session: OnnxSession, prompt: _Prompt) -> _Timed:
    features = session.vision(prompt.pixels)
    visual = features.reshape(1, -1, features.shape[-1])
    text = session.embed(prompt.ids)

    def prefill(visual: Array = visual, text: Array = text) -> tuple[Array, Past]:
        past = session.empty_past(1)
        return session.decode(visual, text, prompt.visual_index, prompt.text_index, past)

    _, filled = prefill()
    step = text[:, :1]
    no_rows, no_index = no_visual(step)

    def decode_step() -> object:
        return session.decode(no_rows, step, no_index, prompt.next_index, filled)

    def first_token() -> object:
        seen = session.vision(prompt.pixels)
        return prefill(seen.reshape(visual.shape), session.embed(prompt.ids))

    calls = {"prefill": prefill, "decode_step": decode_step, "first_token": first_token}
    return _Timed(calls, filled)


def _timing(original: list[float], compressed: list[float]) -> Timing:
    ratios = np.array(original) / np.array(compressed)
    middle = np.argsort(ratios, kind="stable")[(len(ratios) - 1) // 2]
    ratio = float(ratios[middle])
    low, high = np.quantile(ratios, [0.25, 0.75])
    return Timing(
        original_ms=1e3 * original[middle],
        compressed_ms=1e3 * compressed[middle],
        ratio=ratio,
        # Of two rounds the middle one is an end.
        ratio_low=min(float(low), ratio),
        ratio_high=float(high),
    )


def bench_rows(report: BenchReport) -> list[tuple[str, Timing]]:
    """Return the timings under the names people read."""
    return [
        ("prefill", report.prefill),
        ("decode step", report.decode_step),
        ("first token with vision", report.first_token),
    ]


def ms_words(milliseconds: float) -> str:
    """Return a time with four digits or more, so that a ratio can be worked out from what is read."""
    places = next((n for n, least in enumerate((1000, 100, 10, 1)) if milliseconds >= least), 4)
    return f"{milliseconds:,.{places}f}"


def slower(ratio: float) -> bool:
    """Return whether a ratio original / compressed, as it is shown, is that of a slow-down."""
    return round(ratio, 2) < 1


def ratio_words(timing: Timing) -> str:
    """Return a ratio with its quartiles, and what must be known of it: `0.87 x (0.86 to 0.90; slower)`."""
    marks = (("slower", slower(timing.ratio)), ("not steady", not timing.steady))
    spread = f"{timing.ratio_low:.2f} to {timing.ratio_high:.2f}"
    said = "; ".join((spread, *(word for word, holds in marks if holds)))
    return f"{timing.ratio:.2f} x ({said})"


def speed_words(ratio: float) -> str:
    """Return a ratio original / compressed as a phrase: a slow-down is never called faster."""
    if slower(ratio):
        return f"slower, {1 / ratio:.2f} times the original's time"
    return "as fast as the original" if round(ratio, 2) == 1 else f"{ratio:.2f} times faster"


def work_words(ratio: float) -> str:
    """Return a ratio of work, original / compressed, as a phrase."""
    if slower(ratio):
        return f"{1 / ratio:.2f} times the original's, more than before"
    return "as much as before" if round(ratio, 2) == 1 else f"{ratio:.2f} times less"


def processor_name() -> str:
    """Return the processor's name and the number of cores this process may use."""
    name = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), ""
        )
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name or 'unknown processor'}, {cores} cores"
