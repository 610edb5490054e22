"""Whether the rewritten model is the original, before anything is cut: one prompt with a picture, read by both.

The original answers through transformers' processor and model, the rewrite through the runtime's own tokenizer,
template and preprocessing, its vision encoder and its plain decoder, nothing frozen. Both compute in float32 on
the same weights, so what differs is how they were read: a frequency, an epsilon, a head, a feature layer, a
mean. Neither of the two checks would see that: export fidelity compares the rewrite with itself, and compression
loss cannot tell it from compression. No torch here; the original's side is `original.read_original`.

How the limits were chosen: see docs/architecture.md. Letters: I images, N visual tokens of one, S side, D hidden.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from compressor.calibration.data import Sample
from compressor.dims import Facts, Positive
from compressor.errors import DataError, ModelError
from export.messages import user_message
from export.runtime import Runtime
from export.sessions import Array

# Of the largest value. Kernels add up in other orders; a fault of reading is larger.
MAX_RELATIVE = 2e-5
# Pixels are made by equal arithmetic.
MAX_PIXELS = 1e-5

Source = Literal["validation data", "calibration data", "built in"]
QUESTION = "What is in this picture?"


@dataclass(frozen=True)
class Reading:
    """What the original makes of a prompt.

    Attributes:
        ids: tokens, pictures expanded.
        pixels: [I, 3, S, S] float32.
        embeds: [I * N, D] float32, of the pictures.
        logits: [vocab] float32 at the last token.
    """

    ids: tuple[int, ...]
    pixels: Array
    embeds: Array
    logits: Array


class RewriteReport(Facts):
    """How far the rewrite is from the original.

    Attributes:
        prompt: where the question and its pictures came from.
        visual: visual rows of the prompt.
        text: its text rows.
        pixels: largest difference of the runtime's pixels; None: another number of them.
        embeds: largest difference of the visual embeddings on the original's pixels, of the largest of them.
        logits: largest difference of the plain decoder's logits, of the largest, on what the processor made.
        runtime: the same on what the runtime made of question and pictures; None: it read other tokens.
        failures: what is beyond its limit.
    """

    prompt: Source
    visual: Positive
    text: Positive
    pixels: float | None
    embeds: float | None
    logits: float | None
    runtime: float | None
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return not self.failures

    @property
    def words(self) -> str:
        """One line for people."""
        if self.failures:
            return f"the rewritten model is not the original: {'; '.join(self.failures)}"
        worst = max(v for v in (self.embeds, self.logits, self.runtime) if v is not None)
        return (
            f"the rewritten model, nothing cut, gives the original's logits on one prompt ({self.prompt}, "
            f"{self.visual} visual and {self.text} text rows): off by {worst:.1e} of the largest, allowed "
            f"{MAX_RELATIVE:g}"
        )


NOT_COMPARED = (
    "the rewritten model was not compared with the original, which was not given (--model)"
)


def compare(
    reading: Reading, runtime: Runtime, sample: Sample, prompt: Source = "built in"
) -> RewriteReport:
    """Compare the rewrite with the original's reading of a sample.

    Args:
        reading: of the original.
        runtime: on the plain rewrite, with the tokenizer and processor files that an artifact gets.
        sample: what was asked, with a picture.
        prompt: where it came from.
    """
    failures: list[str] = []

    def judged(what: str, found: Array | None, wanted: Array) -> float | None:
        if found is None:
            return None
        if found.shape != wanted.shape:
            failures.append(f"{what} have shape {found.shape}, the original's {wanted.shape}")
            return None
        largest = float(np.abs(wanted).max())
        off = float(np.abs(found - wanted).max()) / (largest or 1.0)
        if not off <= MAX_RELATIVE:  # also where a value is no number
            failures.append(f"{what} differ by {off:.2g} of the largest, allowed {MAX_RELATIVE:g}")
        return off

    def logits(ids: tuple[int, ...], pixels: Array) -> Array | None:
        try:
            ready = runtime.prompt_of(ids, pixels)
        except DataError as error:
            failures.append(f"the rewritten decoder cannot take the prompt: {error}")
            return None
        if ready.layout.images != len(pixels):
            failures.append(
                f"the prompt shows {ready.layout.images} pictures by token "
                f"{runtime.facts.image_token_id}, {len(pixels)} were given"
            )
            return None
        found: Array = runtime.prefill([ready])[0][0]
        return found

    ids = runtime.encode([user_message(sample.question, len(sample.images))])
    if ids != reading.ids:
        failures.append(_other_tokens(ids, reading.ids))
    pixels = runtime.pixels(sample.images)
    same_size = pixels.shape == reading.pixels.shape
    off = float(np.abs(pixels - reading.pixels).max()) if same_size else None
    if not same_size:
        failures.append(f"pixels have shape {pixels.shape}, the processor's {reading.pixels.shape}")
    elif off is None or not off <= MAX_PIXELS:
        failures.append(f"pixels differ by {off:.2g}, allowed {MAX_PIXELS:g}")
    seen = runtime.session.vision(reading.pixels)
    visual = reading.ids.count(runtime.facts.image_token_id)
    return RewriteReport(
        prompt=prompt,
        visual=max(1, visual),
        text=len(reading.ids) - visual,
        pixels=off,
        embeds=judged("visual embeddings", seen.reshape(-1, seen.shape[-1]), reading.embeds),
        logits=judged(
            "logits of the plain decoder", logits(reading.ids, reading.pixels), reading.logits
        ),
        runtime=judged("logits of the runtime's own reading", logits(ids, pixels), reading.logits)
        if ids == reading.ids and same_size
        else None,
        failures=tuple(failures),
    )


def refuse(report: RewriteReport, name: str) -> None:
    """Stop where the rewrite is not the original.

    Raises:
        ModelError: one line: what differs, by how much, what is allowed.
    """
    if not report.passed:
        raise ModelError(
            [
                f"{name}: {report.words}; nothing was written: an artifact would answer otherwise than "
                "this model; please report it with the model's config.json"
            ]
        )


@contextmanager
def asked(
    folder: Path, *sources: tuple[Source, Sequence[Sample]]
) -> Iterator[tuple[Source, Sample]]:
    """Return where the prompt is from, and the first sample with a picture; else a built-in one.

    Args:
        folder: where the built-in picture lies meanwhile.
        sources: samples, those to be preferred first.
    """
    for name, samples in sources:
        for sample in samples:
            if sample.images:
                yield name, sample
                return
    path = folder / "rewrite-check.png"
    try:
        _picture().save(path)
        yield "built in", Sample((path,), QUESTION)
    finally:
        path.unlink(missing_ok=True)


def _picture() -> Image.Image:
    """Return a picture that is not square, with edges and other colours in every corner."""
    y, x = np.mgrid[0:210, 0:320]
    red, green, blue = x * 255 // 319, y * 255 // 209, (x * 3 + y * 5) % 256
    disc = (x - 200) ** 2 + (y - 80) ** 2 < 50**2
    rows = np.stack([np.where(disc, 255 - red, red), green, np.where(disc, 30, blue)], axis=-1)
    return Image.fromarray(rows.astype(np.uint8))


def _other_tokens(found: Sequence[int], wanted: Sequence[int]) -> str:
    if len(found) != len(wanted):
        return f"the runtime reads {len(found)} tokens, the model's processor {len(wanted)}"
    place = next(i for i, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
    return (
        f"the runtime reads token {found[place]} at place {place}, the model's processor "
        f"{wanted[place]}; none may differ"
    )
