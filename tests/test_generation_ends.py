"""Where an answer ends: transformers' own rule, for the facts, the runtime and the original's side alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.compressed import compress
from compressor.errors import ModelError
from compressor.families import describe, load
from compressor.families.pictures.text import PictureForm
from compressor.planner import make_plan
from compressor.samples.questions import read_samples
from export.backends.torch_model import TorchSession
from export.checks.original import measure_original
from export.runtime.prompter import Prompter
from export.runtime.runtime import Runtime

ASKED, LONGEST = "what is it", 8
ABSENT = "absent"
OTHER = 40  # a token that the answer does not hold

# What generation_config.json says (None: there is no such file), the top of config.json and its text section;
# and whether the answer ends at END. Every row is held against transformers below.
END = "END"
CASES: dict[str, tuple[Any, Any, Any, bool]] = {
    "a number": ({"eos_token_id": END}, OTHER, OTHER, True),
    "a list": ({"eos_token_id": [OTHER, END]}, ABSENT, OTHER, True),
    "another number": ({"eos_token_id": OTHER}, END, END, False),
    "null in the file, whatever config.json says": ({"eos_token_id": None}, END, END, False),
    "absent from the file, whatever config.json says": ({}, END, END, False),
    "a file that says where it came from": ({"_from_model_config": True}, END, END, False),
    "no file, a number at the top": (None, END, OTHER, True),
    "no file, a list at the top": (None, [OTHER, END], OTHER, True),
    "no file, another number at the top": (None, OTHER, END, False),
    "no file, null at the top": (None, None, END, True),
    "no file, nothing at the top": (None, ABSENT, END, True),
    "no file, a list in the text section": (None, ABSENT, [OTHER, END], True),
    "no file, null in the text section": (None, ABSENT, None, False),
    "no file, nothing anywhere: no default, no token of the tokenizer": (
        None,
        ABSENT,
        ABSENT,
        False,
    ),
}


@pytest.fixture(scope="module")
def emitted(llava: Callable[[str], Path], questions: Path) -> tuple[int, ...]:
    """Return what the model goes on with when nothing ends its answer."""
    folder = llava("clip+llama")
    model = load(str(folder))
    answer = measure_original(model, read_samples(questions)[:1], LONGEST).answers[0].token_ids
    assert len(answer) == LONGEST
    return answer


def with_ends(source: Path, folder: Path, gen: Any, top: Any, text: Any, end: int) -> Path:
    """Copy a model folder and say in it where answers end."""

    def named(value: Any) -> Any:
        return json.loads(json.dumps(value).replace(json.dumps(END), str(end)))

    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    for section, value in ((config, top), (config["text_config"], text)):
        section.pop("eos_token_id", None)
        if value != ABSENT:
            section["eos_token_id"] = named(value)
    (folder / "config.json").write_text(json.dumps(config))
    if gen is None:
        (folder / "generation_config.json").unlink()
    else:
        (folder / "generation_config.json").write_text(json.dumps(named(gen)))
    return folder


def by_transformers(folder: Path, picture: Path) -> tuple[list[int], tuple[int, ...]]:
    """Return the tokens that end an answer and a greedy answer, both by transformers alone."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": ASKED}]
    encoded = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        out = model.generate(**encoded, max_new_tokens=LONGEST)
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return ends, tuple(out[0, encoded["input_ids"].shape[1] :].tolist())


@pytest.mark.parametrize("case", CASES)
def test_facts_runtime_and_original_end_where_transformers_does(
    case, llava, questions, emitted, tmp_path
):
    gen, top, text, stops = CASES[case]
    end = emitted[2]
    assert emitted.index(end) == 2
    folder = with_ends(llava("clip+llama"), tmp_path / "model", gen, top, text, end)
    sample = read_samples(questions)[0]
    ends, answer = by_transformers(folder, sample.images[0])
    assert (len(answer) == 3) == stops, "the table is wrong about transformers"

    assert list(describe(str(folder)).eos_token_ids) == ends
    model = load(str(folder))
    assert list(model.facts.eos_token_ids) == ends
    assert measure_original(model, [sample], LONGEST).answers[0].token_ids == answer
    small = compress(model, make_plan(model.facts, model.digest, (), None))
    image = model.processor.image_token
    runtime = Runtime.on_session(
        TorchSession(small), folder, model.facts, PictureForm(token="<image>")
    )
    assert runtime.answer(ASKED, sample.images, max_new_tokens=LONGEST).token_ids == answer
    assert Prompter.from_folder(folder, image).eos_ids == tuple(ends)


@pytest.mark.parametrize("wrong", ["2", True, 2.0, [2, None], [[2]], {"id": 2}])
def test_an_end_that_is_no_token_is_refused_with_its_place(wrong, llava, tmp_path):
    folder = with_ends(llava("clip+llama"), tmp_path / "m", {"eos_token_id": wrong}, 2, 2, 2)
    with pytest.raises(ModelError) as caught:
        describe(str(folder))
    place = f"{folder / 'generation_config.json'}: eos_token_id: {json.dumps(wrong)} is not "
    assert str(caught.value).startswith(place)


@pytest.mark.parametrize("text", ["{", "[2]", "version https://git-lfs.github.com/spec/v1"])
def test_a_broken_generation_configuration_is_refused_and_not_taken_for_a_missing_one(
    text, llava, tmp_path
):
    folder = with_ends(llava("clip+llama"), tmp_path / "m", {}, 2, 2, 2)
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"/generation_config\.json: (is )?(not|a Git LFS)"):
        describe(str(folder))
