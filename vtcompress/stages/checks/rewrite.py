"""The net under an export: the original's logits beside the rewrite's, before anything is cut or written.

See `export.checks.rewrite` for what is compared. The original's side is recorded and can be released before
the rewrite is loaded; where both are there, they share their weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from compressor.families.pictures.text import PictureForm
from compressor.progress import SILENT, Progress
from compressor.samples.questions import Sample
from export.checks import rewrite
from export.checks.rewrite import Reading
from export.results.rewrite import RewriteReport
from export.runtime.runtime import Runtime

if TYPE_CHECKING:
    from compressor.compressed import CompressedModel
    from compressor.families import LoadedModel
from export.results.rewrite import Source


@dataclass(frozen=True)
class RewritePrompt:
    """The prompt that both read.

    Attributes:
        source: where the prompt comes from.
        sample: question and pictures.
        folder: takes the processor's files.
    """

    source: Source
    sample: Sample
    folder: Path

    def read(self, model: "LoadedModel") -> Reading:
        """Return what the original makes of it."""
        from export.checks.original import read_original

        return read_original(model, self.sample)

    def compare(
        self,
        reading: Reading,
        plain: "CompressedModel",
        folder: Path | None = None,
        form: PictureForm | None = None,
    ) -> RewriteReport:
        """Compare a rewrite with nothing frozen.

        Args:
            reading: what the original made of the prompt.
            plain: the rewrite; it reads layers that lie elsewhere when they run from now on.
            folder: of an artifact whose files the runtime reads; None: what an export would write.
            form: of that artifact, as its manifest holds it; None: as the processor tells it.
        """
        from compressor.decoder.elsewhere import read_layers_when_run
        from compressor.families.registry import picture_form
        from export.backends.torch_model import TorchSession

        facts = plain.plan.model
        if folder is None:
            folder = self.folder
            plain.processor.save_pretrained(folder)
        form = form or picture_form(plain.processor, facts)
        read_layers_when_run(plain.decoder, plain.stored)
        runtime = Runtime.on_session(TorchSession(plain), folder, facts, form)
        return rewrite.compare(reading, runtime, self.sample, self.source)


@contextmanager
def rewrite_prompt(
    validation: Sequence[Sample] = (), calibration: Sequence[Sample] = ()
) -> Iterator[RewritePrompt]:
    """Give the first sample with a picture of those that a run has read and checked, else a built-in one."""
    with (
        TemporaryDirectory() as name,
        rewrite.asked(
            Path(name), ("validation data", validation), ("calibration data", calibration)
        ) as (source, sample),
    ):
        yield RewritePrompt(source, sample, Path(name))


def check_rewrite(
    model: "LoadedModel",
    validation: Sequence[Sample] = (),
    calibration: Sequence[Sample] = (),
    progress: Progress = SILENT,
) -> RewriteReport | None:
    """Compare a loaded original with its rewrite, on the data that this run has read.

    In a dtype of 16 bits their rounding alone differs by more than what is allowed: nothing is compared then,
    and a note says so.

    Raises:
        ModelError: they are not the same; one line that says what differs.
    """
    from compressor.compressed import plain

    dtype = model.embedding.dtype
    if dtype.itemsize < 4:
        progress.say(
            f"note: in {str(dtype).removeprefix('torch.')} the rewritten decoder is not compared with the "
            "original; `export` compares them in float32"
        )
        return None
    with rewrite_prompt(validation, calibration) as prompt:
        report = prompt.compare(prompt.read(model), plain(model))
    rewrite.refuse(report, model.facts.name)
    return report
