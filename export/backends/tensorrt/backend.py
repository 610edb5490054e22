"""The two TensorRTs as backends: they run engines that were built of an artifact before."""

import platform
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from export.artifact.engine_set import Machine, OpenedSet
from export.backends.backend import Ability, Backend, Options, Said, installed_version
from export.backends.gpus import INSTALL_DRIVER, Gpu, find_gpu
from export.backends.probing import Probed, ProbeFacts, failure_words
from export.backends.tensorrt.device import CudaEngines
from export.backends.tensorrt.find import find_set
from export.backends.tensorrt.session import EngineSession
from export.backends.tensorrt.targets import TARGETS, Target, capabilities, load_package

if TYPE_CHECKING:
    from export.artifact.artifact import Artifact

# What running engines needs beside TensorRT.
CUDA_PACKAGE = "cuda-bindings"


class _TensorRt(Backend):
    """One of the two; see `Backend`."""

    target: Target
    on_gpu = True
    takes_threads = False

    def __init__(self) -> None:
        target = self.target
        self.name, self.title, self.extra = target.name, target.title, target.extra
        self.package, self.proofs, self.ahead = target.package, target.proofs, target.ahead
        self.distributions = (target.package, CUDA_PACKAGE)

    def open(self, artifact: "Artifact", options: Options) -> EngineSession:
        """See `Backend.open`; nothing is loaded before it was checked."""
        trt = load_package(self.target, f"running {self.title} engines")
        gpu = find_gpu(options.gpu)
        engines = find_set(artifact, self.name, Machine(trt.__version__, gpu.capability, gpu.name))
        files = {
            entry.graph: (engines.folder / entry.file, entry.sha256)
            for entry in engines.facts.engines
        }
        on_gpu = CudaEngines(trt, files, options.gpu)
        return EngineSession(artifact.manifest.graphs, engines, on_gpu)

    def engines(self, session: Any) -> OpenedSet:
        """See `Backend.engines`."""
        engines: OpenedSet = session.engines
        return engines

    def ability(self, probed: Probed, gpus: Sequence[Gpu]) -> Ability:
        """See `Backend.ability`."""
        said, builds = self.failed(probed), False
        if said is None:
            said = self._judged(probed, gpus)
            builds = not (_unmade(probed, "builder") if self.ahead else said.remedy)
            if not said.remedy and not installed_version(CUDA_PACKAGE):
                words = f"{said.words}; running engines needs CUDA for Python"
                said = Said(words, f"pip install {CUDA_PACKAGE}")
            if builds and said.remedy and self.ahead:
                said = Said(f"{said.words}; engines can be built ahead of time", said.remedy)
        return Ability(backend=self.name, builds=builds, runs=not said.remedy, **said._asdict())

    def _judged(self, probed: Probed, gpus: Sequence[Gpu]) -> Said:
        version, known = probed.facts["version"], probed.facts["capabilities"]
        if failure := _unmade(probed, "builder") or _unmade(probed, "runtime"):
            remedy = (
                "look at the driver: its version must fit TensorRT's" if gpus else INSTALL_DRIVER
            )
            return Said(f"{version} is installed; {failure}", remedy)
        if not gpus:
            return Said(f"{version} is installed; no GPU was found", INSTALL_DRIVER)
        others = [gpu.capability for gpu in gpus if gpu.capability and gpu.capability not in known]
        if self.ahead and known and len(others) == len(gpus):
            return Said(
                f"{version} knows {', '.join(known)}; this GPU is {', '.join(others)}",
                "use full TensorRT here: vtcompress build ARTIFACT --target tensorrt",
            )
        return Said(f"{version} on {', '.join(gpu.name for gpu in gpus)}")


class TensorRtRtx(_TensorRt):
    """TensorRT-RTX."""

    target = TARGETS["tensorrt-rtx"]

    @staticmethod
    def probe() -> Iterator[ProbeFacts]:
        """See `probe_package`."""
        return probe_package(TARGETS["tensorrt-rtx"].module)


class TensorRt(_TensorRt):
    """TensorRT."""

    target = TARGETS["tensorrt"]

    @staticmethod
    def probe() -> Iterator[ProbeFacts]:
        """See `probe_package`."""
        return probe_package(TARGETS["tensorrt"].module)

    def failed(self, probed: Probed) -> Said | None:
        """See `Backend.failed`."""
        said = super().failed(probed)
        if said and said.words == "not installed" and platform.machine() == "aarch64":
            jetson = "on a Jetson it comes with JetPack: python -m venv --system-site-packages"
            return Said(said.words, f"{said.remedy}; {jetson}")
        return said


def probe_package(name: str) -> Iterator[ProbeFacts]:
    """Tell the version; whether a builder and a runtime can be made; what the builder can build for."""
    yield {"step": f"importing {name}"}
    trt = import_module(name)
    known = capabilities(trt) if hasattr(trt, "ComputeCapability") else ()
    yield {"version": trt.__version__, "capabilities": known}
    log = trt.Logger(trt.Logger.ERROR)
    for maker in ("Builder", "Runtime"):
        yield {"step": f"creating its {maker.lower()}"}
        try:
            getattr(trt, maker)(log)
            yield {maker.lower(): ""}
        except Exception as failure:  # noqa: BLE001 - bindings raise what they like
            yield {maker.lower(): failure_words(failure)}


def _unmade(probed: Probed, key: str) -> str:
    """Return why a builder or runtime could not be made; empty if it was."""
    return str(probed.facts[key]) if key in probed.facts else probed.unfinished(key)
