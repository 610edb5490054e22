"""The stage that times an artifact beside the naive original."""

from pathlib import Path

from compressor.progress import Progress
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
    progress: Progress | None = None,
) -> BenchReport:
    """Time an artifact beside the naive original; see `export.checks.bench.bench`.

    Raises:
        VtcompressError: the artifact is broken, or ONNX Runtime cannot run its dtype.
    """
    artifact = Artifact.open(Path(path))
    manifest = artifact.manifest
    check_dtype(CHECKED_ON.name, manifest.dtype)
    return timing.bench(
        artifact.folder,
        manifest.graphs,
        manifest.model,
        images=images,
        text=text or manifest.predicted.text,
        rounds=rounds,
        threads=threads,
        progress=shown(progress),
    )
