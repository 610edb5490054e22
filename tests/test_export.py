"""`export` writes an artifact that is complete, small, verifiable and equal to the compressed model."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

import vtcompress
from compressor.compressed import compress
from compressor.decoder.weights import source_of
from compressor.errors import VtcompressError
from compressor.families import load
from export.backends.torch_model import TorchSession
from export.writer.weights import PAGE, _in_order
from tests.flops import layer_nodes

GRAPHS = ("vision.onnx", "embed.onnx", "decoder.onnx", "baseline_decoder.onnx")
LARGE = 1024


def recipe_for(model: Path, questions: Path, **more: object) -> vtcompress.Recipe:
    values = {
        "model.id": str(model),
        "calibrate.data": str(questions),
        "validate.data": str(questions),
        "validate.max_new_tokens": 6,
        # Nobody trained these models: freezing their layers changes their answers.
        "validate.loss.min_exact_match_kept": None,
        "validate.loss.max_kl": 100.0,
        "validate.keep_pictures": "all",
        **more,
    }
    return vtcompress.load_recipe("shortv").override(values)


@pytest.fixture(scope="module", params=["clip+llama", "siglip+qwen2, tied, biases"])
def model(request: pytest.FixtureRequest, llava: Callable[[str], Path]) -> Path:
    return llava(request.param)


@pytest.fixture(scope="module")
def artifact(model: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("artifact") / "out"
    vtcompress.export(recipe_for(model, questions), output, bench_rounds=2)
    return output


def initializers(folder: Path, name: str) -> list[onnx.TensorProto]:
    return list(onnx.load(folder / name, load_external_data=False).graph.initializer)


def place(tensor: onnx.TensorProto) -> tuple[int, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    assert entries["location"] == "weights.bin"
    return int(entries["offset"]), int(entries["length"])


def test_the_graphs_are_valid_standard_opset_23_with_at_most_40_nodes_a_layer(
    artifact: Path,
) -> None:
    for name in GRAPHS:
        onnx.checker.check_model(artifact / name, full_check=True)
        proto = onnx.load(artifact / name, load_external_data=False)
        assert {(o.domain, o.version) for o in proto.opset_import} == {("", 23)}
        assert {node.domain for node in proto.graph.node} == {""}
    for name in ("decoder.onnx", "baseline_decoder.onnx"):
        counts = layer_nodes(artifact / name)
        assert sorted(counts) == [0, 1, 2, 3]
        assert max(counts.values()) <= 40


def test_no_tensor_is_stored_twice_and_offsets_can_be_mapped(artifact: Path) -> None:
    data = (artifact / "weights.bin").read_bytes()
    places = {place(t) for name in GRAPHS for t in initializers(artifact, name) if t.external_data}
    contents = Counter(data[offset : offset + length] for offset, length in places)
    assert max(contents.values()) == 1
    assert all(offset % PAGE == 0 for offset, _ in places)
    padding = len(data) - sum(length for _, length in places)
    assert padding < PAGE * len(places)


def test_the_decoder_holds_the_originals_bytes_and_no_other_weights(
    artifact: Path, model: Path
) -> None:
    original = load(str(model))
    plan = vtcompress.Plan.load(artifact / "plan.json")
    decoder = compress(original, plan).decoder
    wanted: Counter[bytes] = Counter()
    for name, _ in decoder.named_parameters():
        source, transposed = source_of(name)
        tensor = original.tensors[source]
        array = np.ascontiguousarray((tensor.T if transposed else tensor).numpy())
        if array.nbytes >= LARGE:
            wanted[array.tobytes()] += 1
    data = (artifact / "weights.bin").read_bytes()
    found = Counter(
        data[offset : offset + length]
        for offset, length in (
            place(t) for t in initializers(artifact, "decoder.onnx") if t.external_data
        )
    )
    assert found == wanted


def test_tied_embeddings_are_read_from_one_place(
    llava: Callable[[str], Path], artifact: Path, model: Path
) -> None:
    if model != llava("siglip+qwen2, tied, biases"):
        pytest.skip("this model's embeddings are not tied")
    (embed,) = (place(t) for t in initializers(artifact, "embed.onnx"))
    assert embed in {place(t) for t in initializers(artifact, "decoder.onnx") if t.external_data}


def test_nothing_in_the_artifact_names_a_folder_of_this_machine(
    artifact: Path, model: Path
) -> None:
    for path in artifact.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for folder in (str(model), str(artifact.parent), str(Path(__file__).parent)):
                assert folder.encode() not in content, path


def test_both_checks_pass_and_stand_apart_in_manifest_and_report(artifact: Path) -> None:
    manifest = vtcompress.Artifact.open(artifact).manifest
    assert manifest.fidelity is not None
    assert manifest.loss is not None
    assert manifest.passed
    assert manifest.fidelity.worst_abs.max_abs < 1e-3
    assert manifest.loss.overall.samples == 6
    assert {k.kind for k in manifest.loss.kinds} == {"x", "y"}
    assert manifest.measured is not None
    assert manifest.peak_memory_bytes > 100 * 2**20
    report = (artifact / "report.md").read_text(encoding="utf-8")
    assert "## Check 1: export fidelity" in report
    assert "## Check 2: compression loss" in report


def test_the_runtime_answers_as_the_artifacts_torch_form(
    artifact: Path, model: Path, questions: Path
) -> None:
    from compressor.samples.questions import read_samples

    runtime = vtcompress.Runtime.load(artifact, threads=1)
    manifest = vtcompress.Artifact.open(artifact).manifest
    small = compress(load(str(model)), vtcompress.Plan.load(artifact / "plan.json"))
    reference = vtcompress.Runtime.on_session(
        TorchSession(small), artifact, manifest.model, manifest.picture_form
    )
    for sample in read_samples(questions):
        found = runtime.answer(sample.question, sample.images, max_new_tokens=8)
        wanted = reference.answer(sample.question, sample.images, max_new_tokens=8)
        assert found.token_ids == wanted.token_ids
        assert np.abs(found.first_logits - wanted.first_logits).max() < 1e-3
        pieces = runtime.generate(sample.question, sample.images, max_new_tokens=8)
        assert "".join(pieces) == found.text
    assert runtime.answer("what is this", max_new_tokens=4).token_ids


def test_validate_needs_neither_torch_nor_the_original(artifact: Path) -> None:
    outcome = vtcompress.validate(artifact)
    manifest = vtcompress.Artifact.open(artifact).manifest
    assert outcome.loss is not None
    assert manifest.loss is not None
    assert outcome.loss.overall.exact_match == manifest.loss.overall.exact_match
    assert outcome.loss.overall.kl == pytest.approx(manifest.loss.overall.kl, abs=1e-6)


def test_validate_on_other_data_asks_for_the_original(artifact: Path, tmp_path: Path) -> None:
    from tests.models import make_questions

    with pytest.raises(VtcompressError, match="give `model`"):
        vtcompress.validate(artifact, data=make_questions(tmp_path, count=3, answers=False))


def test_validate_with_the_original_measures_both_checks_anew(
    artifact: Path, model: Path, tmp_path: Path
) -> None:
    from tests.models import make_questions

    other = make_questions(tmp_path, count=3, answers=False)
    outcome = vtcompress.validate(artifact, data=other, model=str(model))
    assert outcome.loss is not None
    assert outcome.loss.overall.samples == 3
    assert outcome.loss.overall.exact_match is None
    assert outcome.fidelity is not None
    assert not outcome.failures


def test_stage_by_stage_gives_the_same_graphs_as_all_at_once(
    artifact: Path, model: Path, questions: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(model, questions)
    profile = vtcompress.calibrate(recipe, tmp_path / "profile.json")
    assert (tmp_path / "profile.png").stat().st_size > 5000
    assert "<svg" in (tmp_path / "profile.svg").read_text(encoding="utf-8")
    plan = vtcompress.plan(recipe, profile)
    vtcompress.compress(recipe, plan, tmp_path / "small", profile=profile)
    vtcompress.export(recipe, tmp_path / "out", compressed=tmp_path / "small", bench_rounds=0)
    kept = (*GRAPHS, "weights.bin", "plan.json", "profile.json", "generation_config.json")
    for name in kept:
        assert (tmp_path / "out" / name).read_bytes() == (artifact / name).read_bytes(), name
    assert vtcompress.inspect(tmp_path / "small")["kind"] == "compressed model"
    assert vtcompress.inspect(tmp_path / "profile.json")["kind"] == "profile"
    assert vtcompress.inspect(artifact)["kind"] == "artifact"
    assert vtcompress.inspect(model)["kind"] == "model"


def test_a_missed_threshold_is_told_and_the_artifact_is_kept(
    llava: Callable[[str], Path], questions: Path, tmp_path: Path
) -> None:
    """Of one model; with the logits of all rows, also where the head is the embedding's."""
    recipe = recipe_for(
        llava("siglip+qwen2, tied, biases"),
        questions,
        **{"validate.loss": {"max_kl": 0.0}, "export.logits": "all"},
    )
    manifest = vtcompress.export(recipe, tmp_path / "out", bench_rounds=0)
    assert not manifest.passed
    assert manifest.loss is not None
    assert "max_kl" in manifest.loss.failures[0]
    assert "FAILED.**" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_float16_graphs_hold_half_the_bytes_and_stay_within_their_limits(
    artifact: Path, model: Path, questions: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(model, questions, **{"export.dtype": "float16"})
    manifest = vtcompress.export(recipe, tmp_path / "out", bench_rounds=0)
    assert manifest.passed, manifest.fidelity
    lengths = {}
    for folder in (artifact, tmp_path / "out"):
        tensors = [t for t in initializers(folder, "decoder.onnx") if t.external_data]
        lengths[folder] = sum(int(np.prod(t.dims)) for t in tensors if len(t.dims) == 2)
        kinds = {t.data_type for t in tensors}
        half = folder != artifact
        assert kinds == {onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT}
    assert len(set(lengths.values())) == 1


def test_a_broken_export_is_caught_by_the_fidelity_check(
    artifact: Path, model: Path, tmp_path: Path
) -> None:
    """Flip weights in a copy: names, shapes and hashes fit again, only the numbers are wrong."""
    broken = tmp_path / "broken"
    shutil.copytree(artifact, broken)
    tensor = next(t for t in initializers(broken, "decoder.onnx") if t.external_data)
    offset, length = place(tensor)
    data = bytearray((broken / "weights.bin").read_bytes())
    values = np.frombuffer(bytes(data[offset : offset + length]), np.float32)
    data[offset : offset + length] = (values * 1.05).astype(np.float32).tobytes()
    (broken / "weights.bin").write_bytes(bytes(data))
    manifest = json.loads((broken / "manifest.json").read_text(encoding="utf-8"))
    from compressor.disk.opening import sha256_of

    manifest["files"]["weights.bin"]["sha256"] = sha256_of(broken / "weights.bin")
    (broken / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    outcome = vtcompress.validate(broken, model=str(model))
    assert outcome.fidelity is not None
    assert len(outcome.fidelity.failures) > 10
    assert any("prefill" in line for line in outcome.failures)


def test_a_profile_of_another_model_is_refused_and_nothing_is_written(
    artifact: Path, llava: Callable[[str], Path], questions: Path, tmp_path: Path
) -> None:
    foreign = vtcompress.Profile.load(artifact / "profile.json")
    recipe = recipe_for(llava("clip+mistral, all heads"), questions)
    with pytest.raises(VtcompressError, match="measured on another model"):
        vtcompress.export(recipe, tmp_path / "out", profile=foreign, bench_rounds=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
def test_turned_weights_are_written_in_order_and_every_bit_of_them(dtype: str) -> None:
    numbers = 9 * np.random.default_rng(0).random((3, 4, 6))
    array = numbers.astype(np.dtype(dtype) if dtype != "bfloat16" else ml_dtypes.bfloat16)
    for turned in (array, array.transpose(2, 0, 1), array[0].T, array[:, :, ::2], array[:0].T):
        ordered = _in_order(turned)
        assert ordered.flags.c_contiguous
        assert ordered.tobytes() == turned.tobytes()
