"""Exits from recipe to artifact: gates and layers, exported, run, baked, and refused before any work."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vtcompress
from compressor.calibration.run import calibrate
from compressor.decoder.weights import load_gates
from compressor.disk.gate_file import GateFile
from compressor.errors import DataError, GatesError, PlanError, ProfileError, VtcompressError
from compressor.families import load
from compressor.samples.questions import Sample, read_samples
from export.artifact.artifact import Artifact
from export.artifact.onnx_header import read_tensors
from export.runtime.runtime import Runtime
from export.runtime.sampling import AnswerOptions
from tests.facts import task
from tests.runtimes import exported


@pytest.fixture(scope="module")
def model_folder(llava: Callable[[str], Path]) -> Path:
    return llava("clip+llama")


@pytest.fixture(scope="module")
def samples(questions: Path) -> tuple[Sample, ...]:
    return read_samples(questions)


@pytest.fixture(scope="module")
def gate_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gates for the tiny model, as the authors' code names them; drawn, not trained."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in range(3):
        name = f"model.visual_gates_router.{layer}"
        tensors[f"{name}.w1.weight"] = torch.randn(8, 128, generator=generator)
        tensors[f"{name}.w2.weight"] = torch.randn(2, 8, generator=generator)
    path = tmp_path_factory.mktemp("gates") / "gates.safetensors"
    save_file(tensors, path)
    return path


def dyvte(path: Path | None, **more: Any) -> list[dict[str, Any]]:
    given = {} if path is None else {"gates": str(path)}
    return [{"dyvte": {**given, **more}}]


@pytest.fixture(scope="module")
def artifacts(
    model_folder: Path, gate_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gated")
    return {
        mode: exported(model_folder, folder / mode, compress=dyvte(gate_path, exit=mode))
        for mode in ("dynamic", "staged")
    }


def test_artifacts_with_gates_are_faithful_and_staged_ones_answer_as_dynamic_ones(
    artifacts: dict[str, Path], samples: tuple[Sample, ...]
) -> None:
    asked = [(s.question, s.images) for s in samples] + [("what is this", ())]
    answers = {}
    for mode, folder in artifacts.items():
        fidelity = Artifact.open(folder).manifest.fidelity
        assert fidelity is not None
        assert fidelity.passed
        runtime = Runtime.load(folder, threads=1)
        answers[mode] = {
            place: reply.token_ids for place, reply in runtime.answers(asked, max_new_tokens=6)
        }
    assert answers["dynamic"] == answers["staged"]
    assert len(answers["dynamic"]) == len(asked)


@pytest.mark.parametrize("mode", ["dynamic", "staged"])
def test_openvino_answers_as_onnx_runtime_does(
    mode: str, artifacts: dict[str, Path], samples: tuple[Sample, ...]
) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    sides = [
        Runtime.load(artifacts[mode], threads=1, backend=backend)
        for backend in ("onnxruntime", "openvino")
    ]
    for sample in samples:
        one, other = (
            side.answer(sample.question, sample.images, max_new_tokens=6) for side in sides
        )
        assert one.token_ids == other.token_ids


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("mode", ["dynamic", "staged"])
def test_known_answers_reach_behind_gates_and_name_the_layer_of_a_stage(
    mode: str, backend: str, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip(backend)
    folder = Path(shutil.copytree(artifacts[mode], tmp_path / mode))
    report = vtcompress.selftest(folder, backend=backend, threads=1, verify=False, locate=True)
    assert report.passed, report.failures
    assert report.located is not None
    assert report.located.line.startswith("states part nowhere: of made-up rows those behind all 4")
    # Of the last layer: the gates in front of it decide as they did.
    graph = "decoder.onnx" if mode == "dynamic" else "decoder_stage_3.onnx"
    tensors = read_tensors((folder / graph).read_bytes())
    weight = next(t for t in tensors if t.name.endswith("layers.3.output.weight"))
    content = bytearray((folder / "weights.bin").read_bytes())
    content[weight.offset + 3] ^= 0xFF
    (folder / "weights.bin").write_bytes(content)
    report = vtcompress.selftest(folder, backend=backend, threads=1, verify=False, locate=True)
    assert report.first_wrong == "decoder"
    assert report.located is not None
    assert report.located.layer == 3


def test_stages_store_weights_once(artifacts: dict[str, Path]) -> None:
    sizes = {mode: (folder / "weights.bin").stat().st_size for mode, folder in artifacts.items()}
    assert sizes["dynamic"] == sizes["staged"]
    assert len(list(artifacts["staged"].glob("decoder_stage_*.onnx"))) == 4


def test_gated_runtimes_keep_no_picture_and_converse(
    artifacts: dict[str, Path], samples: tuple[Sample, ...]
) -> None:
    runtime = Runtime.load(artifacts["staged"], threads=1)
    pictures = samples[0].images
    prefix = runtime.prefill_image(pictures)
    assert prefix.rows == 0
    asked = "what is this"
    assert prefix.answer(asked).token_ids == runtime.answer(asked, pictures).token_ids
    conversation, seen = runtime.chat(), []
    for question in (asked, "is it red"):
        seen += pictures
        answer = conversation.ask(question, pictures, max_new_tokens=3)
        text = "".join(answer)
        ids = runtime.encode(conversation.messages[:-1], runtime.look(seen))
        whole = runtime.replies([runtime.prompt_of(ids, runtime.look(seen))], AnswerOptions(3))[0]
        assert (answer.token_ids, text) == (whole.token_ids, whole.text)


def test_a_baked_exit_is_the_quantile_of_where_gates_fire(
    model_folder: Path,
    gate_path: Path,
    samples: tuple[Sample, ...],
    tmp_path: Path,
    questions: Path,
) -> None:
    model = load(str(model_folder))
    gates = load_gates(GateFile.read(gate_path), (0, 1, 2))
    asked = task(
        model, samples, ("gate_margin",), gate_layers=gates.layers, gates_digest=gates.digest
    )
    profile = calibrate(model, asked, tmp_path / "p.json", gates=gates)
    firsts = sorted(
        next((i for i, m in enumerate(s.gate_margin) if m > 0), 3) for s in profile.samples
    )
    assert firsts[-1] < 3, "no gate fires in some prompts: choose other gates for this test"
    values = {"model.id": str(model_folder), "calibrate.data": questions}
    for quantile in (0.5, 1.0):
        recipe = vtcompress.load_recipe("identity").override(
            values | {"compress": dyvte(gate_path, exit="baked", quantile=quantile)}
        )
        plan = vtcompress.plan(recipe, profile)
        wanted = firsts[int(np.ceil(quantile * len(firsts))) - 1]
        assert plan.exit_layer == wanted + 1
        assert plan.gates is None
    dynamic = vtcompress.load_recipe("identity").override(values | {"compress": dyvte(gate_path)})
    counted = vtcompress.plan(dynamic, profile).gates
    assert counted is not None
    assert sum(counted.fired) == len(samples)


def refused(recipe: dict[str, Any], error: type[Exception]) -> Iterator[str]:
    with pytest.raises(error) as found:
        vtcompress.plan(vtcompress.load_recipe("identity").override(recipe))
    yield from str(found.value).splitlines()


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (
            {"visual_exit": {"layer": 4}},
            "compress[0].visual_exit.layer: 4 is outside 1..3; the model has 4 layers",
        ),
        (
            {"visual_exit": {"max_kl": 0.1, "first_layer": 9}},
            "compress[0].visual_exit.first_layer: 9 is outside 1..3; the model has 4 layers",
        ),
        (
            {"visual_exit": {"max_kl": 0.1}},
            "compress[0].visual_exit: chooses the exit by its KL, but there is no profile; run "
            "`vtcompress calibrate` first, or give the layer",
        ),
        (
            {"dyvte": {"gates": "x.safetensors", "candidates": [1, 3]}},
            "compress[0].dyvte.candidates: 3 is outside 0..2; the model has 4 layers",
        ),
    ],
)
def test_layers_that_the_model_does_not_have_are_refused(
    model_folder: Path, method: dict[str, Any], line: str
) -> None:
    lines = list(refused({"model.id": str(model_folder), "compress": [method]}, PlanError))
    assert lines == [line]


def test_gates_that_do_not_fit_are_refused_before_weights_are_loaded(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("compressor.families.load", never)
    cases: dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]] = {
        "layer 2 out of candidates": ({}, {}),
        "trained on another model": ({}, {"model_digest": "f" * 64}),
        "shape [8, 64], this model (hidden 64)": ({}, {}),
        "visual_gates_router.1.w1.weight: NaN or infinite values": ({}, {}),
    }
    good = {f"visual_gates_router.{i}.{p}.weight": t for i in range(3)
            for p, t in (("w1", torch.ones(8, 128)), ("w2", torch.ones(2, 8)))}  # fmt: skip
    cases["layer 2 out of candidates"][0].update(
        {k: v for k, v in good.items() if ".2.w1." not in k}
    )
    cases["trained on another model"][0].update(good)
    cases["shape [8, 64], this model (hidden 64)"][0].update(
        good | {"visual_gates_router.1.w1.weight": torch.ones(8, 64)}
    )
    cases["visual_gates_router.1.w1.weight: NaN or infinite values"][0].update(
        good | {"visual_gates_router.1.w1.weight": torch.full((8, 128), torch.inf)}
    )
    for number, (words, (tensors, metadata)) in enumerate(cases.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path, metadata)
        recipe = vtcompress.load_recipe("identity").override(
            {"model.id": str(model_folder), "compress": dyvte(path)}
        )
        with pytest.raises(GatesError) as found:
            vtcompress.export(recipe, tmp_path / "out")
        assert words in str(found.value)
        assert str(path) in str(found.value)
    for path, words in (
        (None, "names no gates; give `gates`"),
        (tmp_path / "absent.safetensors", "no such file"),
        (tmp_path / ("x" * 300), "choose a shorter one"),
        (model_folder / "config.json", "no readable safetensors file"),
        (model_folder / "model.safetensors", "no gate in it"),
    ):
        recipe = vtcompress.load_recipe("identity").override(
            {"model.id": str(model_folder), "compress": dyvte(path)}
        )
        with pytest.raises(VtcompressError, match=words):
            vtcompress.export(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_calibration_data_without_images_is_refused_before_weights_are_loaded(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.families.load", lambda *_, **__: pytest.fail("loaded"))
    data = tmp_path / "blind.jsonl"
    data.write_text('{"question": "what is it"}\n', encoding="utf-8")
    recipe = vtcompress.load_recipe("identity").override(
        {
            "model.id": str(model_folder),
            "calibrate.data": data,
            "compress": [{"visual_exit": {"max_kl": 0.1, "first_layer": 1}}],
        }
    )
    for run in (vtcompress.export, vtcompress.calibrate):
        with pytest.raises(DataError, match="has no image; calibration needs one"):
            run(recipe, tmp_path / "out")


def test_a_search_finds_the_smallest_layer_within_the_bound_or_names_the_best(
    model_folder: Path, questions: Path, tmp_path: Path
) -> None:
    def recipe(**exit_at: Any) -> vtcompress.Recipe:
        return vtcompress.load_recipe("identity").override(
            {
                "model.id": str(model_folder),
                "calibrate.data": questions,
                "compress": [{"visual_exit": exit_at}],
            }
        )

    profile = vtcompress.calibrate(recipe(max_kl=1e9, first_layer=1), tmp_path / "p.json")
    assert profile.measures == ("exit_kl",)
    scores = profile.mean("exit_kl")
    assert vtcompress.plan(recipe(max_kl=1e9, first_layer=1), profile).exit_layer == 1
    assert vtcompress.plan(recipe(max_kl=1e9, first_layer=3), profile).exit_layer == 3
    bound = sorted(scores[1:])[1]
    wanted = next(k for k in (1, 2, 3) if scores[k] <= bound)
    assert vtcompress.plan(recipe(max_kl=bound, first_layer=1), profile).exit_layer == wanted
    best = min((1, 2, 3), key=lambda k: scores[k])
    with pytest.raises(PlanError, match=rf"the best is layer {best} with a mean KL of"):
        vtcompress.plan(recipe(max_kl=0.0, first_layer=1), profile)
    with pytest.raises(PlanError, match=r"first_layer: 5 is outside 1\.\.3"):
        vtcompress.plan(recipe(max_kl=1e9), profile)
    slow = vtcompress.plan(recipe(speedup=1.05), profile)
    assert slow.exit_layer == 3
    with pytest.raises(PlanError, match="is out of reach; leaving before layer 1 gives"):
        vtcompress.plan(recipe(speedup=50.0), profile)
    with pytest.raises(ProfileError, match="measured without layer_contribution"):
        vtcompress.calibrate(
            vtcompress.load_recipe("shortv").override(
                {"model.id": str(model_folder), "calibrate.data": questions}
            ),
            tmp_path / "p.json",
        )
