"""Decoders with YOPO's cuts against an independent dense reference, in torch and ONNX Runtime."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from compressor.compressed import CompressedModel, naive_decoder
from compressor.cost import predict
from compressor.decoder import Decoder, decoder_from
from compressor.decoder.weights import Slice, joined_parts, slice_of, source_of
from compressor.dims import ModelFacts
from compressor.plan import LayerPlan, Plan
from compressor.planner import identity_plan
from export.graphs import GraphSpec, decoder_graph
from export.onnx_graph import export_decoder, layer_nodes, save_graph
from export.sessions import OnnxSession
from export.torch_session import TorchSession
from export.weights import INLINE_BELOW, SharedWeights
from tests.facts import dims, facts
from tests.flops import graph_flops
from tests.reference import Conversation, text_logits

TOLERANCE = 1e-4
LAYERS, HIDDEN, NEURONS, GRID = 4, 32, 24, (3, 4)
IMAGE = GRID[0] * GRID[1]
MOST_NODES_OF_A_LAYER = 60
EVERY_OTHER, FIRST = tuple(range(0, NEURONS, 2)), tuple(range(NEURONS // 2))


def model(kv_heads: int, **changes: Any) -> ModelFacts:
    shape = dims(
        layers=LAYERS,
        hidden=HIDDEN,
        heads=4,
        kv_heads=kv_heads,
        head_dim=8,
        intermediate=NEURONS,
        vocab=40,
        **changes,
    )
    return facts(shape, visual_tokens=IMAGE, token_grid=GRID)


def cut(index: int, **parts: Any) -> LayerPlan:
    return LayerPlan(index=index, **parts)


def frozen(index: int, **parts: Any) -> LayerPlan:
    return LayerPlan(index=index, visual="frozen", reason="shortv", **parts)


def dead(index: int, **parts: Any) -> LayerPlan:
    return LayerPlan(index=index, visual="frozen", reason="dead", **parts)


def gone(index: int) -> LayerPlan:
    return LayerPlan.because(index, "vtw")


CUTS: dict[str, Sequence[LayerPlan]] = {
    "heads": [cut(0, groups=(1,)), cut(1, groups=()), cut(2, groups=(0,)), dead(3, groups=(0,))],
    "no visual head at all": [cut(i, groups=()) for i in range(LAYERS)],
    "neurons": [cut(0, neurons=EVERY_OTHER), cut(1, neurons=FIRST), cut(2, neurons=(5,)), dead(3)],
    "window": [cut(0, window=3), cut(1, window=3, window_causal=True), cut(2, window=3), dead(3)],
    "window and heads": [
        cut(0, window=3, groups=(1,)),
        cut(1, window=3, groups=()),
        cut(2),
        dead(3),
    ],
    "everything, frozen, then exit": [
        cut(0, window=3, groups=(1,), neurons=FIRST),
        frozen(1, groups=(0,)),
        gone(2),
        gone(3),
    ],
    "masked": [
        cut(0, window=3, groups=(1,), neurons=FIRST, masked=True),
        cut(1, masked=True, groups=()),
        cut(2, masked=True, off=True),
        dead(3, masked=True, off=True, groups=(0,)),
    ],
    "masked, causal window": [
        cut(0, window=3, window_causal=True, masked=True, groups=(0,)),
        frozen(1, masked=True, groups=(1,)),
        cut(2),
        dead(3),
    ],
}
CASES = [(name, kv_heads) for name in CUTS for kv_heads in (2, 4)]


def plan_of(name: str, kv_heads: int, **changes: Any) -> Plan:
    return Plan(model=model(kv_heads, **changes), model_digest="0" * 64, layers=tuple(CUTS[name]))


def tensors_of(plan: Plan) -> dict[str, torch.Tensor]:
    """Random weights of the original, large enough for what a cut does to show."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in Decoder(plan.naive()).named_parameters()}
    tensors = {}
    for name, shape in sorted(shapes.items()):
        source, transposed = source_of(name)
        tensor = torch.randn(*shape, generator=generator) * 0.3
        tensors[source] = tensor.T.contiguous() if transposed else tensor
    return tensors


# One text row, the images, the other text rows; a later turn brings another image.
CALLS = ((2, 6), (0, 3), (1, 4), (0, 1))


def conversation() -> tuple[Conversation, list[list[torch.Tensor]]]:
    """Return all rows for the reference, and the same rows call by call."""
    generator = torch.Generator().manual_seed(1)
    embeds, visual, image, calls = [], [], [], []
    images = start = 0
    for count, text in CALLS:
        rows = count * IMAGE + text
        call = torch.randn(1, rows, HIDDEN, generator=generator)
        is_visual = torch.zeros(rows, dtype=torch.bool)
        is_visual[1 : 1 + count * IMAGE] = True
        places = torch.arange(start, start + rows)[None]
        calls.append(
            [call[:, is_visual], call[:, ~is_visual], places[:, is_visual], places[:, ~is_visual]]
        )
        owner = torch.zeros(rows, dtype=torch.int64)
        owner[is_visual] = images + torch.arange(count * IMAGE) // IMAGE
        embeds.append(call[0])
        visual.append(is_visual)
        image.append(owner)
        images, start = images + count, start + rows
    is_visual = torch.cat(visual).numpy()
    cell = np.zeros(len(is_visual), np.int64)
    cell[is_visual] = np.arange(is_visual.sum()) % IMAGE
    rows = Conversation(
        torch.cat(embeds).double().numpy(), is_visual, torch.cat(image).numpy(), cell
    )
    return rows, calls


def exported(decoder: Decoder, plan: Plan, folder: Path) -> tuple[OnnxSession, GraphSpec]:
    spec = decoder_graph(plan, "float32", "all")
    with SharedWeights(folder) as weights:
        save_graph(export_decoder(decoder, spec), folder / spec.file, weights)
    return OnnxSession(folder, [spec], threads=1), spec


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("name", "kv_heads"), CASES)
def test_a_cut_decoder_equals_the_dense_reference_call_by_call(
    name: str, kv_heads: int, biased: bool
) -> None:
    plan = plan_of(name, kv_heads, qkv_bias=biased, o_bias=biased, mlp_bias=biased)
    tensors = tensors_of(plan)
    assert any(source.endswith(".bias") for source in tensors) is biased
    rows, calls = conversation()
    decoder = decoder_from(plan, tensors, logits="all")
    past, found = decoder.empty_past(1), []
    with torch.inference_mode():
        for call in calls:
            logits, past = decoder(*call, past)
            found.append(logits[0].numpy())
    wanted = text_logits(plan, tensors, rows)
    np.testing.assert_allclose(np.concatenate(found), wanted, atol=TOLERANCE, rtol=0)
    uncut = text_logits(plan.naive(), tensors, rows)
    assert np.abs(wanted - uncut).max() > 100 * TOLERANCE, "the cut changes nothing: says nothing"


@pytest.mark.parametrize("name", CUTS)
def test_the_graph_of_a_cut_decoder_equals_it_and_costs_what_is_predicted(
    name: str, tmp_path: Path
) -> None:
    plan = plan_of(name, 2)
    decoder = decoder_from(plan, tensors_of(plan), logits="all")
    session, spec = exported(decoder, plan, tmp_path)
    past, graph_past = decoder.empty_past(1), session.empty_past(1)
    told = TorchSession(CompressedModel(plan, decoder, None, None, None, None))  # type: ignore[arg-type]
    for call in conversation()[1]:
        with torch.inference_mode():
            logits, past = decoder(*call, past)
        found, graph_past = session.decode(*(t.contiguous().numpy() for t in call), graph_past)
        np.testing.assert_allclose(found, logits.numpy(), atol=TOLERANCE, rtol=0)
        assert session.past_shapes(graph_past) == told.past_shapes(past)
        assert session.past_bytes(graph_past) == told.past_bytes(past)
    text = plan.workload.text
    prompt = [
        torch.randn(1, IMAGE, HIDDEN),
        torch.randn(1, text, HIDDEN),
        torch.arange(1, 1 + IMAGE)[None],
        torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(1 + IMAGE, IMAGE + text)])[None],
    ]
    _, filled = session.decode(*(t.numpy() for t in prompt), session.empty_past(1))
    assert session.past_bytes(filled) == predict(plan).kv_bytes("float32")
    sizes = {"batch": 1, "visual": plan.visual, "text": text, "past": 0}
    # Predicted for the logits of the last row; this graph gives those of all text rows.
    counted = graph_flops(tmp_path, spec, sizes) - (text - 1) * predict(plan).head_flops
    assert abs(counted - predict(plan).flops) <= 0.02 * predict(plan).flops
    counts = layer_nodes(tmp_path / "decoder.onnx")
    # Layer 0 also gets what is made once for all layers.
    assert max(count for layer, count in counts.items() if layer) <= 2 * MOST_NODES_OF_A_LAYER


def test_a_call_without_an_image_runs_none_of_a_windows_nodes(tmp_path: Path) -> None:
    plan = plan_of("window", 2)
    exported(decoder_from(plan, tensors_of(plan), logits="all"), plan, tmp_path)
    graph = onnx.load(tmp_path / "decoder.onnx", load_external_data=False).graph
    branches = {n.name: n.attribute for n in graph.node if n.op_type == "If"}
    assert set(branches) == {f"layers.{i}.near.If" for i in range(3)}
    for name, attributes in branches.items():
        nodes = {a.name: [n.op_type for n in a.g.node] for a in attributes}
        assert nodes["else_branch"] == ["Attention"]
        assert "Softmax" in nodes["then_branch"], name
    # The numbers of rows of both kinds, by which states are split behind every layer.
    assert {n.op_type for n in graph.node if ".near." in n.name} <= {"If", "Concat"}


def test_the_result_of_a_branch_is_copied_by_the_next_node(tmp_path: Path) -> None:
    # OpenVINO 2026.4.1 gives wrong numbers where it is looked at in another shape; see export/branches.py.
    plan = plan_of("window", 2)
    exported(decoder_from(plan, tensors_of(plan), logits="all"), plan, tmp_path)
    nodes = onnx.load(tmp_path / "decoder.onnx", load_external_data=False).graph.node
    results = {n.output[0] for n in nodes if n.op_type == "If"}
    assert results
    assert {n.op_type for n in nodes if results.intersection(n.input)} == {"Transpose"}


@pytest.mark.parametrize(("name", "kv_heads"), CASES)
def test_text_alone_gives_the_originals_logits(name: str, kv_heads: int) -> None:
    plan = plan_of(name, kv_heads)
    tensors = tensors_of(plan)
    text = [torch.zeros(1, 0, HIDDEN), torch.randn(1, 9, HIDDEN)]
    text += [torch.zeros(1, 0, dtype=torch.int64), torch.arange(9)[None]]
    with torch.inference_mode():
        cut_one, original = (
            decoder_from(p, tensors, logits="all") for p in (plan, identity_plan(plan.model, ""))
        )
        one, _ = cut_one(*text, cut_one.empty_past(1))
        other, _ = original(*text, original.empty_past(1))
    np.testing.assert_allclose(one.numpy(), other.numpy(), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", CUTS)
def test_parts_hold_every_number_of_the_original_once(name: str) -> None:
    plan = plan_of(name, 2, qkv_bias=True, o_bias=True, mlp_bias=True)
    tensors = tensors_of(plan)
    parts: dict[str, list[torch.Tensor]] = {}
    for parameter, tensor in decoder_from(plan, tensors).named_parameters():
        parts.setdefault(source_of(parameter)[0], []).append(tensor.detach().flatten())
    assert parts.keys() == tensors.keys()
    for source, held in parts.items():
        # Random numbers tell which place they come from.
        assert torch.cat(held).sort().values.equal(tensors[source].flatten().sort().values), source


def stored_contents(graph: Path) -> list[str]:
    """Return the sha256 of every tensor that a graph keeps in its weight file, sorted."""
    places = set()
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        if found := {entry.key: entry.value for entry in tensor.external_data}:
            places.add((int(found["offset"]), int(found["length"])))
    content = (graph.parent / "weights.bin").read_bytes()
    return sorted(hashlib.sha256(content[at : at + size]).hexdigest() for at, size in places)


@pytest.mark.parametrize("name", ["neurons", "everything, frozen, then exit"])
def test_parts_hold_the_originals_bytes_once_and_the_baseline_graph_joins_them(
    name: str, tmp_path: Path
) -> None:
    plan = plan_of(name, 2)
    tensors = tensors_of(plan)
    decoder = decoder_from(plan, tensors, logits="all")
    small = CompressedModel(plan, decoder, None, None, None, None)  # type: ignore[arg-type]
    naive = naive_decoder(small)
    specs = [decoder_graph(plan, "float32", "all")]
    specs.append(decoder_graph(plan.naive(), "float32", "all", name="baseline_decoder"))
    with SharedWeights(tmp_path) as weights:
        save_graph(export_decoder(decoder, specs[0]), tmp_path / specs[0].file, weights)
        before = (tmp_path / "weights.bin").stat().st_size
        joined = joined_parts(decoder, plan)
        save_graph(export_decoder(naive, specs[1], joined), tmp_path / specs[1].file, weights)
    assert (tmp_path / "weights.bin").stat().st_size == before
    large = [p.detach().contiguous().numpy() for p in decoder.parameters()]
    wanted_contents = [
        hashlib.sha256(part.tobytes()).hexdigest() for part in large if part.nbytes >= INLINE_BELOW
    ]
    assert stored_contents(tmp_path / specs[0].file) == sorted(wanted_contents)
    assert len(set(wanted_contents)) == len(wanted_contents)
    onnx.checker.check_model(tmp_path / specs[1].file, full_check=True)
    session = OnnxSession(tmp_path, specs, decoder="baseline_decoder", threads=1)
    original = decoder_from(plan.naive(), tensors, logits="all")
    call = conversation()[1][0]
    with torch.inference_mode():
        wanted, _ = original(*call, original.empty_past(1))
    found, _ = session.decode(*(t.contiguous().numpy() for t in call), session.empty_past(1))
    np.testing.assert_allclose(found, wanted.numpy(), atol=TOLERANCE, rtol=0)


def test_only_parts_that_do_not_lie_together_are_copied_from_the_original() -> None:
    everything = tuple(range(NEURONS))
    layers = [
        cut(0, window=3),
        cut(1, neurons=EVERY_OTHER),
        cut(2, groups=(1,), neurons=everything),
        dead(3, groups=(0, 1)),
    ]
    plan = Plan(model=model(2), model_digest="0" * 64, layers=tuple(layers))
    tensors = tensors_of(plan)
    decoder = decoder_from(plan, tensors, logits="all")
    ours = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    parts = {
        name
        for name, p in decoder.named_parameters()
        if p.numel() and p.untyped_storage().data_ptr() not in ours
    }
    mlp = [f"mlp.{part}.{name}" for part in ("first", "rest") for name in ("gate", "up", "down")]
    assert parts == {f"layers.1.{name}.weight" for name in mlp}


def test_the_places_of_a_wide_mlps_parts_are_found_at_once() -> None:
    wide = 30_000
    plan = Plan(
        model=facts(dims(layers=1, intermediate=wide)),
        model_digest="",
        layers=(cut(0, neurons=tuple(range(0, wide, 2))),),
    )
    start = time.process_time()
    part = slice_of("layers.0.mlp.rest.up.weight", plan)
    assert part == Slice(1, tuple(range(1, wide, 2)))
    # Milliseconds; what grows with the square of the width takes many seconds.
    assert time.process_time() - start < 1


@pytest.mark.parametrize("name", ["window", "everything, frozen, then exit"])
def test_openvino_runs_cut_decoders_as_onnx_runtime_does(name: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    from export.openvino_session import OpenVinoSession

    plan = plan_of(name, 2)
    session, spec = exported(decoder_from(plan, tensors_of(plan), logits="all"), plan, tmp_path)
    other = OpenVinoSession(tmp_path, [spec], threads=1)
    past, other_past = session.empty_past(1), other.empty_past(1)
    for call in conversation()[1]:
        rows = [tensor.contiguous().numpy() for tensor in call]
        wanted, past = session.decode(*rows, past)
        found, other_past = other.decode(*rows, other_past)
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)
