"""The graphs of decoders with YOPO's cuts: their numbers, caches, work, nodes and stored bytes."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from compressor.compressed import CompressedModel, naive_decoder
from compressor.decoder import Decoder
from compressor.decoder.weights import joined_parts
from compressor.plan.cost import layer_flops, predict
from compressor.plan.plan import Plan, Workload
from export.backends.onnxruntime import OnnxSession
from export.backends.torch_model import TorchSession
from export.graphs.spec import GraphSpec, decoder_graph
from export.session.feeds import CallRows
from export.writer.weights import INLINE_BELOW, SharedWeights
from export.writer.write import export_decoder, save_graph
from tests.cuts import (
    ANEW,
    CUTS,
    GRID,
    HIDDEN,
    REAL_GRID,
    TOLERANCE,
    batch_of_two,
    conversation,
    decoder_of,
    plan_of,
    tensors_of,
)
from tests.flops import flops_by_layer, layer_nodes, ran
from tests.reference import text_logits

COMPOSED = "everything, frozen, then exit"
REAL = [pytest.param(name, REAL_GRID, id=f"{name}, 24x24") for name in ("window", COMPOSED)]
GRAPHS = [*(pytest.param(name, GRID, id=name) for name in CUTS), *REAL]

# Nodes of a layer at most, those under branches included, and what each cut adds. Layer 0 also makes what all
# layers share. A windowed layer has 100: bands are batched, so neither grid nor images add any.
NODES, OF_A_WINDOW, OF_SPLIT_HEADS, OF_NEURONS, OF_MASKED, OF_ALL_LAYERS = 32, 68, 20, 8, 19, 7
OF_GOING_WITHOUT = 2
OF_SOME_RUN = 46  # router, choice, masks and rotations of those that run, and putting them back
OF_HEAD_NORMS = 2  # for each group of heads


class Written(NamedTuple):
    """A float32 graph of a decoder that gives the logits of all text rows, and what it was made of."""

    plan: Plan
    tensors: dict[str, torch.Tensor]
    decoder: Decoder
    folder: Path
    spec: GraphSpec

    @property
    def path(self) -> Path:
        return self.folder / self.spec.file

    def session(self) -> OnnxSession:
        return OnnxSession(self.folder, [self.spec], threads=1)

    def torch_session(self) -> TorchSession:
        return TorchSession(CompressedModel(self.plan, self.decoder, None, None, None, None))  # type: ignore[arg-type]


Graphs = Callable[[str, tuple[int, int]], Written]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """Return the graph of a plan on a grid; each is exported once."""
    made: dict[tuple[str, tuple[int, int]], Written] = {}

    def written(name: str, grid: tuple[int, int] = GRID) -> Written:
        if (name, grid) not in made:
            plan, folder = plan_of(name, 2, grid), tmp_path_factory.mktemp("graph")
            tensors = tensors_of(plan)
            decoder = decoder_of(plan, tensors)
            spec = decoder_graph(plan, "float32", "all")
            with SharedWeights(folder) as weights:
                save_graph(export_decoder(decoder, spec), folder / spec.file, weights)
            made[name, grid] = Written(plan, tensors, decoder, folder, spec)
        return made[name, grid]

    return written


def arrays(call: list[torch.Tensor]) -> CallRows:
    return CallRows(*(tensor.contiguous().numpy() for tensor in call))


@pytest.mark.parametrize(("name", "grid"), GRAPHS)
def test_a_graph_equals_the_decoder_and_the_reference_for_each_row_of_a_batch(
    name: str, grid: tuple[int, int], graphs: Graphs
) -> None:
    one = graphs(name, grid)
    session, told = one.session(), one.torch_session()
    both, calls = batch_of_two(grid)
    past, graph_past, logits = one.decoder.empty_past(2), session.empty_past(2), []
    for call in calls:
        with torch.inference_mode():
            wanted, past = one.decoder(*call, past)
        found, graph_past = session.decode(arrays(call), graph_past)
        np.testing.assert_allclose(found, wanted.numpy(), atol=TOLERANCE, rtol=0)
        assert session.past_shapes(graph_past) == told.past_shapes(past)
        assert session.past_bytes(graph_past) == told.past_bytes(past)
        logits.append(found)
    if grid == GRID:  # dense masks of thousands of rows would take many seconds
        dense = [text_logits(one.plan, one.tensors, rows) for rows in both]
        np.testing.assert_allclose(np.concatenate(logits, axis=1), dense, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("name", "grid"), [g for g in GRAPHS if g.id not in ANEW])
def test_text_alone_gives_the_originals_logits_from_the_graph_too(
    name: str, grid: tuple[int, int], graphs: Graphs
) -> None:
    one = graphs(name, grid)
    session, original = one.session(), decoder_of(one.plan.naive(), one.tensors)
    past, graph_past = original.empty_past(1), session.empty_past(1)
    generator = torch.Generator().manual_seed(3)
    start = 0
    for text in (9, 1, 1, 4):  # a prompt, steps, a later turn
        rows = torch.randn(1, text, HIDDEN, generator=generator)
        places = torch.arange(start, start + text)[None]
        call = [rows[:, :0], rows, places[:, :0], places]
        with torch.inference_mode():
            wanted, past = original(*call, past)
        found, graph_past = session.decode(arrays(call), graph_past)
        np.testing.assert_allclose(found, wanted.numpy(), atol=TOLERANCE, rtol=0)
        start += text


@pytest.mark.parametrize(("name", "grid"), GRAPHS)
def test_caches_hold_the_planned_bytes_after_a_prefill_and_after_every_step(
    name: str, grid: tuple[int, int], graphs: Graphs
) -> None:
    one = graphs(name, grid)
    for session in (one.session(), one.torch_session()):
        past, start = session.empty_past(1), 0
        for text, visual in ((5, one.plan.visual), (1, 0), (1, 0), (1, 0)):
            places = np.arange(start, start + visual + text)[None]
            rows = np.zeros((1, visual + text, HIDDEN), np.float32)
            halves = (rows[:, :visual], rows[:, visual:], places[:, :visual], places[:, visual:])
            _, past = session.decode(CallRows(*halves), past)
            start += visual + text
            workload = Workload(images=1, text=start - one.plan.visual)
            planned = predict(one.plan.model_copy(update={"workload": workload}))
            assert session.past_bytes(past) == planned.kv_bytes("float32")


@pytest.mark.parametrize(("name", "grid"), GRAPHS)
def test_a_graph_costs_in_every_layer_what_is_predicted(
    name: str, grid: tuple[int, int], graphs: Graphs
) -> None:
    one = graphs(name, grid)
    plan = one.plan.model_copy(update={"workload": Workload(images=2, text=16)})
    sizes = {"batch": 1, "visual": plan.visual, "text": 16, "past": 0}
    counted = flops_by_layer(one.folder, one.spec, sizes)
    cost = predict(plan)
    for layer, predicted in zip(plan.layers, cost.layer_flops, strict=True):
        assert counted[layer.index] == pytest.approx(predicted, rel=0.02)
    # Predicted for the logits of the last row; this graph gives those of all text rows.
    assert counted.total() - 15 * cost.head_flops == pytest.approx(cost.flops, rel=0.02)


@pytest.mark.parametrize(("name", "grid"), REAL)
def test_a_window_on_a_real_grid_costs_less_than_half_of_attention_to_all(
    name: str, grid: tuple[int, int], graphs: Graphs
) -> None:
    one = graphs(name, grid)
    visual, text = one.plan.visual, 16
    sizes = {"batch": 1, "visual": visual, "text": text, "past": 0}
    counted = flops_by_layer(one.folder, one.spec, sizes)
    for layer in one.plan.layers:
        if layer.window is not None:
            full = layer.model_copy(update={"window": None, "window_causal": False})
            dims = one.plan.model.decoder
            assert counted[layer.index] < 0.5 * layer_flops(dims, full, visual, text)


def seven_text_rows(one: Written) -> tuple[onnx.GraphProto, dict[str, NDArray[Any]]]:
    sizes = {"batch": 1, "visual": one.plan.visual, "text": 7, "past": 0}
    return ran(one.folder, one.spec, sizes)


def as_many_as_pairs(one: Written) -> dict[str, NDArray[Any]]:
    """Return what a graph holds or makes in a prefill of one image that has V x V elements or more."""
    sizes = {"batch": 1, "visual": one.plan.visual, "text": 7, "past": 0}
    _, values = ran(one.folder, one.spec, sizes)
    return {name: value for name, value in values.items() if value.size >= one.plan.visual**2}


@pytest.mark.parametrize(("name", "grid"), REAL)
def test_nothing_in_a_windowed_graph_has_a_place_for_every_pair_of_visual_rows(
    name: str, grid: tuple[int, int], graphs: Graphs
) -> None:
    assert not as_many_as_pairs(graphs(name, grid))


@pytest.mark.parametrize(("name", "grid"), GRAPHS)
def test_no_layer_has_more_nodes_than_its_cuts_need(
    name: str, grid: tuple[int, int], graphs: Graphs
) -> None:
    one = graphs(name, grid)
    kinds = [(layer.window, layer.window_causal, layer.split) for layer in one.plan.layers]
    whole = next((x.index for x in one.plan.layers if x.run is None), None)
    for index, count in layer_nodes(one.path).items():
        layer = one.plan.layers[index]
        # What layers share is made in the first of them: in layer 0, in the first that all rows run, where a
        # kind of window begins, and where visual rows leave.
        begins = layer.window is not None and kinds.index(kinds[index]) == index
        begins |= layer.keep is not None or index == whole
        most = NODES + OF_ALL_LAYERS * (index == 0 or begins) + OF_MASKED * layer.masked
        most += OF_SPLIT_HEADS * layer.split + OF_A_WINDOW * (layer.window is not None)
        most += OF_GOING_WITHOUT * (layer.without is not None)
        most += OF_SOME_RUN * (layer.run is not None)
        most += OF_NEURONS * (layer.neurons is not None)
        most += OF_HEAD_NORMS * one.plan.model.decoder.qk_norm * (1 + layer.split)
        assert count <= most, f"layer {index}"


def operators(graph: onnx.GraphProto) -> Counter[str]:
    found = Counter(node.op_type for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            found += operators(attribute.g)
    return found


@pytest.mark.parametrize(("name", "grid"), REAL)
def test_a_larger_grid_adds_no_nodes(name: str, grid: tuple[int, int], graphs: Graphs) -> None:
    small, large = (
        operators(onnx.load(graphs(name, size).path, load_external_data=False).graph)
        for size in (GRID, grid)
    )
    assert large == small


def test_a_call_without_an_image_runs_none_of_a_windows_nodes(graphs: Graphs) -> None:
    graph = onnx.load(graphs("window", GRID).path, load_external_data=False).graph
    branches = {n.name: n.attribute for n in graph.node if n.op_type == "If"}
    assert set(branches) == {f"layers.{i}.near.If" for i in range(3)}
    for name, attributes in branches.items():
        nodes = {a.name: [n.op_type for n in a.g.node] for a in attributes}
        assert nodes["else_branch"] == ["Attention"]
        assert "Softmax" in nodes["then_branch"], name
    # The numbers of rows of both kinds, by which states are split behind every layer.
    assert {n.op_type for n in graph.node if ".near." in n.name} <= {"If", "Concat"}


def test_the_result_of_a_branch_is_copied_by_the_next_node(graphs: Graphs) -> None:
    # OpenVINO 2026.4.1 gives wrong numbers where it is looked at in another shape; see `branch_on_images`.
    nodes = onnx.load(graphs("window", GRID).path, load_external_data=False).graph.node
    results = {n.output[0] for n in nodes if n.op_type == "If"}
    assert results
    assert {n.op_type for n in nodes if results.intersection(n.input)} == {"Transpose"}


def stored_contents(graph: Path) -> list[str]:
    """Return the sha256 of every tensor that a graph keeps in its weight file, sorted."""
    places = set()
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        if found := {entry.key: entry.value for entry in tensor.external_data}:
            places.add((int(found["offset"]), int(found["length"])))
    content = (graph.parent / "weights.bin").read_bytes()
    return sorted(hashlib.sha256(content[at : at + size]).hexdigest() for at, size in places)


@pytest.mark.parametrize("name", ["neurons", COMPOSED, "head norms: heads and neurons"])
def test_parts_hold_the_originals_bytes_once_and_the_baseline_graph_joins_them(
    name: str, tmp_path: Path
) -> None:
    plan = plan_of(name, 2)
    tensors = tensors_of(plan)
    decoder = decoder_of(plan, tensors)
    small = CompressedModel(plan, decoder, None, None, None, None)  # type: ignore[arg-type]
    naive = naive_decoder(small)
    specs = [decoder_graph(plan, "float32", "all")]
    specs.append(decoder_graph(plan.naive(), "float32", "all", name="baseline_decoder"))
    with SharedWeights(tmp_path) as weights:
        save_graph(export_decoder(decoder, specs[0]), tmp_path / specs[0].file, weights)
        before = (tmp_path / "weights.bin").stat().st_size
        joined = joined_parts(decoder)
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
    original = decoder_of(plan.naive(), tensors)
    call = conversation()[1][0]
    with torch.inference_mode():
        wanted, _ = original(*call, original.empty_past(1))
    found, _ = session.decode(arrays(call), session.empty_past(1))
    np.testing.assert_allclose(found, wanted.numpy(), atol=TOLERANCE, rtol=0)


def table(grid: tuple[int, int], side: int, *, causal: bool) -> NDArray[np.bool_]:
    """Return [gh, gw, side * gw]: whether a column of the grid rows around a token is hidden from it."""
    rows, columns, half = *grid, side // 2
    reads = np.zeros((rows, columns, side, columns), bool)
    for row, column, step, other in np.ndindex(reads.shape):
        band = row + step - half
        near = 0 <= band < rows and abs(other - column) <= half
        behind = (band, other) > (row, column)
        reads[row, column, step, other] = near and not (causal and behind)
    return ~reads.reshape(rows, columns, side * columns)


@pytest.mark.parametrize(("name", "grid"), REAL)
def test_the_weight_file_holds_the_originals_bytes_once_and_one_table_for_each_kind_of_window(
    name: str, grid: tuple[int, int], graphs: Graphs
) -> None:
    one = graphs(name, grid)
    kinds = {(y.window, y.window_causal) for y in one.plan.layers if y.window is not None}
    tables = [table(grid, side, causal=causal) for side, causal in kinds]
    assert {t.nbytes for t in tables} == {24 * 24 * 3 * 24}
    original = sum(t.nbytes for t in one.tensors.values())
    parts = {n: p.detach().contiguous().numpy() for n, p in one.decoder.named_parameters()}
    assert sum(part.nbytes for part in parts.values()) == original
    stored = [*(p for p in parts.values() if p.nbytes >= INLINE_BELOW), *tables]
    contents = [hashlib.sha256(array.tobytes()).hexdigest() for array in stored]
    assert len(set(contents)) == len(contents)
    assert stored_contents(one.path) == sorted(contents)
    held = onnx.load(one.path).graph.initializer
    # Small weights are in the graph itself; what else is there are constants of its nodes.
    assert {t.name for t in held if t.name in parts} == {n for n, p in parts.items() if p.size}
    others = [onnx.numpy_helper.to_array(t) for t in held if t.name not in parts]
    assert sum(a.nbytes for a in others if a.nbytes < INLINE_BELOW) < INLINE_BELOW


@pytest.mark.parametrize("name", CUTS)
def test_openvino_runs_cut_decoders_as_onnx_runtime_does(name: str, graphs: Graphs) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    from export.backends.openvino import OpenVinoSession

    one = graphs(name, GRID)
    session, other = one.session(), OpenVinoSession(one.folder, [one.spec], threads=1)
    past, other_past = session.empty_past(1), other.empty_past(1)
    for call in conversation()[1]:  # two images, a later turn, a third image, a step
        wanted, past = session.decode(arrays(call), past)
        found, other_past = other.decode(arrays(call), other_past)
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)
