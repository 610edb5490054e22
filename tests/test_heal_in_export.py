"""Healing within an export: the same as by the command, checked before and after; by the clock; refused."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vtcompress
from compressor.compressed import compress
from compressor.contract.healing import HealedFile, HealTraining
from compressor.decoder import decoder_from
from compressor.errors import DataError, ProblemsError, RecipeError, VtcompressError
from compressor.families import LoadedModel
from compressor.plan.edits import identity_plan
from compressor.progress import SILENT
from compressor.recipe import Recipe, parse_recipe
from compressor.samples.questions import Sample
from compressor.training import lessons, pace, run
from compressor.training.lessons import lessons_of
from compressor.training.pace import falls_from, share_of_rate, steps_that_fall_from
from export.artifact.staging import healing_file
from tests.gates_trained import StopAfter, data, model, samples
from tests.test_gate_training import Kill
from tests.test_heal import FEW, others

__all__ = ["data", "model", "samples"]  # fixtures

FROZEN = ({"shortv": {"layers": (1,)}},)
STEPS = 6
GIVEN = {"heal.steps": STEPS, "heal.batch": 2, "heal.rank": 2, "heal.seed": 1}
TRAIN = HealTraining(steps=STEPS, batch=2, rank=2, seed=1)


def recipe_of(folder: Path, entries: tuple[Any, ...] = FROZEN, **values: Any) -> Recipe:
    document = {"vtcompress": 2, "model": {"id": str(folder)}, "compress": entries}
    return parse_recipe(document, "test").override({**FEW, **values})


@pytest.fixture(scope="module")
def healed(llava: Callable[[str], Path], data: Path, tmp_path_factory: Any) -> Path:
    """What the command writes."""
    output: Path = tmp_path_factory.mktemp("command") / "healed.safetensors"
    vtcompress.heal(recipe_of(llava("clip+llama")), data, output, train=TRAIN)
    return output


def test_an_export_that_heals_has_what_the_command_writes_and_can_be_checked_without_the_file(
    llava: Callable[[str], Path],
    data: Path,
    healed: Path,
    tmp_path: Path,
    vt: Callable[..., tuple[int, str, str]],
) -> None:
    held, out = others(tmp_path / "held"), tmp_path / "out"
    given = {**GIVEN, "heal.data": data, "validate.data": held}
    recipe = recipe_of(llava("clip+llama"), **given)
    if (pid := os.fork()) == 0:
        run.SAVE_EVERY_SECONDS, run.MOST_TIME_SAVING = 0.0, 1e9
        try:
            # Behind all prompts and some steps.
            vtcompress.export(recipe, out, bench_rounds=0, progress=Kill(12 + 4 + 3))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert healing_file(out).is_file()
    manifest = vtcompress.export(recipe, out, bench_rounds=0)
    assert not healing_file(out).exists()
    assert (out / "healed.safetensors").read_bytes() == healed.read_bytes()
    assert manifest.healed == HealedFile.read(healed).healed
    assert manifest.loss is not None
    assert manifest.unhealed_loss is not None
    assert "healed.safetensors" in manifest.files
    text = (out / "report.md").read_text()
    assert "were trained towards the original" in text
    assert "Before healing the same plan, in torch, had" in text
    again = vtcompress.load_recipe(out / "recipe.yaml")
    assert again.heal.file == out / "healed.safetensors"
    code, *_ = vt("validate", out, "--model", llava("clip+llama"))
    assert code == 0


def test_calibration_questions_are_learned_from_where_no_others_are_given(
    llava: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    asked: list[Sample] = []
    monkeypatch.setattr(
        "vtcompress.stages.export.healed_here", lambda _, c, *__: asked.extend(c.samples) or stop()
    )
    recipe = recipe_of(
        llava("clip+llama"), **GIVEN, **{"calibrate.data": data, "calibrate.samples": 5}
    )
    with pytest.raises(KeyboardInterrupt):
        vtcompress.export(recipe, tmp_path / "out", bench_rounds=0)
    assert len(asked) == 5


# By the clock


class Clock:
    """A clock that goes on by some seconds whenever it is read."""

    def __init__(self) -> None:
        self.now, self.tick = 0.0, 0.4

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "clock", made)
    return made


@pytest.mark.usefixtures("clock")
def test_minutes_are_repeated_to_the_last_bit_by_the_steps_that_they_had(
    llava: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    recipe, usual = recipe_of(llava("clip+llama")), TRAIN.model_dump(exclude={"steps"})
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    stopped = StopAfter(12 + 30)
    with pytest.raises(KeyboardInterrupt):
        vtcompress.heal(recipe, data, one, train=HealTraining(**usual), minutes=1, progress=stopped)
    report = vtcompress.heal(recipe, data, one, train=HealTraining(**usual), minutes=1)
    assert 4 < report.steps == report.train.steps < 60
    assert report.minutes == 1
    again = HealTraining(**usual, steps=report.steps)
    vtcompress.heal(recipe, data, other, train=again)
    assert other.read_bytes() == one.read_bytes()
    with pytest.raises(VtcompressError, match=f"steps: {report.steps}: the time says how many"):
        vtcompress.heal(recipe, data, tmp_path / "h.safetensors", train=again, minutes=1)


@pytest.mark.parametrize(("slower", "least"), [(1.0, 0.9), (3.0, 0.9)])
def test_time_is_kept_by_a_machine_that_gets_slower_and_steps_have_become_small(
    slower: float, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(pace, "clock", lambda: now)
    found, taken, shares = pace.Pace(None, 600.0), 0, []
    while True:
        found.settle(taken)
        if taken == found.steps or found.over(taken):
            break
        if taken in found.looks():
            now += 9.0
            found.looked(9.0)
        shares.append(share_of_rate(taken, found.steps))
        now += 0.7 * (slower if now > 400 else 1)
        taken += 1
    assert 600 * least <= now + 9 <= 600 * 1.005
    assert max(shares) == 1
    assert shares[-1] < (0.02 if slower == 1 else 0.75)


def test_until_the_rate_falls_nothing_depends_on_the_number_of_steps() -> None:
    for step in range(200):
        steps = steps_that_fall_from(step)
        assert falls_from(steps) == step
        assert [share_of_rate(n, steps) for n in range(step + 1)] == [
            share_of_rate(n, None) for n in range(step + 1)
        ]
    assert share_of_rate(99, 100) == pytest.approx(1 / 40)


# Prompts that share a call


@pytest.fixture
def asked(
    model: LoadedModel,
    samples: tuple[Sample, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Any, Any]:
    """A compressed model, and lessons of which the original was asked one at a time."""
    monkeypatch.setattr(lessons, "ASKED_TOGETHER", 1)
    plan = identity_plan(model.facts, model.digest)
    small = compress(model, plan, logits="all")
    original = decoder_from(plan, model.tensors, logits="all")
    return small, lessons_of(model, original, small, samples, tmp_path, SILENT, sees_alike=True)


def said(small: Any, batch: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    call = batch.call
    past = small.decoder.empty_past(len(batch.ends))
    with torch.no_grad():
        logits, _ = small.decoder(*call[:4], past, *call[4:])
    return list(batch.said(logits))


def test_prompts_of_a_call_say_what_each_says_alone(asked: tuple[Any, Any]) -> None:
    small, found = asked
    (batch,) = found.shared([0, 2, 1, 2])
    assert len(set(batch.ends)) > 1
    pairs = said(small, batch)
    assert len(pairs) == 4
    for taught, logits in pairs:
        torch.testing.assert_close(logits, taught, rtol=1e-4, atol=1e-4)


def test_what_has_no_room_in_memory_is_read_from_a_file(
    model: LoadedModel,
    samples: tuple[Sample, ...],
    asked: tuple[Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, held = asked
    monkeypatch.setattr(lessons, "ROOM", 0)
    original = decoder_from(small.plan, model.tensors, logits="all")
    found = lessons_of(model, original, small, samples, tmp_path, SILENT, sees_alike=True)
    (one,), (other,) = found.shared([0, 1]), held.shared([0, 1])
    assert not list(tmp_path.iterdir())
    for a, b in zip((*one.call[:4], *one.taught), (*other.call[:4], *other.taught), strict=True):
        assert torch.equal(a, b)


# Refused


def test_what_an_export_cannot_heal_is_refused_in_one_line_before_any_work(
    llava: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = llava("clip+llama")
    monkeypatch.setattr("compressor.families.load", lambda *_, **__: pytest.fail("loaded"))
    recipe = recipe_of(folder, **GIVEN)
    held = recipe.override({"heal.data": data, "validate.data": data})
    leaving = recipe_of(folder, ({"fastv": {"layer": 2}},), **GIVEN, **{"heal.data": data})
    gated = recipe_of(folder, ({"dyvte": {}},), **GIVEN, **{"heal.data": data})
    plan = vtcompress.plan(recipe_of(folder))
    out = tmp_path / "out"
    cases: tuple[tuple[str, Callable[[], object]], ...] = (
        (
            "heal.steps: 6 trains, and there are no questions",
            lambda: vtcompress.export(recipe, out),
        ),
        ("12 of 12 questions, this the first, are held out", lambda: vtcompress.export(held, out)),
        (
            "heal.steps: 6: compress.fastv goes by the end of the prompt",
            lambda: vtcompress.export(leaving, out),
        ),
        (
            "heal.steps: 6: compress.dyvte goes by the end of the prompt",
            lambda: vtcompress.export(gated, out),
        ),
        (
            "stream: heal.steps: 6: healed weights are made",
            lambda: vtcompress.export(recipe, out, stream=True),
        ),
        (
            "heal.steps: 6: a compressed folder holds",
            lambda: vtcompress.compress(recipe, plan, out),
        ),
        ("heal.steps: 6: a sweep trains nothing", lambda: vtcompress.sweep([recipe], out)),
        (
            "file and steps are given together",
            lambda: recipe.override({"heal.file": "h.safetensors"}),
        ),
        ("data goes with minutes or steps", lambda: recipe_of(folder, **{"heal.data": data})),
    )
    for words, call in cases:
        with pytest.raises((ProblemsError, DataError, RecipeError), match=words) as caught:
            call()
        assert len(caught.value.problems) == 1, words
    assert not list(tmp_path.iterdir())


def test_a_healing_that_gains_nothing_says_so_and_by_which_questions(
    llava: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    vt: Callable[..., tuple[int, str, str]],
) -> None:
    output = tmp_path / "h.safetensors"
    command = ["heal", "--recipe", "identity", "--model", llava("clip+llama"), "--data", data]
    code, _, words = vt(*command, "--output", output, "--steps", "1", "--batch", "1")
    assert code == 0
    assert (
        "nothing was gained by 1 steps: on the 3 questions that judged it KL was lowest before the first: "
        "the file changes nothing and need not be used"
    ) in " ".join(words.split())
    assert all(not t.any() for n, t in load_file(output).items() if n.endswith("lora_B"))
