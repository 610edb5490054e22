"""Rotations in OpenVINO check shapes: what it fuses them to would read other memory of the process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from compressor.errors import ArtifactError
from export.backends.openvino import shared_core
from export.backends.rotations import FUSED, check_apart, keep_apart, kinds
from tests.rotation_mutations import ROTATION
from tests.test_hostile_graphs import changed

pytest.importorskip("openvino", reason="the extra openvino is not installed")

ASKS = """
import sys
from pathlib import Path
from compressor.errors import ArtifactError
from export.runtime.runtime import Runtime
try:
    Runtime.load(Path(sys.argv[1]), threads=1, backend="openvino").answer("what is this")
except ArtifactError as error:
    print("refused:", error)
"""


def without_order(model: ModelProto) -> None:
    """Take `perm` from what turns the rows of a rotation."""
    rotated = [node.input[0] for node in model.graph.node if node.op_type == ROTATION]
    (turn,) = (node for node in model.graph.node if rotated[0] in node.output)
    assert turn.op_type == "Transpose"
    del turn.attribute[:]


def with_fewer_rows(model: ModelProto) -> None:
    """Give a rotation the cosines and sines of two rows alone."""
    graph = model.graph
    at, rotation = next((i, n) for i, n in enumerate(graph.node) if n.op_type == ROTATION)
    numbers = {"start": [0], "end": [2], "axis": [1]}
    for name, value in numbers.items():
        graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [1], value))
    for place in (1, 2):
        cut = f"cut{place}"
        node = onnx.helper.make_node("Slice", [rotation.input[place], *numbers], [cut])
        rotation.input[place] = cut
        graph.node.insert(at, node)


@pytest.mark.parametrize("change", [without_order, with_fewer_rows])
def test_a_rotation_whose_shapes_do_not_fit_is_refused(
    tiny_artifact: Path, tmp_path: Path, change: Callable[[ModelProto], None]
) -> None:
    folder = changed(tiny_artifact, tmp_path / "artifact", "decoder.onnx", change)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", "-c", ASKS, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "decoder.onnx: OpenVINO cannot run it: " in done.stdout


def rotation() -> Any:
    """Return a model of one rotation of four rows of sixteen numbers, of any batch and length."""
    import openvino
    from openvino import opset13 as ops

    x, cos, sin = (
        ops.parameter(openvino.PartialShape([-1, heads, -1, size]), np.float32)
        for heads, size in ((4, 16), (1, 8), (1, 8))
    )
    parts = ops.variadic_split(x, np.int64(3), np.array([8, 8], np.int64))
    first, second = parts.output(0), parts.output(1)
    left = ops.subtract(ops.multiply(first, cos), ops.multiply(second, sin))
    right = ops.add(ops.multiply(second, cos), ops.multiply(first, sin))
    return openvino.Model([ops.concat([left, right], -1)], [x, cos, sin])


def compiled(model: Any) -> Any:
    return shared_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def test_a_fused_rotation_is_seen_and_refused() -> None:
    """Where OpenVINO fuses none, or calls it otherwise, this fails: look again what it does."""
    fused = compiled(rotation())
    assert kinds(fused)[FUSED] == 1
    with pytest.raises(ArtifactError, match=r"x\.onnx: OpenVINO would run 1 of its rotations"):
        check_apart(fused, "x.onnx")


def test_a_rotation_kept_apart_gives_the_same_numbers() -> None:
    apart = rotation()
    keep_apart(apart)
    model = compiled(apart)
    check_apart(model, "x.onnx")
    rng = np.random.default_rng(0)
    shapes = ((2, 4, 5, 16), (2, 1, 5, 8), (2, 1, 5, 8))
    x, cos, sin = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    first, second = x[..., :8], x[..., 8:]
    wanted = np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    np.testing.assert_allclose(model([x, cos, sin])[0], wanted, rtol=1e-6, atol=1e-6)
