"""A graph pass that this file alone defines: an export runs it, its graphs show it, reports say its words."""

import json
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import vtcompress
from compressor.decoder import decoder_from
from compressor.decoder.weights import StoredWeight
from compressor.schema.sections import ExportSection
from export.graphs.spec import GraphSpec, decoder_graph
from export.writer.passes import order
from export.writer.passes.graph_pass import weights_of
from export.writer.weights import SharedWeights
from export.writer.write import export_decoder
from tests.cuts import tensors_of
from tests.decoders import plan_of


class Twice:
    """Computes the text embeddings of a decoder as half of their double, which no dtype rounds."""

    words = "Text embeddings are doubled and halved by a pass of this test."

    def applies(self, spec: GraphSpec, settings: ExportSection) -> bool:
        return settings.dtype == "float32" and spec.name == "decoder"

    def run(self, model: ir.Model) -> None:
        (rows,) = (value for value in model.graph.inputs if value.name == "inputs_embeds")
        readers = list(rows.uses())
        double = ir.node("Add", [rows, rows], name="toy.Add")
        half = ir.node("Sub", [double.outputs[0], rows], name="toy.Sub")
        for node in (double, half):
            node.outputs[0].name, node.outputs[0].dtype = f"{node.name}.out", rows.dtype
        for node, place in readers:
            node.replace_input_with(place, half.outputs[0])
        model.graph.insert_before(model.graph[0], (double, half))


def nodes(path: Path) -> set[str]:
    return {node.name for node in onnx.load(path, load_external_data=False).graph.node}


def test_a_pass_of_the_users_own_changes_graphs_and_reports(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "PASSES", (*order.PASSES, Twice()))
    recipe = vtcompress.load_recipe("identity").override({"model.id": str(tiny_model)})
    manifest = vtcompress.export(recipe, tmp_path / "out", bench_rounds=0)
    added = {"toy.Add", "toy.Sub"}
    assert added <= nodes(tmp_path / "out" / "decoder.onnx")
    for graph in ("vision.onnx", "embed.onnx", "baseline_decoder.onnx"):
        assert not added & nodes(tmp_path / "out" / graph)
    assert manifest.fidelity is not None
    assert manifest.fidelity.failures == ()
    assert manifest.passes == (Twice.words,)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert Twice.words in page
    for name in ("report.md", "README.md"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert Twice.words in text


def test_shipped_passes_say_nothing_and_reports_are_as_they_were(tiny_artifact: Path) -> None:
    assert json.loads((tiny_artifact / "manifest.json").read_text(encoding="utf-8"))["passes"] == []


def test_a_weight_of_another_dtype_than_is_noted_is_not_written(tmp_path: Path) -> None:
    plan = plan_of("identity")
    decoder, spec = decoder_from(plan, tensors_of(plan)), decoder_graph(plan, "float32", "last")
    model = export_decoder(decoder, spec)
    value = model.graph.initializers["layers.1.mlp.up.weight"]
    assert weights_of(value) == (
        StoredWeight("layers.1.mlp.up_proj.weight", transposed=True, part=None, dtype="float32"),
    )
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy().astype("float64"))
    with (
        SharedWeights(tmp_path) as weights,
        pytest.raises(RuntimeError, match=r"up_proj.weight is stored as float32"),
    ):
        weights.take(model)
