"""The two TensorRTs: what each is called, how it is imported, and what is said where that fails.

The only module that imports a TensorRT package.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from compressor.errors import BackendError, MissingExtraError, VtcompressError

TargetName = Literal["tensorrt-rtx", "tensorrt"]


@dataclass(frozen=True)
class Target:
    """One of the two.

    Attributes:
        name: in recipes and on the command line.
        title: for people.
        module: Python package.
        package: what pip installs.
        extra: of this distribution.
        tool: the vendor's command-line tool that builds and times engines.
        ahead: engines are built for chosen compute capabilities, without a GPU; else for the GPU that is
            there.
        timing: it has a timing cache; TensorRT-RTX times nothing on a GPU, and calls its own a no-op.
        proofs: see `export.backends.backend.Backend`.
    """

    name: TargetName
    title: str
    module: str
    package: str
    extra: str
    tool: str
    ahead: bool
    timing: bool
    proofs: tuple[tuple[str, str], ...]

    def proof(self, device: str) -> str:
        """Return what it proves that engines are there, by the GPU that they were built on, if any."""
        if device:
            return f"{self.title} engine built on {device}; it was not run by the build"
        return f"{self.title} engine built ahead of time; nothing has run on a GPU"


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="tensorrt-rtx",
            title="TensorRT-RTX",
            module="tensorrt_rtx",
            package="tensorrt-rtx",
            extra="rtx",
            tool="tensorrt_rtx",
            ahead=True,
            timing=False,
            proofs=(
                (
                    "TensorRT-RTX parser",
                    "TensorRT-RTX reads every node of the graphs; says nothing of whether engines can be "
                    "built",
                ),
                (
                    "TensorRT-RTX engine built ahead of time",
                    "there are kernels for the artifact's own sizes on these compute capabilities; the "
                    "engines have not run by that",
                ),
            ),
        ),
        # Building and running with this one needs a GPU; neither was ever run by this project.
        Target(
            name="tensorrt",
            title="TensorRT",
            module="tensorrt",
            package="tensorrt",
            extra="tensorrt",
            tool="trtexec",
            ahead=False,
            timing=True,
            proofs=(
                (
                    "TensorRT engine built on the device",
                    "full TensorRT has kernels for the artifact's own sizes on that GPU; the engines have "
                    "not run by that",
                ),
            ),
        ),
    )
}

DEFAULT_CAPABILITY = "SM86"
# What a capability is called in the vendor's enumeration; CURRENT and NONE are not capabilities.
_PREFIX = "SM"


def find_target(name: str) -> Target:
    """Return a target by its name.

    Raises:
        VtcompressError: there is none of this name.
    """
    if name not in TARGETS:
        raise VtcompressError(f"{name}: no such target; there are {', '.join(TARGETS)}")
    return TARGETS[name]


def load_package(target: Target, what: str) -> Any:
    """Import a target's package.

    Args:
        target: whose.
        what: needs it, for the error.

    Raises:
        MissingExtraError: it is not installed.
        BackendError: it is installed, and its bindings or libraries are not there or do not fit.
    """
    try:
        return import_module(target.module)
    except ModuleNotFoundError as failure:
        if failure.name == target.module:
            raise MissingExtraError(what, target.extra) from None
        reason = str(failure)
    except (ImportError, OSError) as failure:  # FileNotFoundError: a library on Windows
        reason = str(failure)
    reason = (reason.strip().splitlines() or ["no reason given"])[0]
    raise BackendError(
        f"{target.title} is installed and cannot be loaded: {reason}; its libraries are missing or do not "
        f"fit: pip install --force-reinstall {target.package}"
    )


def capabilities(trt: Any) -> tuple[str, ...]:
    """Return the compute capabilities that a builder knows, such as `SM86`, ascending."""
    known = [name for name in trt.ComputeCapability.__members__ if name.startswith(_PREFIX)]
    return tuple(sorted(known, key=lambda name: int(name.removeprefix(_PREFIX))))


def check_capabilities(target: Target, wanted: tuple[str, ...] | None, trt: Any) -> tuple[str, ...]:
    """Return what engines of a target are built for; empty: for the GPU that is there.

    Raises:
        VtcompressError: the builder does not know one, one is named twice, or the target takes none.
    """
    if not target.ahead:
        if wanted:
            raise VtcompressError(
                f"{target.name}: builds for the GPU of this machine alone; leave out the compute capability "
                f"{', '.join(wanted)}, or build for tensorrt-rtx"
            )
        return ()
    chosen, known = wanted or (DEFAULT_CAPABILITY,), capabilities(trt)
    for name in chosen:
        if name not in known:
            raise VtcompressError(
                f"compute capability {name!r} is unknown to {target.title} {trt.__version__}; "
                f"known: {', '.join(known)}"
            )
    if len(set(chosen)) != len(chosen):
        raise VtcompressError(
            f"compute capabilities {', '.join(chosen)}: one is named twice; name each once"
        )
    return tuple(sorted(chosen, key=lambda name: int(name.removeprefix(_PREFIX))))
