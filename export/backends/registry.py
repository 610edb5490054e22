"""The backends by name, and a session on an artifact in one of them, or why it cannot run there."""

from typing import TYPE_CHECKING, Any

from compressor.errors import BackendError
from export.backends.backend import Backend, Options
from export.backends.checked_on import CHECKED_ON
from export.backends.onnxruntime_cuda import OnnxRuntimeCuda
from export.backends.openvino import OpenVino
from export.backends.tensorrt.backend import TensorRt, TensorRtRtx

if TYPE_CHECKING:
    from export.artifact.artifact import Artifact
    from export.session.session import GraphSession

BACKENDS: dict[str, Backend] = {}
"""Every backend by its name, the one that artifacts are checked on first."""


def register(backend: Backend) -> None:
    """Add a backend; the command line, `doctor`, comparisons and errors know it from then on.

    Raises:
        BackendError: there is one of this name.
    """
    if backend.name in BACKENDS:
        raise BackendError(f"{backend.name}: there is a backend of this name already")
    BACKENDS[backend.name] = backend


for _backend in (CHECKED_ON, OnnxRuntimeCuda(), OpenVino(), TensorRtRtx(), TensorRt()):
    register(_backend)


def find_backend(name: str) -> Backend:
    """Return a backend by its name.

    Raises:
        BackendError: there is none of this name.
    """
    if name not in BACKENDS:
        raise BackendError(f"{name}: no such backend; there are {', '.join(BACKENDS)}")
    return BACKENDS[name]


def precisions() -> tuple[str, ...]:
    """Return every precision that some backend has, the one that runs graphs as they are first."""
    return tuple(dict.fromkeys(name for b in BACKENDS.values() for name in b.precisions))


def having(precision: str) -> str:
    """Return the names of the backends that have a precision."""
    return ", ".join(b.name for b in BACKENDS.values() if precision in b.precisions)


def running(dtype: str) -> tuple[Backend, ...]:
    """Return the backends that run graphs of a dtype without a GPU."""
    return tuple(b for b in BACKENDS.values() if not b.on_gpu and not b.lacks(dtype))


def open_session(
    artifact: "Artifact",
    backend: str,
    precision: str = "f32",
    threads: int | None = None,
    *,
    mapped: bool = False,
    gpu: int = 0,
) -> "GraphSession[Any]":
    """Return a session on an artifact.

    Args:
        artifact: what runs.
        backend: one of `BACKENDS`.
        precision: one of `precisions()`; `f32` runs the graphs as they are.
        threads: of one operator; None lets the backend choose.
        mapped: leave weights in the mapped file, where the backend can.
        gpu: number of the GPU, for backends that run on one.

    Raises:
        MissingExtraError: the backend is not installed.
        BackendError: it is, and cannot run here, or not in this precision.
        ArtifactError: there are no engines for this GPU, or they must not be loaded.
    """
    entry = find_backend(backend)
    if precision not in precisions():
        raise BackendError(f"{precision}: no such precision; there are {', '.join(precisions())}")
    if precision not in entry.precisions:
        raise BackendError(f"{backend}: has no {precision}; use the backend {having(precision)}")
    if mapped and not entry.maps_weights:
        others = ", ".join(b.name for b in BACKENDS.values() if b.maps_weights)
        raise BackendError(f"{backend}: always packs weights; mapped weights need {others}")
    check_dtype(backend, artifact.manifest.dtype)
    if gpu and not entry.on_gpu:
        raise BackendError(f"{backend}: runs on no GPU; leave out `gpu`")
    if not entry.fixed_caches and any(spec.fixed for spec in artifact.manifest.graphs):
        others = ", ".join(b.name for b in BACKENDS.values() if b.fixed_caches)
        raise BackendError(
            f"{backend}: does not run graphs that write into caches of fixed size; the backend {others} "
            "does, or export with export.kv_cache: growing"
        )
    session = entry.open(artifact, Options(precision, threads, mapped, gpu))
    session.check_loaded = artifact.check_unchanged
    return session


def check_dtype(backend: str, dtype: str) -> None:
    """Refuse graphs in a dtype that a backend cannot run.

    Raises:
        BackendError: says why, and which backend can.
    """
    if reason := find_backend(backend).lacks(dtype):
        others = ", ".join(b.name for b in running(dtype))
        raise BackendError(
            f"{backend}: cannot run {dtype} graphs ({reason}); the backend {others} can, or export with "
            "dtype float32 or float16"
        )
