"""The GPUs of this machine, asked for in a child process: a driver that crashes does not take us along."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from compressor.errors import BackendError
from export.backends.tensorrt import gpu_probe

PROBE_SECONDS = 60.0


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: of the device, from 0.
        name: as the driver tells it.
        capability: its compute capability, such as `SM86`.
    """

    index: int
    name: str
    capability: str


def find_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs of this machine.

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
        found = json.loads(said) if code == 0 else {"error": f"asking it ended with status {code}"}
    except ValueError:
        found = {"error": "asking it gave no answer"}
    if "error" in found:
        raise BackendError(
            f"no GPU to run on: {found['error']}; install NVIDIA's driver (nvidia-smi shows whether it "
            "works), or use the backend onnxruntime, which needs none"
        )
    return tuple(Gpu(index, *facts) for index, facts in enumerate(found["gpus"]))


def find_gpu(device: int) -> Gpu:
    """Return one GPU.

    Raises:
        BackendError: there is none of this number.
    """
    gpus = find_gpus()
    if not 0 <= device < len(gpus):
        there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus) or "none"
        raise BackendError(f"device {device}: there is no such GPU; there are: {there}")
    return gpus[device]
