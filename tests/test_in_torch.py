"""A compressed model in torch: it answers as its artifact, and shows what transformers' layers show."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vtcompress
from compressor.compressed import CompressedModel, compress
from compressor.errors import DataError
from compressor.families import LoadedModel, load
from compressor.plan.edits import identity_plan, leave
from compressor.samples.prompts import encode
from compressor.samples.questions import Sample, read_samples
from export.runtime.runtime import Runtime
from tests.models import WORDS
from tests.runtimes import exported

TOLERANCE = 1e-4
N = 16
"""Visual tokens of one picture."""


@pytest.fixture(scope="module")
def model(llava: Callable[[str], Path]) -> LoadedModel:
    return load(str(llava("clip+llama")))


@pytest.fixture(scope="module")
def samples(questions: Path) -> tuple[Sample, ...]:
    return read_samples(questions)


def gates(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in range(3):
        name = f"model.visual_gates_router.{layer}"
        tensors[f"{name}.w1.weight"] = torch.randn(8, 128, generator=generator)
        tensors[f"{name}.w2.weight"] = torch.randn(2, 8, generator=generator)
    save_file(tensors, folder / "gates.safetensors")
    return folder / "gates.safetensors"


CUTS: dict[str, list[dict[str, Any]]] = {
    "an exit, windows, a narrow MLP and a frozen layer": [
        {"visual_exit": {"layer": 3}},
        {"yopo": {"window": 3, "mlp_ratio": 2}},
        {"shortv": {"layers": [1]}},
    ],
    "gates": [{"dyvte": {}}],
}


@pytest.fixture(scope="module", params=CUTS)
def both(
    request: pytest.FixtureRequest, model: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CompressedModel, Runtime]:
    """An artifact's runtime, and the compressed model that its plan gives."""

    from compressor.decoder.weights import load_gates

    folder = tmp_path_factory.mktemp("both")
    methods = CUTS[request.param]
    if request.param == "gates":
        methods = [{"dyvte": {"gates": str(gates(folder))}}]
    output = exported(model.folder, folder / "out", compress=methods)
    plan = vtcompress.Plan.load(output / "plan.json")
    found = None
    if plan.gates is not None:
        recipe = vtcompress.load_recipe("identity").override({"compress": methods})
        found = load_gates(recipe.gate_file(model.facts, model.digest), plan.gates.candidates)
    return compress(model, plan, gates=found), Runtime.load(output, threads=1)


def test_it_answers_as_the_artifact_token_for_token(
    both: tuple[CompressedModel, Runtime], samples: tuple[Sample, ...]
) -> None:
    small, runtime = both
    asked = [(s.question, s.images) for s in samples]
    asked += [("what is this", ()), ("a red it", samples[0].images * 2)]
    lengths = set()
    for question, images in asked:
        wanted = runtime.answer(question, images, max_new_tokens=12)
        found = small.generate(question, images, max_new_tokens=12)
        assert found == (wanted.token_ids, wanted.text)
        lengths.add(len(found.token_ids))
    assert max(lengths) > 1, "decode steps have run"


def test_token_ids_and_pixels_are_the_same_prompt(
    model: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    small = compress(model, identity_plan(model.facts, model.digest))
    sample = samples[0]
    prompt = encode(model.processor, sample, model.facts)
    wanted = small.generate(sample.question, sample.images, max_new_tokens=8)
    ids: list[int] = prompt.input_ids[0].tolist()
    for form in (ids, tuple(ids), prompt.input_ids, prompt.input_ids[0], np.array(ids)):
        assert small.generate(form, prompt.inputs["pixel_values"], max_new_tokens=8) == wanted
    with pytest.raises(DataError, match="token ids come with pixels"):
        small.generate(ids, sample.images)
    with pytest.raises(DataError, match="prompt: the prompt has 16 image tokens"):
        small.generate(ids)
    with pytest.raises(DataError, match="positions; 9000 new tokens do not fit"):
        small.generate(ids, prompt.inputs["pixel_values"], max_new_tokens=9000)


def test_the_generation_configuration_is_followed_unless_it_is_put_away(
    model: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    small = compress(model, identity_plan(model.facts, model.digest))
    sample = samples[0]
    plain = small.generate(sample.question, sample.images, max_new_tokens=6).token_ids
    asking = CompressedModel(**{**vars(small), "generation": {"suppress_tokens": [plain[0]]}})
    barred = asking.generate(sample.question, sample.images, max_new_tokens=6).token_ids
    assert plain[0] not in barred
    free = asking.generate(
        sample.question, sample.images, max_new_tokens=6, generation_config=False
    )
    assert free.token_ids == plain


def test_an_answer_ends_behind_the_token_that_ends_one(
    model: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    small = compress(model, identity_plan(model.facts, model.digest))
    sample = samples[0]
    whole = small.generate(sample.question, sample.images, max_new_tokens=6).token_ids
    end = whole[2]
    facts = small.facts.model_copy(update={"eos_token_ids": (end,)})
    plan = small.plan.model_copy(update={"model": facts})
    ending = CompressedModel(**{**vars(small), "plan": plan})
    found = ending.generate(sample.question, sample.images, max_new_tokens=6).token_ids
    assert found == whole[: whole.index(end) + 1]
    assert len(found) < len(whole)


def of_transformers(model: LoadedModel, sample: Sample) -> tuple[torch.Tensor, ...]:
    prompt = encode(model.processor, sample, model.facts)
    with torch.inference_mode():
        out = model.original(
            input_ids=prompt.input_ids,
            pixel_values=prompt.inputs["pixel_values"],
            output_hidden_states=True,
        )
    found: tuple[torch.Tensor, ...] = out.hidden_states
    return found


def test_states_of_every_layer_are_transformers_hidden_states(
    model: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    plan = identity_plan(model.facts, model.digest)
    wanted = of_transformers(model, samples[0])
    layers = model.facts.decoder.layers
    # In the plan of a recipe visual rows of the last layer are dead: frozen, because nobody reads them.
    for used, dead in ((plan.naive(), False), (plan, True)):
        small = compress(model, used)
        states = small.hidden_states(samples[0].question, samples[0].images)
        assert len(states.visual) == len(states.text) == len(wanted) == layers + 1
        for entry, rows in enumerate(wanted):
            found = states.in_order(entry)
            assert found.shape == rows.shape
            assert states.visual[entry].shape == (1, N, model.facts.decoder.hidden)
            index = states.text_index[0] if dead and entry == layers else slice(None)
            assert (found - rows)[:, index].abs().max() <= TOLERANCE
    assert states.logits.shape == (1, 1, model.facts.decoder.vocab)
    last = (states.in_order(layers) - wanted[layers]).abs().amax(dim=(0, 2))
    assert last[states.visual_index[0]].min() > TOLERANCE, "dead rows are not the original's"


def test_behind_an_exit_there_are_no_visual_rows(
    model: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    plan = leave(identity_plan(model.facts, model.digest), 2, "visual_exit")
    states = compress(model, plan).hidden_states(samples[0].question, samples[0].images)
    assert [rows.shape[1] for rows in states.visual] == [N, N, 0, 0, 0]
    text = states.text_index.shape[1]
    assert [rows.shape[1] for rows in states.text] == [text] * 5
    wanted = of_transformers(model, samples[0])
    before = states.text_index[0]
    assert (states.text[2] - wanted[2][:, before]).abs().max() <= TOLERANCE
    assert (states.text[4] - wanted[4][:, before]).abs().max() > TOLERANCE
    assert states.in_order(3).equal(states.text[3])


def test_states_behind_a_gate_are_those_of_the_exit_that_it_chose(
    both: tuple[CompressedModel, Runtime], samples: tuple[Sample, ...]
) -> None:
    small, runtime = both
    if small.plan.gates is None:
        pytest.skip("no gates")
    chosen = set()
    for sample in samples:
        answer = runtime.generate(sample.question, sample.images, max_new_tokens=1)
        list(answer)
        left = answer.figures.exit_layer
        rows = [
            entry.shape[1] for entry in small.hidden_states(sample.question, sample.images).visual
        ]
        assert rows == [N if left is None or i < left else 0 for i in range(5)]
        chosen.add(left)
    assert chosen - {None}


def test_a_prompt_without_a_picture_has_text_rows_alone(model: LoadedModel) -> None:
    small = compress(model, identity_plan(model.facts, model.digest))
    ids = [WORDS.index(word) for word in ("what", "is", "it")]
    states = small.hidden_states(ids)
    assert [rows.shape[1] for rows in states.visual] == [0] * 5
    with torch.inference_mode():
        out = model.original(input_ids=torch.tensor([ids]), output_hidden_states=True)
    for entry, rows in enumerate(out.hidden_states):
        assert (states.in_order(entry) - rows).abs().max() <= TOLERANCE


def test_the_example_for_researchers_runs_as_written(
    llava: Callable[[str], Path],
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = Path(__file__).parent.parent / "docs" / "research.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    shutil.copytree(llava("clip+llama"), tmp_path / "my-llava")
    shutil.copy(questions.parent / "0.png", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "research.md", "exec"), {})
    _, *entries = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in entries] == ["0", "1", "2", "3", "4"]
    assert "layer 1 was chosen by hand" in (tmp_path / "my-artifact" / "report.md").read_text()
