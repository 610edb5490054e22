"""ONNX Runtime on a CUDA device; caches stay on it between calls. Run by hand, not in CI."""

import contextlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.errors import BackendError, MissingExtraError
from compressor.installing import how_to_install
from export.backends.backend import Backend, Options, Said
from export.backends.gpus import INSTALL_DRIVER, find_gpu
from export.backends.onnxruntime import CPU, OnnxGraph, OnnxRuntime, probe_provider
from export.backends.probing import Probed, ProbeFacts
from export.graphs.spec import GraphSpec
from export.session.session import GraphSession

if TYPE_CHECKING:
    from export.artifact.artifact import Artifact

PROVIDER = "CUDAExecutionProvider"


class CudaGraph(OnnxGraph):
    """One graph on the device; inputs are copied there, outputs stay there until they are read.

    Raises:
        MissingExtraError: ONNX Runtime is not installed, or is the build without CUDA.
        BackendError: CUDA is not really active.
        ArtifactError: the graph cannot be loaded.
    """

    def __init__(
        self, folder: Path, spec: GraphSpec, threads: int | None = None, device: int = 0
    ) -> None:
        check_offered()
        self._device = device
        # TF32 rounds products of float32 to 10 bits: logits then differ by 1e-2 (seen on an H200).
        settings = {"use_tf32": 0}
        # Named, the first device is looked for among plugins, which prints a warning.
        settings |= {"device_id": device} if device else {}
        super().__init__(folder, spec, threads, PROVIDER, provider_options=settings)
        check_active(self.session.get_providers())

    def __call__(self, feeds: Sequence[Any]) -> list[Any]:
        """Run on inputs in declared order: arrays, or values on the device that an earlier call returned."""
        binding = self.session.io_binding()
        for spec, feed in zip(self.spec.inputs, feeds, strict=True):
            value = feed
            if isinstance(feed, np.ndarray):
                array = np.ascontiguousarray(feed, spec.numpy)
                value = self._values.ortvalue_from_numpy(array, "cuda", self._device)
            binding.bind_ortvalue_input(spec.name, value)
        for spec in self.spec.outputs:
            binding.bind_output(spec.name, "cuda", self._device)
        self.ending(feeds, lambda o: self.session.run_with_iobinding(binding, o))
        return list(binding.get_outputs())

    def on_cpu(self) -> dict[str, int]:
        """Return how many nodes of which operator run on the CPU: of shapes, and those without kernels."""
        kinds = Counter(
            node.op_type
            for part in self.session.get_provider_graph_assignment_info()
            if part.ep_name == CPU
            for node in part.get_nodes()
        )
        return dict(kinds.most_common())


class CudaSession(GraphSession[CudaGraph]):
    """An artifact in ONNX Runtime on a CUDA device; see `GraphSession`."""

    def __init__(
        self,
        folder: Path,
        graphs: Sequence[GraphSpec],
        *,
        threads: int | None = None,
        device: int = 0,
    ) -> None:
        super().__init__(graphs, lambda spec: CudaGraph(folder, spec, threads, device))


def check_offered() -> None:
    """Refuse an ONNX Runtime that was built without CUDA.

    Raises:
        MissingExtraError: it is not installed, or is the CPU build.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("running an artifact on a GPU", "gpu") from None
    if PROVIDER not in onnxruntime.get_available_providers():
        raise MissingExtraError(
            "running an artifact on a GPU (the installed onnxruntime is the CPU build: "
            "pip uninstall onnxruntime first, the two overwrite each other)",
            "gpu",
        )
    load_cuda(onnxruntime)


def load_cuda(library: Any) -> None:
    """Load CUDA's libraries from the packages that `onnxruntime-gpu[cuda,cudnn]` installs.

    They lie where the system's loader does not look. What is not there is for the session to find elsewhere:
    whether CUDA is really active is asked of the session (`check_active`).

    Args:
        library: ONNX Runtime.
    """
    # It prints what it does not find, and stdout is ours.
    with contextlib.redirect_stdout(io.StringIO()):
        library.preload_dlls()


def check_active(providers: Sequence[str]) -> None:
    """Refuse a session that ONNX Runtime put on the CPU without a word.

    Args:
        providers: what `get_providers()` of the created session says.

    Raises:
        BackendError: CUDA is not the first of them.
    """
    if not providers or providers[0] != PROVIDER:
        raise BackendError(
            f"onnxruntime-cuda: CUDA is not active, the session runs on {', '.join(providers) or 'nothing'}; "
            "check the driver (nvidia-smi) and the CUDA and cuDNN libraries that onnxruntime-gpu needs, "
            "or use the backend onnxruntime"
        )


class OnnxRuntimeCuda(OnnxRuntime):
    """ONNX Runtime on a CUDA device."""

    name = "onnxruntime-cuda"
    extra = "gpu"
    on_gpu = True
    maps_weights = fixed_caches = False
    answers = "offered"
    watch = Backend.watch  # type: ignore[assignment] # its parent's graphs run on the CPU

    def open(self, artifact: "Artifact", options: Options) -> GraphSession[Any]:
        """See `Backend.open`; without a GPU, ONNX Runtime has words of its own on every graph."""
        check_offered()
        find_gpu(options.gpu)
        graphs = artifact.manifest.graphs
        return CudaSession(artifact.folder, graphs, threads=options.threads, device=options.gpu)

    @staticmethod
    def probe() -> Iterator[ProbeFacts]:
        """Tell which build is active, and which providers a session for CUDA really gets."""
        for facts in probe_provider(PROVIDER, "CUDA"):
            yield facts
            if PROVIDER in facts.get("offered", ()):
                load_cuda(import_module("onnxruntime"))

    def finding(self, probed: Probed) -> Said:
        """See `Backend.finding`."""
        facts = probed.facts
        if PROVIDER not in facts["offered"]:
            return Said(
                f"the active ONNX Runtime ({facts.get('package', 'unknown')}) is built without CUDA",
                f"pip uninstall -y onnxruntime onnxruntime-gpu, then {how_to_install(self.extra)}",
            )
        if reason := probed.unfinished("active"):
            return Said(reason, INSTALL_DRIVER)
        if PROVIDER not in facts["active"]:
            return Said(
                "CUDA is listed, and a session that asks for it runs on "
                f"{', '.join(facts['active']) or 'nothing'}",
                f"{INSTALL_DRIVER}; onnxruntime-gpu also needs CUDA and cuDNN: "
                "pip install 'onnxruntime-gpu[cuda,cudnn]'",
            )
        return Said(f"{facts['package']} {facts['version']}, a session runs on CUDA")
