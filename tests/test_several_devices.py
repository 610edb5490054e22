"""An original that no GPU takes lies over several and the CPU's memory, and gives what it gives on the CPU.

GPUs are pretended, see `tests.pretend_gpu`; accelerate is the real one.
"""

import importlib.util
import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vtcompress
from compressor.calibration.run import calibrate
from compressor.families import LoadedModel, device_map_of, laid_out, load, moved
from compressor.families.stand_ins import HeldTensor, is_stand_in
from compressor.methods import MEASURES
from compressor.profile import Profile
from compressor.samples.questions import read_samples
from export.backends.torch_device import MOST_OF_A_GPU, room_on_gpus
from export.checks.original import measure_original, read_original
from tests import (
    facts,
    test_family_llava_next,
    test_family_qwen2_vl,
    test_family_qwen3_vl,
    test_family_smolvlm,
)
from tests.conftest import shared
from tests.family_cases import Made
from tests.pretend_gpu import PretendGpus, pretend_gpus
from vtcompress.console import shown
from vtcompress.stages.checks.rewrite import check_rewrite
from vtcompress.stages.inputs import load_model

pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")

ALL = tuple(name for name in MEASURES if name != "gate_margin")
FIRST, SECOND = "cuda:1", "cuda:0"
"""The second GPU has more free memory, so it is the first one here."""


class Sizes(NamedTuple):
    """Bytes of a layer, and of all that is no layer."""

    layer: int
    beside: int

    def room(self, first: int, second: int) -> dict[str, int]:
        """Return what two GPUs have room for: so many layers, on the first beside all that is none."""
        # Accelerate keeps room for one more layer on the first.
        return {
            FIRST: self.beside + (first + 1) * self.layer,
            SECOND: second * self.layer,
        }

    def gpus(
        self, patch: pytest.MonkeyPatch, first: int, second: int
    ) -> AbstractContextManager[PretendGpus]:
        """Pretend GPUs with this room."""
        room = self.room(first, second)
        free = [math.ceil(room[gpu] / MOST_OF_A_GPU) for gpu in (SECOND, FIRST)]
        return pretend_gpus(patch, *free)


def sizes_of(model: LoadedModel, layers: str = "model.language_model.layers") -> Sizes:
    def held(module: torch.nn.Module) -> int:
        return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))

    of = model.original.get_submodule(layers)
    return Sizes(held(of[0]), held(model.original) - held(of))


@pytest.fixture(scope="module")
def loaded(llava: Callable[[str], Path]) -> LoadedModel:
    """On the CPU, in memory of its own: how products are rounded depends on where mapped weights begin."""
    model = load(str(llava("clip+llama")))
    for parameter in model.original.parameters():
        parameter.data = parameter.data.clone()
    return moved(model, "cpu")


@pytest.fixture
def model(loaded: LoadedModel) -> LoadedModel:
    """One of its own, which may be laid out."""
    return load(str(loaded.folder), known_digest=loaded.digest)


def spread(model: LoadedModel, first: int = 1, second: int = 1) -> LoadedModel:
    places = device_map_of(model, sizes_of(model).room(first, second))
    assert places is not None
    return laid_out(model, places)


def test_layers_fill_one_device_after_the_other_and_all_else_is_on_the_first(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.original.model.register_buffer("own", torch.ones(2))  # beside the modules that are there
    sizes = sizes_of(model)

    def layers(room: Mapping[str, int]) -> Mapping[str, int] | None:
        places = device_map_of(model, room)
        return None if places is None else places.layers

    with sizes.gpus(monkeypatch, 1, 1):
        assert layers(sizes.room(1, 1)) == {FIRST: 1, SECOND: 1, "cpu": 2}
        assert layers(sizes.room(1, 3)) == {FIRST: 1, SECOND: 3}
        assert layers({FIRST: sizes.room(2, 0)[FIRST]}) == {FIRST: 2, "cpu": 2}
        assert layers(sizes.room(0, 1)) == {SECOND: 1, "cpu": 3}
        assert layers({FIRST: sizes.beside + sizes.layer - 1, SECOND: 9 * sizes.layer}) is None
        places = device_map_of(model, sizes.room(1, 1))
        assert places is not None
        assert places.words == "layers: 1 on cuda:1, 1 on cuda:0, 2 in memory of the CPU"
        there = laid_out(model, places)
        held = (*there.original.named_parameters(), *there.original.named_buffers())
        lies = {name: str(tensor.device) for name, tensor in held}
        assert lies["model.own"] == FIRST
        assert {d for n, d in lies.items() if ".language_model.layers." not in n} == {FIRST}
        assert {str(p.device) for p in there.vision.parameters()} == {FIRST}
        assert {str(t.device) for t in there.tensors.values()} == {FIRST}
        # Numbers of what is elsewhere lie there, once: on the other GPU, or where the CPU had them.
        assert Counter(str(each.read().device) for each in there.stored.values()) == {
            SECOND: 7,
            "cpu": 14,
        }
        assert all(is_stand_in(there.tensors[name]) for name in there.stored)
        for name, tensor in model.tensors.items():
            found = there.stored[name].read() if name in there.stored else there.tensors[name]
            assert torch.equal(found.cpu(), tensor)


def test_the_original_answers_as_on_the_cpu_and_comes_back(
    loaded: LoadedModel, model: LoadedModel, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = read_samples(questions)[:3]
    wanted = measure_original(loaded, samples, 4)
    with sizes_of(model).gpus(monkeypatch, 1, 1) as gpus:
        there = spread(model)
        gpus.ran.clear()
        found = measure_original(there, samples, 4)
        assert gpus.ran == {FIRST, SECOND}
        back = moved(there, "cpu")
    again = measure_original(back, samples, 4)
    for one in (found, again):
        assert one.answers == wanted.answers
        assert np.array_equal(one.logits, wanted.logits)
    assert not back.stored
    assert back.tensors.keys() == loaded.tensors.keys()
    assert all(torch.equal(back.tensors[name], t) for name, t in loaded.tensors.items())
    # Nothing of accelerate's is left.
    assert not any({"_hf_hook", "forward"} & {*vars(m)} for m in back.original.modules())


def test_a_calibration_measures_the_same_to_the_bit_and_sends_each_weight_once(
    loaded: LoadedModel,
    model: LoadedModel,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples, sent = read_samples(questions)[:2], Counter[str]()
    really = HeldTensor.read

    def counted(self: HeldTensor) -> torch.Tensor:
        sent[self.name] += 1
        return really(self)

    calibrate(loaded, facts.task(loaded, samples, ALL), tmp_path / "cpu.json")
    with sizes_of(model).gpus(monkeypatch, 1, 1) as gpus:
        there = spread(model)
        monkeypatch.setattr(HeldTensor, "read", counted)
        gpus.ran.clear()
        calibrate(there, facts.task(there, samples, ALL), tmp_path / "gpus.json")
        assert gpus.ran == {FIRST}
    assert (tmp_path / "gpus.json").read_bytes() == (tmp_path / "cpu.json").read_bytes()
    assert sent == dict.fromkeys(there.stored, 1)
    assert len(sent) == 3 * 7


def test_an_export_is_that_of_the_cpu(
    tiny_artifact: Path,
    tiny_model: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {"validate.data": questions, "validate.max_new_tokens": 4}
    values |= {"model.id": str(tiny_model), "validate.keep_pictures": "all"}
    recipe = vtcompress.load_recipe("identity").override(values)
    before = vtcompress.Artifact.open(tiny_artifact).manifest
    with sizes_of(load(str(tiny_model))).gpus(monkeypatch, 0, 1) as gpus:
        found = vtcompress.export(
            recipe, tmp_path / "out", bench_rounds=0, device="auto", progress=True
        )
    assert gpus.ran == {FIRST, SECOND}
    assert f"device: {FIRST} (0.0 GB of weights; layers: 1 on {SECOND}, " in capsys.readouterr().err
    assert found.loss == before.loss
    assert found.rewrite == before.rewrite
    assert found.fidelity == before.fidelity
    for name, entry in before.files.items():
        if name.endswith((".bin", ".onnx")) or name.startswith("stored"):
            assert found.files[name] == entry, name


CASES = (
    test_family_llava_next.TestLlavaNext,  # a tensor beside its modules
    test_family_qwen2_vl.TestQwen2Vl,  # rows are turned on three axes
    test_family_qwen3_vl.TestQwen3Vl,  # rows are added behind layers
    test_family_smolvlm.TestSmolVlm,  # another name of the decoder
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.family.name)
def test_other_families_read_the_same(
    case: Any, questions: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(case.family, shared(pytestconfig) / "families")
    one, other = read_samples(questions)[:2]
    sample = replace(one, images=(*one.images, *other.images))

    def read() -> LoadedModel:
        return load(str(made.folder), budget=made.family.image)

    sizes = sizes_of(read(), made.family.layers)
    with sizes.gpus(monkeypatch, 9, 0):
        whole = moved(read(), FIRST)
        wanted = read_original(whole, sample)
    with sizes.gpus(monkeypatch, 0, 1) as gpus:
        places = device_map_of(model := read(), room_on_gpus())
        assert places is not None
        there = laid_out(model, places)
        found = read_original(there, sample)
        assert gpus.ran == {FIRST, SECOND}
        report = check_rewrite(there, [sample])
    assert np.array_equal(found.logits, wanted.logits)
    assert report is not None
    assert not report.failures


@pytest.fixture
def recipe(loaded: LoadedModel, questions: Path, tmp_path: Path) -> vtcompress.Recipe:
    """With gates, which are asked again behind the other method's cuts."""
    generator, hidden = torch.Generator().manual_seed(3), loaded.embedding.shape[1]
    shapes = {"w1": (8, 2 * hidden), "w2": (2, 8)}
    tensors = {
        f"model.visual_gates_router.{layer}.{part}.weight": torch.randn(shape, generator=generator)
        for layer in range(3)
        for part, shape in shapes.items()
    }
    save_file(tensors, tmp_path / "gates.safetensors")
    entries = [{"dyvte": {"gates": tmp_path / "gates.safetensors"}}, {"shortv": {"frozen": 0.5}}]
    values = {"model.id": str(loaded.folder), "calibrate.data": questions, "calibrate.samples": 2}
    return vtcompress.load_recipe("identity").override({**values, "compress": entries})


def test_the_command_says_where_layers_lie_and_writes_the_profile_of_one_gpu(
    recipe: vtcompress.Recipe,
    loaded: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vtcompress.stages.calibrate.draw", lambda *_: None)
    for name, first, second in (("one", 9, 0), ("several", 1, 1)):
        with sizes_of(loaded).gpus(monkeypatch, first, second):
            vtcompress.calibrate(recipe, tmp_path / f"{name}.json", device="auto", progress=True)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("device: ")]
    assert told == [
        "device: cuda:1 (0.0 GB of weights)",
        "device: cuda:1 (0.0 GB of weights; layers: 1 on cuda:1, 1 on cuda:0, 2 in memory of the CPU)",
    ]
    one, several = (tmp_path / f"{name}.json" for name in ("one", "several"))
    assert several.read_bytes() == one.read_bytes()
    assert Profile.load(several).gates_under  # they were asked again
    assert not [path.name for path in tmp_path.iterdir() if "states" in path.name]


@pytest.mark.parametrize(
    ("first", "several", "installed", "why"),
    [
        (1, False, True, "here models run on one device"),
        (
            1,
            True,
            False,
            "its layers are laid over several devices by a package: pip install accelerate",
        ),
        (-1, True, True, "its layers cannot be laid over several devices"),
    ],
    ids=["a command that runs compressed models", "no accelerate", "too little room"],
)
def test_the_cpu_is_what_is_left_and_a_line_says_why(
    first: int,
    several: bool,
    installed: bool,
    why: str,
    recipe: vtcompress.Recipe,
    loaded: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    lacking = "" if installed else "accelerate"
    with sizes_of(loaded).gpus(monkeypatch, first, 1) as gpus:
        with monkeypatch.context() as patch:
            patch.setattr(
                "importlib.util.find_spec", lambda name: None if name == lacking else find(name)
            )
            model = load_model(recipe, shown(True), device="auto", several=several)
        assert gpus.sent == []
    assert str(model.embedding.device) == "cpu"
    assert not model.stored
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == f"device: cpu (0.0 GB of weights, more than a GPU has room for; {why})"


def test_validation_with_the_original_finds_the_same(
    tiny_artifact: Path, tiny_model: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"model": str(tiny_model), "data": questions}
    before = vtcompress.validate(tiny_artifact, **given)
    with sizes_of(load(str(tiny_model))).gpus(monkeypatch, 0, 1) as gpus:
        found = vtcompress.validate(tiny_artifact, **given, device="auto")
    assert found == before
    assert gpus.ran == {FIRST, SECOND}
