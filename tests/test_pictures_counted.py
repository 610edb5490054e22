"""A picture that is given has a place in the prompt, and every token a row: otherwise nothing runs."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compressor.compressed import compress
from compressor.errors import DataError, ModelError
from compressor.families import LoadedModel, load
from compressor.families.pictures.text import PictureForm
from compressor.gate_training.examples import force_answer
from compressor.gate_training.training import original_decoder
from compressor.plan.edits import identity_plan
from compressor.samples.prompts import embed, encode
from compressor.samples.questions import Sample, read_samples
from export.backends.torch_model import TorchSession
from export.checks.original import measure_original
from export.runtime.messages import user_message
from export.runtime.runtime import Runtime
from tests.models import make_picture


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny model with a tokenizer that knows one token more than the model."""
    from transformers import AutoTokenizer

    changed = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("counted") / "more"))
    tokenizer = AutoTokenizer.from_pretrained(changed)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(changed)
    return changed


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(str(folder))


@pytest.fixture(scope="module")
def runtime(model: LoadedModel, folder: Path) -> Runtime:
    session = TorchSession(compress(model, identity_plan(model.facts, model.digest)))
    return Runtime.on_session(session, folder, model.facts, PictureForm(token="<image>"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return make_picture(tmp_path / "a.png")


def test_a_runtime_with_two_image_tokens_does_not_begin(
    runtime: Runtime, model: LoadedModel, folder: Path
) -> None:
    other = model.facts.model_copy(update={"image_token_id": 7})
    with pytest.raises(ModelError) as caught:
        Runtime.on_session(runtime.session, folder, other, PictureForm(token="<image>"))
    (line,) = caught.value.problems
    assert (
        "tokenizer.json: '<image>' has the id 4, but the model looks for pictures at the id 7"
        in line
    )


def test_the_runtime_drops_no_picture(runtime: Runtime, picture: Path) -> None:
    alone = runtime.encode([user_message("what is this", 0)], ())
    one = runtime.encode([user_message("what is this", 1)], runtime.look(picture))
    for ids, pictures in ((alone, 1), (one, 0), (one, 2)):
        with pytest.raises(DataError, match=f"but {pictures} picture"):
            runtime.prompt_of(ids, runtime.look([picture] * pictures))
    # One that the template puts away is found even if the check of the rendered text is passed.
    blind = Runtime(
        runtime.session,
        runtime.facts.model_copy(update={"image_token_id": 7}),
        runtime.prompter,
        runtime.images,
    )
    for ask in (
        lambda: blind.answer("red", [picture]),
        lambda: blind.generate("red", [picture]),
        lambda: blind.chat().ask("red", [picture]),
        lambda: list(blind.answers([("red", [picture])])),
    ):
        with pytest.raises(DataError, match="has 0 image tokens"):
            ask()


class Dropping:
    """A processor that loses the pictures' places: its template writes the question alone."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.tokenizer = inner, inner.tokenizer

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        pixels = self.inner.apply_chat_template(messages, **options)
        texts = [part for part in messages[0]["content"] if part["type"] == "text"]
        bare = [{"role": "user", "content": texts}]
        found = self.inner.apply_chat_template(bare, **options)
        if options.get("return_dict"):
            found["pixel_values"] = pixels["pixel_values"]
        return found


@pytest.mark.parametrize("path", ["calibration", "gates", "original"])
def test_no_torch_path_drops_a_picture(path: str, model: LoadedModel, questions: Path) -> None:
    samples = read_samples(questions)[:2]
    dropping = Dropping(model.processor)
    blind = replace(model, processor=dropping, native_processor=dropping)
    run = {
        "calibration": lambda: embed(blind, encode(blind.processor, samples[1], blind.facts)),
        "gates": lambda: force_answer(blind, original_decoder(model), samples[1]),
        "original": lambda: measure_original(blind, samples[1:], 2),
    }[path]
    with pytest.raises(DataError) as caught:
        run()
    (line,) = caught.value.problems
    assert line.startswith(f"{questions}:2: the prompt has 0 image tokens (id 4), but 1 picture")


@pytest.mark.parametrize("path", ["calibration", "original"])
def test_no_torch_path_runs_a_token_without_a_row(
    path: str, model: LoadedModel, picture: Path
) -> None:
    sample = Sample((picture,), "what is <new>")
    run = {
        "calibration": lambda: embed(model, encode(model.processor, sample, model.facts)),
        "original": lambda: measure_original(model, [sample], 2),
    }[path]
    with pytest.raises(DataError) as caught:
        run()
    (line,) = caught.value.problems
    assert line.startswith(
        "'what is <new>': the prompt has tokens without an embedding: '<new>' (id 48)"
    )


def test_a_chat_refuses_a_token_without_a_row_and_goes_on(runtime: Runtime, picture: Path) -> None:
    chat = runtime.chat()
    first = "".join(chat.ask("what is this", [picture], max_new_tokens=3))
    with pytest.raises(DataError, match=r"'<new>' \(id 48\)"):
        chat.ask("is it <new>")
    assert len(chat.messages) == 2
    again = runtime.chat()
    assert "".join(again.ask("what is this", [picture], max_new_tokens=3)) == first
    wanted = "".join(again.ask("is it red", max_new_tokens=3))
    assert "".join(chat.ask("is it red", max_new_tokens=3)) == wanted


def test_all_ways_to_ask_refuse_a_token_without_a_row(runtime: Runtime, picture: Path) -> None:
    seen = runtime.prefill_image([picture])
    for ask in (
        lambda: runtime.answer("<new>", [picture]),
        lambda: runtime.generate("<new>"),
        lambda: list(runtime.answers([("<new>", [])])),
        lambda: seen.answer("<new>"),
        lambda: seen.generate("<new>"),
    ):
        with pytest.raises(DataError, match=r"'<new>' \(id 48\)"):
            ask()
