"""The net under an export: the original's logits beside the rewrite's, before anything is cut or written.

See `export.parity.rewrite` for what is compared. The original's side is recorded and can be released before
the rewrite is loaded; where both are there, they share their weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from compressor.calibration.data import Sample, read_samples
from compressor.errors import DataError
from compressor.recipe import Recipe
from export.parity import rewrite
from export.parity.rewrite import Reading, RewriteReport
from export.runtime import Runtime

if TYPE_CHECKING:
    from compressor.compressed import CompressedModel
    from compressor.families import LoadedModel


@dataclass(frozen=True)
class RewritePrompt:
    """The prompt that both read.

    Attributes:
        source: where it came from.
        sample: question and pictures.
        folder: for the processor's files.
    """

    source: rewrite.Source
    sample: Sample
    folder: Path

    def read(self, model: "LoadedModel") -> Reading:
        """Return what the original makes of it."""
        from export.parity.original import read_original

        return read_original(model, self.sample)

    def compare(
        self, reading: Reading, plain: "CompressedModel", folder: Path | None = None
    ) -> RewriteReport:
        """Compare a rewrite with nothing frozen; the runtime reads an artifact's files if `folder` is one."""
        from export.torch_session import TorchSession

        if folder is None:
            folder = self.folder
            plain.processor.save_pretrained(folder)
        token = plain.processor.image_token
        runtime = Runtime.on_session(TorchSession(plain), folder, plain.plan.model, token)
        return rewrite.compare(reading, runtime, self.sample, self.source)


@contextmanager
def rewrite_prompt(recipe: Recipe, samples: Sequence[Sample] = ()) -> Iterator[RewritePrompt]:
    """Give the first sample with a picture: of validation data, of calibration data, else a built-in one."""
    sources: list[tuple[rewrite.Source, Sequence[Sample]]] = [("validation data", samples)]
    if not any(sample.images for sample in samples) and recipe.calibrate.data is not None:
        with suppress(DataError):  # data that no stage needs may be missing
            sources.append(("calibration data", read_samples(recipe.calibrate.data)))
    with (
        TemporaryDirectory() as folder,
        rewrite.asked(Path(folder), *sources) as (source, sample),
    ):
        yield RewritePrompt(source, sample, Path(folder))


def check_rewrite(
    model: "LoadedModel", recipe: Recipe, samples: Sequence[Sample] = ()
) -> RewriteReport:
    """Compare a loaded original with its rewrite.

    Raises:
        ModelError: they are not the same; one line that says what differs.
    """
    from compressor.compressed import plain

    with rewrite_prompt(recipe, samples) as prompt:
        report = prompt.compare(prompt.read(model), plain(model))
    rewrite.refuse(report, model.facts.name)
    return report
