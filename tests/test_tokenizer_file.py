"""A hostile tokenizer.json ends in one of our errors: no abort, no panic, no work without end."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import ModelError
from export.runtime.prompter import Prompter

REPLACE = {"type": "Replace", "pattern": {"String": "a"}}
# By keys: what is put in the place of a part.
HOSTILE: dict[str, dict[str, Any]] = {
    "an unknown token outside": {"model.unk_token": "<nowhere>"},
    "no unknown token": {"model": {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": None}},
    "growth": {"normalizer": {"type": "Sequence", "normalizers": [REPLACE | {"content": "a" * 999}] * 8}},
    "many steps": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100_000}},
    "a long text": {"normalizer": {"type": "Prepend", "prepend": "a" * 20_000_000}},
    "a decoder's long text": {"decoder": REPLACE | {"content": "a" * 20_000_000}},
    "a map that asks for memory": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}
    },
    "an empty map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
    "a map that panics": {
        "normalizer": {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(b"\4\0\0\0" + b"\xff" * 4 + b"\0").decode(),
        }
    },
    "pieces of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "many added": {
        "added_tokens": [
            {"id": n, "content": f"x{n}", "special": True, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False} for n in range(60_000)
        ]
    },
    "an id of 2^31": {
        "added_tokens": [
            {"id": 2**31, "content": "x", "special": True, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False}
        ]
    },
    "a model that is none": {"model": {"type": "Foo"}},
}  # fmt: skip


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_model / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_tokenizer_is_one_line_of_ours(what: str, folder: Path) -> None:
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    for key, value in HOSTILE[what].items():
        part, _, inner = key.partition(".")
        if inner:
            document[part][inner] = value
        else:
            document[part] = value
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        Prompter.from_folder(folder, "<image>").encode_text("what is this a b c")
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: ")
    assert "\n" not in line


def test_the_tokenizer_itself_is_read(folder: Path) -> None:
    prompter = Prompter.from_folder(folder, "<image>")
    assert prompter.decode(prompter.encode_text("what is this")) == "what is this"
