"""What this machine can build and run, found without importing anything that could crash the process.

Versions are read from installed metadata. Everything that loads a library runs in a child with a time limit
(`doctor_probing.py`): a crash or a hang there is a finding.
"""

import platform
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import util
from pathlib import Path

from compressor.errors import BackendError
from compressor.installing import how_to_install
from export.backends.tensorrt.gpus import find_gpus
from export.machine.backends import CUDA_PACKAGE, abilities, installed_version
from export.machine.diagnosis import Diagnosis, Gap, Gpu, Package
from export.machine.probes import PROBES
from export.machine.probing import PROBE_SECONDS, Probed, probe

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
        abilities=tuple(abilities(found, gpus)),
        gaps=tuple(_gaps(found["onnxruntime"])),
    )


def _driver_gpus() -> tuple[Gpu, ...]:
    """Return what the driver itself tells, as `build` and `Runtime` ask it; a Jetson has no nvidia-smi."""
    try:
        return tuple(Gpu(name=gpu.name, capability=gpu.capability) for gpu in find_gpus())
    except BackendError:
        return ()


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
        version = installed_version(name)
        words = torch_build() if name == "torch" and version else ""
        yield Package(name=name, version=version, words=words)


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
    there = [name for name in ONE_OF if installed_version(name)]
    if len(there) > 1:
        active = ort.facts.get("package")
        active = f"active is {active}" if active else "none of them can be imported"
        yield Gap(
            problem=f"{' and '.join(there)} are installed and overwrite each other; {active}",
            remedy=f"pip uninstall -y {' '.join(there)}, then install the one that you want: "
            f"{how_to_install('gpu')} with an NVIDIA GPU, otherwise with cpu for gpu",
        )
    if missing := [name for name in TO_EXPORT if not installed_version(name)]:
        yield Gap(
            problem=f"models cannot be compressed and exported here: no {', '.join(missing)}",
            remedy=f"{how_to_install('compress')}; running artifacts needs none of them",
        )
