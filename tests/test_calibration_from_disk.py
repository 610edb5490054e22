"""A calibration that reads each layer when it runs measures what one in memory does, to the bit."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import vtcompress
from compressor.calibration.portions import ENDING
from compressor.calibration.run import calibrate
from compressor.decoder import decoder_from
from compressor.decoder.elsewhere import LayersElsewhere, read_layers_when_run
from compressor.errors import ModelError, RecipeError, VtcompressError
from compressor.families import LoadedModel, load
from compressor.families.stand_ins import StoredTensor, is_stand_in
from compressor.methods import MEASURES
from compressor.plan.edits import identity_plan
from compressor.profile import Profile
from compressor.samples.questions import read_samples
from tests import facts
from tests.models import Variant, make_llava
from tests.test_calibration import StopAfter
from vtcompress.cli.main import run_command

ALL = tuple(name for name in MEASURES if name != "gate_margin")  # gates have a test of their own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights are in float16 there, and the head is of its own."""
    made = tmp_path_factory.mktemp("model") / "model"
    make_llava(made, Variant(layers=3))
    from transformers import LlavaForConditionalGeneration

    LlavaForConditionalGeneration.from_pretrained(made, dtype=torch.float16).save_pretrained(made)
    return made


def on_disk(folder: Path) -> LoadedModel:
    model = load(str(folder), outline=True)
    assert any(name.startswith("layers.") for name in model.stored)
    return model.with_ends()


@pytest.fixture(scope="module")
def in_memory(folder: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The profile of all measures, on two questions, of the model in memory."""
    model, path = load(str(folder)), tmp_path_factory.mktemp("profile") / "memory.json"
    calibrate(model, facts.task(model, read_samples(questions)[:2], ALL), path)
    return path.read_bytes()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each tensor was read from its file."""
    found: Counter[str] = Counter()
    really = StoredTensor.read

    def counted(self: StoredTensor) -> torch.Tensor:
        found[self.name] += 1
        return really(self)

    monkeypatch.setattr(StoredTensor, "read", counted)
    return found


@pytest.mark.parametrize(
    ("disk_bytes", "times"), [(None, 1), (1, 2)], ids=["all together", "one by one"]
)
def test_all_measures_are_those_of_a_model_in_memory_and_each_portion_reads_a_layer_once(
    folder: Path,
    questions: Path,
    tmp_path: Path,
    in_memory: bytes,
    read: Counter[str],
    disk_bytes: int | None,
    times: int,
) -> None:
    model, path = on_disk(folder), tmp_path / "disk.json"
    read.clear()
    task = facts.task(model, read_samples(questions)[:2], ALL)
    calibrate(model, task, path, disk_bytes=disk_bytes)
    assert path.read_bytes() == in_memory
    assert set(read.values()) == {times}
    assert len(read) == 3 * 7  # matrices of layers
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("disk_bytes", [None, 1], ids=["all together", "one by one"])
def test_a_killed_run_goes_on_from_its_states_to_the_same_bits(
    folder: Path,
    questions: Path,
    tmp_path: Path,
    in_memory: bytes,
    read: Counter[str],
    disk_bytes: int | None,
) -> None:
    model, path = on_disk(folder), tmp_path / "disk.json"
    task = facts.task(model, read_samples(questions)[:2], ALL)
    kills = 0
    read.clear()
    while True:
        try:  # each run gets two steps further
            calibrate(model, task, path, disk_bytes=disk_bytes, progress=StopAfter(2 * kills + 1))
        except KeyboardInterrupt:
            kills += 1
            assert (tmp_path / f"disk.json{ENDING}").is_dir()
        else:
            break
    assert kills >= 3
    assert path.read_bytes() == in_memory
    # A layer may be read once more by the run that goes on in the middle of its questions.
    assert max(read.values()) <= 3
    assert list(tmp_path.iterdir()) == [path]


def test_states_of_another_calibration_are_not_gone_on_with_and_other_folders_left_alone(
    folder: Path, questions: Path, tmp_path: Path, in_memory: bytes
) -> None:
    model, path = on_disk(folder), tmp_path / "disk.json"
    states, samples = tmp_path / f"disk.json{ENDING}", read_samples(questions)[:2]
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, facts.task(model, samples, ("exit_kl",)), path, progress=StopAfter(5))
    assert any(one.stat().st_size > 1000 for one in states.iterdir())
    calibrate(model, facts.task(model, samples, ALL), path)
    assert path.read_bytes() == in_memory
    states.mkdir()
    (states / "notes").write_text("mine")
    with pytest.raises(VtcompressError, match=r"holds something else: move it away"):
        calibrate(model, facts.task(model, samples, ALL), path, anew=True)
    assert (states / "notes").read_text() == "mine"


def test_a_disk_without_room_for_one_question_is_refused_before_a_layer_is_read(
    folder: Path,
    questions: Path,
    tmp_path: Path,
    read: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, path = on_disk(folder), tmp_path / "disk.json"
    monkeypatch.setattr("compressor.calibration.portions.free_bytes", lambda _: 1000)
    read.clear()
    with pytest.raises(VtcompressError, match=r"questions.*: states of this question take up to"):
        calibrate(model, facts.task(model, read_samples(questions)[:2], ALL), path)
    assert not read
    assert list(tmp_path.iterdir()) == []


def test_one_layer_is_in_memory_at_a_time(folder: Path) -> None:
    model = on_disk(folder)
    decoder = decoder_from(identity_plan(model.facts, model.digest), model.tensors)
    read_layers_when_run(decoder, model.stored)
    assert isinstance(decoder.layers, LayersElsewhere)

    def held() -> list[int]:
        named = decoder.named_parameters()
        return sorted({int(n.split(".")[1]) for n, p in named if n.startswith("layers.") and p.ndim > 1
                       and not is_stand_in(p)})  # fmt: skip

    assert held() == []
    for index, layer in enumerate(decoder.layers):
        assert held() == [index]
        assert decoder.layers[index] is layer
    assert decoder.layers[-1] is layer
    decoder.layers[0]
    assert held() == [0]
    assert all(is_stand_in(p) for p in layer.parameters() if p.ndim > 1)  # its results are NaN now


def test_the_command_streams_goes_on_and_says_what_was_not_compared(
    folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = vtcompress.load_recipe("shortv").override(
        {"model.id": str(folder), "calibrate.data": questions}
    )
    vtcompress.calibrate(recipe, tmp_path / "memory.json")
    with pytest.raises(KeyboardInterrupt):
        vtcompress.calibrate(recipe, tmp_path / "profile.json", stream=True, progress=StopAfter(2))
    assert run_command([
        "calibrate", "--recipe=shortv", f"--model={folder}", f"--data={questions}", "--stream",
        f"--output={tmp_path / 'profile.json'}",
    ]) == 0  # fmt: skip
    assert "the rewritten model is not compared with the original" in capsys.readouterr().err
    assert (tmp_path / "profile.json").read_bytes() == (tmp_path / "memory.json").read_bytes()


def test_the_dtype_is_the_recipes(folder: Path, questions: Path, tmp_path: Path) -> None:
    changes = {"model.id": str(folder), "model.dtype": "bfloat16", "calibrate.data": questions}
    recipe = vtcompress.load_recipe("shortv").override({**changes, "calibrate.samples": 2})
    for stream in (False, True):
        vtcompress.calibrate(recipe, tmp_path / f"{stream}.json", stream=stream)
    assert (tmp_path / "True.json").read_bytes() == (tmp_path / "False.json").read_bytes()
    floats = vtcompress.calibrate(recipe.override({"model.dtype": "float32"}), tmp_path / "f.json")
    bfloat16 = Profile.load(tmp_path / "True.json")
    assert floats.mean("layer_contribution") != bfloat16.mean("layer_contribution")


def test_a_device_beside_streaming_is_refused_before_work(
    folder: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    recipe = vtcompress.load_recipe("vtw").override(
        {"model.id": str(folder), "calibrate.data": questions}
    )
    with pytest.raises(RecipeError, match=r"stream: .*leave the device \(cuda\) out"):
        vtcompress.calibrate(recipe, tmp_path / "p.json", stream=True, device="cuda")
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_is_cut_off_meanwhile_ends_the_run_by_name(
    llava: Callable[[str], Path], questions: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(llava("clip+llama"), tmp_path / "model")
    model = on_disk(copy)
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()  # the vision tower is mapped
    weights.write_bytes(whole[:-1000])
    task = facts.task(model, read_samples(questions)[:1], ("layer_contribution",))
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        calibrate(model, task, tmp_path / "profile.json")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
