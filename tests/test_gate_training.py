"""Training of gates: the label by brute force, what a gate sees, and runs that are stopped and go on."""

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.decoder.full_pass import full_pass
from compressor.decoder.weights import decoder_from
from compressor.errors import GatesError
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
)
from compressor.plan.edits import identity_plan, leave
from compressor.samples.prompts import answer_ids, embed, encode
from compressor.samples.questions import Sample
from compressor.training import run
from tests.gates_trained import (
    CANDIDATES,
    METHOD,
    TRAIN,
    StopAfter,
    a_training,
    data,
    model,
    samples,
)
from tests.models import WORDS

__all__ = ["data", "model", "samples"]  # fixtures


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

    monkeypatch.setattr(run, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(run, "MOST_TIME_SAVING", 1e9)
    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        a_training(model, samples, tmp_path)
    assert_equal_bits(a_training(model, samples, tmp_path), whole)


class Kill(StopAfter):
    """A progress that kills the process after some items."""

    def track(self, items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
        try:
            yield from super().track(items, label, total)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("count", [5, 30])
def test_a_killed_run_goes_on_from_its_checkpoint_to_the_very_gates(
    model, samples, whole, tmp_path, count, counted
):
    if (pid := os.fork()) == 0:
        run.SAVE_EVERY_SECONDS, run.MOST_TIME_SAVING = 0.0, 1e9
        try:
            a_training(model, samples, tmp_path, METHOD, Kill(count))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
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
