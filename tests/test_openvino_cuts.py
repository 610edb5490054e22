"""OpenVINO computes what ONNX Runtime does in decoders of every kind of cut, in the dtypes that it reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.plan.edits import freeze, leave
from compressor.plan.plan import Gates, Plan
from export.checks.bfloat16 import open_for_checks
from export.graphs.spec import DType, decoder_graphs
from export.session.feeds import CallRows
from export.writer.weights import SharedWeights
from export.writer.write import save_graph
from tests.cuts import CUTS, HIDDEN, conversation, decoder_of, drawn, plan_of
from vtcompress.stages.exporting.torch_side import decoder_makers

# Of logits up to 2. Both compute in float32; in between OpenVINO rounds as ONNX Runtime does in float16
# only, and the shadows that stand for it in bfloat16 do not round at all.
TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 4e-2}
GATES = {f"gates, {mode}": mode for mode in ("dynamic", "staged")}


def plans(name: str) -> Plan:
    if name in CUTS:
        return plan_of(name, 2)
    identity = plan_of("heads", 2).naive()
    if name in GATES:
        gates = Gates(candidates=(0, 1, 2), mode=GATES[name], width=16, digest="")
        return identity.model_copy(update={"gates": gates})
    return {
        "identity": identity,
        "frozen": freeze(identity, (0, 2), "shortv"),
        "exit": leave(identity, 2, "visual_exit"),
    }[name]


# In float32 decoders with YOPO's cuts are compared in `tests/test_cut_graphs.py`. What float16 and bfloat16
# change (casts, no branches around windows) shows where several cuts meet.
CASES = [(name, "float32") for name in ("identity", "frozen", "exit", *GATES)]
CASES += [
    (name, dtype)
    for dtype in ("float16", "bfloat16")
    for name in ("window behind a plain layer", "window and heads", "everything, frozen, then exit")
]
CASES += [("head norms: heads and neurons", dtype) for dtype in ("float16", "bfloat16")]


def weights_of(plan: Plan) -> dict[str, torch.Tensor]:
    """Random weights; the gate behind layer 1 is the first that fires, whatever it reads and rounds."""
    tensors = drawn(plan)
    for layer in plan.gates.candidates if plan.gates else ():
        half = torch.randn(8, 2 * HIDDEN, generator=torch.Generator().manual_seed(7))
        answer = torch.zeros(2, 16)
        answer[1] = 1.0 if layer >= 1 else -1.0  # times GELU(z) + GELU(-z), which is positive
        tensors[f"visual_gates_router.{layer}.w1.weight"] = torch.cat([half, -half])
        tensors[f"visual_gates_router.{layer}.w2.weight"] = answer
    return tensors


def run(session: Any, dtype: Any) -> list[np.ndarray]:
    """Two images, a later turn, a third image, a step: V = 2N, 0, N and 0."""
    past, found = session.empty_past(1), []
    for call in conversation()[1]:
        visual, text, *places = (part.contiguous().numpy() for part in call)
        logits, past = session.decode(
            CallRows(visual.astype(dtype), text.astype(dtype), *places), past
        )
        found.append(logits)
    return found


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_openvino_computes_what_onnx_runtime_does(name: str, dtype: DType, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    from export.backends.openvino import OpenVinoSession

    plan = plans(name)
    decoder = decoder_of(plan, weights_of(plan)).to(getattr(torch, dtype))
    specs = decoder_graphs(plan, dtype, "all")
    with SharedWeights(tmp_path) as weights:
        for spec, make in zip(specs, decoder_makers(decoder, plan), strict=True):
            save_graph(make(spec), tmp_path / spec.file, weights)
    wanted = run(
        open_for_checks(tmp_path, specs, dtype, threads=1),
        np.float16 if dtype == "float16" else np.float32,
    )
    found = run(OpenVinoSession(tmp_path, specs, threads=1), specs[0].inputs[0].numpy)
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_allclose(
            one, other, atol=TOLERANCE[dtype], rtol=0, err_msg=f"call {number}"
        )
