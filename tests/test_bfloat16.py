"""bfloat16 artifacts: what is in them, what was checked, and which backends run them."""

import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

import vtcompress
from compressor.compressed import compress
from compressor.decoder import decoder_from
from compressor.errors import BackendError
from compressor.families import load
from export.artifact.artifact import Artifact
from export.backends.torch_model import TorchSession
from export.checks import fidelity
from export.checks.bfloat16 import ShadowSession
from export.graphs.spec import decoder_graph
from export.session.feeds import CallRows
from export.writer.weights import SharedWeights
from export.writer.write import export_decoder, save_graph
from tests import cuts
from tests.models import make_picture
from vtcompress.cli.main import run_command


@pytest.fixture(scope="module")
def artifact(tiny_model: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = vtcompress.load_recipe("identity").override(
        {
            "model.id": str(tiny_model),
            "export.dtype": "bfloat16",
            "validate.data": str(questions),
            "validate.max_new_tokens": 4,
            "validate.keep_pictures": "all",
        }
    )
    output = tmp_path_factory.mktemp("bfloat16") / "out"
    vtcompress.export(recipe, output, bench_rounds=2)
    return output


def in_float32_on_rounded_weights(model: Path, artifact: Path) -> fidelity.Recording:
    small = compress(load(str(model)), vtcompress.Plan.load(artifact / "plan.json"))
    rounded = small.to(torch.bfloat16).to(torch.float32)
    return fidelity.record(TorchSession(rounded), rounded.plan)


def test_graphs_weights_and_caches_are_bfloat16_and_logits_float32(artifact: Path) -> None:
    for name in ("vision", "embed", "decoder", "baseline_decoder"):
        onnx.checker.check_model(artifact / f"{name}.onnx", full_check=True)
    graph = onnx.load(artifact / "decoder.onnx", load_external_data=False).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    assert kinds.pop("logits") == TensorProto.FLOAT
    indices = {kinds.pop("visual_index"), kinds.pop("text_index")}
    assert indices == {TensorProto.INT64}
    assert set(kinds.values()) == {TensorProto.BFLOAT16}
    stored = {t.data_type for t in graph.initializer if t.external_data}
    assert stored == {TensorProto.BFLOAT16}


def test_the_manifest_and_reports_say_what_ran_and_what_did_not(artifact: Path) -> None:
    manifest = Artifact.open(artifact).manifest
    assert manifest.fidelity is not None
    assert manifest.fidelity.passed, manifest.fidelity
    assert {"Attention", "MatMul", "RMSNormalization"} <= set(manifest.missing_kernels)
    assert not {"Gather", "Concat", "Transpose"} & set(manifest.missing_kernels)
    assert manifest.measured is None
    assert manifest.memory is None
    for name in ("report.md", "report.html", "README.md"):
        text = " ".join((artifact / name).read_text(encoding="utf-8").split())
        assert "arithmetic in float32 on the bfloat16 weights" in text, name
        assert "bfloat16 kernels were not run here" in text, name
        assert "it has none for Add, Attention" in text, name
    assert "cannot run bfloat16 graphs." in (artifact / "report.md").read_text(encoding="utf-8")
    assert "--backend openvino" in (artifact / "README.md").read_text(encoding="utf-8")


def test_shadows_compute_what_torch_computes_in_float32_on_rounded_weights(
    artifact: Path, tiny_model: Path
) -> None:
    manifest = Artifact.open(artifact).manifest
    plan = vtcompress.Plan.load(artifact / "plan.json")
    found = fidelity.record(ShadowSession(artifact, manifest.graphs), plan)
    wanted = in_float32_on_rounded_weights(tiny_model, artifact)
    assert found.shapes == wanted.shapes
    for call, values in wanted.outputs.items():
        assert np.abs(found.outputs[call] - values).max() < 1e-4, call


@pytest.mark.parametrize("name", ["window", "masked"])
def test_numbers_that_bfloat16_does_not_hold_stay_exact_in_decoders_with_cuts(
    name: str, tmp_path: Path
) -> None:
    """Their scores are multiplied with d ** -0.5 outside of an Attention node; d is 8 here."""
    plan = cuts.plan_of(name, 2)
    decoder = decoder_from(plan, cuts.tensors_of(plan), logits="all").to(torch.bfloat16)
    spec = decoder_graph(plan, "bfloat16", "all")
    with SharedWeights(tmp_path) as weights:
        save_graph(export_decoder(decoder, spec), tmp_path / spec.file, weights)
    decoder, session = decoder.float(), ShadowSession(tmp_path, [spec], threads=1)
    past, shadow_past = decoder.empty_past(1), session.empty_past(1)
    for call in cuts.conversation()[1]:
        with torch.inference_mode():
            wanted, past = decoder(*call, past)
        rows = [part.contiguous().numpy() for part in call]
        found, shadow_past = session.decode(CallRows(*rows), shadow_past)
        np.testing.assert_allclose(found, wanted.numpy(), atol=2e-6, rtol=0)


def test_validate_runs_in_the_shadow_too(artifact: Path) -> None:
    outcome = vtcompress.validate(artifact)
    manifest = Artifact.open(artifact).manifest
    assert outcome.loss is not None
    assert manifest.loss is not None
    assert outcome.loss.overall == manifest.loss.overall


@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime-cuda"])
def test_onnx_runtime_refuses_the_artifact_and_names_the_remedies(
    artifact: Path, backend: str
) -> None:
    with pytest.raises(
        BackendError, match=r"the backend openvino can, or export with dtype float32"
    ):
        vtcompress.Runtime.load(artifact, backend=backend)


def test_bench_says_that_it_cannot_run(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", str(artifact)]) == 1
    assert "cannot run bfloat16 graphs" in capsys.readouterr().err


@pytest.fixture
def openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return pytest.importorskip("openvino", reason="the extra openvino is not installed")


@pytest.mark.usefixtures("openvino")
def test_openvino_runs_the_artifact_within_what_bfloat16_rounds(
    artifact: Path, tiny_model: Path, tmp_path: Path
) -> None:
    runtime = vtcompress.Runtime.load(artifact, backend="openvino")
    found = fidelity.record(runtime.session, vtcompress.Plan.load(artifact / "plan.json"))
    wanted = in_float32_on_rounded_weights(tiny_model, artifact)
    assert found.shapes == wanted.shapes
    for call, values in wanted.outputs.items():
        assert np.abs(found.outputs[call] - values).max() < 0.12 * np.abs(values).max(), call
    assert runtime.session.empty_past(1)[0].dtype == ml_dtypes.bfloat16
    picture = make_picture(tmp_path / "picture.png")
    assert runtime.answer("what is this", [picture], max_new_tokens=4).token_ids


@pytest.mark.usefixtures("openvino")
def test_openvino_is_compared_with_the_shadows(artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(artifact, tmp_path / "copy"))
    found = vtcompress.validate_backend(copy, "openvino")
    assert found.outputs.passed, found.failures
    assert found.outputs.worst_abs.max_abs > 1e-3, "nothing was rounded"


def test_the_command_line_takes_bfloat16(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["export", "--help"]) == 0
    assert "bfloat16" in capsys.readouterr().out
