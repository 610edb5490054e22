"""Stages whose models run on a GPU give what they give on the CPU; see `tests.pretend_gpu` for the GPU."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vtcompress
from compressor.decoder import decoder_from
from compressor.decoder.one_prompt import greedy_tokens
from compressor.families import describe, load, moved
from compressor.generation.settings import PLAIN
from compressor.plan.edits import identity_plan
from compressor.samples.prompts import embed, encode
from compressor.samples.questions import read_samples
from export.backends.torch_device import device_for, room_on_gpus
from export.checks.original import measure_original
from tests.pretend_gpu import GIB, pretend_gpus
from vtcompress.cli.main import run_command
from vtcompress.console import shown
from vtcompress.stages.inputs import load_model


@pytest.fixture(scope="module")
def folder(llava: Callable[[str], Path]) -> str:
    return str(llava("clip+llama"))


def test_the_pretended_gpu_refuses_what_a_gpu_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    here = torch.arange(6.0).reshape(2, 3)
    with pretend_gpus(monkeypatch, GIB, GIB) as gpus:
        there = here.to("cuda")
        assert there.device == torch.device("cuda:0")
        assert here.device == torch.device("cpu")
        assert (there * 2).T.device == there.device
        for other in (here, here.to("cuda:1")):
            with pytest.raises(RuntimeError, match="one device"):
                there + other
        with pytest.raises(TypeError, match="cuda"):
            there.numpy()
        assert ((there @ there.T).cpu().numpy() == (here @ here.T).numpy()).all()
        assert torch.zeros(2, device=there.device).device == there.device
        assert gpus.ran == {"cuda:0"}


def test_the_original_answers_on_a_gpu_as_on_the_cpu_and_comes_back(
    folder: str, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = read_samples(questions)[:3]
    model = load(folder)
    wanted = measure_original(model, samples, 4)
    with pretend_gpus(monkeypatch, GIB) as gpus:
        there = moved(model, "cuda")
        assert {str(t.device) for t in there.tensors.values()} == {"cuda:0"}
        found = measure_original(there, samples, 4)
        assert gpus.ran == {"cuda:0"}
        back = moved(there, "cpu")
        assert {str(t.device) for t in back.tensors.values()} == {"cpu"}
    assert found.answers == wanted.answers
    assert np.array_equal(found.logits, wanted.logits)


def test_a_prompt_is_gone_on_with_on_a_gpu_as_on_the_cpu(
    folder: str, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folder)
    prompt = encode(model.processor, read_samples(questions)[0], model.facts)

    @torch.inference_mode()
    def answer() -> list[int]:
        decoder = decoder_from(identity_plan(model.facts, model.digest), model.tensors)
        rows = embed(model, prompt)
        given = greedy_tokens(decoder, model.embedding, rows, prompt.input_ids, PLAIN, ())
        return list(islice(given, 4))

    wanted = answer()
    with pretend_gpus(monkeypatch, GIB) as gpus:
        model = moved(model, "cuda")
        assert answer() == wanted
        assert gpus.ran == {"cuda:0"}


def test_gpus_are_chosen_by_what_they_have_free(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pretend_gpus(monkeypatch):
        assert device_for(1, room_on_gpus()) == "cpu"
    with pretend_gpus(monkeypatch, 10, 100):
        assert room_on_gpus() == {"cuda:1": 70, "cuda:0": 7}
        assert device_for(70, room_on_gpus()) == "cuda:1"
        assert device_for(71, room_on_gpus()) == "cpu"
    with pretend_gpus(monkeypatch, 10, 100):
        tells = torch.cuda.mem_get_info

        def filled(number: int) -> tuple[int, int]:
            if number == 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return tells(number)

        monkeypatch.setattr("torch.cuda.mem_get_info", filled)
        assert room_on_gpus() == {"cuda:0": 7, "cuda:1": 0}
    recipe = vtcompress.load_recipe("identity").override({"model.id": folder})
    with pretend_gpus(monkeypatch, 10, GIB):
        model = load_model(recipe, shown(True), device="auto")
        assert str(model.embedding.device) == "cuda:1"
    assert "device: cuda:1 (0.0 GB of weights)" in capsys.readouterr().err
    with pretend_gpus(monkeypatch):
        assert str(load_model(recipe, shown(True), device="auto").embedding.device) == "cpu"
    told = capsys.readouterr().err
    assert "device: cpu (0.0 GB of weights; torch sees no GPU here; " in told


def test_an_export_on_a_gpu_is_that_of_the_cpu(
    tiny_artifact: Path,
    tiny_model: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {"validate.data": questions, "validate.max_new_tokens": 4}
    values |= {"model.id": str(tiny_model), "validate.keep_pictures": "all"}
    recipe = vtcompress.load_recipe("identity").override(values)
    before = vtcompress.Artifact.open(tiny_artifact).manifest
    with pretend_gpus(monkeypatch, GIB) as gpus:
        found = vtcompress.export(recipe, tmp_path / "out", bench_rounds=0, device="cuda")
    assert gpus.sent[0] == "cuda:0"
    assert "cpu" in gpus.sent  # before graphs are made
    assert gpus.ran == {"cuda:0"}
    assert found.loss == before.loss
    assert found.rewrite == before.rewrite
    assert found.fidelity == before.fidelity
    for name, entry in before.files.items():
        if name.endswith((".bin", ".onnx")) or name.startswith("stored"):
            assert found.files[name] == entry, name


def test_validation_with_the_original_on_a_gpu_finds_the_same(
    tiny_artifact: Path, tiny_model: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"model": str(tiny_model), "data": questions}
    before = vtcompress.validate(tiny_artifact, **given)
    with pretend_gpus(monkeypatch, GIB) as gpus:
        found = vtcompress.validate(tiny_artifact, **given, device="cuda:0")
    assert found == before
    assert gpus.ran == {"cuda:0"}
    with pytest.raises(vtcompress.VtcompressError, match="device: is read with the original alone"):
        vtcompress.validate(tiny_artifact, device="auto")


def test_a_sweep_on_a_gpu_finds_the_same(
    tiny_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that are frozen, rows that are chosen by scores, heads and neurons of some layers, routers."""
    dims = describe(str(tiny_model)).decoder
    router = {"router.weight": torch.full((1, dims.hidden), 0.1)}
    save_file(router, tmp_path / "routers.safetensors")
    values = {"model.id": str(tiny_model), "calibrate.data": questions, "calibrate.samples": 2}
    values |= {"validate.data": questions, "validate.samples": 2, "validate.max_new_tokens": 2}
    mod = [{"mod": {"routers": tmp_path / "routers.safetensors", "layers": [0], "keep": 0.5}}]
    recipes = [
        *(vtcompress.load_recipe(name).override(values) for name in ("shortv", "gprune", "fastv")),
        vtcompress.load_recipe("identity").override(values | {"compress": mod}),
    ]
    over = {"compress.fastv.layer": [1]}
    vtcompress.sweep(recipes, tmp_path / "cpu", over=over, measure=False)
    with pretend_gpus(monkeypatch, GIB) as gpus:
        vtcompress.sweep(recipes, tmp_path / "gpu", over=over, measure=False, device="auto")
    assert gpus.ran == {"cuda:0"}
    for name in ("sweep.json", "profile.json"):
        assert (tmp_path / "gpu" / name).read_bytes() == (tmp_path / "cpu" / name).read_bytes()


def test_a_search_on_a_gpu_finds_the_same(
    folder: str, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"model.id": folder, "calibrate.data": questions, "validate.max_new_tokens": 2}
    values |= {"compress.auto.speedup": 1.3, "compress.auto.use": ["skip", "visual_exit"]}
    recipe = vtcompress.load_recipe("auto").override(values)
    wanted = vtcompress.search(recipe, tmp_path / "cpu")
    with pretend_gpus(monkeypatch, GIB) as gpus:
        found = vtcompress.search(recipe, tmp_path / "gpu", device="cuda")
    assert gpus.ran == {"cuda:0"}
    same = {"seconds": 0.0, "files": {}}
    assert found.model_copy(update=same) == wanted.model_copy(update=same)


@pytest.mark.parametrize("command", ["export", "search", "sweep", "validate"])
def test_a_gpu_that_is_missing_is_told_before_anything_is_read(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    given = ["--recipe=shortv", "--model=none", "--output=out"]
    if command == "validate":
        given = ["none", "--model=none"]
    monkeypatch.chdir(tmp_path)
    assert run_command([command, *given, "--device=cuda"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --device: cuda: torch sees no GPU here; ")
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_a_gpu_is_another_option_now(
    tiny_artifact: Path, vt: Callable[..., tuple[int, str, str]]
) -> None:
    for more in ((), ("--backend", "openvino")):
        code, _, err = vt("validate", tiny_artifact, *more, "--device", 1)
        assert code == 1
        assert "error: --device: '1' is no device; give cpu, cuda, cuda:1 for the second" in err
        assert err.count("\n") == 1
        assert "the number of a backend's GPU is --gpu" in err
    code, _, err = vt("validate", tiny_artifact, "--backend=openvino", "--device=auto")
    assert code == 2
    assert "--backend needs no original" in err


def test_streaming_beside_a_device_is_refused(
    tiny_model: Path, tmp_path: Path, vt: Callable[..., tuple[int, str, str]]
) -> None:
    given = ("--recipe=identity", f"--model={tiny_model}", f"--output={tmp_path / 'out'}")
    code, _, err = vt("export", *given, "--stream", "--device=auto")
    assert code == 1
    assert (
        "error: stream: layers are read into the CPU's memory: leave the device (auto) out" in err
    )
    assert list(tmp_path.iterdir()) == []
