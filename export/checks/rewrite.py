"""Whether the rewritten model, nothing cut, is the original: one prompt with a picture, read by both.

The original answers through transformers' processor and model; the rewrite through the runtime's tokenizer,
template and preprocessing, its vision encoder and its plain decoder, nothing frozen. Both compute in float32
on the same weights, so what differs is how they were read: a frequency, an epsilon, a head, a feature layer,
a mean. Neither of the two checks would see that: export fidelity compares the rewrite with itself, and
compression loss cannot tell it from compression. No torch here; the original's side is
`original.read_original`. Weights that a file lacks are not found: both sides would share them.

Letters: V visual tokens, D hidden.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from compressor.errors import DataError, ModelError
from compressor.samples.questions import Sample
from export.runtime.images import SeenPicture, rows_of
from export.runtime.messages import user_message
from export.session.arrays import Array

if TYPE_CHECKING:
    from export.runtime.runtime import Runtime
from export.results.rewrite import (
    MAX_PIXEL_DIFFERENCE,
    MAX_RELATIVE,
    RewriteReport,
    Source,
    rewrite_words,
)

QUESTION = "What is in this picture?"


@dataclass(frozen=True)
class Reading:
    """What the original makes of a prompt.

    Attributes:
        ids: tokens, pictures expanded.
        seen: its pictures.
        embeds: [V, D] float32, of the pictures; behind them, likewise, deepstack rows.
        logits: [vocab] float32 at the last token.
    """

    ids: tuple[int, ...]
    seen: tuple[SeenPicture, ...]
    embeds: tuple[Array, ...]
    logits: Array


def refuse(report: RewriteReport, name: str) -> None:
    """Stop where the rewrite is not the original.

    Raises:
        ModelError: one line: what differs, by how much, what is allowed.
    """
    if report.failures:
        raise ModelError(
            [
                f"{name}: {rewrite_words(report)}; nothing was written, because an artifact would answer "
                f"otherwise than this model: update transformers (here it is {version('transformers')}), "
                "or report it with the model's configuration files"
            ]
        )


def compare(reading: Reading, runtime: "Runtime", sample: Sample, prompt: Source) -> RewriteReport:
    """Compare the rewrite with the original's reading of a sample.

    Args:
        reading: of the original.
        runtime: on the plain rewrite, with the tokenizer and processor files that an artifact gets.
        sample: what was asked, with a picture.
        prompt: where it came from.
    """
    found = _Comparison(reading, runtime)
    seen = runtime.look(sample.images)
    ids = runtime.encode([user_message(sample.question, len(seen))], seen)
    same = found.tokens(ids)
    off = found.pixels(seen)
    embeds = found.embeds(rows_of(runtime.session, reading.seen).features)
    logits = read = None
    if embeds is not None:
        logits = found.logits("logits of the plain decoder", reading.ids, reading.seen)
    if same and off == 0.0:
        read = logits  # of the very same tokens and pixels
    elif logits is not None and same and off is not None:
        read = found.logits("logits of the runtime's own reading", ids, seen)
    visual = reading.ids.count(runtime.facts.image_token_id)
    return RewriteReport(
        prompt=prompt,
        visual=max(1, visual),
        text=max(1, len(reading.ids) - visual),
        pixels=off,
        embeds=embeds,
        logits=logits,
        runtime=read,
        failures=tuple(found.failures),
    )


@dataclass
class _Comparison:
    """Compares one thing after the other; what differs is added to `failures`."""

    reading: Reading
    runtime: "Runtime"
    failures: list[str] = field(default_factory=list)

    def tokens(self, ids: tuple[int, ...]) -> bool:
        wanted = self.reading.ids
        if len(ids) != len(wanted):
            what = f"the runtime reads {len(ids)} tokens, the model's processor {len(wanted)}"
            self.failures.append(what)
        elif ids != wanted:
            place = next(i for i, token in enumerate(ids) if token != wanted[i])
            self.failures.append(
                f"the runtime reads token {ids[place]} at place {place}, the model's processor "
                f"{wanted[place]}; none may differ"
            )
        return ids == wanted

    def pixels(self, seen: Sequence[SeenPicture]) -> float | None:
        found, wanted = ([p.pixels for p in pictures] for pictures in (seen, self.reading.seen))
        shapes, others = ([list(pixels.shape) for pixels in side] for side in (found, wanted))
        if shapes != others:
            self.failures.append(f"pixels have shapes {shapes}, the processor's {others}")
            return None
        off = max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True))
        if not off <= MAX_PIXEL_DIFFERENCE:
            self.failures.append(f"pixels differ by {off:.2g}, allowed {MAX_PIXEL_DIFFERENCE:g}")
        return off

    def embeds(self, features: tuple[Array, ...]) -> float | None:
        flat = [rows.reshape(-1, rows.shape[-1]) for rows in features]
        names = ["visual embeddings", *(f"deepstack rows {i}" for i in range(len(flat) - 1))]
        each = [self.off(*parts) for parts in zip(names, flat, self.reading.embeds, strict=True)]
        found = [off for off in each if off is not None]
        return max(found) if len(found) == len(each) else None

    def logits(self, what: str, ids: tuple[int, ...], seen: Sequence[SeenPicture]) -> float | None:
        try:
            prompt = self.runtime.prompt_of(ids, seen)
        except DataError as error:
            self.failures.append(f"the rewritten model cannot take the prompt: {error}")
            return None
        return self.off(what, self.runtime.prefill([prompt])[0][0], self.reading.logits)

    def off(self, what: str, found: Array, wanted: Array) -> float | None:
        """Return the largest difference, of the largest wanted value."""
        if found.shape != wanted.shape:
            self.failures.append(f"{what} have shape {found.shape}, the original's {wanted.shape}")
            return None
        off = float(np.abs(found - wanted).max() / (np.abs(wanted).max() or 1.0))
        if not off <= MAX_RELATIVE:  # also where a value is no number
            self.failures.append(
                f"{what} differ by {off:.2g} of the largest, allowed {MAX_RELATIVE:g}"
            )
        return off


@contextmanager
def asked(
    folder: Path, *sources: tuple[Source, Sequence[Sample]]
) -> Iterator[tuple[Source, Sample]]:
    """Give where the prompt is from, and the first sample with a picture; else a built-in one.

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
