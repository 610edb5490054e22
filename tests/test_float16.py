"""Float16 graphs keep in float32 what runs show to be too large for float16, and nothing else."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.decoder import Decoder, decoder_from
from compressor.decoder.weights import source_of
from compressor.errors import VtcompressError
from compressor.plan.edits import identity_plan
from compressor.plan.plan import Plan
from export.backends.onnxruntime import OnnxGraph, OnnxSession
from export.checks.float16 import Prompts, keep_wide
from export.graphs.spec import GraphSpec, TensorSpec, decoder_graph
from export.results.float16 import FLOAT16_MAX, WIDE, Float16Ranges
from export.session.feeds import CallRows
from export.session.session import Session
from export.writer.passes import wide
from export.writer.weights import SharedWeights
from export.writer.write import export_decoder, save_graph
from tests.facts import dims, facts

MODEL = facts(dims(layers=3, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96))
V, T = 12, 5

# Powers of two, so that float16 weights stay exact: a product inside layer 0's MLP, then layer 1's output.
LARGE = {"layers.0.mlp.up": 2.0**13, "layers.0.mlp.down": 2.0**-8, "layers.1.mlp.down": 2.0**14}


class Small(NamedTuple):
    """A float16 decoder graph without wide values, and the tensors that it was made from."""

    folder: Path
    spec: GraphSpec
    plan: Plan
    tensors: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("float16")
    plan = identity_plan(MODEL, "0" * 64)
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Decoder(plan).named_parameters()}
    tensors = {}
    for name, shape in shapes.items():
        source, transposed = source_of(name)
        tensor = torch.randn(*shape) * 0.2 + (1 if "norm" in name else 0)
        tensors[source] = tensor.T if transposed else tensor
    decoder = decoder_from(plan, {k: v.clone() for k, v in tensors.items()}).half()
    spec = decoder_graph(plan, "float16", "last")
    with SharedWeights(folder) as weights:
        save_graph(export_decoder(decoder, spec), folder / spec.file, weights)
    return Small(folder, spec, plan, tensors)


def scaled(small: Small, folder: Path, factors: Mapping[str, float]) -> tuple[Path, Decoder]:
    """Return a copy of the graph with other weights, and the float32 decoder with the same."""
    shutil.copytree(small.folder, folder)
    stored = onnx.load(folder / small.spec.file, load_external_data=False).graph.initializer
    data = bytearray((folder / "weights.bin").read_bytes())
    tensors = dict(small.tensors)
    for name, factor in factors.items():
        (tensor,) = (t for t in stored if t.name == f"{name}.weight")
        entries = {e.key: e.value for e in tensor.external_data}
        start, length = int(entries["offset"]), int(entries["length"])
        values = np.frombuffer(bytes(data[start : start + length]), np.float16)
        data[start : start + length] = (values * np.float16(factor)).tobytes()
        source, _ = source_of(f"{name}.weight")
        tensors[source] = tensors[source] * factor
    (folder / "weights.bin").write_bytes(bytes(data))
    return folder, decoder_from(small.plan, tensors)


def rows(dtype: type) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    visual, text = (rng.standard_normal((1, n, 64)).astype(np.float16) for n in (V, T))
    places = np.arange(V + T)[None]
    return (
        visual.astype(dtype),
        text.astype(dtype),
        places[:, 1 : V + 1],
        np.delete(places, range(1, V + 1), 1),
    )


def prefill(session: Session) -> np.ndarray:
    dtype = np.float16 if isinstance(session, OnnxSession) else session.empty_past(1)[0].dtype
    given = rows(dtype.type if isinstance(dtype, np.dtype) else dtype)
    return session.decode(CallRows(*given), session.empty_past(1))[0]


PROMPT = Prompts(lambda session: void(prefill(session)), 1, "prompt of this test")


def void(_: object) -> None:
    return


def in_torch(decoder: Decoder) -> np.ndarray:
    with torch.inference_mode():
        given = [torch.from_numpy(np.ascontiguousarray(a)) for a in rows(np.float32)]
        return decoder(*given, decoder.empty_past(1))[0].numpy()


def wide_by_hooks(decoder: Decoder) -> set[str]:
    """Return the modules and sums that touch a wide value, as torch sees them in float32."""
    read: dict[str, float] = {}
    made: dict[str, float] = {}

    def hook(name: str) -> Any:
        def keep(_: object, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            read[name] = max(read.get(name, 0.0), float(inputs[0].abs().max()))
            made[name] = max(made.get(name, 0.0), float(output.abs().max()))

        return keep

    for name, module in decoder.named_modules():
        if isinstance(getattr(module, "weight", None), torch.Tensor):
            module.register_forward_hook(hook(name))
    in_torch(decoder)
    found = {name for name in read if max(read[name], made[name]) > WIDE}
    count = len(decoder.layers)
    streams = [read[f"layers.{i}.input_norm"] for i in range(count)] + [read["norm"]]
    for i in range(count):
        middle = read[f"layers.{i}.mlp_norm"]
        if max(streams[i], middle) > WIDE:
            found.add(f"layers.{i}.Add")
        if max(middle, streams[i + 1], made[f"layers.{i}.mlp.down"]) > WIDE:
            found.add(f"layers.{i}.Add_2")
        if max(read[f"layers.{i}.mlp.down"], made[f"layers.{i}.mlp.up"]) > WIDE:
            found.add(f"layers.{i}.mlp.Mul_2")
    return found


def places(nodes: tuple[str, ...]) -> set[str]:
    """Return nodes under the names that `wide_by_hooks` uses, without those that only move rows."""
    kept = [n for n in nodes if not re.search(r"(Concat|Split|Slice)(_\d+)?$", n)]
    return {re.sub(r"\.(MatMul|RMSNormalization)(_\d+)?$", "", name) for name in kept}


def test_a_graph_without_wide_values_is_not_written_anew(small: Small, tmp_path: Path) -> None:
    folder, decoder = scaled(small, tmp_path / "copy", {})
    path = folder / small.spec.file
    before = path.read_bytes()
    os.utime(path, (0, 0))
    ranges = keep_wide(folder, [small.spec], PROMPT)
    assert path.read_bytes() == before
    assert path.stat().st_mtime == 0
    assert ranges.float32_nodes == {}
    found = OnnxSession(folder, [small.spec])
    assert np.abs(prefill(found) - in_torch(decoder)).max() < 0.1


def test_wide_values_ruin_a_float16_graph_and_are_kept_in_float32_where_they_are_touched(
    small: Small, tmp_path: Path
) -> None:
    folder, decoder = scaled(small, tmp_path / "copy", LARGE)
    wanted = in_torch(decoder)
    assert np.isfinite(wanted).all()
    assert np.abs(wanted).max() < 100
    assert not np.isfinite(prefill(OnnxSession(folder, [small.spec]))).all()

    ranges = keep_wide(folder, [small.spec], PROMPT)
    found = prefill(OnnxSession(folder, [small.spec]))
    assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()

    nodes = ranges.float32_nodes["decoder"]
    assert places(nodes) == wide_by_hooks(decoder)
    assert {"layers.0.mlp.Mul_2", "layers.1.Add_2", "layers.2.mlp_norm.RMSNormalization"} <= set(
        nodes
    )
    # The stream goes wide behind layer 1, and norms lead back to float16.
    assert not any("query" in name or "Attention" in name for name in nodes)
    assert ranges.graphs["decoder"].largest > FLOAT16_MAX
    onnx.checker.check_model(folder / small.spec.file, full_check=True)
    graph = onnx.load(folder / small.spec.file, load_external_data=False).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    assert {k for name, k in kinds.items() if "." in name or "embeds" in name} == {
        TensorProto.FLOAT16
    }
    # Weights stay float16 in their file, also those that are read in float32.
    assert {t.data_type for t in graph.initializer if t.external_data} == {TensorProto.FLOAT16}


def test_keys_that_float16_cannot_hold_are_an_error_that_names_them(
    small: Small, tmp_path: Path
) -> None:
    folder, _ = scaled(
        small, tmp_path / "copy", {"layers.2.key": 2.0**14, "layers.0.value": 2.0**14}
    )
    with pytest.raises(VtcompressError) as failure:
        keep_wide(folder, [small.spec], PROMPT)
    first, second = str(failure.value).splitlines()
    assert first.startswith("decoder.onnx: present.0.value reaches ")
    assert second.startswith("decoder.onnx: present.2.key reaches ")
    assert "export with dtype bfloat16 or float32" in first


F16 = TensorProto.FLOAT16


def by_hand(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, ...]],
    output: str,
    values: dict[str, Any],
    weights: dict[str, np.ndarray],
) -> GraphSpec:
    """Write a float16 graph of a few nodes under the decoder's name."""
    graph = helper.make_graph(
        nodes, "decoder",
        [helper.make_tensor_value_info(n, F16, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(output, F16, list("nmkl")[: len(inputs[next(iter(inputs))])])],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
        value_info=[helper.make_tensor_value_info(n, F16, s) for n, s in values.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 23)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "decoder.onnx")
    return GraphSpec(
        name="decoder",
        file="decoder.onnx",
        inputs=tuple(TensorSpec(name=n, dtype="float16", axes=s) for n, s in inputs.items()),
        outputs=(TensorSpec(name=output, dtype="float16", axes=("n",)),),
    )


def prompts_of(*arrays: np.ndarray) -> Prompts:
    def run(session: Any) -> None:
        graph = session.graph("decoder")
        graph([a.astype(spec.numpy) for a, spec in zip(arrays, graph.spec.inputs, strict=True)])

    return Prompts(run, 1, "prompt of this test")


def ran(folder: Path, spec: GraphSpec, *arrays: np.ndarray) -> np.ndarray:
    """Run a graph as it is written: optimized, ONNX Runtime leaves more of it in float32."""
    return OnnxGraph(folder, spec, optimized=False)(arrays)[0].numpy()


def test_a_wide_value_in_a_branch_puts_the_whole_branching_in_float32(tmp_path: Path) -> None:
    branches = {}
    for name, factor in (("then", "w"), ("else", "one")):
        branches[f"{name}_branch"] = helper.make_graph(
            [
                helper.make_node("Mul", ["y", factor], [f"{name}_m"], name=f"{name}.large"),
                helper.make_node("Concat", [f"{name}_m", f"{name}_m"], [f"{name}_t"], axis=0),
                helper.make_node("Mul", [f"{name}_t", "s"], [f"{name}_o"], name=f"{name}.small"),
            ],
            name, [], [helper.make_tensor_value_info(f"{name}_o", F16, (4, 2))],
            value_info=[
                helper.make_tensor_value_info(f"{name}_m", F16, (2, 2)),
                helper.make_tensor_value_info(f"{name}_t", F16, (4, 2)),
            ],
        )  # fmt: skip
    nodes = [
        helper.make_node("Add", ["x", "one"], ["y"], name="before"),
        helper.make_node(
            "Constant", [], ["yes"], name="yes", value=numpy_helper.from_array(np.array(True))
        ),
        helper.make_node("If", ["yes"], ["z"], name="choice", **branches),
        helper.make_node("Tanh", ["z"], ["o"], name="behind"),
    ]
    weights = {"w": np.float16([300]), "one": np.float16([1]), "s": np.float16([2**-18])}
    spec = by_hand(tmp_path, nodes, {"x": (2, 2)}, "o", {"y": (2, 2), "z": (4, 2)}, weights)
    graph = onnx.load(tmp_path / spec.file)
    graph.graph.value_info.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, ()))
    onnx.save(graph, tmp_path / spec.file)
    x = np.float16([[299, 399], [499, 599]])
    with np.errstate(over="ignore"):
        assert np.isinf((x + weights["one"]) * weights["w"]).all()
    ranges = keep_wide(tmp_path, [spec], prompts_of(x))
    assert ranges.float32_nodes == {"decoder": ("choice",)}
    onnx.checker.check_model(tmp_path / spec.file, full_check=True)
    wanted = np.tanh(np.tile(x + np.float64(1), (2, 1)) * 300 / 2**18)
    assert ran(tmp_path, spec, x) == pytest.approx(wanted, rel=2e-3)


@pytest.mark.parametrize("told", [{}, {"scan_output_axes": [0], "scan_output_directions": [0]}])
def test_a_wide_value_in_a_later_step_of_a_scan_puts_the_whole_scan_in_float32(
    tmp_path: Path, told: dict[str, Any]
) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["sum", "row"], ["next"], name="add"),
            helper.make_node("Mul", ["next", "w"], ["large"], name="large"),
            helper.make_node("Mul", ["large", "s"], ["small"], name="small"),
        ],
        "body",
        [helper.make_tensor_value_info(name, F16, (2,)) for name in ("sum", "row")],
        [helper.make_tensor_value_info(name, F16, (2,)) for name in ("next", "small")],
        value_info=[helper.make_tensor_value_info("large", F16, (2,))],
    )
    nodes = [
        helper.make_node(
            "Scan", ["zero", "x"], ["last", "y"], name="steps", body=body, num_scan_inputs=1, **told
        ),
        helper.make_node("Tanh", ["y"], ["o"], name="behind"),
    ]
    weights = {"w": np.float16([300]), "s": np.float16([2**-18]), "zero": np.zeros(2, np.float16)}
    shapes = {"last": (2,), "y": (3, 2)}
    spec = by_hand(tmp_path, nodes, {"x": (3, 2)}, "o", shapes, weights)
    x = np.full((3, 2), 100, np.float16)
    ranges = keep_wide(tmp_path, [spec], prompts_of(x))
    assert ranges.graphs["decoder"].largest == pytest.approx(90_000, rel=1e-3)
    assert ranges.float32_nodes == {"decoder": ("steps",)}
    onnx.checker.check_model(tmp_path / spec.file, full_check=True)
    wanted = np.tanh(np.cumsum(np.full((3, 2), 100.0), axis=0) * 300 / 2**18)
    assert ran(tmp_path, spec, x) == pytest.approx(wanted, rel=2e-3)


def attention(folder: Path) -> tuple[GraphSpec, np.ndarray]:
    shape = (1, 1, 2, 64)
    inputs = {"q": shape, "k": shape, "v": shape}
    node = helper.make_node("Attention", ["q", "k", "v"], ["a"], name="layers.0.Attention")
    last = helper.make_node("Transpose", ["a"], ["o"], name="behind", perm=[0, 2, 1, 3])
    return by_hand(folder, [node, last], inputs, "o", {"a": shape}, {}), np.full(
        shape, 200, np.float16
    )


def test_a_node_that_overflows_within_is_found_by_running_the_float16_graph(tmp_path: Path) -> None:
    """Queries and keys of 200: their scores are 320,000, and nothing that leaves the node is large."""
    spec, large = attention(tmp_path)
    values = np.arange(128, dtype=np.float16).reshape(large.shape)
    assert not np.isfinite(ran(tmp_path, spec, large, large, values)).all()
    ranges = keep_wide(tmp_path, [spec], prompts_of(large, large, values))
    assert ranges.graphs["decoder"].largest < WIDE
    assert ranges.float32_nodes == {"decoder": ("layers.0.Attention",)}
    found = ran(tmp_path, spec, large, large, values)
    assert found[0, 0, 0] == pytest.approx(values[0, 0].mean(axis=0))


def test_a_node_that_float32_does_not_mend_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, large = attention(tmp_path)
    monkeypatch.setattr(wide, "compute_in_float32", lambda *_: None)
    with pytest.raises(VtcompressError, match=r"decoder\.onnx: node layers\.0\.Attention gives"):
        keep_wide(tmp_path, [spec], prompts_of(large, large, large))


def test_values_that_are_not_finite_in_float32_either_are_named(tmp_path: Path) -> None:
    node = helper.make_node("Reciprocal", ["x"], ["y"], name="ratio")
    last = helper.make_node("Tanh", ["y"], ["o"], name="behind")
    spec = by_hand(tmp_path, [node, last], {"x": (2,)}, "o", {"y": (2,)}, {})
    with pytest.raises(VtcompressError, match="node ratio gives values that are not finite"):
        keep_wide(tmp_path, [spec], prompts_of(np.zeros(2, np.float16)))


def test_ranges_are_read_back_from_json(small: Small, tmp_path: Path) -> None:
    folder, _ = scaled(small, tmp_path / "copy", LARGE)
    ranges = keep_wide(folder, [small.spec], PROMPT)
    assert Float16Ranges.model_validate_json(ranges.model_dump_json()) == ranges
