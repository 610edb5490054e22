"""The file that a training writes, its report beside it, and the checkpoint that it goes on from."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

from compressor.disk.files import made_parent, write_bytes
from compressor.disk.locks import exclusive
from compressor.disk.paths import working_stem
from compressor.errors import VtcompressError
from compressor.recipe import Recipe
from export.artifact.contents import FILE_WORDS, FileKind
from export.artifact.places import check_file
from export.backends.torch_device import whole_float32
from vtcompress.stages.inputs import model_folder

SUFFIX = ".safetensors"
Trained = Literal["gates", "parts", "heal"]
_REPORTS: dict[Trained, FileKind] = {
    "gates": "gates report",
    "parts": "parts report",
    "heal": "heal report",
}


class Report(Protocol):
    """What a training tells of itself."""

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""


class TrainedFile:
    """A place for what a training writes.

    Args:
        output: safetensors file.
        kind: what it will hold.
        overwrite: replace what this tool wrote there, of the same kind.
        sources: files and folders that the run reads.

    Raises:
        VtcompressError: the place cannot be written.
    """

    def __init__(
        self, output: str | Path, kind: Trained, *, overwrite: bool, sources: Iterable[Path]
    ) -> None:
        self.path, self.kind = Path(output), kind
        self._overwrite, self._sources = overwrite, tuple(sources)
        self._report = self.path.with_suffix(".json")
        if self.path.suffix != SUFFIX:
            problem = f"{FILE_WORDS[kind]} are a {SUFFIX} file; give `output` such a name"
            raise VtcompressError(f"{output}: {problem}")
        self._check()

    @property
    def checkpoint(self) -> Path:
        """A hidden file beside it."""
        return self.path.with_name(f".{working_stem(self.path.name)}.training{SUFFIX}")

    @contextmanager
    def held(self, device: str) -> Iterator[None]:
        """Let no other run write it, and torch's float32 on a device be whole."""
        with made_parent(self.path), exclusive(self.path), whole_float32(device):
            self._check()
            yield

    def check_outside(self, recipe: Recipe) -> None:
        """Refuse a place beside the weights of the recipe's model.

        Raises:
            VtcompressError: says so; or the model cannot be found.
        """
        folder = model_folder(recipe, weights=False)
        if folder.resolve() == self.path.absolute().parent.resolve():
            problem = (
                "lies in the model's folder, where weights are the model's; choose another `output`"
            )
            raise VtcompressError(f"{self.path}: {problem}")

    def write(self, report: Report, content: bytes) -> None:
        """Write report and file; the file last: where it is, the report is too."""
        report.save(self._report)
        write_bytes(self.path, content)
        self.checkpoint.unlink(missing_ok=True)

    def _check(self) -> None:
        check_file(self.path, self.kind, overwrite=self._overwrite, sources=self._sources)
        check_file(self._report, _REPORTS[self.kind], overwrite=self._overwrite)
