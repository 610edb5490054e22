"""What this machine can build and run, found without importing anything that could crash the process.

Versions are read from installed metadata. Everything that loads a library runs in a child with a time limit
(`export.backends.probing`): a crash or a hang there is a finding.
"""

import platform
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from compressor.errors import BackendError
from compressor.installing import how_to_install
from export.backends.backend import Gap, installed_version
from export.backends.gpus import Gpu, find_gpus, nvidia_smi, torch_build
from export.backends.probing import PROBE_SECONDS, Probed, ask
from export.backends.registry import BACKENDS
from export.machine.diagnosis import Diagnosis, Package

# What `vtcompress export` imports.
TO_EXPORT = ("torch", "transformers", "optimum", "onnx", "onnxscript", "safetensors")


def examine(seconds: float = PROBE_SECONDS) -> Diagnosis:
    """Look at this machine.

    Args:
        seconds: that a probe may take.
    """
    backends = BACKENDS.values()
    with ThreadPoolExecutor() as pool:  # each waits for a child of its own
        found = dict(
            zip(BACKENDS, pool.map(lambda b: ask(b.probe, seconds), backends), strict=True)
        )
    driver, gpus = nvidia_smi()
    gpus = gpus or _driver_gpus()
    return Diagnosis(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=tuple(_packages()),
        driver=driver,
        gpus=gpus,
        providers=_all(found, "offered"),
        active=_all(found, "active"),
        abilities=tuple(b.ability(found[b.name], gpus) for b in backends),
        gaps=(
            *dict.fromkeys(gap for b in backends for gap in b.gaps(found[b.name])),
            *_unable_to_export(),
        ),
    )


def _all(found: Mapping[str, Probed], key: str) -> tuple[str, ...]:
    """Return what probes told as a list, together."""
    return tuple(dict.fromkeys(name for p in found.values() for name in p.facts.get(key, ())))


def _driver_gpus() -> tuple[Gpu, ...]:
    """Return what the driver itself tells, as `build` and `Runtime` ask it; a Jetson has no nvidia-smi."""
    try:
        return find_gpus()
    except BackendError:
        return ()


def _packages() -> Iterator[Package]:
    of_backends = (name for backend in BACKENDS.values() for name in backend.distributions)
    for name in dict.fromkeys((*TO_EXPORT[:-1], *of_backends)):
        version = installed_version(name)
        words = torch_build() if name == "torch" and version else ""
        yield Package(name=name, version=version, words=words)


def _unable_to_export() -> Iterator[Gap]:
    if missing := [name for name in TO_EXPORT if not installed_version(name)]:
        yield Gap(
            problem=f"models cannot be compressed and exported here: no {', '.join(missing)}",
            remedy=f"{how_to_install('compress')}; running artifacts needs none of them",
        )
