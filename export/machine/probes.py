"""What `vtcompress doctor` asks of packages that may crash or hang: a program of its own, one probe a run.

    python -P doctor_probes.py NAME

Prints a line of JSON before and after each step, so that whoever waits knows how far it came. Needs
nothing of this project.
"""

import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

MARK = "vtcompress-probe:"
# A graph that returns its input, [1] float32: what the ONNX package would write, here without it.
IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a00100d"
)
CUDA = "CUDAExecutionProvider"
Facts = dict[str, Any]


def onnxruntime() -> Iterator[Facts]:
    """Which build is active, and which providers a session really gets."""
    yield {"step": "importing onnxruntime"}
    ort = import_module("onnxruntime")
    built = import_module("onnxruntime.capi.build_and_package_info")
    yield {"version": ort.__version__, "package": built.package_name}
    offered = ort.get_available_providers()
    yield {"offered": offered, "step": "creating a session on the CPU"}
    yield {"active": _session_providers(ort, "CPUExecutionProvider")}
    if CUDA in offered:
        yield {"step": "creating a session on CUDA"}
        yield {"active_cuda": _session_providers(ort, CUDA)}


def _session_providers(ort: Any, provider: str) -> list[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    found: list[str] = ort.InferenceSession(IDENTITY, options, providers=[provider]).get_providers()
    return found


def openvino() -> Iterator[Facts]:
    """The version and the devices."""
    yield {"step": "importing openvino"}
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # it would report the import
    module = import_module("openvino")
    yield {"version": module.__version__, "step": "asking for devices"}
    yield {"devices": list(module.Core().available_devices)}


def tensorrt(name: str = "tensorrt") -> Iterator[Facts]:
    """The version; whether a builder and a runtime can be made; what the builder can build for."""
    yield {"step": f"importing {name}"}
    trt = import_module(name)
    known = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    capabilities = [key for key in known if key.startswith("SM")]
    yield {"version": trt.__version__, "capabilities": capabilities}
    log = trt.Logger(trt.Logger.ERROR)
    for maker in ("Builder", "Runtime"):
        yield {"step": f"creating its {maker.lower()}"}
        try:
            getattr(trt, maker)(log)
            yield {maker.lower(): ""}
        except Exception as failure:  # noqa: BLE001 - bindings raise what they like
            yield {maker.lower(): _words(failure)}


def tensorrt_rtx() -> Iterator[Facts]:
    """As `tensorrt`."""
    return tensorrt("tensorrt_rtx")


PROBES: dict[str, Callable[[], Iterator[Facts]]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "tensorrt": tensorrt,
    "tensorrt_rtx": tensorrt_rtx,
}


def _words(failure: BaseException) -> str:
    lines = str(failure).strip().splitlines()
    return lines[0] if lines else type(failure).__name__


def main(name: str) -> None:
    """Run a probe and print what it finds, step by step."""
    try:
        for facts in PROBES[name]():
            _tell(facts)
    except ModuleNotFoundError as failure:
        _tell({"error": "missing", "missing": failure.name or "", "words": _words(failure)})
    except BaseException as failure:  # noqa: BLE001 - whatever it is, it is the answer
        kind = "library" if isinstance(failure, ImportError | OSError) else "other"
        _tell({"error": kind, "words": _words(failure)})
    _tell({"done": True})


def _tell(facts: Facts) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(facts)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
