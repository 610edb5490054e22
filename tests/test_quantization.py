"""Weights in whole numbers: rounding, the standard form, what joins it, its own figure, and what is refused.

The reference of rounding is written anew here, a block at a time in numpy.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import vtcompress
from compressor.decoder import Decoder, quantization
from compressor.decoder.quantization import is_quantized, quantized, quantized_decoder
from compressor.decoder.weights import stored_weights
from compressor.errors import RecipeError
from compressor.plan.edits import identity_plan
from compressor.plan.inner_widths import inner_widths
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan
from compressor.recipe import Recipe
from compressor.schema.sections import ExportSection
from export.backends.onnxruntime import OnnxGraph
from export.graphs.spec import GraphSpec
from tests.conftest import Run
from tests.decoders import KINDS, plan_of, seeded_decoder, write_decoder
from tests.facts import dims, facts
from tests.test_engines import build, limits_for
from vtcompress.stages.checks.recipe import check_blocks

NEURONS = {"neurons": tuple(range(64))}
DEAD = LayerPlan(index=2, visual="frozen", reason="dead", groups=(1,))


def cut_plan(kind: str) -> Plan:
    """Return a plan whose parts of heads and neurons are whole blocks of 32, or one of all kinds."""
    layers = {
        "parts": (LayerPlan(index=0, groups=(1,), **NEURONS), LayerPlan(index=1, groups=()), DEAD),
        "parts and a window": (
            LayerPlan(index=0, groups=(1,), window=3),
            LayerPlan(index=1, window=3, **NEURONS),
            DEAD,
        ),
    }
    if kind in layers:
        return plan_of("identity").model_copy(update={"layers": layers[kind]})
    return plan_of(kind)


def settings(kind: str, dtype: str) -> ExportSection:
    return ExportSection.model_validate({"weights": kind, "dtype": dtype})


Written = Callable[[str, str, str], tuple[Path, tuple[GraphSpec, ...]]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return a function that writes a decoder, once for each kind of plan, weights and dtype."""

    @cache
    def write(kind: str, weights: str, dtype: str) -> tuple[Path, tuple[GraphSpec, ...]]:
        folder = tmp_path_factory.mktemp("decoder")
        return folder, write_decoder(folder, cut_plan(kind), None, settings(weights, dtype))

    return write


def nodes(graph: Any) -> Iterator[Any]:
    """Yield a graph's nodes, those of branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


def kinds_of(path: Path) -> Counter[str]:
    return Counter(n.op_type for n in nodes(onnx.load(path, load_external_data=False).graph))


def joined(folder: Path, spec: GraphSpec) -> Counter[str]:
    """Return the kinds of nodes that ONNX Runtime makes of a graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "joined.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(folder / spec.file, options, providers=["CPUExecutionProvider"])
    return kinds_of(folder / "joined.onnx")


@pytest.mark.parametrize(("kind", "most"), [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_block_is_rounded_to_the_nearest_step_of_its_own_scale(
    kind: str, most: int, dtype: torch.dtype
) -> None:
    weight = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[:32, 0] = 0
    weight[:32, 1] = -weight[:32, 1].abs()
    found = quantized(weight, kind, 32)
    assert found.scales.dtype == dtype
    assert found.scales.shape == (2, 6)
    values = weight.double().numpy()
    for row in range(2):
        for column in range(6):
            block = values[32 * row : 32 * row + 32, column]
            scale = max(block.max() / most, -block.min() / (most + 1)) or 1.0
            assert float(found.scales[row, column]) == pytest.approx(scale, rel=1 / 128)
            scale = float(found.scales[row, column])
            codes = np.clip(np.round(block / scale), -most - 1, most)
            got = found.codes[32 * row : 32 * row + 32, column].numpy()
            assert np.abs(got - codes).max() <= 0
            assert np.allclose(found.dequantized()[32 * row : 32 * row + 32, column], codes * scale)
    assert found.scales.min() > 0
    if dtype == torch.float32:  # the scale takes both ends in, so that nothing is clipped
        error = (found.dequantized() - weight).abs().reshape(2, 32, 6).amax(1)
        assert bool((error <= found.scales * 0.5001).all())


@pytest.mark.parametrize("numbers", [1, 3 * 32 * 6, 1 << 22])
def test_a_matrix_is_rounded_some_blocks_at_a_time_to_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    """Blocks of every column, as many as may be in float32 at once; the matrix comes turned, as most do."""
    weight = torch.randn(6, 320, generator=torch.Generator().manual_seed(0)).half().T
    whole, seen = quantization._rounded(weight, 4, 32), []

    def rounded(part: torch.Tensor, bits: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(part.numel())
        return really(part, bits, block)

    really = quantization._rounded
    monkeypatch.setattr(quantization, "_rounded", rounded)
    monkeypatch.setattr(quantization, "NUMBERS_AT_ONCE", numbers)
    found = quantized(weight, "int4", 32)
    assert torch.equal(found.scales, whole[0])
    assert torch.equal(found.codes, whole[1].to(torch.int8))
    assert max(seen) <= max(numbers, 32 * 6)
    assert sum(seen) == weight.numel()


def test_a_block_that_does_not_divide_is_an_error_of_the_code() -> None:
    with pytest.raises(ValueError, match=r"blocks of 32 do not divide an inner width of 48"):
        quantized(torch.ones(48, 4), "int4", 32)


def test_the_matrices_of_layers_alone_are_whole_numbers() -> None:
    decoder = seeded_decoder(cut_plan("parts"))
    chosen = {name for name, weight in stored_weights(decoder).items() if is_quantized(weight)}
    left = {name for name, _ in decoder.named_parameters()} - chosen
    assert all(decoder.get_parameter(name).dim() == 2 for name in chosen)
    assert {name.split(".", 2)[-1] for name in left} == {
        "input_norm.weight",
        "mlp_norm.weight",
        "weight",
    }
    made = quantized_decoder(decoder, "int4", 32, torch.float32)
    for name, parameter in decoder.named_parameters():
        assert (made.get_parameter(name) is parameter) == (name in left)
        assert name in left or not torch.equal(made.get_parameter(name), parameter)


@pytest.mark.parametrize("kind", [*KINDS, "parts", "parts and a window"])
def test_inner_widths_are_those_of_the_decoder_that_a_plan_makes(kind: str) -> None:
    plan = cut_plan(kind)
    with torch.device("meta"):
        decoder: Decoder = seeded_shapes(plan)
    found = {
        (int(name.split(".")[1]), parameter.shape[0])
        for name, parameter in decoder.named_parameters()
        if is_quantized(stored_weights(decoder)[name]) and parameter.numel()
    }
    dims = plan.model.decoder
    told = {(layer.index, width) for layer in plan.layers for _, width in inner_widths(dims, layer)}
    assert told == found


def seeded_shapes(plan: Plan) -> Decoder:
    from compressor.methods import layer_scores, run_rules

    return Decoder(plan, scores=layer_scores(plan), runs=run_rules(plan))


@pytest.mark.parametrize(
    ("kind", "weights", "dtype"),
    [
        ("parts", "int4", "float32"),
        ("parts", "int8", "float32"),
        ("parts", "int4", "float16"),
        ("parts and a window", "int4", "float32"),
        ("staged", "int8", "float16"),
    ],
)
def test_every_matrix_is_one_node_of_whole_numbers_in_onnx_runtime(
    kind: str, weights: str, dtype: str, written: Written
) -> None:
    folder, specs = written(kind, weights, dtype)
    for spec in specs:
        stored, run = kinds_of(folder / spec.file), joined(folder, spec)
        assert run["MatMulNBits"] == stored["DequantizeLinear"] > 0
        assert run["DequantizeLinear"] == 0


def test_decoders_with_caches_of_fixed_size_are_joined_too(tmp_path: Path) -> None:
    plan = cut_plan("parts")
    (spec,) = write_decoder(tmp_path, plan, limits_for(plan), settings("int4", "float32"))
    assert (
        joined(tmp_path, spec)["MatMulNBits"] == kinds_of(tmp_path / spec.file)["DequantizeLinear"]
    )


def test_float_weights_are_joined_with_nothing(written: Written) -> None:
    folder, (spec,) = written("parts", "float", "float32")
    assert joined(folder, spec)["MatMulNBits"] == kinds_of(folder / spec.file)["DequantizeLinear"]
    floats = (folder / "weights.bin").stat().st_size
    assert (written("parts", "int4", "float32")[0] / "weights.bin").stat().st_size < 0.5 * floats


def feeds_of(spec: GraphSpec) -> list[np.ndarray[Any, Any]]:
    sizes = {"batch": 1, "visual": 12, "text": 5}
    rng = np.random.default_rng(0)
    feeds = []
    for tensor in spec.inputs:
        shape = tuple(sizes.get(a, 0) if isinstance(a, str) else a for a in tensor.axes)
        if tensor.dtype == "int64":
            start = 12 if tensor.name == "text_index" else 0
            feeds.append(np.arange(start, start + shape[1])[None])
        else:
            feeds.append(rng.standard_normal(shape).astype(tensor.dtype))
    return feeds


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_graphs_compute_with_the_values_that_whole_numbers_stand_for(
    weights: str, written: Written
) -> None:
    """In exact arithmetic to float32's rounding; as ONNX Runtime runs by itself it rounds to 8 bits."""
    plan = cut_plan("parts")
    folder, (spec,) = written("parts", weights, "float32")
    feeds = feeds_of(spec)
    made = quantized_decoder(seeded_decoder(plan), weights, 32, torch.float32)
    with torch.inference_mode():
        rows = [torch.from_numpy(feed) for feed in feeds[:4]]
        wanted = made(*rows, made.empty_past(1))[0].numpy()
        floats = seeded_decoder(plan)(*rows, made.empty_past(1))[0].numpy()

    def off(exact: bool) -> float:
        logits = OnnxGraph(folder, spec, exact=exact)(feeds)[0].numpy()
        return float(np.abs(logits - wanted).max() / np.abs(wanted).max())

    assert off(exact=True) < 1e-5
    assert 1e-4 < off(exact=False) < 0.1
    assert np.abs(floats - wanted).max() / np.abs(wanted).max() > 1e-4


def test_codes_of_4_bits_lie_two_in_a_byte_and_once(written: Written) -> None:
    plan = cut_plan("parts")
    folder, (spec,) = written("parts", "int4", "float32")
    graph = onnx.load(folder / spec.file).graph
    decoder = seeded_decoder(plan)
    held = {tensor.name: tensor for tensor in graph.initializer}
    name = "layers.0.mlp.first.down.weight"
    wanted = quantized(decoder.get_parameter(name).detach(), "int4", 32)
    codes = onnx.numpy_helper.to_array(held[f"{name}.codes"]).astype(np.int8)
    assert (codes == wanted.codes.numpy()).all()
    assert codes.min() < 0 < codes.max()
    scales = onnx.numpy_helper.to_array(held[f"{name}.scales"])
    assert (scales == wanted.scales.numpy()).all()
    assert name not in held


def test_openvino_reads_them_and_computes_the_same(written: Written) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    from export.backends.openvino import OpenVinoSession

    for weights in ("int4", "int8"):
        folder, (spec,) = written("parts", weights, "float32")
        feeds = feeds_of(spec)
        wanted = OnnxGraph(folder, spec, exact=True)(feeds)[0].numpy()
        session = OpenVinoSession(folder, [spec], threads=1)
        found = np.asarray(session.graph(spec.name)(feeds)[0])
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(("weights", "block"), [("int4", 128), ("int4", 32), ("int8", 32)])
def test_rtx_builds_engines_of_them(weights: str, block: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    decoder = dims(
        layers=1, hidden=128, heads=4, kv_heads=2, head_dim=32, intermediate=256, vocab=48
    )
    plan = identity_plan(facts(decoder, token_grid=(3, 4)), "0" * 64)
    asked = ExportSection.model_validate({"weights": weights, "block": block, "dtype": "float16"})
    (spec,) = write_decoder(tmp_path, plan, None, asked)
    assert kinds_of(tmp_path / spec.file)["DequantizeLinear"] == 7
    engine, _ = build(tmp_path, spec, limits_for(plan), "SM86")
    assert engine.stat().st_size > 10_000


@pytest.fixture(scope="module")
def recipe(tiny_model: Path, questions: Path) -> Recipe:
    return vtcompress.load_recipe("identity").override(
        {
            "model.id": str(tiny_model),
            "validate.data": questions,
            "validate.samples": 3,
            "validate.max_new_tokens": 2,
            "validate.keep_pictures": "all",
        }
    )


@pytest.fixture(scope="module")
def artifact(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "int4"
    vtcompress.export(recipe.override({"export.weights": "int4"}), folder, bench_rounds=0)
    return folder


def test_an_export_tells_the_loss_of_whole_numbers_beside_both_checks(
    artifact: Path, tiny_artifact: Path
) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    found = manifest["quantization"]
    lost = found["loss"]
    assert (found["weights"], found["block"], lost["rows"]) == ("int4", 32, 3)
    assert lost["source"] == "3 questions of questions.jsonl"
    assert 0 < lost["kl"] <= lost["kl_worst"]
    assert lost["largest"] > 10 * manifest["fidelity"]["worst_abs"]["max_abs"]
    # 4 bits and a scale of 4 bytes for 32 of them, in place of 4 bytes each.
    assert found["stored_bytes"] / found["float_bytes"] == pytest.approx((0.5 + 4 / 32) / 4)
    assert manifest["fidelity"]["failures"] == []
    floats = json.loads((tiny_artifact / "manifest.json").read_text(encoding="utf-8"))
    assert floats["quantization"] is None
    assert kinds_of(artifact / "decoder.onnx")["DequantizeLinear"] == 14
    for name in ("baseline_decoder", "vision", "embed"):
        assert kinds_of(artifact / f"{name}.onnx")["DequantizeLinear"] == 0
    for name in ("report.html", "report.md", "README.md"):
        text = (artifact / name).read_text(encoding="utf-8")
        assert "weights alone lose" in text
        assert "does not shrink" not in text
    assert "quantization" in vtcompress.inspect(artifact)


def test_fidelity_measured_anew_is_of_the_model_with_whole_numbers(
    artifact: Path, tiny_model: Path
) -> None:
    found = vtcompress.validate(artifact, model=str(tiny_model))
    assert found.fidelity is not None
    assert found.fidelity.failures == ()
    assert found.loss is not None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_without_questions_the_loss_is_that_of_the_calls_of_the_fidelity_check(
    dtype: str, recipe: Recipe, tmp_path: Path
) -> None:
    changed = recipe.override(
        {"validate.data": None, "export.weights": "int8", "export.dtype": dtype}
    )
    manifest = vtcompress.export(changed, tmp_path / "out", bench_rounds=0)
    assert manifest.quantization is not None
    assert manifest.quantization.loss is not None
    assert manifest.quantization.loss.source == "made-up calls of the fidelity check"
    assert manifest.quantization.loss.rows > 100
    assert manifest.fidelity is not None
    assert manifest.fidelity.failures == ()


def test_blocks_that_cannot_be_are_refused_before_work_begins(
    recipe: Recipe, tmp_path: Path, vt: Run
) -> None:
    with pytest.raises(RecipeError, match=r"block goes with weights: int8 or int4"):
        recipe.override({"export.block": 64})
    output = tmp_path / "out"
    asked = ("--recipe", "identity", "--model", recipe.model.id, "--output", output)
    code, _, error = vt("export", *asked, "--weights", "int4", "--block", "128")
    assert code == 1
    assert "export.block: 128 does not divide" in error
    assert "the inner width of queries, keys, values" in error
    assert "give 32" in error
    assert not output.exists()
    code, _, error = vt("export", *asked, "--block", "32")
    assert code == 1
    assert "block goes with weights: int8 or int4; float weights have no blocks" in error


def test_parts_of_an_mlp_that_blocks_do_not_divide_are_refused_by_their_layers() -> None:
    layers = (LayerPlan(index=0, neurons=tuple(range(48))), LayerPlan(index=1), DEAD)
    plan = plan_of("identity").model_copy(update={"layers": layers})
    with pytest.raises(RecipeError) as refused:
        check_blocks(ExportSection(weights="int8"), plan)
    first, second = str(refused.value).splitlines()
    assert first == (
        "export.block: 32, the default, does not divide 48, the inner width of the MLP's last matrix "
        "(layer 0); give export.weights: float"
    )
    assert "the MLP's last matrix for text alone (layer 0)" in second
    check_blocks(ExportSection(), plan)


def test_a_sweep_refuses_whole_numbers(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"export.weights: int4: a sweep compares plans on float"):
        vtcompress.sweep(recipe.override({"export.weights": "int4"}), tmp_path / "out")
