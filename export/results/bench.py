"""What `bench` measured: times and their ratios, and how they are told."""

from typing import Annotated, Literal

from pydantic import Field

from compressor.facts import Facts, Positive
from export.session.session import exit_of

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
        return exit_of(self.kv_layers, self.visual, self.text)


def bench_rows(report: BenchReport) -> list[tuple[str, Timing]]:
    """Return the timings under the names people read."""
    return [
        ("prefill", report.prefill),
        ("decode step", report.decode_step),
        ("first token with vision", report.first_token),
    ]


def unsteady(report: BenchReport) -> tuple[str, ...]:
    """Return the timings whose rounds differ so much that their ratios say little."""
    return tuple(name for name, timing in bench_rows(report) if not timing.steady)


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
