"""TensorRT-RTX: parses a graph and builds its engine ahead of time, which needs no GPU.

The only module that imports a TensorRT package. What passes here is "TensorRT-RTX engine built ahead of
time"; nothing has run on a GPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import MissingExtraError, VtcompressError
from export.graphs import GraphSpec

CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")


@dataclass(frozen=True)
class Profile:
    """An optimization profile: sizes of the named axes at least, typically and at most."""

    least: Mapping[str, int]
    typical: Mapping[str, int]
    most: Mapping[str, int]


def decoder_profiles(visual: int, text: int, context: int) -> tuple[Profile, Profile]:
    """Return a prefill profile and a decode profile.

    Args:
        visual: V of one image; prefill takes none to two.
        text: largest T of a prefill.
        context: largest P.
    """
    prefill = Profile(
        {"batch": 1, "visual": 0, "text": 1, "past": 0},
        {"batch": 1, "visual": visual, "text": max(1, text // 4), "past": 0},
        {"batch": 1, "visual": 2 * visual, "text": text, "past": context},
    )
    # T up to 2: with exactly 1 the builder finds no Attention kernel for some tiny head shapes.
    decode = Profile(
        {"batch": 1, "visual": 0, "text": 1, "past": 1},
        {"batch": 1, "visual": 0, "text": 1, "past": max(1, context // 4)},
        {"batch": 1, "visual": 0, "text": 2, "past": context},
    )
    return prefill, decode


def build_rtx_engine(
    folder: Path, spec: GraphSpec, profiles: Sequence[Profile], capability: str = "SM86"
) -> bytes:
    """Build the engine of a float16 graph for a compute capability; return its bytes.

    Raises:
        MissingExtraError: TensorRT-RTX is not installed.
        VtcompressError: a node is refused, or no engine can be built; says which and why.
    """
    if spec.narrows:
        raise VtcompressError(
            f"{folder / spec.file}: its gates compute how many visual rows go on, and TensorRT takes no size "
            "from a computed value; export it anew with `exit: staged`"
        )
    try:
        import tensorrt_rtx as trt
    except ImportError:
        raise MissingExtraError("building TensorRT-RTX engines", "rtx") from None
    if capability not in CAPABILITIES:
        known = ", ".join(CAPABILITIES)
        raise VtcompressError(
            f"compute capability {capability!r} is unknown to the builder; known: {known}"
        )
    log = _Log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    path = folder / spec.file
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        lines = (f"node {e.node_name()} ({e.node_operator()}): {e.desc()}" for e in errors)
        raise VtcompressError(f"{path}: TensorRT-RTX refuses it: " + "; ".join(lines))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    for ranges in profiles:
        profile = builder.create_optimization_profile()
        for tensor in spec.inputs:
            shapes = (tensor.shape(dict(s)) for s in (ranges.least, ranges.typical, ranges.most))
            profile.set_shape(tensor.name, *shapes)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise VtcompressError(f"{path}: TensorRT-RTX builds no engine: " + "; ".join(log.errors))
    return bytes(engine)


def _Log(trt: Any) -> Any:  # noqa: N802 - a class made late: its base needs the package
    """Return a logger that keeps errors instead of printing."""

    class Keeper(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

    return Keeper()
