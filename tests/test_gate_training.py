"""Training of gates: the label by brute force, what a gate sees, resumed runs, refused input, files."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vtcompress
from compressor.compressed import compress
from compressor.contract.gated import GateTraining
from compressor.decoder.full_pass import full_pass
from compressor.decoder.weights import decoder_from, load_gates
from compressor.disk.gate_file import GateFile, stable_header
from compressor.errors import DataError, GatesError, PlanError, RecipeError, VtcompressError
from compressor.families import LoadedModel, load
from compressor.gate_training import training as gate_training
from compressor.gate_training.examples import (
    Examples,
    exit_logits,
    force_answer,
    gate_inputs,
    labels,
)
from compressor.gate_training.training import (
    margins_of,
    original_decoder,
    steps_of,
    train_gates,
)
from compressor.methods.dyvte import DyVTE
from compressor.plan.edits import identity_plan, leave
from compressor.plan.plan import Plan
from compressor.progress import SILENT, Silent
from compressor.recipe import parse_recipe
from compressor.samples.prompts import answer_ids, embed, encode
from compressor.samples.questions import Sample, read_samples
from tests.models import WORDS, make_picture, make_questions
from vtcompress.cli.main import run_command
from vtcompress.stages.gates import training as gates_training

ROOT = Path(__file__).parent.parent
TRAIN = GateTraining(steps=30, batch=3, learning_rate=0.01, seed=1)
METHOD = DyVTE(gate_width=8, train=TRAIN)
CANDIDATES = (0, 1, 2)


@pytest.fixture(scope="module")
def model(llava: Callable[[str], Path]) -> LoadedModel:
    return load(str(llava("clip+llama")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve questions; answers of one to three words."""
    folder = tmp_path_factory.mktemp("answered")
    rows = []
    for i in range(12):
        make_picture(folder / f"{i}.png", seed=i)
        words = [WORDS[11 + (i + k) % 9] for k in range(1 + i % 3)]
        row = {"image": f"{i}.png", "question": f"what is {WORDS[10 + i]}", "kind": "xy"[i % 2]}
        rows.append(json.dumps({**row, "answer": " ".join(words)}))
    path = folder / "train.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def samples(data: Path) -> tuple[Sample, ...]:
    return read_samples(data)


# Answer tokens


def test_an_answer_is_tokenized_as_the_template_writes_it_and_ends_with_the_ending_token(model):
    sample = Sample((Path("x"),), "what is this", "red blue")
    red, blue, end = (WORDS.index(word) for word in ("red", "blue", "</s>"))
    processor = model.processor
    assert answer_ids(processor, sample, (end,)) == (red, blue, end)
    assert answer_ids(processor, sample, ()) == (red, blue)


OF_USER = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% for part in m['content'] %}"
    "{{ part.get('text', '<image>') + ' ' }}{% endfor %}{% else %}"
)
PROMPT = "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"


@pytest.mark.parametrize(
    "turn",
    [
        "ASSISTANT: {{ m['content'] + ' </s> ' }}",  # fails on parts
        "ASSISTANT: {% for p in m['content'] %}{{ p.text }}{% endfor %} </s> w30",  # drops plain text
        "{{ raise_exception('no turns of the model') }}",
        "ASSISTANT: nothing",
        "a b c {{ m['content'] }}",  # another prompt than the one to be answered
    ],
)
def test_templates_that_read_turns_otherwise_or_not_at_all_give_the_same_tokens(
    model, monkeypatch, turn
):
    monkeypatch.setattr(model.processor, "chat_template", OF_USER + turn + PROMPT)
    sample = Sample((Path("x"),), "what is this", "red blue")
    wanted = tuple(WORDS.index(word) for word in ("red", "blue", "</s>"))
    assert answer_ids(model.processor, sample, wanted[-1:]) == wanted


@pytest.mark.parametrize("content", ["{{ m['content'] }}", "{{ m['content'][0].text }}"])
def test_what_a_template_writes_in_front_of_an_answer_belongs_to_it(model, monkeypatch, content):
    # Of the two forms of a turn, a template that reads one writes the other as something else.
    monkeypatch.setattr(
        model.processor, "chat_template", f"{OF_USER}ASSISTANT: w30 {content} </s>{PROMPT}"
    )
    sample = Sample((Path("x"),), "what is this", "red blue")
    wanted = (30, *(WORDS.index(word) for word in ("red", "blue", "</s>")))
    assert answer_ids(model.processor, sample, wanted[-1:]) == wanted


# The label


def original_logits(model: LoadedModel, sample: Sample) -> tuple[np.ndarray, list[int]]:
    """Logits [A, vocab] of transformers' own model at the forced answer, and the answer's tokens."""
    prompt = encode(model.processor, sample, model.facts)
    answer = list(answer_ids(model.processor, sample, model.facts.eos_token_ids))
    ids = torch.cat([prompt.input_ids, torch.tensor([answer])], dim=1)
    with torch.inference_mode():
        out = model.original(input_ids=ids, pixel_values=prompt.inputs["pixel_values"])
    return out.logits[0, -len(answer) - 1 : -1].numpy(), answer


def exited_logits(model: LoadedModel, sample: Sample, layer: int) -> np.ndarray:
    """The same with the visual rows gone after a layer: a whole run of a plan with a fixed exit."""
    plan = leave(identity_plan(model.facts, model.digest), layer + 1, "dyvte")
    decoder = decoder_from(plan, model.tensors, logits="all")
    prompt = encode(model.processor, sample, model.facts)
    answer = torch.tensor([answer_ids(model.processor, sample, model.facts.eos_token_ids)])
    rows = embed(model, prompt.with_ids(torch.cat([prompt.input_ids, answer], dim=1)))
    with torch.inference_mode():
        logits, _ = decoder(
            rows.visual_embeds, rows.text_embeds, rows.visual_index, rows.text_index,
            decoder.empty_past(1),
        )  # fmt: skip
    return logits[0, -answer.shape[1] - 1 : -1].numpy()


def mean_loss(logits: np.ndarray, answer: list[int]) -> float:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(answer)), answer]
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - chosen))


def test_labels_are_what_forcing_each_exit_on_the_whole_model_gives(model, samples):
    decoder, seen = original_decoder(model), []
    for sample in samples:
        forced = force_answer(model, decoder, sample)
        found = exit_logits(forced, CANDIDATES)
        original, answer = original_logits(model, sample)
        wanted = []
        for place, layer in enumerate(CANDIDATES):
            early = exited_logits(model, sample, layer)
            np.testing.assert_allclose(found[place], early, rtol=1e-4, atol=1e-4)
            equal = np.mean(early.argmax(axis=1) == original.argmax(axis=1))
            wanted.append(
                int(equal > 0.99 and mean_loss(early, answer) < 1.03 * mean_loss(original, answer))
            )
        assert labels(forced, CANDIDATES).tolist() == wanted
        assert labels(forced, (1,)).tolist() == wanted[1:2]
        seen += wanted
    assert 0 < sum(seen) < len(seen), "both labels must occur"


@pytest.mark.parametrize(
    ("equal", "factor", "label"),
    [(200, 1.02, 1), (199, 1.02, 1), (198, 1.02, 0), (200, 1.031, 0), (200, 0.5, 1)],
)
def test_the_thresholds_are_the_papers(monkeypatch, equal, factor, label):
    module = sys.modules["compressor.gate_training.examples"]
    original = torch.zeros(1, 200, 3)
    original[..., 0] = 5.0
    early = original.clone()
    early[0, equal:] = torch.tensor([0.0, 5.0, 0.0])
    losses = iter([torch.tensor([factor]), torch.tensor([1.0])])
    monkeypatch.setattr(module, "answer_loss", lambda *_: next(losses))
    monkeypatch.setattr(module, "exit_logits", lambda *_: early)
    forced = type("Forced", (), {})()
    forced.answer = torch.zeros(200, dtype=torch.int64)
    forced.full = type("Full", (), {"text": [torch.zeros(1, 200, 4)]})()
    forced.full.decoder = type("D", (), {"next_token_logits": lambda _, __: original})()
    assert labels(forced, (0,)).tolist() == [label]


def test_a_gate_sees_the_prompt_and_nothing_of_the_answer(model, samples):
    decoder = original_decoder(model)
    for sample in samples[:3]:
        found = gate_inputs(force_answer(model, decoder, sample), CANDIDATES)
        rows = embed(model, encode(model.processor, sample, model.facts))
        alone = full_pass(
            decoder, rows.visual_embeds, rows.text_embeds, rows.visual_index, rows.text_index
        )
        behind = rows.text_index[0] > rows.visual_index.max()
        for layer, given in zip(CANDIDATES, found, strict=True):
            states = alone.text[layer + 1][0, behind]
            assert len(states) > 2
            wanted = torch.cat([states[:-1].mean(dim=0), states[-1]])
            torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)


# Training


def a_training(model, samples, folder: Path, method: DyVTE = METHOD, progress: Any = SILENT):
    folder.mkdir(exist_ok=True)
    return train_gates(model, samples, method, folder / "checkpoint", progress=progress)


def weights_of(trained: Any) -> dict[str, torch.Tensor]:
    return {
        f"{layer}.{name}": weight.detach()
        for layer, gate in trained.gates.items()
        for name, weight in gate.named_parameters()
    }


def assert_equal_bits(one: Any, other: Any) -> None:
    a, b = weights_of(one), weights_of(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(model, samples, tmp_path_factory) -> Any:
    """A training that nothing stopped."""
    return a_training(model, samples, tmp_path_factory.mktemp("whole"))


def test_steps_follow_from_settings_alone_and_use_every_layer():
    steps = steps_of(TRAIN, (3, 5), 12)
    assert steps[:10] == steps_of(TRAIN.model_copy(update={"steps": 10}), (3, 5), 12)
    assert steps != steps_of(TRAIN.model_copy(update={"seed": 2}), (3, 5), 12)
    assert {step.layer for step in steps} == {3, 5}
    assert all(len(step.samples) == 3 for step in steps)
    assert {place for step in steps for place in step.samples} == set(range(12))


def test_a_step_moves_the_gate_of_one_layer_and_the_model_not_at_all(model, samples, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.tensors.items()}
    method = METHOD.model_copy(update={"train": TRAIN.model_copy(update={"steps": 1})})
    trained = a_training(model, samples, tmp_path, method)
    (step,) = steps_of(method.train, CANDIDATES, len(samples))
    fresh = gate_training.new_gates(trained.task, model.facts.decoder.hidden)
    for layer, gate in trained.gates.items():
        moved = [
            not torch.equal(a, b)
            for a, b in zip(gate.parameters(), fresh[layer].parameters(), strict=True)
        ]
        assert moved == [layer == step.layer] * 2
    assert all(torch.equal(before[name], tensor) for name, tensor in model.tensors.items())


def test_the_loss_falls_and_gates_learn_what_depends_on_the_layer_alone(
    model, samples, tmp_path, monkeypatch
):
    def toy(_: Any, __: Any, sample: Sample, layers: list[int]) -> Examples:
        drawn = torch.Generator().manual_seed(int(sample.images[0].stem))
        inputs = torch.randn(len(layers), 128, generator=drawn)
        return Examples(inputs, torch.tensor([int(layer != 1) for layer in layers]))

    def loss(gates: Any, seen: Any) -> float:
        each = [
            torch.nn.functional.cross_entropy(gate(seen.inputs[rows]), seen.labels[rows]).item()
            for layer, gate in gates.items()
            for rows in [seen.layers == layer]
        ]
        return sum(each)

    monkeypatch.setattr(gate_training, "examples_of", toy)
    method = METHOD.model_copy(update={"train": TRAIN.model_copy(update={"steps": 200})})
    after = a_training(model, samples, tmp_path, method)
    before = gate_training.new_gates(after.task, model.facts.decoder.hidden)
    assert loss(after.gates, after) < 0.1 * loss(before, after)
    for layer, gate in after.gates.items():
        fired = margins_of(gate, after.inputs[after.layers == layer]) > 0
        assert fired.tolist() == [layer != 1] * len(fired)


# Stopped runs


class StopAfter(Silent):
    """A progress that interrupts the run after some items, of all its loops together."""

    def __init__(self, count: int) -> None:
        self.left = count

    def track(self, items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
        del label, total
        for item in items:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield item


@pytest.mark.parametrize("count", [0, 1, 7, 12, 13, 40])
def test_an_interrupted_run_goes_on_to_the_very_gates_and_looks_at_no_prompt_twice(
    model, samples, whole, tmp_path, monkeypatch, count
):
    looked: list[Sample] = []
    real = gate_training.examples_of

    def counting(model: Any, decoder: Any, sample: Sample, layers: Any) -> Examples:
        looked.append(sample)
        return real(model, decoder, sample, layers)

    monkeypatch.setattr(gate_training, "examples_of", counting)
    with pytest.raises(KeyboardInterrupt):
        a_training(model, samples, tmp_path, progress=StopAfter(count))
    assert_equal_bits(a_training(model, samples, tmp_path), whole)
    assert len(looked) == len(set(looked)) == len(samples)


def test_an_interrupt_in_the_middle_of_a_step_stores_no_half_step(
    model, samples, whole, tmp_path, monkeypatch
):
    real, taken = torch.optim.AdamW.step, []

    def interrupted(self: Any, *arguments: Any) -> Any:
        result = real(self, *arguments)
        taken.append(1)
        if len(taken) == 5:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(gate_training, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(gate_training, "MOST_TIME_SAVING", 1e9)
    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        a_training(model, samples, tmp_path)
    assert_equal_bits(a_training(model, samples, tmp_path), whole)


KILLED = """
import os, signal, sys
from pathlib import Path
from compressor.gate_training import training as gate_training
from tests.test_gate_training import METHOD, StopAfter, a_training, load, read_samples

gate_training.SAVE_EVERY_SECONDS, gate_training.MOST_TIME_SAVING = 0.0, 1e9

class Kill(StopAfter):
    def track(self, items, label, total):
        try:
            yield from super().track(items, label, total)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGKILL)

model, data, folder, count = sys.argv[1:]
a_training(load(model), read_samples(Path(data)), Path(folder), METHOD, Kill(int(count)))
"""


@pytest.mark.parametrize("count", [5, 30])
def test_a_killed_run_goes_on_from_its_checkpoint_to_the_very_gates(
    model, data, samples, whole, tmp_path, count, counted
):
    arguments = [model.folder, data, tmp_path, count]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)], cwd=ROOT, check=False, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "checkpoint").is_file()
    progress = StopAfter(42 - count + 1)  # one item was under way when it was killed
    assert_equal_bits(a_training(model, samples, tmp_path, progress=progress), whole)
    counted("kills", 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gate_width": 9}, "another gate_width"),
        ({"candidates": (0, 2)}, "other candidates"),
        ({"train": TRAIN.model_copy(update={"steps": 31})}, "other settings of train"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_and_kept(
    model, samples, whole, tmp_path, change, named
):
    del whole
    a_training(model, samples[:2], tmp_path)
    before = (tmp_path / "checkpoint").read_bytes()
    with pytest.raises(GatesError, match=f"{named}; remove checkpoint to start anew"):
        a_training(model, samples[:2], tmp_path, METHOD.model_copy(update=change))
    with pytest.raises(GatesError, match="other data; remove"):
        a_training(model, samples[:3], tmp_path)
    assert (tmp_path / "checkpoint").read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(model, samples, tmp_path, tiny_model):
    a_training(model, samples[:2], tmp_path)
    with pytest.raises(GatesError, match="another model and other candidates; remove"):
        a_training(load(str(tiny_model)), samples[:2], tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_broken_checkpoint_is_refused_in_one_line(model, samples, tmp_path, keep):
    a_training(model, samples[:2], tmp_path)
    path = tmp_path / "checkpoint"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(GatesError, match="broken, or of another version of vtcompress; remove"):
        a_training(model, samples[:2], tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(model, samples, tmp_path):
    from safetensors.torch import save_file

    save_file({"labels": torch.zeros(2)}, tmp_path / "checkpoint")
    with pytest.raises(GatesError, match="broken, or of another version of vtcompress; remove"):
        a_training(model, samples[:2], tmp_path)


# The stage


def recipe_for(folder: Path, **changes: Any) -> Any:
    given = {"gate_width": 8, "train": {"steps": 3, "batch": 2}, **changes}
    document = {"vtcompress": 1, "model": {"id": str(folder)}, "compress": ({"dyvte": given},)}
    return parse_recipe(document, "test")


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
    def loaded(*_: Any) -> None:
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
