"""What this machine can build and run, found without importing anything that could crash the process.

Versions are read from installed metadata. Everything that loads a library runs in a child with a time limit
(`doctor_probes.py`): a crash or a hang there is a finding.
"""

import json
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

from compressor.dims import Facts
from compressor.errors import BackendError
from export import doctor_probes
from export.backends import Backend
from export.doctor_probes import CUDA, MARK, PROBES
from export.gpus import find_gpus

PROBE_SECONDS = 60.0
# What the backends that run engines need beside TensorRT.
CUDA_PACKAGE = "cuda-bindings"
PACKAGES = (
    "torch",
    "transformers",
    "optimum",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    CUDA_PACKAGE,
)
# They all install one and the same package folder.
ONE_OF = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
# What `vtcompress export` imports.
TO_EXPORT = ("torch", "transformers", "optimum", "onnx", "onnxscript", "safetensors")
DRIVER_LIBRARIES = ("libcuda.so", "nvcuda.dll", "libnvcuda", "libnvidia-ml")
SHARED_LIBRARY = re.compile(r"[\w.+-]+\.(?:so[\w.]*|dll|dylib)")

INSTALL_DRIVER = "install NVIDIA's driver and see that `nvidia-smi` lists the GPU"


class Package(Facts):
    """An installed distribution; `version` is None where there is none."""

    name: str
    version: str | None
    words: str = ""


class Gpu(Facts):
    """One GPU; `capability` such as `SM86`, empty if nobody told it."""

    name: str
    capability: str


class Ability(Facts):
    """What can be done with one backend here.

    Attributes:
        backend: its name.
        builds: whether it can build engines here; None: it needs none.
        runs: whether it can run here.
        words: what was found.
        remedy: of what is missing; empty if nothing is.
    """

    backend: Backend
    builds: bool | None
    runs: bool
    words: str
    remedy: str = ""


class Gap(Facts):
    """Something that is missing or wrong, and what to do."""

    problem: str
    remedy: str


class Diagnosis(Facts):
    """Everything that was found.

    Attributes:
        python: version.
        system: operating system and processor.
        packages: of `PACKAGES`, installed or not.
        driver: version of NVIDIA's; None: not found.
        gpus: NVIDIA's.
        providers: of ONNX Runtime: those that it lists.
        active: of ONNX Runtime: those that sessions really got.
        abilities: one for each backend.
        gaps: that concern no single backend.
    """

    python: str
    system: str
    packages: tuple[Package, ...]
    driver: str | None
    gpus: tuple[Gpu, ...]
    providers: tuple[str, ...]
    active: tuple[str, ...]
    abilities: tuple[Ability, ...]
    gaps: tuple[Gap, ...]

    def ability(self, backend: str) -> Ability:
        """Return what was found of a backend."""
        return next(a for a in self.abilities if a.backend == backend)

    def require(self, backend: str) -> None:
        """Refuse a backend that cannot run here.

        Raises:
            BackendError: says why, and what to do.
        """
        found = self.ability(backend)
        if not found.runs:
            raise BackendError(f"{backend}: {found.words}; {found.remedy}")


@dataclass(frozen=True)
class Probed:
    """What a probe said, and how it ended.

    Attributes:
        facts: all that it said, later words over earlier ones.
        ended: empty if it came to its end, else how it ended.
    """

    facts: Mapping[str, Any]
    ended: str = ""

    @property
    def cut_short(self) -> str:
        """Return how it ended and in which step; empty if it came to its end."""
        return f"{self.ended} while {self.facts.get('step', 'starting')}" if self.ended else ""


class Said(NamedTuple):
    """What was found, and the remedy if it is a gap."""

    words: str
    remedy: str = ""


def examine(seconds: float = PROBE_SECONDS) -> Diagnosis:
    """Look at this machine.

    Args:
        seconds: that a probe may take.
    """
    with ThreadPoolExecutor() as pool:  # each waits for a child of its own
        asked = {name: pool.submit(probe, name, seconds) for name in PROBES}
        found = {name: future.result() for name, future in asked.items()}
    driver, gpus = nvidia_smi()
    gpus = gpus or _driver_gpus()
    ort = found["onnxruntime"].facts
    active = (*ort.get("active", ()), *ort.get("active_cuda", ()))
    return Diagnosis(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=tuple(_packages()),
        driver=driver,
        gpus=gpus,
        providers=tuple(ort.get("offered", ())),
        active=tuple(dict.fromkeys(active)),
        abilities=(
            _onnxruntime(found["onnxruntime"]),
            _onnxruntime_cuda(found["onnxruntime"]),
            _openvino(found["openvino"]),
            _tensorrt(found["tensorrt"], gpus),
            _tensorrt_rtx(found["tensorrt_rtx"], gpus),
        ),
        gaps=tuple(_gaps(found["onnxruntime"])),
    )


def _driver_gpus() -> tuple[Gpu, ...]:
    """Return what the driver itself tells, as `build` and `Runtime` ask it; a Jetson has no nvidia-smi."""
    try:
        return tuple(Gpu(name=gpu.name, capability=gpu.capability) for gpu in find_gpus())
    except BackendError:
        return ()


def probe(name: str, seconds: float = PROBE_SECONDS) -> Probed:
    """Run a probe in a child and return what it said; never raises for what the probe does."""
    # -P: the probes' folder is no place to import from; its modules have common names.
    command = [sys.executable, "-P", str(Path(doctor_probes.__file__)), name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as failure:
        return Probed(_facts(failure.stdout or b""), f"gave no answer for {seconds:g} s")
    facts = _facts(done.stdout)
    if facts.get("done"):
        return Probed(facts)
    code = done.returncode
    how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with status {code}"
    return Probed(facts, how)


def _facts(said: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for line in said.decode(errors="replace").splitlines():
        if line.startswith(MARK):
            facts |= json.loads(line.removeprefix(MARK))
    return facts


def nvidia_smi() -> tuple[str | None, tuple[Gpu, ...]]:
    """Return the driver's version and the GPUs as nvidia-smi tells them; nothing if it does not."""
    command = ["nvidia-smi", "--query-gpu=driver_version,compute_cap,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(  # noqa: S603 - the vendor's tool, wherever the system has it
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None, ()
    rows = [[cell.strip() for cell in line.split(",", 2)] for line in done.stdout.splitlines()]
    rows = [row for row in rows if len(row) == 3 and row[0][:1].isdigit()]
    if done.returncode or not rows:
        return None, ()
    gpus = [
        Gpu(name=name, capability=f"SM{cap.replace('.', '')}" if cap[:1].isdigit() else "")
        for _, cap, name in rows
    ]
    return rows[0][0], tuple(gpus)


def _packages() -> Iterator[Package]:
    for name in PACKAGES:
        version = _version(name)
        words = torch_build() if name == "torch" and version else ""
        yield Package(name=name, version=version, words=words)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def torch_build() -> str:
    """Return what torch was built for, as its own version file says; torch is not imported."""
    spec = util.find_spec("torch")
    try:
        text = (Path(str(spec and spec.origin)).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return "its version file cannot be read"
    found = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return f"CUDA {found[1]} build" if found else "CPU build"


def _gaps(ort: Probed) -> Iterator[Gap]:
    there = [name for name in ONE_OF if _version(name)]
    if len(there) > 1:
        active = ort.facts.get("package")
        active = f"active is {active}" if active else "none of them can be imported"
        yield Gap(
            problem=f"{' and '.join(there)} are installed and overwrite each other; {active}",
            remedy=f"pip uninstall -y {' '.join(there)}, then install the one that you want: "
            "pip install 'vtcompress[gpu]' with an NVIDIA GPU, otherwise 'vtcompress[cpu]'",
        )
    if missing := [name for name in TO_EXPORT if not _version(name)]:
        yield Gap(
            problem=f"models cannot be compressed and exported here: no {', '.join(missing)}",
            remedy="pip install 'vtcompress[compress]'; running artifacts needs none of them",
        )


def _failed(probed: Probed, title: str, package: str, extra: str) -> Said | None:
    """Return why a package cannot be imported, and the remedy; None if it was imported."""
    facts = probed.facts
    again = f"pip install --force-reinstall {package}"
    install = f"pip install 'vtcompress[{extra}]'"
    words = str(facts.get("words", ""))
    if probed.cut_short and "version" not in facts:
        return Said(f"{title} is installed and {probed.cut_short}", again)
    if "error" not in facts or "version" in facts:
        return None
    if facts["error"] == "missing" and facts["missing"] == package.replace("-", "_"):
        return Said("not installed", install)
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
    facts, remedy = probed.facts, "pip install 'vtcompress[gpu]'"
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
    remedy = "pip install 'vtcompress[tensorrt]'"
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
    if said.remedy or _version(CUDA_PACKAGE):
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
