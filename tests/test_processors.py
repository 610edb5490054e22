"""Processors that older versions of transformers saved are read as if they had been saved today."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from compressor.errors import ModelError
from compressor.families import load
from compressor.families.pictures.text import PictureForm
from compressor.families.registry import read_processor
from compressor.samples.pictures import load_image
from compressor.samples.prompts import encode
from compressor.samples.questions import read_samples
from export.runtime.images import ImageProcessor
from export.runtime.messages import user_message
from export.runtime.prompter import Prompter
from tests.models import Variant, make_llava

SAVED = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def today(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder whose processor was saved with all that it needs."""
    full = {"strategy": "full", "feature_layer": -1}
    variant = Variant(tower=request.param, layers=2, **(full if request.param == "siglip" else {}))
    return make_llava(tmp_path_factory.mktemp(request.param), variant)


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def unset(folder: Path, *keys: str) -> None:
    """Take keys from a saved processor, as versions did that did not know them."""
    path = folder / "processor_config.json"
    write(path, {key: value for key, value in read(path).items() if key not in keys})


def null(folder: Path) -> None:
    path = folder / "processor_config.json"
    write(path, read(path) | dict.fromkeys(SAVED))


def no_file(folder: Path) -> None:
    """As the first versions saved it: the image processor in a file of its own, nothing else."""
    path = folder / "processor_config.json"
    section = read(path)["image_processor"]
    write(folder / "preprocessor_config.json", section | {"processor_class": "LlavaProcessor"})
    path.unlink()


OLDER: dict[str, Callable[[Path], None]] = {
    "no class token's number": lambda folder: unset(folder, SAVED[2]),
    "nothing of the tower": lambda folder: unset(folder, *SAVED),
    "null": null,
    "no file at all": no_file,
}


@pytest.fixture
def older(today: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(today, tmp_path / "older"))


@pytest.mark.parametrize("name", OLDER)
def test_what_was_not_saved_is_taken_from_the_configuration(
    name: str, today: Path, older: Path, questions: Path, tmp_path: Path
) -> None:
    OLDER[name](older)
    sample = read_samples(questions)[0]
    asked = [{"type": "image", "image": load_image(sample.images[0])}]
    # transformers' own processor, where everything is set as it should be.
    wanted = AutoProcessor.from_pretrained(today).apply_chat_template(
        [{"role": "user", "content": [*asked, {"type": "text", "text": sample.question}]}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip

    model = load(str(older))
    found = encode(model.processor, sample, model.facts)
    assert found.input_ids.tolist() == wanted["input_ids"].tolist()
    assert torch.equal(found.inputs["pixel_values"], wanted["pixel_values"])

    saved = tmp_path / "saved"
    model.processor.save_pretrained(saved)
    prompter = Prompter.from_folder(saved, "<image>")
    ids = prompter.encode([user_message(sample.question)], ["<image>" * model.facts.tile_rows])
    assert list(ids) == wanted["input_ids"][0].tolist()
    form = PictureForm(token="<image>")
    pixels = ImageProcessor.of_artifact(form, saved, 1)(sample.images[0]).pixels[0]
    assert np.array_equal(pixels, wanted["pixel_values"][0].numpy())
    assert AutoProcessor.from_pretrained(saved).patch_size == 8


def test_what_was_saved_is_kept_and_refused_where_it_does_not_fit(older: Path) -> None:
    path = older / "processor_config.json"
    write(path, read(path) | {"patch_size": 16})
    with pytest.raises(ModelError, match=r"processor_config.json: gives .* correct patch_size"):
        read_processor(str(older))


def to_tokenizer(template: Any) -> Callable[[Path], None]:
    def move(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        path = folder / "tokenizer_config.json"
        write(path, read(path) | {"chat_template": template})

    return move


def to_json(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    write(folder / "chat_template.json", {"chat_template": file.read_text(encoding="utf-8")})
    file.unlink()


NAMED = [{"name": "tools", "template": "no"}, {"name": "default", "template": ""}]


@pytest.mark.parametrize("name", ["alone", "among others", "its own file"])
def test_a_chat_template_is_read_alike_wherever_it_stands(
    name: str, today: Path, older: Path, questions: Path
) -> None:
    source = (today / "chat_template.jinja").read_text(encoding="utf-8")
    several = [entry | {"template": entry["template"] or source} for entry in NAMED]
    move = {
        "alone": to_tokenizer(source), "among others": to_tokenizer(several), "its own file": to_json,
    }[name]  # fmt: skip
    move(older)
    sample, read = read_samples(questions)[0], read_processor(str(today))
    wanted = encode(read.processor, sample, read.facts).input_ids[0].tolist()
    original = read_processor(str(older))
    assert encode(original.processor, sample, original.facts).input_ids[0].tolist() == wanted
    # The runtime, from the folder itself and from what an artifact holds.
    original.processor.save_pretrained(older / "saved")
    for folder in (older, older / "saved"):
        prompter = Prompter.from_folder(folder, "<image>")
        texts = ["<image>" * original.facts.tile_rows]
        assert list(prompter.encode([user_message(sample.question)], texts)) == wanted


def test_a_missing_package_is_called_by_its_name(
    older: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (older / "tokenizer.json").unlink()
    (older / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *a: None if name == "sentencepiece" else find(name, *a),
    )
    with pytest.raises(ModelError) as caught:
        read_processor(str(older))
    (line,) = caught.value.problems
    assert "tokenizer.model: is a SentencePiece file without a tokenizer.json" in line
    assert "pip install sentencepiece" in line
    assert "tiktoken" not in line.lower() + capfd.readouterr().err.lower()


def no_images(folder: Path) -> None:
    unset(folder, "image_processor")


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def neither(folder: Path) -> None:
    no_images(folder)
    no_tokenizer(folder)


def another(folder: Path) -> None:
    path = folder / "processor_config.json"
    write(path, {**read(path), "processor_class": "CLIPProcessor"})


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (no_images, ["no image processor: neither processor_config.json"]),
        (no_tokenizer, ["older: no tokenizer.json; save the processor"]),
        (neither, ["no tokenizer.json", "no image processor"]),
        (another, ["its processor is a CLIPProcessor, which has no image_token"]),
    ],
)
def test_half_a_processor_and_anothers_are_called_so(
    fault: Callable[[Path], None], words: list[str], older: Path
) -> None:
    fault(older)
    with pytest.raises(ModelError) as caught:
        read_processor(str(older))
    for line, word in zip(caught.value.problems, words, strict=True):
        assert word in line
        assert str(older) in line
        assert "processor.save_pretrained" in line


def test_pixels_are_pillows_also_where_torchvision_is_installed(
    older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torchvision cannot be installed beside the tests' torch: what transformers is asked for tells.
    from transformers import AutoImageProcessor

    asked = []
    whole = AutoImageProcessor.from_pretrained

    def remember(folder: Path, **options: Any) -> Any:
        asked.append(options.get("backend"))
        return whole(folder, **options)

    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", remember)
    processor = read_processor(str(older)).processor
    assert asked[-1:] == ["pil"]
    assert type(processor.image_processor).__name__.endswith("Pil")
    assert processor.tokenizer.init_kwargs.get("backend") != "pil"
