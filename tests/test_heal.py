"""Healing: it gains, what is not trained stays, graphs have what was trained, held-out data is safe."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vtcompress
from compressor.compressed import compress, naive_decoder
from compressor.contract.healing import LORA_A, QUESTIONS, HealedFile, HealTraining
from compressor.decoder import decoder_from
from compressor.errors import DataError, PlanError, RecipeError, VtcompressError
from compressor.families import LoadedModel
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan
from compressor.recipe import Recipe, parse_recipe
from compressor.training import distillation, run
from compressor.training.healing import heal, healed_sources
from tests.gates_trained import StopAfter, data, model
from tests.models import make_questions
from tests.test_gate_training import Kill
from vtcompress.cli.main import run_command
from vtcompress.stages.sweep import list_points

__all__ = ["data", "model"]  # fixtures

TRAIN = HealTraining(steps=12, batch=2, seed=1, rank=2)
FEW = {
    "export.profiles.max_context": None,
    "validate.loss.min_exact_match_kept": None,
    "validate.max_new_tokens": 4,
}
Heal = Callable[..., Any]


ENTRIES: tuple[Any, ...] = ({"shortv": {"layers": (1,)}}, {"yopo": {"mlp_ratio": 2}})


def recipe_of(folder: Path, entries: tuple[Any, ...] = ENTRIES) -> Recipe:
    document = {"vtcompress": 2, "model": {"id": str(folder)}, "compress": entries}
    return parse_recipe(document, "test").override(FEW)


@pytest.fixture(scope="module")
def plan(llava: Callable[[str], Path]) -> Plan:
    """Every other neuron, one frozen layer, one head group: parts that lie apart in their sources."""
    recipe = vtcompress.load_recipe("identity")
    made = vtcompress.plan(recipe.override({"model.id": str(llava("clip+llama"))}))
    neurons = tuple(range(0, made.model.decoder.intermediate, 2))
    layers = (
        LayerPlan(index=0, neurons=neurons),
        LayerPlan(index=1, visual="frozen", reason="shortv"),
        LayerPlan(index=2, groups=(made.model.decoder.kv_heads - 1,)),
        *made.layers[3:],
    )
    return made.model_copy(update={"layers": layers})


@pytest.fixture
def do(llava: Callable[[str], Path], plan: Plan, data: Path, tmp_path: Path) -> Heal:
    """Heal the plan's decoder; other arguments where they are given."""

    def healing(questions: Path = data, **keys: Any) -> Any:
        recipe = recipe_of(llava("clip+llama")).override(keys.pop("values", {}))
        given = {"plan": plan, "train": TRAIN, **keys}
        return vtcompress.heal(recipe, questions, tmp_path / "healed.safetensors", **given)

    return healing


@pytest.fixture(scope="module")
def healed(
    llava: Callable[[str], Path], plan: Plan, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What a healing that nothing stopped writes."""
    output = tmp_path_factory.mktemp("whole") / "healed.safetensors"
    vtcompress.heal(recipe_of(llava("clip+llama")), data, output, plan=plan, train=TRAIN)
    return output


def test_healing_gains_on_questions_that_it_does_not_learn_from_and_tells_what_it_did(
    do: Heal, data: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    del rows[3]["answer"]
    rows[5]["answer"] = " "
    own = data.with_name("own.jsonl")
    own.write_text("\n".join(map(json.dumps, rows)) + "\n")
    report = do(own, train=TRAIN.model_copy(update={"steps": 60}))
    assert report.kl_after < report.kl_before
    assert (report.samples, report.judged, report.own_answers) == (9, 3, 2)
    assert report.trained == {"norms": 9, "neurons_scale": 1, "lora": 28}
    assert report == type(report).model_validate_json((tmp_path / "healed.json").read_text())
    file = HealedFile.read(tmp_path / "healed.safetensors")
    assert file.healed.model_dump().items() <= report.model_dump().items()
    assert file.digest == report.heal_digest
    assert len(file.shapes) == 9 + 1 + 2 * 28
    assert sorted(path.name for path in tmp_path.iterdir()) == ["healed.json", "healed.safetensors"]


def test_nothing_of_either_model_changes_while_the_changes_are_trained(
    do: Heal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watching(loaded: LoadedModel, small: Any, *rest: Any, **keys: Any) -> Any:
        named = [(n, p) for m in (small.decoder, small.vision) for n, p in m.named_parameters()]
        before = {n: p.detach().clone() for n, p in named}
        original = {n: t.clone() for n, t in loaded.tensors.items()}
        trained = real(loaded, small, *rest, **keys)
        assert all(torch.equal(before[n], p) and p.grad is None for n, p in named)
        assert all(torch.equal(original[n], t) for n, t in loaded.tensors.items())
        moved.append(sum(bool(t.any()) for n, t in trained.tensors.items() if "lora_B" in n))
        return trained

    moved: list[int] = []
    real = distillation.distil
    monkeypatch.setattr(distillation, "distil", watching)
    do()
    assert moved == [28]


def test_a_healed_source_is_the_formula_and_every_part_of_it_is_taken_of_that(
    model: LoadedModel, plan: Plan, healed: Path
) -> None:
    changes = HealedFile.read(healed).tensors()
    found = healed_sources(changes, model.tensors, plan)
    name = "layers.0.mlp.down_proj.weight"
    factors = np.ones(plan.model.decoder.intermediate)
    factors[::2] = changes[f"{name}.scale"].numpy()
    update = changes[f"{name}.lora_B"].double() @ changes[f"{name}.lora_A"].double()
    wanted = (model.tensors[name].double() + update).numpy() * factors
    np.testing.assert_allclose(found[name].numpy(), wanted, rtol=1e-5, atol=1e-7)
    small = compress(model, plan, logits="all")
    made = heal(small, model.tensors, changes)
    alone = decoder_from(plan, {**model.tensors, **found}, logits="all")
    for (key, one), (_, other) in zip(
        made.decoder.named_parameters(), alone.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=key)
    for one, other in zip(
        naive_decoder(made).parameters(), naive_decoder(small).parameters(), strict=True
    ):
        assert torch.equal(one, other)


# What is exported


def others(folder: Path, count: int = 4) -> Path:
    """Questions that no training has: other words about the pictures that all have."""
    path = make_questions(folder, count)
    path.write_text(path.read_text().replace("what is", "how is"))
    return path


def weights(folder: Path, graph: str) -> Mapping[str, NDArray[Any]]:
    """All constants of a graph of an artifact, by name."""
    found = onnx.load(folder / f"{graph}.onnx").graph
    return {one.name: numpy_helper.to_array(one, base_dir=str(folder)) for one in found.initializer}


def same(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> set[str]:
    """Names of constants that have the same bits in both."""
    assert one.keys() == other.keys()
    return {name for name in one if np.array_equal(one[name], other[name])}


def test_the_artifact_has_the_healed_weights_and_its_baseline_the_originals(
    llava: Callable[[str], Path],
    plan: Plan,
    data: Path,
    healed: Path,
    tmp_path: Path,
    vt: Callable[..., tuple[int, str, str]],
) -> None:
    held = others(tmp_path / "held")
    recipe = recipe_of(llava("clip+llama")).override({"validate.data": held})
    usual, out = tmp_path / "usual", tmp_path / "out"
    vtcompress.export(recipe, usual, plan=plan, bench_rounds=0)
    with_file = recipe.override({"heal.file": healed, "validate.score": "contains"})
    manifest = vtcompress.export(with_file, out, plan=plan, bench_rounds=0)
    assert manifest.fidelity is not None
    assert manifest.fidelity.passed
    assert manifest.healed == HealedFile.read(healed).healed
    baseline = weights(usual, "baseline_decoder")
    assert same(baseline, weights(out, "baseline_decoder")) == baseline.keys()
    before, after = weights(usual, "decoder"), weights(out, "decoder")
    changed = before.keys() - same(before, after)
    matrices = {name for name in before if before[name].ndim == 2}
    assert changed >= {name for name in matrices if name.startswith("layers.")}
    assert not any(name.startswith(("head", "embed")) for name in changed)
    assert manifest.loss is not None
    assert manifest.unhealed_loss is not None
    assert manifest.unhealed_loss.score == manifest.loss.score == "contains"
    text = (out / "report.md").read_text()
    assert "28 matrices by updates of rank 2 were trained towards the original" in text
    assert "Before healing the same plan, in torch, had" in text
    assert "Text tokens do in every layer what they did before" not in text
    assert "was healed" not in (usual / "report.md").read_text()
    # Checked again, with the original: the file is asked for, and no other is taken.
    code, _, words = vt("validate", out, "--model", llava("clip+llama"))
    assert code == 1
    assert "has healed weights, which the original lacks; give the file" in words
    code, *_ = vt("validate", out, "--model", llava("clip+llama"), "--healed", healed)
    assert code == 0
    with pytest.raises(RecipeError, match="was not healed by it; leave it out"):
        vtcompress.validate(usual, model=str(llava("clip+llama")), healed=healed)
    with pytest.raises(DataError, match="12 of 12 questions, this the first, were read when"):
        vtcompress.validate(out, model=str(llava("clip+llama")), healed=healed, data=data)


# Held-out questions


def test_questions_that_are_held_out_are_not_learned_from(
    do: Heal, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    held = tmp_path / "held.jsonl"
    asked = {"image": str(data.with_name(rows[4]["image"])), "question": rows[4]["question"]}
    held.write_text(json.dumps({**asked, "answer": "another one"}) + "\n")
    held_out = {"values": {"validate.data": held}}
    monkeypatch.setattr("compressor.families.load", lambda *_, **__: pytest.fail("loaded"))
    words = r"train\.jsonl:5: 1 of 12 questions, this the first, are held out by validate\.data \(held\."
    with pytest.raises(DataError, match=words):
        do(**held_out)
    with pytest.raises(DataError, match="12 of 12 questions"):
        do(values={"validate.data": data})
    # The same pixels in another file, the same words otherwise spaced: not another question.
    saved = tmp_path / "saved"
    saved.mkdir()
    with Image.open(asked["image"]) as picture:
        picture.save(saved / "again.png", compress_level=0)
    assert (saved / "again.png").read_bytes() != Path(asked["image"]).read_bytes()
    again = {"image": str(saved / "again.png"), "question": f" {asked['question'].upper()}  "}
    held.write_text(json.dumps({**again, "answer": "another one"}) + "\n")
    with pytest.raises(DataError, match=words):
        do(**held_out)
    shutil.rmtree(saved)
    assert [path.name for path in tmp_path.iterdir()] == ["held.jsonl"]


def test_own_answers_are_asked_of_training_questions_alone_and_held_out_ones_judge_nothing(
    do: Heal, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = data.with_name("bare.jsonl")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    bare.write_text("".join(json.dumps({**row, "answer": None}) + "\n" for row in rows))
    held = others(tmp_path / "held")
    learned: list[str] = []

    def watching(loaded: Any, small: Any, samples: Any, *rest: Any, **keys: Any) -> Any:
        learned.extend(sample.question for sample in (*samples, *keys["judged"]))
        return real(loaded, small, samples, *rest, **keys)

    real = distillation.distil
    monkeypatch.setattr(distillation, "distil", watching)
    report = do(bare, values={"validate.data": held}, train=TRAIN.model_copy(update={"steps": 1}))
    assert report.own_answers == 12
    assert sorted(learned) == sorted(row["question"] for row in rows)


def test_an_export_is_not_judged_on_what_was_learned_from(
    llava: Callable[[str], Path], plan: Plan, data: Path, healed: Path, tmp_path: Path
) -> None:
    values = {"heal.file": healed, "validate.data": data}
    recipe = recipe_of(llava("clip+llama")).override(values)
    words = r"train\.jsonl:1: 12 of 12 questions, this the first, were read when healed\.safetensors was"
    with pytest.raises(DataError, match=words):
        vtcompress.export(recipe, tmp_path / "out", plan=plan)
    assert not list(tmp_path.iterdir())


# Stopped runs


@pytest.mark.parametrize("count", [5, 14, 20])
def test_an_interrupted_run_goes_on_to_the_very_bytes(
    do: Heal, healed: Path, tmp_path: Path, count: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        do(progress=StopAfter(count))
    assert not (tmp_path / "healed.safetensors").exists()
    do()
    assert (tmp_path / "healed.safetensors").read_bytes() == healed.read_bytes()


def test_a_killed_run_goes_on_from_its_checkpoint_to_the_very_bytes(
    do: Heal, healed: Path, tmp_path: Path, counted: Any
) -> None:
    if (pid := os.fork()) == 0:
        run.SAVE_EVERY_SECONDS, run.MOST_TIME_SAVING = 0.0, 1e9
        try:
            do(progress=Kill(19))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / ".healed.safetensors.training.safetensors").is_file()
    do()
    assert (tmp_path / "healed.safetensors").read_bytes() == healed.read_bytes()
    counted("kills", 1)


def test_time_ends_a_healing_at_the_start_which_changes_nothing(
    do: Heal, model: LoadedModel, plan: Plan, tmp_path: Path
) -> None:
    report = do(minutes=1e-9, train=HealTraining(rank=2))
    assert (report.steps, report.best_step) == (0, 0)
    assert report.kl_after == report.kl_before
    changes = HealedFile.read(tmp_path / "healed.safetensors").tensors()
    for name, tensor in healed_sources(changes, model.tensors, plan).items():
        assert torch.equal(tensor, model.tensors[name]), name


# Refused


def test_a_file_of_another_plan_or_model_is_refused_in_one_line(
    llava: Callable[[str], Path], plan: Plan, healed: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(llava("clip+llama")).override({"heal.file": healed})
    layers = (*plan.layers[:2], LayerPlan(index=2), *plan.layers[3:])
    other = plan.model_copy(update={"layers": layers})
    for words, given in (
        ("healed for another plan, in which visual rows do other work", {"plan": other}),
        ("heal.file: .*: healed weights are made of the original's in memory", {"stream": True}),
    ):
        with pytest.raises((PlanError, RecipeError), match=words) as caught:
            vtcompress.export(recipe, tmp_path / "out", **{"plan": plan, **given})
        assert len(caught.value.problems) == 1
    with pytest.raises(PlanError, match=r"healed for another model \(.*\); heal this one with"):
        HealedFile.read(healed).check("a" * 64, None)
    with pytest.raises(RecipeError, match="a compressed folder holds the original's weights"):
        vtcompress.compress(recipe, plan, tmp_path / "out")
    with pytest.raises(RecipeError, match="a healing starts at the original's weights"):
        vtcompress.heal(recipe, tmp_path / "q.jsonl", tmp_path / "h.safetensors", plan=plan)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(healed.read_bytes()[:-40])
    for path, words in ((torn, "no readable safetensors file"), (tmp_path / "no", "no such file")):
        with pytest.raises(PlanError, match=words):
            vtcompress.export(recipe.override({"heal.file": path}), tmp_path / "out", plan=plan)
    assert not (tmp_path / "out").exists()


def test_a_file_that_was_changed_is_refused_in_one_line(
    llava: Callable[[str], Path], plan: Plan, healed: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(llava("clip+llama"))
    with safe_open(healed, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(healed)
    low_rank = next(name for name in tensors if name.endswith(LORA_A))
    gain = next(name for name in tensors if name.endswith("norm.weight"))
    changes: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        QUESTIONS: ({}, f"no healed weights: it lacks {QUESTIONS}"),
        low_rank: ({}, f"no healed weights: it lacks {low_rank}"),
        gain: ({gain: torch.ones(3)}, f"healed weights: {gain} does not fit the model"),
        "": ({"layers.99.x": torch.ones(3)}, "healed weights: layers.99.x does not fit the model"),
    }
    for number, (name, (given, words)) in enumerate(changes.items()):
        path = tmp_path / f"{number}.safetensors"
        others = {key: value for key, value in tensors.items() if key != name}
        save_file(others | given, path, metadata)
        with pytest.raises(PlanError, match=re.escape(words)) as caught:
            vtcompress.export(recipe.override({"heal.file": path}), tmp_path / "out", plan=plan)
        assert len(caught.value.problems) == 1
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_healed_is_refused(
    do: Heal, llava: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="has one question, and some are learned from"):
        do(make_questions(tmp_path / "one", 1))
    with pytest.raises(VtcompressError, match=r"h.bin: healed weights are a .safetensors file"):
        vtcompress.heal(recipe_of(llava("clip+llama")), data, tmp_path / "h.bin")
    frozen = recipe_of(llava("clip+llama"), ENTRIES[:1])
    scales = HealTraining(learn=("neurons_scale",))
    with pytest.raises(PlanError, match="in no layer of this plan have visual rows some of the"):
        vtcompress.heal(frozen, data, tmp_path / "h.safetensors", train=scales)
    fastv = recipe_of(llava("clip+llama"), ({"fastv": {"layer": 2}},))
    with pytest.raises(PlanError, match="fastv chooses by the end of the prompt, and a training"):
        vtcompress.heal(fastv, data, tmp_path / "h.safetensors")


def test_the_command_heals_what_it_is_told_and_nothing_else(
    llava: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "healed.safetensors"
    command = ["heal", "--recipe", "identity", "--model", llava("clip+llama"), "--data", data]
    command += ["--output", output, "--steps", "2", "--batch", "1", "--train", "norms"]
    assert run_command(["--json", *map(str, command)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "healed.json").read_text())
    assert report["trained"] == {"norms": 9}
    assert {n for n in load_file(output) if n != "questions"} == {
        "norm.weight",
        *(
            f"layers.{i}.{n}_layernorm.weight"
            for i in range(4)
            for n in ("input", "post_attention")
        ),
    }
    assert run_command(list(map(str, command))) == 1
    assert "exists; choose another --output or add --overwrite" in capsys.readouterr().err


def test_a_sweep_answers_with_healed_weights_beside_those_that_were_not(
    llava: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    held = others(tmp_path / "held")
    recipe = recipe_of(llava("clip+llama"), ENTRIES[:1]).override({"validate.data": held})
    file = tmp_path / "healed.safetensors"
    vtcompress.heal(recipe, data, file, train=TRAIN.model_copy(update={"learn": ("norms",)}))
    both = [recipe, recipe.override({"heal.file": file})]
    other = both[1].override({"compress.shortv.layers": (2,)})
    with pytest.raises(RecipeError, match=r"shortv healed: .*: healed for another plan"):
        list_points([*both, other], {})
    report = vtcompress.sweep(both, tmp_path / "out", baselines=False, measure=False)
    usual, better = report.points
    assert (usual.label, better.label) == ("shortv", "shortv healed")
    assert usual.loss.overall.kl != better.loss.overall.kl
    asked = [one.override({"validate.data": data}) for one in both]
    with pytest.raises(DataError, match=r"were read when healed\.safetensors was trained"):
        vtcompress.sweep(asked, tmp_path / "no", baselines=False, measure=False)
