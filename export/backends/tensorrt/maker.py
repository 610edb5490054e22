"""Builds the engine of a graph for one of the two TensorRTs.

TensorRT-RTX builds ahead of time and needs no GPU: what passes here is "TensorRT-RTX engine built ahead of
time"; nothing has run on a GPU. TensorRT builds on the GPU that it builds for; this project had none, so that
way through this module was never run.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import VtcompressError
from compressor.progress import SILENT, Progress
from export.backends.tensorrt.monitor import Monitored
from export.backends.tensorrt.pinned import pinned
from export.backends.tensorrt.targets import Target, load_package
from export.graphs.profiles import ShapeProfile, rooms_of
from export.graphs.spec import GraphSpec

_LAYER = re.compile(r"\blayers\.(\d+)\b")
# Of a failed build; the first say why, the rest is what followed from them.
SHOWN_ERRORS, SHOWN_NODES = 4, 2
# How the parser notes in a layer's metadata which node it was read from.
_READ_FROM = re.compile(r"\[ONNX Layer: (.+?)\]")
# How the builder names what it finds no kernel for, if it names no node: "Attention operation was not ...".
_OPERATION = re.compile(r"\b(\w+) operation\b")


def check_buildable(specs: Sequence[GraphSpec], dtype: str, place: str) -> None:
    """Refuse graphs that no TensorRT takes, whatever is in them.

    Args:
        specs: that engines are wanted of.
        dtype: of the artifact.
        place: what errors start with.

    Raises:
        VtcompressError: float32 attention, or gates that compute a size.
    """
    if dtype == "float32":
        raise VtcompressError(
            f"{place}: is float32, and TensorRT has no float32 kernel for Attention; "
            "export it anew with `export.dtype: float16`"
        )
    for spec in specs:
        if spec.narrows:
            raise VtcompressError(
                f"{place}: {spec.file}: its gates compute how many visual rows go on, and TensorRT takes "
                "no size from a computed value; export it anew with `exit: staged`"
            )


@dataclass(frozen=True)
class Maker:
    """What builds engines.

    Attributes:
        target: which TensorRT.
        trt: its package.
        capabilities: compute capabilities that every engine serves; empty: the GPU of this machine.
        progress: shows the builder's phases.
    """

    target: Target
    trt: Any
    capabilities: tuple[str, ...]
    progress: Progress = SILENT

    @classmethod
    def of(
        cls, target: Target, capabilities: tuple[str, ...] = (), progress: Progress = SILENT
    ) -> "Maker":
        """Return the maker of a target.

        Raises:
            VtcompressError: the target is not installed.
        """
        return cls(
            target, load_package(target, f"building {target.title} engines"), capabilities, progress
        )

    def build_engine(
        self,
        graph: Path,
        profiles: Sequence[ShapeProfile],
        spec: GraphSpec,
        output: Path,
        cache: bytes,
    ) -> tuple[float, bytes]:
        """Build one engine; return the seconds it took and the timing cache, if the target has one.

        Args:
            graph: the ONNX file, its weights beside it.
            profiles: what the engine is built for.
            spec: the graph's declaration.
            output: file of the engine.
            cache: timings of earlier builds with this very builder; may be empty.

        Raises:
            VtcompressError: a node is refused, or no engine can be built; says which and why.
            KeyboardInterrupt: the user interrupted; nothing is written.
        """
        started = time.perf_counter()
        trt, log = self.trt, _log(self.trt)
        builder = trt.Builder(log)
        content = pinned(graph.read_bytes(), rooms_of(profiles))
        self._check_nodes(builder, graph, content, log)
        network = self._network(builder)
        # Both are kept: the network refers to weights that the parser holds.
        parser = trt.OnnxParser(network, log)
        if not parser.parse(content, str(graph)):
            raise VtcompressError(self._refusal(graph, parser))
        config = self._config(builder, profiles, spec)
        if self.target.timing:
            config.set_timing_cache(config.create_timing_cache(cache), ignore_mismatch=False)
            log.errors.clear()  # a cache of another GPU is none
        monitored = Monitored(trt, self.progress, output.name)
        config.progress_monitor = monitored.monitor
        engine = monitored.run(lambda: builder.build_serialized_network(network, config))
        if engine is None:
            raise VtcompressError(self._failure(graph, network, log.errors))
        output.write_bytes(engine)
        timings = bytes(config.get_timing_cache().serialize()) if self.target.timing else b""
        return time.perf_counter() - started, timings

    def _network(self, builder: Any) -> Any:
        strongly_typed = self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return builder.create_network(1 << int(strongly_typed))

    def _check_nodes(self, builder: Any, graph: Path, content: bytes, log: Any) -> None:
        """Ask for every node whether it is taken; a network of its own, because asking fills it."""
        network = self._network(builder)  # kept: the parser does not hold it, and crashes without
        parser = self.trt.OnnxParser(network, log)
        if not parser.supports_model_v2(content, str(graph)):
            raise VtcompressError(self._refusal(graph, parser))

    def _refusal(self, graph: Path, parser: Any) -> str:
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        lines = "; ".join(f"{_node(e.node_name(), e.node_operator())}: {e.desc()}" for e in errors)
        return f"{graph}: {self.target.title} refuses it: {lines or 'no reason given'}"

    def _failure(self, graph: Path, network: Any, errors: Sequence[str]) -> str:
        said = "; ".join(errors[:SHOWN_ERRORS]) or "no reason given"
        read = (network.get_layer(i).metadata for i in range(network.num_layers))
        names = [found[1] for text in read if (found := _READ_FROM.search(text))]
        named = [_node(name, "") for name in blamed_nodes(names, said)]
        more = f" and {len(named) - SHOWN_NODES} more" if len(named) > SHOWN_NODES else ""
        where = f" at {', '.join(named[:SHOWN_NODES])}{more}" if named else ""
        return f"{graph}: {self.target.title} builds no engine{where}: {said}"

    def _config(self, builder: Any, profiles: Sequence[ShapeProfile], spec: GraphSpec) -> Any:
        trt, config = self.trt, builder.create_builder_config()
        if self.capabilities:
            config.num_compute_capabilities = len(self.capabilities)
            for place, name in enumerate(self.capabilities):
                config.set_compute_capability(getattr(trt.ComputeCapability, name), place)
        for ranges in profiles:
            profile = builder.create_optimization_profile()
            for tensor in spec.inputs:
                profile.set_shape(tensor.name, *ranges.shapes(tensor))
            config.add_optimization_profile(profile)
        return config


def blamed_nodes(names: Sequence[str], said: str) -> tuple[str, ...]:
    """Return the nodes that a builder's errors speak of: by name, else all of the operator that they name.

    Args:
        names: of the graph's nodes that the network's layers were read from.
        said: the errors.
    """
    exactly = tuple(dict.fromkeys(name for name in names if name and name in said))
    if exactly:
        return exactly
    operators = tuple(f".{operator}" for operator in _OPERATION.findall(said))
    return tuple(dict.fromkeys(name for name in names if operators and name.endswith(operators)))


def _node(name: str, operator: str) -> str:
    """Return a node with its operator and its layer: `layers.3.attention.Attention (Attention, layer 3)`."""
    found = _LAYER.search(name)
    facts = [operator] if operator else []
    facts += [f"layer {found[1]}"] if found else []
    return f"node {name} ({', '.join(facts)})" if facts else f"node {name}"


def _log(trt: Any) -> Any:
    """Return a logger that keeps errors instead of printing; made late, as its base needs the package."""

    class Keeper(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

    return Keeper()
