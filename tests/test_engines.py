"""The float16 decoder graphs stay within what TensorRT-RTX accepts; engines are built ahead of time."""

from pathlib import Path

import onnx
import pytest
import torch

from compressor.decoder import Decoder, decoder_from
from compressor.decoder.weights import source_of
from compressor.errors import VtcompressError
from compressor.plan import Plan
from compressor.planner import freeze, identity_plan
from export.engines import build_rtx_engine, decoder_profiles
from export.graphs import GraphSpec, decoder_graph
from export.onnx_graph import export_decoder, save_graph
from export.weights import SharedWeights
from tests.facts import dims, facts

pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")


def write_decoder(folder: Path, plan: Plan) -> GraphSpec:
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in Decoder(plan).named_parameters()}
    tensors = {}
    for name, shape in shapes.items():
        source, transposed = source_of(name)
        tensor = torch.randn(*shape) * 0.2
        tensors[source] = tensor.T if transposed else tensor
    decoder = decoder_from(plan, tensors).half()
    spec = decoder_graph(plan, "float16", "last")
    with SharedWeights(folder) as weights:
        save_graph(export_decoder(decoder, spec), folder / spec.file, weights)
    return spec


def plan_of(kind: str) -> Plan:
    model = facts(
        dims(layers=3, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocab=48)
    )
    plan = identity_plan(model, "0" * 64)
    return plan if kind == "identity" else freeze(plan, (0, 1), "shortv")


@pytest.mark.parametrize("kind", ["identity", "frozen"])
def test_rtx_builds_an_engine_with_a_prefill_and_a_decode_profile(
    kind: str, tmp_path: Path
) -> None:
    plan = plan_of(kind)
    spec = write_decoder(tmp_path, plan)
    visual = plan.model.visual_tokens
    engine = build_rtx_engine(tmp_path, spec, decoder_profiles(visual, 64, 256))
    assert len(engine) > 10_000


def test_a_refused_node_is_named_with_its_layer_and_operator(tmp_path: Path) -> None:
    spec = write_decoder(tmp_path, plan_of("identity"))
    model = onnx.load(tmp_path / spec.file, load_external_data=False)
    attention = next(n for n in model.graph.node if n.op_type == "Attention")
    # What TensorRT refuses: an Attention node with present keys and values as outputs.
    attention.output.extend(["present_key", "present_value"])
    onnx.save(model, tmp_path / spec.file)
    with pytest.raises(VtcompressError, match=r"layers\.0.*Attention"):
        build_rtx_engine(tmp_path, spec, decoder_profiles(4, 64, 256))


def test_an_unknown_compute_capability_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    spec = decoder_graph(plan_of("identity"), "float16", "last")
    with pytest.raises(VtcompressError, match=r"SM87.*known: SM75"):
        build_rtx_engine(tmp_path, spec, (), capability="SM87")
