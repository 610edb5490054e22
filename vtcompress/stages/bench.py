"""The stage that times an artifact beside the naive original."""

from pathlib import Path

from compressor.generation.settings import check_positions
from compressor.progress import Progress
from compressor.schema.arguments import check_threads, check_whole
from export.artifact.artifact import Artifact
from export.backends.checked_on import CHECKED_ON
from export.backends.registry import check_dtype
from export.checks import bench as timing
from export.results.bench import BenchReport
from vtcompress.console import shown
from vtcompress.shipped import PathLike


def bench(
    path: PathLike,
    *,
    images: int = 1,
    text: int | None = None,
    rounds: int = 15,
    threads: int = 1,
    progress: Progress | bool | None = None,
) -> BenchReport:
    """Time an artifact beside the naive original; see `export.checks.bench.bench`.

    Raises:
        VtcompressError: an argument is not allowed, the artifact is broken, ONNX Runtime cannot run its
            dtype, or the model has too few positions for the prompt.
    """
    progress = shown(progress)
    check_threads(threads)
    for name, value in (("images", images), ("text", text), ("rounds", rounds)):
        if (name, value) != ("text", None):
            check_whole(name, value, 1)
    artifact = Artifact.open(Path(path), progress=progress)
    manifest = artifact.manifest
    check_dtype(CHECKED_ON.name, manifest.dtype)
    facts, text = manifest.model, manifest.predicted.text if text is None else text
    check_positions(images * facts.picture_rows + text, 1, facts.decoder.max_positions)
    return timing.bench(
        artifact.folder,
        manifest.graphs,
        facts,
        images=images,
        text=text,
        rounds=rounds,
        threads=threads,
        progress=progress,
    )
