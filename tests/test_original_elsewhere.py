"""Where and in which dtype the original runs: on the CPU in float32 unless asked otherwise."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vtcompress
from compressor.calibration.run import calibrate
from compressor.errors import BackendError, RecipeError
from compressor.families import LoadedModel, load
from compressor.methods import MEASURES
from compressor.profile import Profile
from compressor.samples.prompts import embed, encode
from compressor.samples.questions import read_samples
from export.backends.torch_device import check_device, whole_float32
from tests import facts
from vtcompress.cli.main import run_command

UNGATED = tuple(name for name in MEASURES if name != "gate_margin")


@pytest.fixture(scope="module")
def folder(llava: Callable[[str], Path]) -> str:
    return str(llava("clip+llama"))


@pytest.fixture(scope="module")
def model(folder: str) -> LoadedModel:
    return load(folder)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CUDA", "", "cuda:-1", "1", "cpu:0"])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(BackendError, match=r"^`device`: '.*' is no device; give cpu, cuda, cuda:1"):
        check_device(name)


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)


def test_a_gpu_that_is_not_here_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    monkeypatch.setattr("torch.version.cuda", None)
    with pytest.raises(
        BackendError, match=r"cuda: torch sees no GPU here; install torch's build with CU"
    ):
        check_device("cuda")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    with pytest.raises(
        BackendError, match="look at NVIDIA's driver with `vtcompress doctor`, or give cpu"
    ):
        check_device("cuda:1")
    with_gpus(monkeypatch, 1)
    assert check_device("cuda") == "cuda"
    assert check_device("cuda:0") == "cuda:0"
    with pytest.raises(BackendError, match="cuda:1: torch sees 1 GPU here; give cuda:0, or cpu"):
        check_device("cuda:1")
    with_gpus(monkeypatch, 2)
    with pytest.raises(BackendError, match="torch sees 2 GPUs here; give cuda:0 to cuda:1, or cpu"):
        check_device("cuda:2")


@pytest.mark.parametrize("command", ["calibrate", "train-gates"])
def test_commands_refuse_a_missing_gpu_before_anything_is_read(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_gpus(monkeypatch, 0)
    monkeypatch.chdir(tmp_path)
    given = ["--recipe=dyvte", "--model=none", "--data=none.jsonl", "--device=cuda"]
    assert run_command([command, *given]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --device: cuda: torch sees no GPU here; ")
    assert list(tmp_path.iterdir()) == []


def test_convolutions_on_a_gpu_are_not_rounded_and_the_setting_comes_back() -> None:
    before = torch.backends.cudnn.allow_tf32
    with whole_float32("cuda"):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 is before
    with whole_float32("cpu"):
        assert torch.backends.cudnn.allow_tf32 is before


def test_the_rows_of_a_prompt_lie_where_the_weights_do(model: LoadedModel, questions: Path) -> None:
    """The meta device stands for a GPU: nothing is computed, and it refuses most mixtures."""
    sample = read_samples(questions)[0]
    prompt = encode(model.processor, sample, model.facts)
    here = embed(model, prompt)
    elsewhere = dataclasses.replace(
        model,
        vision=SimpleNamespace(
            chooses=False,
            features=lambda pixels, *_: (_meta(pixels, (1, model.facts.tile_rows, 64)),),
        ),
        tensors={name: tensor.to("meta") for name, tensor in model.tensors.items()},
    )
    rows = embed(elsewhere, prompt)
    for name in ("text_embeds", "visual_index", "text_index"):
        assert getattr(rows, name).is_meta, name
        assert getattr(rows, name).shape == getattr(here, name).shape


def _meta(pixels: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    assert pixels.is_meta
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_measure_is_taken_in_sixteen_bits_near_float32(
    dtype: str, folder: str, model: LoadedModel, questions: Path, tmp_path: Path
) -> None:
    samples = read_samples(questions)[:2]
    whole = calibrate(model, facts.task(model, samples, UNGATED), tmp_path / "whole.json")
    small = load(folder, dtype=dtype)  # type: ignore[arg-type]
    assert {t.dtype for t in small.tensors.values()} == {getattr(torch, dtype)}
    assert small.digest == model.digest
    found = calibrate(
        small, facts.task(small, samples, UNGATED, dtype=dtype), tmp_path / "small.json"
    )
    assert (found.dtype, found.profile_format) == (dtype, 2)
    assert Profile.load(tmp_path / "small.json") == found
    wanted, near = (torch.tensor(profile.mean("neuron_activity")) for profile in (whole, found))
    off = float((near - wanted).abs().max() / wanted.max())
    assert 0 < off < 0.02  # bfloat16 has 8 bits


def test_the_recipe_says_the_dtype_and_export_says_that_it_does_not_heed_it(
    folder: str, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--recipe=shortv", f"--model={folder}", f"--data={questions}", "--samples=2"]
    given.append("--set=model.dtype=bfloat16")
    path = tmp_path / "p.json"
    assert run_command(["calibrate", *given, f"--output={path}"]) == 0
    assert "note: in bfloat16 the rewritten decoder is not compared with the original" in (
        capsys.readouterr().err
    )
    assert Profile.load(path).dtype == "bfloat16"
    plan = tmp_path / "plan.json"
    assert run_command(["plan", *given, f"--profile={path}", f"--output={plan}"]) == 0
    small = ["compress", *given, f"--plan={plan}", f"--output={tmp_path / 'small'}"]
    assert run_command(small) == 0
    assert "note: model.dtype: bfloat16: has no effect: the original runs in float32" in (
        capsys.readouterr().err
    )
    with pytest.raises(RecipeError, match=r"model\.dtype: .*float32, bfloat16 or float16"):
        vtcompress.load_recipe("shortv").override({"model.dtype": "float64"})


def test_calibration_on_a_gpu_gives_the_cpus_values(
    folder: str, model: LoadedModel, questions: Path, tmp_path: Path
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here; `python -m tests.gpu.ladder` asks the same of one")
    samples = read_samples(questions)[:2]
    wanted = calibrate(model, facts.task(model, samples, UNGATED), tmp_path / "cpu.json")
    there = load(folder, device="cuda")
    found = calibrate(there, facts.task(there, samples, UNGATED), tmp_path / "gpu.json")
    for name in ("layer_contribution", "exit_kl"):
        one, two = (torch.tensor(profile.mean(name)) for profile in (wanted, found))
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-6)
