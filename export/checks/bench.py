"""Times the compressed decoder beside the naive original: one process, interleaved, ratios with their spread.

Absolute times hold for this machine at this moment only; the ratios are what counts. What is told of the
rounds is one of them, the one in the middle: the round whose ratio is the median.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from compressor.facts import ModelFacts
from compressor.progress import SILENT, Progress
from compressor.samples.layout import Pictured, layout_around
from export.backends.checked_on import OnnxSession
from export.graphs.spec import GraphSpec
from export.results.bench import BenchReport, Timing
from export.session.arrays import Array
from export.session.feeds import CallRows, prompt_rows, text_rows
from export.session.session import Past, cached_rows, look


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
        rounds: how often each is timed, after one call that warms up.
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
    for _ in progress.track(range(rounds), "timing", rounds):
        for name, taken in seconds.items():
            for side, (calls, *_) in enumerate(timed):
                start = time.perf_counter()
                calls[name]()
                taken[side].append(time.perf_counter() - start)
    timings = {name: _timing(*taken) for name, taken in seconds.items()}
    pasts = [(session, one.filled) for session, one in zip(sides, timed, strict=True)]
    original, compressed = (session.past_bytes(filled) for session, filled in pasts)
    buffers = [session.buffer_bytes(filled) for session, filled in pasts]
    return BenchReport(
        images=images,
        visual=timed[1].visual,
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
        size, tiles, rows = facts.largest_picture, facts.most_tiles, facts.largest_rows
        pixels = rng.standard_normal((images, tiles, 3, *size)).astype(np.float32)
        self.ids = rng.integers(0, facts.decoder.vocab, (1, text))
        self.pictures = [Pictured(one, rows, facts.made_up_rows(tiles, rows)) for one in pixels]
        self.layout = layout_around(self.ids[0], (rows,) * images, facts=facts)


class _Timed(NamedTuple):
    """What is timed of one decoder, the cache that its prefill leaves, and the visual rows that it reads."""

    calls: dict[str, Callable[[], object]]
    filled: Past
    visual: int


def _timed(session: OnnxSession, prompt: _Prompt) -> _Timed:
    """Return the calls, each of them warm: a first token is a reading and a prefill."""

    def read() -> CallRows:
        seen = look(session, prompt.pictures)
        return prompt_rows(prompt.layout, session.embed(prompt.ids), *seen)

    rows = read()

    def prefill(rows: CallRows = rows) -> tuple[Array, Past]:
        return session.decode(rows, session.empty_past(1))

    _, filled = prefill()
    step = text_rows(prompt.layout.behind(0), rows.text[:, :1])

    def decode_step() -> object:
        return session.decode(step, filled)

    decode_step()

    def first_token() -> object:
        return prefill(read())

    calls = {"prefill": prefill, "decode_step": decode_step, "first_token": first_token}
    return _Timed(calls, filled, rows.visual_index.shape[1])


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


def processor_name() -> str:
    """Return the processor's name and the number of cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu_name()}, {cores} cores"


def cpu_name() -> str:
    """Return the processor's name, as the system tells it."""
    name = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), ""
        )
    except OSError:
        pass
    return name or "unknown processor"
