"""The stage that trains gates: its files and report, resumed runs, what is refused early, the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vtcompress
from compressor.compressed import compress
from compressor.contract.gated import GateTraining
from compressor.decoder.weights import load_gates
from compressor.disk.gate_file import GateFile, stable_header
from compressor.errors import DataError, PlanError, RecipeError, VtcompressError
from compressor.gate_training import training as gate_training
from compressor.gate_training.examples import force_answer, gate_inputs, labels
from compressor.gate_training.training import original_decoder, steps_of
from compressor.methods.dyvte import DyVTE
from compressor.plan.plan import Plan
from compressor.samples.prompts import embed, encode
from tests.gates_trained import CANDIDATES, StopAfter, a_training, data, model, recipe_for, samples
from tests.models import make_questions
from vtcompress.cli.main import run_command
from vtcompress.stages.gates import training as gates_training

__all__ = ["data", "model", "samples"]  # fixtures


@pytest.fixture(scope="module")
def trained(llava, data, tmp_path_factory) -> tuple[Path, Any]:
    """Gates that the stage wrote, and its report."""
    output = tmp_path_factory.mktemp("stage") / "gates.safetensors"
    recipe = recipe_for(llava("clip+llama")).override({"validate.max_new_tokens": 4})
    report = vtcompress.train_gates(recipe, data, output, held_out=data)
    return output, report


def test_the_stage_leaves_gates_and_report_and_nothing_else(trained):
    output, report = trained
    assert sorted(p.name for p in output.parent.iterdir()) == ["gates.json", "gates.safetensors"]
    assert json.loads((output.parent / "gates.json").read_text()) == report.model_dump(mode="json")
    assert report.gates_digest == GateFile.read(output).digest


def test_the_gates_have_the_released_names_and_make_a_plan(trained, model, llava):
    output, _ = trained
    file = GateFile.read(output)
    assert file.model_digest == model.digest
    assert set(file.names.values()) == {
        f"model.visual_gates_router.{i}.{part}.weight" for i in CANDIDATES for part in ("w1", "w2")
    }
    file.check(model.facts, model.digest, CANDIDATES)
    tensors = load_gates(file, CANDIDATES).tensors
    assert {tuple(t.shape) for t in tensors.values()} == {(8, 128), (2, 8)}
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    plan = vtcompress.plan(recipe_for(llava("clip+llama")).with_gates(output))
    assert plan.gates is not None
    assert plan.gates.digest == file.digest


def test_the_stage_trains_what_the_library_trains(trained, model, samples, tmp_path):
    method = DyVTE(gate_width=8, train=GateTraining(steps=3, batch=2))
    expected = a_training(model, samples, tmp_path, method)
    tensors = load_gates(GateFile.read(trained[0]), CANDIDATES).tensors
    for layer, gate in expected.gates.items():
        for part in ("w1", "w2"):
            given = tensors[f"visual_gates_router.{layer}.{part}.weight"]
            assert torch.equal(given.T, getattr(gate, part).weight)


def test_the_same_training_writes_the_same_bytes(trained, llava, data, tmp_path):
    output = tmp_path / "gates.safetensors"
    vtcompress.train_gates(recipe_for(llava("clip+llama")), data, output)
    assert output.read_bytes() == trained[0].read_bytes()


def test_gates_are_trained_and_judged_on_an_original_of_sixteen_bits(llava, data, tmp_path):
    output = tmp_path / "gates.safetensors"
    small = {"validate.max_new_tokens": 2, "model.dtype": "bfloat16"}
    report = vtcompress.train_gates(
        recipe_for(llava("clip+llama")).override(small), data, output, held_out=data
    )
    tensors = load_gates(GateFile.read(output), CANDIDATES).tensors
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert report.held_out is not None


def test_the_histogram_is_where_the_decoder_with_these_gates_lets_visual_rows_leave(
    trained, model, samples, llava
):
    output, report = trained
    plan = vtcompress.plan(recipe_for(llava("clip+llama")).with_gates(output))
    gates = load_gates(GateFile.read(output), CANDIDATES)
    small = compress(model, plan, gates=gates)
    exits = []
    for sample in samples:
        rows = embed(model, encode(model.processor, sample, model.facts))
        with torch.inference_mode():
            _, present = small.decoder(
                rows.visual_embeds, rows.text_embeds, rows.visual_index, rows.text_index,
                small.decoder.empty_past(1),
            )  # fmt: skip
        whole_length = rows.layout.rows
        left = [i for i, (key, _) in enumerate(present) if key.shape[2] < whole_length]
        exits.append(left[0] - 1 if left else None)
    held = report.held_out
    assert held.fired == tuple(exits.count(layer) for layer in CANDIDATES)
    assert held.unfired == exits.count(None)
    assert sum(held.fired) > 0, "some gate must fire for this test to mean anything"


def test_gate_accuracy_is_against_the_papers_label(trained, model, samples):
    output, report = trained
    tensors = load_gates(GateFile.read(output), CANDIDATES).tensors
    decoder, right = original_decoder(model), []
    for sample in samples:
        forced = force_answer(model, decoder, sample)
        for layer, x, label in zip(
            CANDIDATES, gate_inputs(forced, CANDIDATES), labels(forced, CANDIDATES), strict=True
        ):
            w1, w2 = (tensors[f"visual_gates_router.{layer}.{p}.weight"] for p in ("w1", "w2"))
            stay, leave_ = w2 @ torch.nn.functional.gelu(w1 @ x)
            right.append((layer, bool(leave_ > stay) == bool(label), bool(label)))
    gates = report.held_out.gates
    assert gates.overall.examples == len(right)
    assert gates.overall.accuracy == pytest.approx(np.mean([r for _, r, _ in right]))
    for layer, figures in zip(CANDIDATES, gates.layers, strict=True):
        assert figures.accuracy == pytest.approx(np.mean([r for i, r, _ in right if i == layer]))
        assert figures.may_leave == pytest.approx(np.mean([b for i, _, b in right if i == layer]))


def test_without_held_out_questions_the_report_has_the_training_part_alone(llava, data, tmp_path):
    report = vtcompress.train_gates(
        recipe_for(llava("clip+llama")), data, tmp_path / "g.safetensors"
    )
    assert report.held_out is None
    assert report.training.overall.examples <= 6  # three steps of two prompts


def test_a_run_stopped_in_its_report_goes_on_without_training_again(
    llava, data, tmp_path, monkeypatch, trained
):
    output, recipe = tmp_path / "gates.safetensors", recipe_for(llava("clip+llama"))
    steps = len(
        {place for s in steps_of(recipe.gated.train, CANDIDATES, 12) for place in s.samples}
    )
    with pytest.raises(KeyboardInterrupt):
        vtcompress.train_gates(
            recipe, data, output, held_out=data, progress=StopAfter(steps + 3 + 4)
        )
    assert [p.name for p in tmp_path.iterdir()] == [".gates.safetensors.training.safetensors"]

    def never(*_: Any) -> None:
        pytest.fail("trained again")

    monkeypatch.setattr(gate_training, "examples_of", never)
    vtcompress.train_gates(recipe, data, output)
    assert output.read_bytes() == trained[0].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gates.json", "gates.safetensors"]


# Refused input, before weights are loaded


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(gates_training, "load_model", loaded)


@pytest.mark.usefixtures("no_weights")
class TestRefused:
    def test_a_recipe_without_dyvte(self, data, tmp_path):
        with pytest.raises(RecipeError, match="no entry is dyvte, so there are no gates to train"):
            vtcompress.train_gates(
                vtcompress.load_recipe("shortv"), data, tmp_path / "g.safetensors"
            )

    def test_every_question_without_a_picture_or_an_answer(self, llava, data, tmp_path):
        rows = [json.loads(line) for line in data.read_text().splitlines()]
        for row in rows:
            row["image"] = str(data.parent / row["image"])
        del rows[1]["image"], rows[3]["answer"], rows[5]["image"]
        rows[5]["answer"] = " "
        path = tmp_path / "q.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        said = (
            f"q.jsonl: question 2, {rows[1]['question']!r}: has no image",
            f"q.jsonl: question 4, {rows[3]['question']!r}: has no answer",
            f"q.jsonl: question 6, {rows[5]['question']!r}: has no image and no answer",
        )
        recipe = recipe_for(llava("clip+llama"))
        for asked in ((path, None), (data, path)):
            with pytest.raises(DataError) as caught:
                vtcompress.train_gates(
                    recipe, asked[0], tmp_path / "g.safetensors", held_out=asked[1]
                )
            assert caught.value.problems == said

    def test_more_of_them_than_anybody_reads(self, llava, tmp_path):
        path = make_questions(tmp_path / "q", 25, answers=False)
        with pytest.raises(DataError) as caught:
            vtcompress.train_gates(
                recipe_for(llava("clip+llama")), path, tmp_path / "g.safetensors"
            )
        assert len(caught.value.problems) == 21
        assert caught.value.problems[-1] == "questions.jsonl: and 5 more"

    def test_layers_that_the_model_does_not_have(self, llava, data, tmp_path):
        recipe = recipe_for(llava("clip+llama"), candidates=(1, 3, 9))
        with pytest.raises(PlanError) as caught:
            vtcompress.train_gates(recipe, data, tmp_path / "g.safetensors")
        assert caught.value.problems == (
            "compress[0].dyvte.candidates: 3, 9 are outside 0..2; the model has 4 layers",
        )

    def test_an_output_folder_that_cannot_be_made(self, llava, data, tmp_path):
        (tmp_path / "no").write_text("a file")
        with pytest.raises(VtcompressError, match="cannot write: "):
            vtcompress.train_gates(
                recipe_for(llava("clip+llama")), data, tmp_path / "no" / "g.safetensors"
            )

    def test_an_output_that_is_no_safetensors_file(self, llava, data, tmp_path):
        with pytest.raises(VtcompressError, match=r"g.json: gates are a .safetensors file"):
            vtcompress.train_gates(recipe_for(llava("clip+llama")), data, tmp_path / "g.json")

    def test_an_output_among_the_models_own_weights(self, llava, data):
        folder = llava("clip+llama")
        with pytest.raises(VtcompressError, match="which this run reads"):
            vtcompress.train_gates(recipe_for(folder), data, folder / "gates.safetensors")
        assert not (folder / "gates.safetensors").exists()

    @pytest.mark.parametrize("name", ["g.safetensors", "g.json"])
    def test_an_output_that_exists(self, llava, data, tmp_path, name):
        (tmp_path / name).write_text("old")
        with pytest.raises(VtcompressError, match=f"{name}: is no file that vtcompress knows"):
            vtcompress.train_gates(
                recipe_for(llava("clip+llama")), data, tmp_path / "g.safetensors"
            )
        assert (tmp_path / name).read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == [name]


# Command line


def test_the_command_trains_reports_and_does_not_overwrite(llava, data, tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("vtcompress: 1\ncompress: [{dyvte: {gate_width: 8}}]\n")
    output = tmp_path / "gates.safetensors"
    command = ["train-gates", "--recipe", recipe, "--model", llava("clip+llama"), "--data", data]
    command += ["--output", output, "--set", "compress.dyvte.train.steps=3"]
    held = ["--validate-data", data, "--validate-samples", "4"]
    assert run_command(["--json", *map(str, command + held)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "gates.json").read_text())
    assert report["held_out"]["answers"]["overall"]["samples"] == 4
    assert report["train"] == {"steps": 3, "batch": 4, "learning_rate": 0.001, "seed": 0}
    assert run_command(list(map(str, command))) == 1
    assert "exists; choose another --output or add --overwrite" in capsys.readouterr().err
    assert run_command([*map(str, command + held), "--overwrite"]) == 0
    said = capsys.readouterr().out
    assert "Gates on held-out prompts of train.jsonl" in said
    assert "without exit (original) and with exit" in said
    assert run_command([*map(str, command), "--overwrite"]) == 0
    assert "training part only" in capsys.readouterr().out


def test_a_stable_header_holds_the_same_in_one_order():
    from safetensors.torch import load as loads
    from safetensors.torch import save

    tensors = {"b": torch.arange(3.0), "a": torch.arange(4)}
    metadata = {key: key * 3 for key in "qwertzuiop"}
    files = {stable_header(save(tensors, metadata)) for _ in range(4)}
    assert len(files) == 1
    (content,) = files
    assert all(torch.equal(loads(content)[name], tensor) for name, tensor in tensors.items())
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    assert json.loads(content[8 : 8 + length])["__metadata__"] == metadata


def test_a_recipe_with_the_gates_of_a_training_saves_and_loads_its_plan(trained, llava, tmp_path):
    plan = vtcompress.plan(recipe_for(llava("clip+llama"), exit="staged").with_gates(trained[0]))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
