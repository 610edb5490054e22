"""No decoder graph reduces an axis that is empty where a call has no visual rows.

The CPU gives 0 or the lowest number for it; ONNX Runtime's CUDA ends the call (seen on an H200).
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compressor.plan.plan import Gates, Plan
from export.graphs.spec import GraphSpec
from tests.decoders import plan_of, write_decoder

SIZES = {"batch": 1, "visual": 0, "text": 1, "past": 3}


def empty_reductions(file: Path, spec: GraphSpec) -> dict[str, tuple[int, ...]]:
    """Run a decode step; return the nodes that reduced an empty axis, with the shapes of what they read."""
    import onnxruntime

    model = onnx.load(file, load_external_data=False)
    constants = {one.name: one for one in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type.startswith("Reduce")]
    read = list(dict.fromkeys(node.input[0] for node in nodes))
    if not read:
        return {}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in read)
    probed = file.with_suffix(".probed.onnx")
    onnx.save(model, probed)
    feeds = {t.name: np.zeros(t.shape(SIZES), t.numpy) for t in spec.inputs}
    session = onnxruntime.InferenceSession(probed, providers=["CPUExecutionProvider"])
    shapes = {name: value.shape for name, value in zip(read, session.run(read, feeds), strict=True)}
    found = {}
    for node in nodes:
        shape = shapes[node.input[0]]
        axes = range(len(shape))
        if len(node.input) > 1:
            axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
        if any(shape[axis] == 0 for axis in axes):
            found[node.name] = shape
    return found


def gated() -> Plan:
    gates = Gates(candidates=(0, 1), mode="dynamic", width=16, digest="")
    return plan_of("identity").model_copy(update={"gates": gates})


PLANS = {
    "gates, dynamic": gated,
    **{
        kind: lambda kind=kind: plan_of(kind)
        for kind in ("growing", "leaving", "some run", "staged")
    },
}


@pytest.mark.parametrize("name", PLANS)
def test_a_decode_step_reduces_no_empty_axis(name: str, tmp_path: Path) -> None:
    for spec in write_decoder(tmp_path, PLANS[name]()):
        assert empty_reductions(tmp_path / spec.file, spec) == {}


def test_a_reduction_of_no_visual_rows_is_found(tmp_path: Path) -> None:
    (spec,) = write_decoder(tmp_path, plan_of("identity"))
    model = onnx.load(tmp_path / spec.file, load_external_data=False)
    axis = numpy_helper.from_array(np.array([1]), "rows")
    model.graph.initializer.append(axis)
    node = helper.make_node("ReduceSum", ["visual_index", "rows"], ["sum"], name="of no rows")
    model.graph.node.append(node)
    onnx.save(model, tmp_path / spec.file)
    assert empty_reductions(tmp_path / spec.file, spec) == {"of no rows": (1, 0)}
