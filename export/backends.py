"""Opens an artifact in the backend that was asked for, or says why that cannot run."""

import hashlib
from typing import TYPE_CHECKING, Any

from compressor.errors import BackendError

if TYPE_CHECKING:
    from export.artifact import Artifact
    from export.sessions import GraphSession

BACKENDS = ("onnxruntime", "onnxruntime-cuda", "openvino")
PRECISIONS = ("f32", "bf16")


def open_session(
    artifact: "Artifact",
    backend: str,
    precision: str = "f32",
    threads: int | None = None,
    *,
    mapped: bool = False,
) -> "GraphSession[Any]":
    """Return a session on an artifact.

    Args:
        artifact: what runs.
        backend: one of `BACKENDS`.
        precision: one of `PRECISIONS`; `f32` runs the graphs as they are.
        threads: of one operator; None lets the backend choose.
        mapped: leave weights in the mapped file; `onnxruntime` only.

    Raises:
        MissingExtraError: the backend is not installed.
        BackendError: it is, and cannot run here, or not in this precision.
    """
    if backend not in BACKENDS:
        raise BackendError(f"{backend}: no such backend; there are {', '.join(BACKENDS)}")
    if precision not in PRECISIONS:
        raise BackendError(f"{precision}: no such precision; there are {', '.join(PRECISIONS)}")
    if precision != "f32" and backend != "openvino":
        raise BackendError(f"{backend}: has no {precision}; use --backend openvino")
    if mapped and backend != "onnxruntime":
        raise BackendError(f"{backend}: always packs weights; mapped weights need onnxruntime")
    graphs = artifact.manifest.graphs
    if backend != "onnxruntime" and any(spec.fixed for spec in graphs):
        raise BackendError(
            f"{backend}: does not run graphs that write into caches of fixed size (TensorScatter); use "
            "--backend onnxruntime, or export with export.kv_cache: growing"
        )
    if backend == "openvino":
        from export.openvino_session import OpenVinoSession, cache_folder

        cache = cache_folder(_digest(artifact))
        options: dict[str, Any] = {"precision": precision, "threads": threads, "cache": cache}
        return OpenVinoSession(artifact.folder, graphs, **options)
    if backend == "onnxruntime-cuda":
        from export.cuda_session import CudaSession

        return CudaSession(artifact.folder, graphs, threads=threads)
    from export.sessions import OnnxSession

    return OnnxSession(artifact.folder, graphs, threads=threads, mapped=mapped)


def _digest(artifact: "Artifact") -> str:
    """Of all files: OpenVINO alone would not notice that only the weight file changed."""
    entries = sorted((name, entry.sha256) for name, entry in artifact.manifest.files.items())
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:16]
