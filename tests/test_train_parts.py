"""Training of what methods learn: only their tensors change, it gains, it goes on after a kill, it loads."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import vtcompress
from compressor.compressed import compress, load_compressed
from compressor.contract.learned import PartTraining
from compressor.contract.least_squares import linear_map
from compressor.decoder.layers.running import SomeRun
from compressor.errors import BackendError, DataError, PlanError, RecipeError, VtcompressError
from compressor.families import LoadedModel
from compressor.methods import METHODS
from compressor.recipe import Recipe, parse_recipe
from compressor.training import distillation, run
from tests.gates_trained import StopAfter, data, model, samples
from tests.models import make_questions
from tests.test_gate_training import Kill
from vtcompress.cli.main import run_command
from vtcompress.stages.compress import with_routers

__all__ = ["data", "model", "samples"]  # fixtures

TRAIN = PartTraining(steps=12, batch=2, learning_rate=0.02, seed=1)
ENTRIES: dict[str, Any] = {
    "mod": ({"mod": {"keep": 0.5}},),
    "gamma_mod": ({"gamma_mod": {"keep": 0.25, "dense": (0, 1, 3)}},),
    "wico": ({"wico": {}},),
    "wico_plus": ({"wico": {}}, {"wico_plus": {"layer": 2}}),
}
Train = Callable[..., Any]


def recipe_of(folder: Path, name: str) -> Recipe:
    document = {"vtcompress": 2, "model": {"id": str(folder)}, "compress": ENTRIES[name]}
    return parse_recipe(document, "test")


@pytest.fixture
def train(llava: Callable[[str], Path], data: Path, tmp_path: Path) -> Train:
    """Train the parts of a recipe; more steps, or other arguments, where they are given."""

    def do(name: str = "mod", where: Path = tmp_path, train: PartTraining = TRAIN, **keys: Any):
        recipe = recipe_of(llava("clip+llama"), name)
        return vtcompress.train_parts(
            recipe, data, where / "parts.safetensors", train=train, **keys
        )

    return do


@pytest.mark.parametrize("name", ENTRIES)
def test_what_is_trained_gains_on_its_data_and_loads_as_the_recipe_takes_it(
    train: Train, llava: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    report = train(name, train=TRAIN.model_copy(update={"steps": 40, "learning_rate": None}))
    assert report.kl_after < report.kl_before
    assert report.train.learning_rate is not None
    assert report == type(report).model_validate_json((tmp_path / "parts.json").read_text())
    stored = load_file(tmp_path / "parts.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in stored.items()} == report.tensors
    (learner,) = (m for m in METHODS if m.name == report.method)
    recipe = recipe_of(llava("clip+llama"), name).override(
        {f"compress.{learner.name}.{learner.learns}": tmp_path / "parts.safetensors"}
    )
    folder = vtcompress.compress(recipe, vtcompress.plan(recipe), tmp_path / "small")
    answer = load_compressed(folder).generate([1, 5, 6, 7])
    assert answer.token_ids


def test_nothing_but_the_learned_tensors_changes(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def watching(loaded: LoadedModel, small: Any, *rest: Any, **keys: Any) -> Any:
        seen["model"], seen["small"], learned = loaded, small, rest[2]
        own = {id(one.parameter) for one in learned.values()}
        parts = (small.decoder, small.vision)
        named = [(n, p) for part in parts for n, p in part.named_parameters()]
        before = {n: p.detach().clone() for n, p in named if id(p) not in own}
        original = {n: t.clone() for n, t in loaded.tensors.items()}
        found = real(loaded, small, *rest, **keys)
        after = {n: p for n, p in named if id(p) not in own}
        assert all(torch.equal(before[n], p) and p.grad is None for n, p in after.items())
        assert all(torch.equal(original[n], t) for n, t in loaded.tensors.items())
        assert len(before) + len(learned) == len(named)
        return found

    real = distillation.distil
    monkeypatch.setattr(distillation, "distil", watching)
    for name in ("mod", "wico"):
        report = train(name, overwrite=True)
        small = seen["small"]
        assert not small.decoder.training
        learned = distillation.learned_in(
            small, [n.split("mm_projector.")[-1] for n in report.tensors]
        )
        assert len(learned) == len(report.tensors)
        assert not any(one.parameter.requires_grad for one in learned.values())


def test_a_layer_computes_the_same_in_a_training_and_its_choice_has_the_gradient_of_what_running_gains(
    model: LoadedModel, llava: Callable[[str], Path], tmp_path: Path
) -> None:
    routers = tmp_path / "r.safetensors"
    drawn = torch.randn(1, model.facts.decoder.hidden, generator=torch.Generator().manual_seed(0))
    save_file({"router.weight": drawn * 0.1}, routers)
    recipe = recipe_of(llava("clip+llama"), "mod").override({"compress.mod.routers": routers})
    plan = vtcompress.plan(recipe)
    decoder = compress(with_routers(model, plan, recipe), plan, logits="all").decoder
    count, hidden = model.facts.tile_rows, model.facts.decoder.hidden
    rows = torch.randn(1, count + 3, hidden, generator=torch.Generator().manual_seed(1))
    places = torch.arange(count + 3)[None]
    call = (rows[:, :count], rows[:, count:], places[:, :count], places[:, count:])
    with torch.no_grad():
        usual = decoder(*call, decoder.empty_past(1))[0]
        decoder.train()
        trained = decoder(*call, decoder.empty_past(1))[0]
    torch.testing.assert_close(trained, usual, rtol=0, atol=0)
    (layer, *_) = (layer for layer in decoder.layers if isinstance(layer, SomeRun))
    weights = torch.tensor([[0.0, 1.0, 2.0, 3.0] * (count // 4)], requires_grad=True)
    nothing = layer.choice_gradient(weights)
    assert not nothing.any()
    gains = torch.zeros(count)
    gains[0], gains[-1] = 1.0, -1.0
    (nothing * gains).sum().backward()
    moved = weights.grad[0]
    assert moved[0] > 0 > moved[-1]
    assert not moved[1:-1].any()


def test_the_least_squares_start_is_the_ridge_solution() -> None:
    drawn = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 4, generator=drawn), torch.randn(9, 2, generator=drawn)
    ridge = 0.01 * x.square().sum(dim=1).mean() * torch.eye(4)
    wanted = torch.linalg.solve(x.T @ x + ridge, x.T @ y).T
    torch.testing.assert_close(linear_map(x, y), wanted, rtol=1e-4, atol=1e-5)


# Stopped runs


@pytest.fixture(scope="module")
def whole(llava: Callable[[str], Path], data: Path, tmp_path_factory: Any) -> bytes:
    """What a training that nothing stopped writes."""
    output = tmp_path_factory.mktemp("whole") / "parts.safetensors"
    vtcompress.train_parts(recipe_of(llava("clip+llama"), "wico"), data, output, train=TRAIN)
    return output.read_bytes()


@pytest.mark.parametrize("count", [5, 20, 26, 30, 35])
def test_an_interrupted_run_goes_on_to_the_very_bytes(
    train: Train, whole: bytes, tmp_path: Path, count: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("wico", progress=StopAfter(count))
    assert not (tmp_path / "parts.safetensors").exists()
    train("wico")
    assert (tmp_path / "parts.safetensors").read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.json", "parts.safetensors"]


@pytest.mark.parametrize("count", [26, 33])
def test_a_killed_run_goes_on_from_its_checkpoint_to_the_very_bytes(
    train: Train, whole: bytes, tmp_path: Path, count: int, counted: Any
) -> None:
    if (pid := os.fork()) == 0:
        run.SAVE_EVERY_SECONDS, run.MOST_TIME_SAVING = 0.0, 1e9
        try:
            train("wico", progress=Kill(count))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / ".parts.safetensors.training.safetensors").is_file()
    train("wico")
    assert (tmp_path / "parts.safetensors").read_bytes() == whole
    counted("kills", 1)


def test_a_checkpoint_of_another_training_is_refused(train: Train) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("wico", progress=StopAfter(30))
    with pytest.raises(PlanError, match=r"left by a training on other settings; remove \.parts"):
        train("wico", train=TRAIN.model_copy(update={"seed": 2}))
    with pytest.raises(PlanError, match="left by a training on another recipe; remove"):
        train("wico_plus")


def test_a_time_ends_a_training_between_steps(train: Train) -> None:
    report = train("mod", minutes=1e-9, train=PartTraining(batch=2))
    assert report.steps == 0
    assert report.kl_after == report.kl_before


# Refused


REFUSED = {
    "nothing is learned": (
        ({"shortv": {"frozen": 0.5}},),
        "compress: no entry learns anything that could be trained; add gamma_mod or mod or wico (gates are "
        "trained by `vtcompress train-gates`)",
    ),
    "a file is named already": (
        ({"mod": {"routers": "r.safetensors"}},),
        "compress: mod.routers: names a file already, and nothing is left to train; leave it out",
    ),
    "two learn": (
        ({"wico": {}}, {"mod": {}}),
        "compress: wico.weights and mod.routers: each name no file; train one after the other, and name the "
        "file of the first",
    ),
    "layers that are not there": (
        ({"mod": {"layers": (9,)}},),
        "compress[0].mod.layers: 9 is outside 0..3; the model has 4 layers",
    ),
    "the prompt's end is read": (
        ({"gamma_mod": {"dense": (1, 2, 3), "keep": 0.5}}, {"fastv": {"layer": 2}}),
        "compress: fastv chooses by the end of the prompt, and a training goes on to the answer; leave it "
        "out while parts are trained",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_line(
    llava: Callable[[str], Path], data: Path, tmp_path: Path, case: str
) -> None:
    entries, line = REFUSED[case]
    document = {"vtcompress": 2, "model": {"id": str(llava("clip+llama"))}, "compress": entries}
    with pytest.raises((RecipeError, PlanError)) as caught:
        vtcompress.train_parts(parse_recipe(document, "test"), data, tmp_path / "p.safetensors")
    assert caught.value.problems == (line,)
    assert not list(tmp_path.iterdir())


def test_questions_without_answers_and_unusable_outputs_are_refused(
    llava: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(llava("clip+llama"), "mod")
    bare = make_questions(tmp_path / "bare", 2, answers=False)
    with pytest.raises(DataError, match="question 1, 'what is it': has no answer"):
        vtcompress.train_parts(recipe, bare, tmp_path / "p.safetensors")
    with pytest.raises(VtcompressError, match=r"p.bin: trained parts are a .safetensors file"):
        vtcompress.train_parts(recipe, data, tmp_path / "p.bin")
    with pytest.raises(VtcompressError, match="which this run reads"):
        vtcompress.train_parts(recipe, data, llava("clip+llama") / "p.safetensors")
    with pytest.raises(BackendError, match="minutes: 0 is not allowed; a number above 0"):
        vtcompress.train_parts(recipe, data, tmp_path / "p.safetensors", minutes=0)


def test_the_command_trains_reports_and_does_not_overwrite(
    llava: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "routers.safetensors"
    command = ["train-parts", "--recipe", "mod", "--model", llava("clip+llama"), "--data", data]
    command += [
        "--output",
        output,
        "--steps",
        "2",
        "--batch",
        "1",
        "--set",
        "compress.mod.keep=0.5",
    ]
    assert run_command(["--json", *map(str, command)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "routers.json").read_text())
    assert report["train"] == {"steps": 2, "batch": 1, "learning_rate": 0.002, "seed": 0}
    assert run_command(list(map(str, command))) == 1
    assert "exists; choose another --output or add --overwrite" in capsys.readouterr().err
    assert run_command([*map(str, command), "--overwrite"]) == 0
    assert "2 tensors of mod; nothing else" in capsys.readouterr().out
