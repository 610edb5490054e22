"""Barred and punished tokens against transformers' own logits processors, answers against its `generate`."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

import vtcompress
from compressor.compressed import compress, load_compressed
from compressor.disk.opening import sha256_of
from compressor.errors import ModelError
from compressor.families import load
from compressor.families.pictures.text import PictureForm
from compressor.generation.rules import constraints
from compressor.generation.settings import PLAIN, GenerationSettings, settings_of
from compressor.planner import make_plan
from compressor.samples.questions import read_samples
from export.backends.torch_model import TorchSession
from export.checks import loss
from export.checks.original import measure_original
from export.runtime.messages import user_message
from export.runtime.runtime import Runtime
from tests.models import make_picture
from vtcompress.cli.main import cli

VOCAB, ENDS = 24, (2, 7)


def by_transformers(settings: GenerationSettings, prompt: int) -> Any:
    """Return transformers' processors for settings, in the order of its `generate`."""
    t, ends = transformers, torch.tensor(ENDS)
    found = t.LogitsProcessorList()
    if settings.repetition_penalty != 1:
        found.append(t.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        found.append(t.NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
    if settings.bad_words_ids:
        words = [list(word) for word in settings.bad_words_ids]
        found.append(t.NoBadWordsLogitsProcessor(words, ends))
    if settings.min_length:
        found.append(t.MinLengthLogitsProcessor(settings.min_length, ends))
    if settings.min_new_tokens:
        found.append(t.MinNewTokensLengthLogitsProcessor(prompt, settings.min_new_tokens, ends))
    if settings.suppress_tokens:
        found.append(t.SuppressTokensLogitsProcessor(settings.suppress_tokens))
    if settings.begin_suppress_tokens:
        first = settings.begin_suppress_tokens
        found.append(t.SuppressTokensAtBeginLogitsProcessor(first, prompt))
    return found


SETTINGS = {
    "repetition_penalty above 1": GenerationSettings(repetition_penalty=1.3),
    "repetition_penalty below 1": GenerationSettings(repetition_penalty=0.7),
    "no_repeat_ngram_size 1": GenerationSettings(no_repeat_ngram_size=1),
    "no_repeat_ngram_size 2": GenerationSettings(no_repeat_ngram_size=2),
    "no_repeat_ngram_size 3": GenerationSettings(no_repeat_ngram_size=3),
    "no_repeat_ngram_size longer than the sequence": GenerationSettings(no_repeat_ngram_size=90),
    "bad_words_ids": GenerationSettings(bad_words_ids=((3,), (1, 4), (0, 1, 2), (9,) * 80)),
    "bad_words_ids that hold an end": GenerationSettings(bad_words_ids=((2,), (7, 2), (5,))),
    "min_length": GenerationSettings(min_length=14),
    "min_new_tokens": GenerationSettings(min_new_tokens=3),
    "suppress_tokens": GenerationSettings(suppress_tokens=(0, 5, 23)),
    "suppress_tokens outside the vocabulary": GenerationSettings(suppress_tokens=(-1, 24, 900, 4)),
    "begin_suppress_tokens": GenerationSettings(begin_suppress_tokens=(1, 2)),
}
SETTINGS["all of them"] = GenerationSettings(
    repetition_penalty=1.2,
    no_repeat_ngram_size=2,
    bad_words_ids=((3,), (1, 4)),
    min_new_tokens=2,
    suppress_tokens=(6,),
    begin_suppress_tokens=(8, 9),
)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_gives_the_logits_of_transformers_processors(name):
    settings = SETTINGS[name]
    rng, changed = np.random.default_rng(0), 0
    rules = constraints(settings, ENDS)
    # Few tokens, so that they come again; prompts that are shorter than what is looked for too.
    for prompt, answered in ((1, 0), (2, 1), (6, 0), (12, 1), (12, 3), (40, 0), (40, 9)):
        theirs = by_transformers(settings, prompt)
        rows = rng.integers(0, 6, (3, prompt + answered))
        logits = rng.normal(0, 3, (3, VOCAB)).astype(np.float32)
        wanted = theirs(torch.from_numpy(rows), torch.from_numpy(logits.copy())).numpy()
        found, before = logits, logits.copy()
        for rule in rules:
            found = rule(found, rows, answered)
        assert found.dtype == np.float32
        assert np.array_equal(np.isneginf(found), np.isneginf(wanted))
        assert np.array_equal(found, wanted), np.abs(found - wanted).max()
        assert np.array_equal(logits, before), "the model's own logits stay"
        changed += not np.array_equal(found, logits)
    assert changed or "longer than" in name


def test_plain_settings_ask_for_nothing():
    assert constraints(PLAIN, ENDS) == ()
    assert (
        constraints(settings_of({"eos_token_id": 2, "repetition_penalty": None}, "f"), (2,)) == ()
    )


def test_the_least_number_of_new_tokens_takes_the_place_of_the_least_length():
    assert settings_of({"min_length": 90, "min_new_tokens": 0}, "f") == PLAIN
    assert settings_of({"min_length": 90}, "f").min_length == 90


def test_all_values_that_make_no_sense_are_refused_at_once_with_their_place():
    keys = {
        "repetition_penalty": 0,
        "no_repeat_ngram_size": -1,
        "bad_words_ids": [3],
        "suppress_tokens": "5",
        "min_new_tokens": 1.5,
        "min_length": True,
    }
    with pytest.raises(ModelError) as caught:
        settings_of(keys, "m/generation_config.json")
    assert sorted(line.split(": ")[1] for line in caught.value.problems) == sorted(keys)
    assert all(p.startswith("m/generation_config.json: ") for p in caught.value.problems)


def test_numbers_that_nothing_can_compute_with_are_refused():
    keys = {
        "eos_token_id": 10**40,
        "suppress_tokens": [5, -(10**40)],
        "bad_words_ids": [[5, 1 << 63]],
        "repetition_penalty": 10**400,
    }
    with pytest.raises(ModelError) as caught:
        settings_of(keys, "f")
    assert sorted(line.split(": ")[1] for line in caught.value.problems) == sorted(keys)


# What a file may ask for; each changes the answer of the small model.
ASKED: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "suppress_tokens": {"suppress_tokens": "the answer's first two"},
    "begin_suppress_tokens": {"begin_suppress_tokens": "the answer's first two"},
    "bad_words_ids": {"bad_words_ids": "the answer's second after its first"},
    "min_new_tokens": {"min_new_tokens": 6, "eos_token_id": "the answer's first two"},
    "min_length": {"min_length": 30, "eos_token_id": "the answer's first two"},
    "several": {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "suppress_tokens": "the answer's first two",
        "min_new_tokens": 4,
    },
}
LONGEST = 10


@dataclass
class Pair:
    """transformers and the runtime on one model folder."""

    model: Any
    processor: Any
    runtime: Runtime

    def by_transformers(self, conversations: Sequence[Any], images: Sequence[Path]) -> list[Any]:
        """Return the answers to conversations of equal length, with the pictures of each."""
        encoded = [
            self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors="pt", images=None,
            )
            for messages in (filled(c, images) for c in conversations)
        ]  # fmt: skip
        ids = torch.cat([e["input_ids"] for e in encoded])
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=torch.cat([e["pixel_values"] for e in encoded]),
                max_new_tokens=LONGEST,
            )
        return [tuple(row) for row in out[:, ids.shape[1] :].tolist()]


def filled(messages: Any, images: Sequence[Path]) -> Any:
    """Return messages whose pictures have their paths."""
    paths = iter(images)
    messages = json.loads(json.dumps(messages))
    for message in messages:
        for part in message["content"]:
            if part["type"] == "image":
                part["path"] = str(next(paths))
    return messages


def pair(folder: Path) -> Pair:
    model = load(str(folder))
    small = compress(model, make_plan(model.facts, model.digest, (), None))
    runtime = Runtime.on_session(
        TorchSession(small), folder, model.facts, PictureForm(token="<image>")
    )
    # Loaded by transformers alone: with all that the folder says about generating.
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    return Pair(theirs, model.processor, runtime)


def asking(source: Path, folder: Path, keys: dict[str, Any], *, keep: bool = True) -> Path:
    """Copy a model folder; its generation_config.json then holds `keys`, besides or alone."""
    shutil.copytree(source, folder)
    path = folder / "generation_config.json"
    old = json.loads(path.read_text()) if keep else {}
    path.write_text(json.dumps(old | keys))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [make_picture(folder / f"{i}.png", seed=i) for i in range(3)]


@pytest.fixture(scope="module")
def plain_answer(llava: Callable[[str], Path], pictures: list[Path]) -> tuple[int, ...]:
    return pair(llava("clip+llama")).runtime.answer("what is it", pictures[:1]).token_ids[:LONGEST]


@pytest.mark.parametrize("name", ASKED)
def test_answers_are_those_of_generate_where_the_model_asks_for_settings(
    name, llava, pictures, plain_answer, tmp_path
):
    words = {
        "the answer's first two": list(plain_answer[:2]),
        "the answer's second after its first": [list(plain_answer[:2])],
    }
    keys = {
        key: words.get(value, value) if isinstance(value, str) else value
        for key, value in ASKED[name].items()
    }
    both = pair(asking(llava("clip+llama"), tmp_path / "m", keys))
    runtime, asked = both.runtime, user_message("what is it", 1)
    (wanted,) = both.by_transformers([[asked]], pictures[:1])
    # The settings do something: the likeliest tokens alone are others.
    plain = runtime.answer(
        "what is it", pictures[:1], max_new_tokens=LONGEST, generation_config=False
    )
    assert plain.token_ids != wanted
    assert plain.token_ids == plain_answer[: len(plain.token_ids)]
    said = runtime.answer("what is it", pictures[:1], max_new_tokens=LONGEST)
    assert said.token_ids == wanted
    assert np.array_equal(said.first_logits, plain.first_logits), "logits stay the model's own"
    streamed = runtime.generate("what is it", pictures[:1], max_new_tokens=LONGEST)
    list(streamed)
    assert streamed.token_ids == wanted
    seen = runtime.prefill_image(pictures[:1])
    assert seen.rows
    assert seen.answer("what is it", max_new_tokens=LONGEST).token_ids == wanted

    # A batch: each row by its own tokens.
    questions = ["what is it", "is this red", "a b c"]
    batch = dict(runtime.answers([(q, pictures[:1]) for q in questions], max_new_tokens=LONGEST))
    for place, question in enumerate(questions):
        (alone,) = both.by_transformers([[user_message(question, 1)]], pictures[:1])
        assert batch[place].token_ids == alone, question

    # A chat: the whole conversation is the prompt, what was kept of it too.
    chat = runtime.chat()
    list(chat.ask("what is it", pictures[:1], max_new_tokens=LONGEST))
    later = chat.ask("is this red", pictures[1:2], max_new_tokens=LONGEST)
    list(later)
    turns = [*chat.messages[:2], user_message("is this red", 1)]
    (wanted,) = both.by_transformers([turns], pictures[:2])
    assert later.token_ids == wanted


def test_a_batch_in_one_call_of_generate_gives_the_same_answers(llava, pictures, tmp_path):
    keys = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 5}
    both = pair(asking(llava("clip+llama"), tmp_path / "m", keys))
    questions = ["what is it", "is this red", "a b c"]
    wanted = both.by_transformers([[user_message(q, 1)] for q in questions], pictures[:1])
    found = dict(
        both.runtime.answers([(q, pictures[:1]) for q in questions], max_new_tokens=LONGEST)
    )
    for place, answer in enumerate(wanted):
        assert found[place].token_ids == answer[: len(found[place].token_ids)]


def test_settings_of_a_model_without_the_file_come_from_its_configuration(llava, tmp_path):
    folder = asking(llava("clip+llama"), tmp_path / "m", {})
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["repetition_penalty"] = 1.5
    (folder / "config.json").write_text(json.dumps(config))
    both = pair(folder)
    assert both.runtime.settings.repetition_penalty == 1.5
    assert both.model.generation_config.repetition_penalty == 1.5


def test_what_is_not_applied_is_named_once(llava, pictures, tmp_path, caplog):
    keys = {"num_beams": 4, "forced_eos_token_id": 2, "do_sample": True, "top_k": 50}
    runtime = pair(asking(llava("clip+llama"), tmp_path / "m", keys)).runtime
    with caplog.at_level(logging.WARNING):
        runtime.answer("what is it", pictures[:1], max_new_tokens=2, generation_config=False)
        assert not caplog.messages
        for _ in range(2):
            runtime.answer("what is it", pictures[:1], max_new_tokens=2)
    (line,) = caplog.messages
    assert line.endswith(
        "not applied here: do_sample: true (give a temperature); num_beams: 4; forced_eos_token_id: 2"
    )


def test_who_draws_tokens_is_not_told_that_the_model_asks_for_it(llava, pictures, tmp_path, caplog):
    runtime = pair(asking(llava("clip+llama"), tmp_path / "m", {"do_sample": True})).runtime
    with caplog.at_level(logging.WARNING):
        list(runtime.generate("what is it", pictures[:1], max_new_tokens=2, temperature=1.0))
    assert not caplog.messages


def test_drawn_tokens_are_barred_too(llava, pictures, tmp_path):
    barred = sorted(set(range(48)) - {11, 12})
    runtime = pair(asking(llava("clip+llama"), tmp_path / "m", {"suppress_tokens": barred})).runtime
    drawn = runtime.generate("what is it", pictures[:1], max_new_tokens=12, temperature=2.0)
    list(drawn)
    assert set(drawn.token_ids) == {11, 12}


# What transformers' `generate` takes from the file: none of it may look like a loss.
EVERYTHING: dict[str, Any] = {
    "repetition_penalty": 1.5,
    "no_repeat_ngram_size": 2,
    "suppress_tokens": [17, 23],
    "begin_suppress_tokens": [13, 14],
    "bad_words_ids": [[19], [3, 4]],
    "min_new_tokens": 3,
    "min_length": 25,
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 6,
    "num_beams": 3,
    "do_sample": True,
    "temperature": 1.7,
    "encoder_repetition_penalty": 1.4,
    "encoder_no_repeat_ngram_size": 2,
    "exponential_decay_length_penalty": [2, 1.5],
    "sequence_bias": [[[9], 9.0]],
    "max_length": 12,
    "max_new_tokens": 1,
    "use_cache": False,
    "num_return_sequences": 2,
    "guidance_scale": 2.0,
    "stop_strings": ["w30"],
}


# transformers does not load a model that asks for several answers alone.
ALONE = [key for key in EVERYTHING if key != "num_return_sequences"]


@pytest.mark.parametrize("key", [*ALONE, "all of them"])
def test_an_identity_model_loses_nothing_whatever_its_configuration_asks_for(
    key, llava, questions, tmp_path
):
    keys = EVERYTHING if key == "all of them" else {key: EVERYTHING[key]}
    folder = asking(llava("clip+llama"), tmp_path / "m", keys)
    model, samples = load(str(folder)), read_samples(questions)
    small = compress(model, make_plan(model.facts, model.digest, (), None))
    form = PictureForm(token="<image>")
    runtime = Runtime.on_session(TorchSession(small), folder, model.facts, form)
    original = measure_original(model, samples, 8)
    found = loss.measure_answers(runtime, samples, 8)
    report = loss.compare(samples, original, found, loss.LossLimits(), "questions.jsonl")
    assert report.overall.kl < 1e-9
    assert (report.overall.agreement, report.overall.common_prefix) == (1.0, 1.0)
    assert {len(answer.token_ids) for answer in original.answers} == {8}


@pytest.fixture(scope="module")
def asking_artifact(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the identity artifact of a model that asks for everything."""
    folder = tmp_path_factory.mktemp("asking") / "artifact"
    asking(tiny_artifact, folder, EVERYTHING)
    path = folder / "generation_config.json"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][path.name] = {"sha256": sha256_of(path), "size": path.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_validate_asks_for_the_likeliest_tokens(asking_artifact):
    assert vtcompress.validate(asking_artifact).loss.overall.common_prefix == 1.0


def test_an_artifact_applies_what_its_model_asks_for_unless_told_otherwise(
    asking_artifact, questions
):
    runtime, picture = vtcompress.Runtime.load(asking_artifact), questions.parent / "0.png"
    assert runtime.settings.repetition_penalty == 1.5
    said = {}
    arguments = ["-q", "--json", "generate", str(asking_artifact), "--prompt", "what is it"]
    arguments += ["--image", str(picture), "--max-new-tokens", "6"]
    for options, wanted in (([], True), (["--no-generation-config"], False)):
        said[wanted] = runtime.answer(
            "what is it", [picture], max_new_tokens=6, generation_config=wanted
        ).text
        done = CliRunner().invoke(cli, [*arguments, *options])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["text"] == said[wanted]
    assert said[True] != said[False]


def test_an_artifact_carries_its_models_configuration(tiny_model, tiny_artifact):
    name = "generation_config.json"
    wanted = json.loads((tiny_model / name).read_text())
    assert json.loads((tiny_artifact / name).read_text()) == wanted
    assert name in json.loads((tiny_artifact / "manifest.json").read_text())["files"]


def test_a_compressed_folder_carries_it_to_its_export(tiny_model, tmp_path):
    model = asking(tiny_model, tmp_path / "model", EVERYTHING)
    recipe = vtcompress.load_recipe("identity").override({"model.id": str(model)})
    folder = vtcompress.compress(recipe, vtcompress.plan(recipe), tmp_path / "compressed")
    wanted = json.loads((model / "generation_config.json").read_text())
    assert json.loads((folder / "generation_config.json").read_text()) == wanted
    assert load_compressed(folder).generation == wanted


def test_an_artifact_without_the_file_answers_as_before(tiny_artifact, questions, tmp_path):
    folder = tmp_path / "older"
    shutil.copytree(tiny_artifact, folder)
    (folder / "generation_config.json").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["generation_config.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    runtime = vtcompress.Runtime.load(folder)
    assert runtime.settings == PLAIN
    assert runtime.prompter.eos_ids == (2,)
    assert runtime.answer("what is it", [questions.parent / "0.png"], max_new_tokens=2).token_ids
