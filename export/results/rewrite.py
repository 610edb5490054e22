"""How far the rewritten model, nothing cut, is from the original."""

from typing import Literal

from compressor.facts import Positive
from export.results.verdict import Check

# Of the largest value. Kernels add up in other orders: over the models of the tests, seeds and image sizes
# that came to 1.1e-6, in a decoder of 32 layers with outliers to 1.7e-6. The least fault that was injected
# into these models, an epsilon of 1e-5 for 1e-6 or rotations off by a thousandth, came to 4e-4.
MAX_RELATIVE = 5e-5


# Both are made by equal arithmetic; another mean or deviation comes to 0.1.
MAX_PIXEL_DIFFERENCE = 1e-5


Source = Literal["validation data", "calibration data", "built in"]


class RewriteReport(Check):
    """How far the rewrite is from the original.

    Attributes:
        prompt: where the question and its pictures came from.
        visual: visual rows of the prompt.
        text: its text rows.
        pixels: largest difference of the runtime's pixels; None: they have another shape.
        embeds: largest difference of the visual embeddings on the original's pixels, of the largest of them.
        logits: largest difference of the plain decoder's logits, of the largest, on what the processor made.
        runtime: the same on what the runtime made of question and pictures.
    """

    prompt: Source
    visual: Positive
    text: Positive
    pixels: float | None
    embeds: float | None
    logits: float | None
    runtime: float | None
    failures: tuple[str, ...] = ()


def rewrite_words(report: RewriteReport | None) -> str:
    """Return one line for people; None: nothing was compared."""
    if report is None:
        return (
            "Rewritten model, before anything is cut: not compared with the original (no original was "
            "given or in memory, or the artifact is older than this comparison)"
        )
    if report.failures:
        return f"the rewritten model is not the original: {'; '.join(report.failures)}"
    worst = max(v for v in (report.embeds, report.logits, report.runtime) if v is not None)
    return (
        f"Rewritten model, before anything is cut: gives the original's logits on one prompt "
        f"({report.prompt}, {report.visual} visual and {report.text} text rows), off by {worst:.1e} of the "
        f"largest, allowed {MAX_RELATIVE:g}"
    )
