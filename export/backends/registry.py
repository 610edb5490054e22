"""Opens an artifact in the backend that was asked for, or says why that cannot run."""

import hashlib
from typing import TYPE_CHECKING, Any, Literal, get_args

from compressor.errors import BackendError
from export.backends.tensorrt.targets import TARGETS, load

if TYPE_CHECKING:
    from export.artifact.artifact import Artifact
    from export.session.session import GraphSession

Backend = Literal["onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt-rtx", "tensorrt"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
PRECISIONS = ("f32", "bf16")


def open_session(
    artifact: "Artifact",
    backend: str,
    precision: str = "f32",
    threads: int | None = None,
    *,
    mapped: bool = False,
    device: int = 0,
) -> "GraphSession[Any]":
    """Return a session on an artifact.

    Args:
        artifact: what runs.
        backend: one of `BACKENDS`.
        precision: one of `PRECISIONS`; `f32` runs the graphs as they are.
        threads: of one operator; None lets the backend choose.
        mapped: leave weights in the mapped file; `onnxruntime` only.
        device: number of the GPU, for backends that run on one.

    Raises:
        MissingExtraError: the backend is not installed.
        BackendError: it is, and cannot run here, or not in this precision.
        ArtifactError: there are no engines for this GPU, or they must not be loaded.
    """
    if backend not in BACKENDS:
        raise BackendError(f"{backend}: no such backend; there are {', '.join(BACKENDS)}")
    if precision not in PRECISIONS:
        raise BackendError(f"{precision}: no such precision; there are {', '.join(PRECISIONS)}")
    if precision != "f32" and backend != "openvino":
        raise BackendError(f"{backend}: has no {precision}; use --backend openvino")
    if mapped and backend != "onnxruntime":
        raise BackendError(f"{backend}: always packs weights; mapped weights need onnxruntime")
    check_dtype(backend, artifact.manifest.dtype)
    if device and not on_gpu(backend):
        raise BackendError(f"{backend}: runs on no GPU; leave out the device")
    graphs = artifact.manifest.graphs
    if backend != "onnxruntime" and any(spec.fixed for spec in graphs):
        raise BackendError(
            f"{backend}: does not run graphs that write into caches of fixed size (TensorScatter); the "
            "backend onnxruntime does, or export with export.kv_cache: growing"
        )
    if backend in TARGETS:
        return _open_engines(artifact, backend, device)
    if backend == "openvino":
        from export.backends.openvino import OpenVinoSession, cache_folder

        cache = cache_folder(_digest(artifact))
        options: dict[str, Any] = {"precision": precision, "threads": threads, "cache": cache}
        return OpenVinoSession(artifact.folder, graphs, **options)
    if backend == "onnxruntime-cuda":
        from export.backends.onnxruntime_cuda import CudaSession

        return CudaSession(artifact.folder, graphs, threads=threads, device=device)
    from export.backends.onnxruntime import OnnxSession

    return OnnxSession(artifact.folder, graphs, threads=threads, mapped=mapped)


def check_dtype(backend: str, dtype: str) -> None:
    """Refuse graphs in a dtype that a backend cannot run.

    Raises:
        BackendError: ONNX Runtime takes no bfloat16 arrays, and its CPU has no kernels for them.
    """
    if dtype == "bfloat16" and backend.startswith("onnxruntime"):
        raise BackendError(
            f"{backend}: cannot run bfloat16 graphs (its CPU has no bfloat16 MatMul or Attention, and it "
            "passes no bfloat16 arrays); the backend openvino can, or export with dtype float32 or float16"
        )


def on_gpu(backend: str) -> bool:
    """Return whether a backend runs on a GPU."""
    return backend in TARGETS or backend == "onnxruntime-cuda"


def _open_engines(artifact: "Artifact", backend: str, device: int) -> "GraphSession[Any]":
    """Return a session on the artifact's engines; nothing is loaded before it was checked."""
    from export.artifact.engine_set import Machine
    from export.backends.tensorrt.device import CudaEngines
    from export.backends.tensorrt.find import find_set
    from export.backends.tensorrt.gpus import find_gpu
    from export.backends.tensorrt.session import EngineSession

    target = TARGETS[backend]
    trt = load(target, f"running {target.title} engines")
    gpu = find_gpu(device)
    engines = find_set(artifact, backend, Machine(trt.__version__, gpu.capability, gpu.name))
    files = {
        entry.graph: (engines.folder / entry.file, entry.sha256) for entry in engines.facts.engines
    }
    return EngineSession(artifact.manifest.graphs, engines, CudaEngines(trt, files, device))


def _digest(artifact: "Artifact") -> str:
    """Of all files: OpenVINO alone would not notice that only the weight file changed."""
    entries = sorted((name, entry.sha256) for name, entry in artifact.manifest.files.items())
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:16]
