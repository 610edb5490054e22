"""The GPUs of this machine, asked for in a child process: a driver that crashes does not take us along."""

import json
import re
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

from compressor.errors import BackendError
from compressor.facts import Facts
from export.backends import gpu_probe
from export.backends.probing import PROBE_SECONDS

INSTALL_DRIVER = "install NVIDIA's driver and see that `nvidia-smi` lists the GPU"


class Gpu(Facts):
    """One GPU; `capability` such as `SM86`, empty if nobody told it."""

    name: str
    capability: str


def find_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs of this machine as the driver numbers them.

    Raises:
        BackendError: there is no driver, or it fails.
    """
    command = [sys.executable, "-P", str(Path(gpu_probe.__file__))]
    try:
        done = subprocess.run(  # noqa: S603 - this Python, and a file of this package
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise BackendError(
            f"the NVIDIA driver did not answer for {PROBE_SECONDS:.0f} s; nvidia-smi shows whether it works"
        ) from None
    return read_probe(done.returncode, done.stdout)


def read_probe(code: int, said: str) -> tuple[Gpu, ...]:
    """Return the GPUs that a probe found.

    Args:
        code: its exit status.
        said: what it printed.

    Raises:
        BackendError: it found no driver, or crashed.
    """
    try:
        found: dict[str, Any] = (
            json.loads(said) if code == 0 else {"error": f"asking it ended with status {code}"}
        )
    except ValueError:
        found = {"error": "asking it gave no answer"}
    if "error" in found:
        raise BackendError(
            f"no GPU to run on: {found['error']}; install NVIDIA's driver (nvidia-smi shows whether it "
            "works), or use the backend onnxruntime, which needs none"
        )
    return tuple(Gpu(name=name, capability=capability) for name, capability in found["gpus"])


def find_gpu(number: int) -> Gpu:
    """Return one GPU.

    Raises:
        BackendError: there is none of this number.
    """
    gpus = find_gpus()
    if not 0 <= number < len(gpus):
        there = ", ".join(f"{index} ({gpu.name})" for index, gpu in enumerate(gpus)) or "none"
        raise BackendError(f"`gpu`: {number}: there is no such GPU; there are: {there}")
    return gpus[number]


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


def torch_build() -> str:
    """Return what torch was built for, as its own version file says; torch is not imported."""
    spec = util.find_spec("torch")
    try:
        text = (Path(str(spec and spec.origin)).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return "its version file cannot be read"
    found = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return f"CUDA {found[1]} build" if found else "CPU build"
