"""Which files of a model folder are read: chosen here, by name, never by a configuration.

A configuration can name another weight file (`transformers_weights`), and transformers reads a pickle that is
named so; an index can name files outside the folder. Neither is followed.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from compressor.disk.opening import read_utf8, sha256_of, why_unread
from compressor.errors import ModelError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
TEMPLATES = "additional_chat_templates"

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of weight files that run code when they are loaded."""

TEXTS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    CONFIG,
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Configuration, processor and tokenizer files that transformers reads where they are."""


def text_files(folder: Path, *, code: bool = False) -> tuple[Path, ...]:
    """Return the files of a model folder that are read besides weights and their index.

    Args:
        folder: of the model.
        code: whether Python code that comes with the model may run: then its files are among them.
    """
    named = [folder / name for name in TEXTS]
    named += sorted((folder / TEMPLATES).glob("*.jinja"))
    if code:
        named += sorted(folder.rglob("*.py"))
    return tuple(path for path in named if path.exists() or path.is_symlink())


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of a model folder: `model.safetensors`, else the shards of its index.

    Raises:
        ModelError: there are none, the index is broken or names files that are absent or elsewhere; all such.
    """
    if (folder / WEIGHTS).exists() or (folder / WEIGHTS).is_symlink():
        return (folder / WEIGHTS,)
    index = folder / WEIGHTS_INDEX
    if not index.exists():
        raise ModelError([_no_weights(folder)])
    names = set(_weight_map(index).values())
    outside = sorted(
        name for name in names if Path(name).name != name or not name.endswith(".safetensors")
    )
    if outside:
        raise ModelError(
            [
                f"{index}: names {name!r}; only *.safetensors files beside it are read: put the weights "
                "into the model's folder"
                for name in outside
            ]
        )
    files = tuple(folder / name for name in sorted(names))
    lost = [path for path in files if not (path.exists() or path.is_symlink())]
    if lost:
        raise ModelError(
            [
                f"{path}: no such file, and {WEIGHTS_INDEX} names it; copy or download it"
                for path in lost
            ]
        )
    return files


def missing_weights(folder: Path) -> tuple[str, ...]:
    """Return what of a folder's weights is not here or named elsewhere, a line each; none: all are here.

    Their headers and values are not looked at.
    """
    try:
        weight_files(folder)
    except ModelError as error:
        return error.problems
    return ()


def indexed(folder: Path) -> tuple[str, ...]:
    """Return the tensors that a model folder's index names, also of files that are not here.

    Raises:
        ModelError: the index is broken.
    """
    index = folder / WEIGHTS_INDEX
    return tuple(_weight_map(index)) if index.exists() else ()


def _weight_map(index: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_utf8(index))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ModelError([f"{index}: no index of weight files; copy or download the file again"])
    return found


def _no_weights(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if not found and any(path.suffix in PICKLES for path in folder.glob("*")):
        return (
            f"{folder}: no *.safetensors file; pickled weights are never loaded: convert them "
            "with transformers' save_pretrained"
        )
    if not found:
        return f"{folder}: no *.safetensors file: the weights are not here; copy or download them"
    return (
        f"{folder}: neither {WEIGHTS} nor {WEIGHTS_INDEX}; found {', '.join(found)}: download the model "
        "again, or write it with transformers' save_pretrained"
    )


def digest(folder: Path, *, code: bool = False) -> str:
    """Return the digest of all that is read of a model folder; see `compressor.disk.model_digest`.

    Args:
        folder: of the model.
        code: as in `text_files`.

    Raises:
        ModelError: no weights, or a file that cannot be read.
    """
    weights = weight_files(folder)
    rest = [path for path in text_files(folder, code=code) if path.name != CONFIG]
    if folder / WEIGHTS not in weights:
        rest.append(folder / WEIGHTS_INDEX)
    try:
        first = _sha256(folder, sorted([folder / CONFIG, *weights]))
        return f"{first}.{_sha256(folder, sorted(rest))}"
    except OSError as failure:
        raise ModelError([f"{failure.filename}: {why_unread(failure)}"]) from failure


def _sha256(folder: Path, files: list[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(path.relative_to(folder).as_posix().encode())
        total.update(bytes.fromhex(sha256_of(path)))
    return total.hexdigest()
