"""Judges from what probes said which backends build and run here, and what those that do not lack."""

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import NamedTuple

from compressor.installing import how_to_install
from export.machine.diagnosis import Ability, Gpu
from export.machine.probes import CUDA
from export.machine.probing import Probed

# What the backends that run engines need beside TensorRT.
CUDA_PACKAGE = "cuda-bindings"
DRIVER_LIBRARIES = ("libcuda.so", "nvcuda.dll", "libnvcuda", "libnvidia-ml")
SHARED_LIBRARY = re.compile(r"[\w.+-]+\.(?:so[\w.]*|dll|dylib)")

INSTALL_DRIVER = "install NVIDIA's driver and see that `nvidia-smi` lists the GPU"


class Said(NamedTuple):
    """What was found, and the remedy if it is a gap."""

    words: str
    remedy: str = ""


def installed_version(name: str) -> str | None:
    """Return a distribution's version; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def abilities(found: Mapping[str, Probed], gpus: Sequence[Gpu]) -> Iterator[Ability]:
    """Judge every backend.

    Args:
        found: what each of `doctor_probes.PROBES` said.
        gpus: of this machine.
    """
    yield _onnxruntime(found["onnxruntime"])
    yield _onnxruntime_cuda(found["onnxruntime"])
    yield _openvino(found["openvino"])
    yield _tensorrt(found["tensorrt"], gpus)
    yield _tensorrt_rtx(found["tensorrt_rtx"], gpus)


def _failed(probed: Probed, title: str, package: str, extra: str) -> Said | None:
    """Return why a package cannot be imported, and the remedy; None if it was imported."""
    facts = probed.facts
    again = f"pip install --force-reinstall {package}"
    words = str(facts.get("words", ""))
    if probed.cut_short and "version" not in facts:
        return Said(f"{title} is installed and {probed.cut_short}", again)
    if "error" not in facts or "version" in facts:
        return None
    if facts["error"] == "missing" and facts["missing"] == package.replace("-", "_"):
        return Said("not installed", how_to_install(extra))
    if facts["error"] == "missing":
        return Said(
            f"{title} is installed without a part of it: no module {facts['missing']}", again
        )
    library = SHARED_LIBRARY.search(words)
    if library and library[0].startswith(DRIVER_LIBRARIES):
        return Said(
            f"{title} is installed, NVIDIA's driver is not: no {library[0]}", INSTALL_DRIVER
        )
    if library:
        return Said(
            f"{title}'s Python bindings are installed without its libraries, or they do not fit: {words}",
            f"{again}; libraries of the system must be on LD_LIBRARY_PATH",
        )
    return Said(f"{title} is installed and cannot be imported: {words}", again)


def _onnxruntime(probed: Probed) -> Ability:
    failed = _failed(probed, "ONNX Runtime", "onnxruntime", "cpu")
    if failed is None and (reason := _unfinished(probed, "active")):
        failed = Said(reason, "pip install --force-reinstall onnxruntime")
    said = failed or Said(f"{probed.facts['package']} {probed.facts['version']}")
    return Ability(backend="onnxruntime", builds=None, runs=failed is None, **said._asdict())


def _onnxruntime_cuda(probed: Probed) -> Ability:
    facts, remedy = probed.facts, how_to_install("gpu")
    failed = _failed(probed, "ONNX Runtime", "onnxruntime", "gpu")
    if failed is None and CUDA not in facts.get("offered", ()):
        failed = Said(
            f"the active ONNX Runtime ({facts.get('package', 'unknown')}) is built without CUDA",
            f"pip uninstall -y onnxruntime onnxruntime-gpu, then {remedy}",
        )
    if failed is None and (reason := _unfinished(probed, "active_cuda")):
        failed = Said(reason, INSTALL_DRIVER)
    if failed is None and CUDA not in facts["active_cuda"]:
        failed = Said(
            "CUDA is listed, and a session that asks for it runs on "
            f"{', '.join(facts['active_cuda']) or 'nothing'}",
            f"{INSTALL_DRIVER}; onnxruntime-gpu also needs CUDA and cuDNN: "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'",
        )
    said = failed or Said(f"{facts['package']} {facts['version']}, a session runs on CUDA")
    return Ability(backend="onnxruntime-cuda", builds=None, runs=failed is None, **said._asdict())


def _openvino(probed: Probed) -> Ability:
    failed = _failed(probed, "OpenVINO", "openvino", "openvino")
    if failed is None and (reason := _unfinished(probed, "devices")):
        failed = Said(reason, "pip install --force-reinstall openvino")
    facts = probed.facts
    said = failed or Said(f"{facts['version']}, devices {', '.join(facts['devices'])}")
    return Ability(backend="openvino", builds=None, runs=failed is None, **said._asdict())


def _unfinished(probed: Probed, key: str) -> str:
    """Return why a probe never told something; empty if it did."""
    if key in probed.facts:
        return ""
    step = f"{probed.facts.get('step')}: {probed.facts.get('words', 'no answer')}"
    return probed.cut_short or step


def _tensorrt(probed: Probed, gpus: Sequence[Gpu]) -> Ability:
    remedy = how_to_install("tensorrt")
    if platform.machine() == "aarch64":
        remedy += "; on a Jetson it comes with JetPack: python -m venv --system-site-packages"
    failed = _failed(probed, "TensorRT", "tensorrt", "tensorrt")
    if failed is not None:
        failed = failed._replace(remedy=remedy) if failed.words == "not installed" else failed
        return Ability(backend="tensorrt", builds=False, runs=False, **failed._asdict())
    builder, runtime = (_made(probed, key) for key in ("builder", "runtime"))
    said = _device_words(probed, builder or runtime, gpus)
    builds = not said.remedy
    said = _with_cuda(said)
    return Ability(backend="tensorrt", builds=builds, runs=not said.remedy, **said._asdict())


def _tensorrt_rtx(probed: Probed, gpus: Sequence[Gpu]) -> Ability:
    failed = _failed(probed, "TensorRT-RTX", "tensorrt-rtx", "rtx")
    if failed is not None:
        return Ability(backend="tensorrt-rtx", builds=False, runs=False, **failed._asdict())
    builder, runtime = (_made(probed, key) for key in ("builder", "runtime"))
    said = _device_words(probed, builder or runtime, gpus)
    known = probed.facts["capabilities"]
    others = [gpu.capability for gpu in gpus if gpu.capability and gpu.capability not in known]
    if not said.remedy and known and len(others) == len(gpus):
        said = Said(
            f"{probed.facts['version']} knows {', '.join(known)}; this GPU is {', '.join(others)}",
            "use full TensorRT here: vtcompress build ARTIFACT --target tensorrt",
        )
    said = _with_cuda(said)
    builds = not builder
    words = said.words
    if builds and said.remedy:
        words += "; engines can be built ahead of time"
    return Ability(
        backend="tensorrt-rtx", builds=builds, runs=not said.remedy, words=words, remedy=said.remedy
    )


def _with_cuda(said: Said) -> Said:
    """Add that running engines needs CUDA for Python, where that is the only gap."""
    if said.remedy or installed_version(CUDA_PACKAGE):
        return said
    return Said(
        f"{said.words}; running engines needs CUDA for Python", f"pip install {CUDA_PACKAGE}"
    )


def _made(probed: Probed, key: str) -> str:
    """Return why a builder or runtime could not be made; empty if it was."""
    return str(probed.facts[key]) if key in probed.facts else _unfinished(probed, key)


def _device_words(probed: Probed, failure: str, gpus: Sequence[Gpu]) -> Said:
    version = probed.facts["version"]
    if failure:
        remedy = "look at the driver: its version must fit TensorRT's" if gpus else INSTALL_DRIVER
        return Said(f"{version} is installed; {failure}", remedy)
    if not gpus:
        return Said(f"{version} is installed; no GPU was found", INSTALL_DRIVER)
    return Said(f"{version} on {', '.join(gpu.name for gpu in gpus)}")
