"""The vendor's own command line that builds the same engine, with the shapes of this artifact."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from export.backends.tensorrt.targets import Target
from export.graphs.profiles import ShapeProfile
from export.graphs.spec import GraphSpec

_KINDS = ("minShapes", "optShapes", "maxShapes")


def build_command(
    target: Target,
    graph: Path,
    spec: GraphSpec,
    profiles: Sequence[ShapeProfile],
    output: Path,
    timing: Path,
    capabilities: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return the program and its arguments.

    Inputs whose axes are all numbers are left out: their shape is in the graph. TensorRT before version 11
    must be told that the types are those of the graph.

    Args:
        target: whose tool.
        graph: the ONNX file.
        spec: its declaration.
        profiles: of the engine.
        output: file of the engine.
        timing: file of the timing cache.
        capabilities: compute capabilities, `SM86`; empty: the GPU of the machine that runs the tool.
    """
    arguments = [target.tool, f"--onnx={graph}"]
    ranged = [t for t in spec.inputs if any(isinstance(axis, str) for axis in t.axes)]
    for number, profile in enumerate(profiles):
        if len(profiles) > 1:
            arguments.append(f"--profile={number}")
        for place, kind in enumerate(_KINDS):
            shapes = (f"{t.name}:{_by(profile.shapes(t)[place])}" for t in ranged)
            arguments.append(f"--{kind}={','.join(shapes)}")
    if capabilities:
        numbers = ",".join(name.removeprefix("SM") for name in capabilities)
        arguments.append(f"--computeCapabilities={numbers}")
    if not target.ahead:
        arguments.append("--stronglyTyped")
    if target.timing:
        arguments.append(f"--timingCacheFile={timing}")
    return (*arguments, f"--saveEngine={output}", "--skipInference")


def command_line(arguments: Sequence[str]) -> str:
    """Return arguments as one line for a shell."""
    return shlex.join(arguments)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
