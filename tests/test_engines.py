"""The float16 decoder graphs stay within what TensorRT-RTX accepts; engines are built ahead of time."""

from pathlib import Path

import onnx
import pytest
import torch

from compressor.decoder import Decoder, decoder_from
from compressor.decoder.weights import source_of
from compressor.errors import VtcompressError
from compressor.plan import Gates, LayerPlan, Plan
from compressor.planner import freeze, identity_plan, leave
from export.engines import build_rtx_engine, decoder_profiles
from export.graphs import GraphSpec, decoder_graph, decoder_graphs
from export.onnx_graph import save_graph
from export.weights import SharedWeights
from tests.facts import dims, facts
from vtcompress.exporting import decoder_makers

pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")


def write_decoder(folder: Path, plan: Plan) -> tuple[GraphSpec, ...]:
    torch.manual_seed(0)
    with torch.device("meta"):
        whole = {n: p.shape for n, p in Decoder(plan.naive()).named_parameters()}
        gates = {n: p.shape for n, p in Decoder(plan).named_parameters() if n.startswith("gates")}
    tensors = {}
    for name, shape in (whole | gates).items():
        source, transposed = source_of(name)
        tensor = torch.randn(*shape) * 0.2
        tensors[source] = tensor.T if transposed else tensor
    decoder = decoder_from(plan, tensors).half()
    specs = decoder_graphs(plan, "float16", "last")
    with SharedWeights(folder) as weights:
        for spec, make in zip(specs, decoder_makers(decoder, plan), strict=True):
            save_graph(make(spec), folder / spec.file, weights)
    return specs


def plan_of(kind: str) -> Plan:
    model = facts(
        dims(layers=3, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocab=48),
        token_grid=(3, 4),
    )
    plan = identity_plan(model, "0" * 64)
    gates = Gates(candidates=(0, 1), mode="staged", width=16, digest="")
    heads, neurons = {"groups": (1,)}, {"neurons": tuple(range(48))}
    dead = LayerPlan(index=2, visual="frozen", reason="dead", **heads)
    cut = [LayerPlan(index=0, **heads, **neurons), LayerPlan(index=1, groups=()), dead]
    near = [LayerPlan(index=0, window=3, **heads), LayerPlan(index=1, window=3, **neurons), dead]
    return {
        "heads+neurons": plan.model_copy(update={"layers": tuple(cut)}),
        "window": plan.model_copy(update={"layers": tuple(near)}),
        "heads+frozen+exit": leave(
            freeze(plan.model_copy(update={"layers": tuple(cut)}), (1,), "shortv"), 2, "vtw"
        ),
        "identity": plan,
        "frozen": freeze(plan, (0, 1), "shortv"),
        "exit": leave(plan, 1, "vtw"),
        "frozen+exit": leave(freeze(plan, (0,), "shortv"), 2, "vtw"),
        "staged": plan.model_copy(update={"gates": gates}),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "identity",
        "frozen",
        "exit",
        "frozen+exit",
        "staged",
        "heads+neurons",
        "window",
        "heads+frozen+exit",
    ],
)
def test_rtx_builds_an_engine_with_a_prefill_and_a_decode_profile(
    kind: str, tmp_path: Path
) -> None:
    plan = plan_of(kind)
    visual = plan.model.visual_tokens
    for spec in write_decoder(tmp_path, plan):
        engine = build_rtx_engine(tmp_path, spec, decoder_profiles(visual, 64, 256))
        assert len(engine) > 10_000


def test_a_refused_node_is_named_with_its_layer_and_operator(tmp_path: Path) -> None:
    (spec,) = write_decoder(tmp_path, plan_of("identity"))
    model = onnx.load(tmp_path / spec.file, load_external_data=False)
    attention = next(n for n in model.graph.node if n.op_type == "Attention")
    # What TensorRT refuses: an Attention node with present keys and values as outputs.
    attention.output.extend(["present_key", "present_value"])
    onnx.save(model, tmp_path / spec.file)
    with pytest.raises(VtcompressError, match=r"layers\.0.*Attention"):
        build_rtx_engine(tmp_path, spec, decoder_profiles(4, 64, 256))


def test_gates_that_compute_a_size_are_refused_and_the_staged_form_is_named(tmp_path: Path) -> None:
    staged = plan_of("staged")
    assert staged.gates is not None
    gates = staged.gates.model_copy(update={"mode": "dynamic"})
    (spec,) = write_decoder(tmp_path, staged.model_copy(update={"gates": gates}))
    with pytest.raises(VtcompressError, match=r"decoder\.onnx.*`exit: staged`"):
        build_rtx_engine(tmp_path, spec, decoder_profiles(4, 64, 256))


def test_an_unknown_compute_capability_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    spec = decoder_graph(plan_of("identity"), "float16", "last")
    with pytest.raises(VtcompressError, match=r"SM87.*known: SM75"):
        build_rtx_engine(tmp_path, spec, (), capability="SM87")
