"""Wrong and half-written model folders: one line that names the file and the remedy, never a traceback."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.errors import ModelError
from compressor.families import load
from compressor.families.guard import LFS_HEADER, reading


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model that a test may break."""
    return Path(shutil.copytree(tiny_model, tmp_path / "broken"))


def pointer(path: Path) -> None:
    path.write_bytes(LFS_HEADER + b"v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe{}")


def half(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("name", "breaks", "says"),
    [
        ("model.safetensors", pointer, "git lfs pull"),
        ("model.safetensors", cut, "broken or cut off"),
        ("model.safetensors", lambda p: p.write_bytes(b""), "broken or cut off"),
        ("config.json", pointer, "git lfs pull"),
        ("config.json", half, "not JSON"),
        ("config.json", nested, "not JSON"),
        ("config.json", no_text, "not UTF-8"),
        ("tokenizer.json", pointer, "git lfs pull"),
        ("tokenizer.json", half, "not JSON"),
        ("tokenizer.json", nested, "not JSON"),
        ("tokenizer_config.json", no_text, "not UTF-8"),
        ("processor_config.json", half, "not JSON"),
        ("chat_template.jinja", no_text, "not UTF-8"),
        ("generation_config.json", half, "not JSON"),
    ],
)
def test_a_broken_file_is_named_with_its_remedy(
    folder: Path, name: str, breaks: Callable[[Path], None], says: str
) -> None:
    breaks(folder / name)
    with pytest.raises(ModelError) as caught:
        load(str(folder))
    (line,) = caught.value.problems
    assert line.startswith(f"{folder / name}: ")
    assert says in line
    assert "\n" not in line


def test_a_sentencepiece_tokenizer_without_its_package_names_that_package(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    with pytest.raises(ModelError, match="pip install sentencepiece protobuf"):
        load(str(folder))


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (KeyError("hidden"), "the key 'hidden' is missing"),
        (RecursionError("maximum"), "nested too deeply"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("size mismatch\nfor x"), "RuntimeError: size mismatch"),
        (ImportError("\nX requires the SentencePiece library"), "pip install sentencepiece"),
        (ValueError(), "ValueError"),
    ],
)
def test_whatever_a_library_raises_is_one_line_and_stays_the_cause(
    folder: Path, failure: Exception, says: str
) -> None:
    with pytest.raises(ModelError) as caught, reading(folder, "the weights"):
        raise failure
    assert caught.value.__cause__ is failure
    (line,) = caught.value.problems
    assert line.startswith(f"{folder}: the weights cannot be read: ")
    assert says in line


def test_an_interrupt_passes_the_guard(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), reading(folder, "the weights"):
        raise KeyboardInterrupt
