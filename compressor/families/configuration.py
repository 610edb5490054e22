"""What of a model's configuration no family can read: refused when `config.json` is read, all at once."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.disk.opening import read_utf8
from compressor.errors import ModelError
from compressor.families.checkpoint import DTYPES, headers
from compressor.families.folder import ADAPTER, CONFIG
from compressor.families.guard import broken_texts

COMPRESSED_TYPE = "vtcompress"
"""`model_type` of folders that `compress` wrote: transformers refuses it, and so does `--model`."""

PLAN = "plan.json"
MANIFEST = "manifest.json"
# How the tensors of a compressed folder begin, also where it was written before it had a type of its own.
COMPRESSED_TENSORS = "vision."

ATTENTIONS = ("sdpa", "eager")
"""Implementations of attention that need no package of their own and no GPU."""

REDIRECTS = ("transformers_weights", "fusion_config")
"""Keys by which a configuration has other files read, or other modules built, than those of the folder."""

QUANTIZED = ("quantization_config", "compression_config")

DTYPE_KEYS = ("dtype", "torch_dtype")
"""Names of the key for the dtype of weights; the first is the newer one."""

IMAGE_TOKEN_KEYS = ("image_token_id", "image_token_index")
"""Names of the key for the image token's id; the first is the newer one."""

LAYERS = "num_hidden_layers"
MOST_LAYERS = 10_000
"""More would be built without end before anything is compared."""

AUTHORS_LAYOUT = ("mm_vision", "mm_projector", "mm_hidden_size")
"""How keys begin that LLaVA's own code writes."""

CONVERTED = "give a checkpoint that was converted to the Hugging Face format"


def raw_config(folder: Path) -> Mapping[str, Any]:
    """Return `config.json` of a model folder as it is written.

    Raises:
        ModelError: it is not there, not JSON, without a model type, or of a folder that holds no model.
    """
    path = folder / CONFIG
    try:
        path.exists()
    except OSError as failure:
        raise ModelError([f"{folder}: {failure.strerror}; make the folder readable"]) from failure
    if (folder / MANIFEST).is_file() and (folder / PLAN).is_file():
        problem = "an artifact of vtcompress, not a model; give the original that it was made from"
        raise ModelError([f"{folder}: {problem}"])
    if not path.exists() and not path.is_symlink():
        alone = _adapter(folder)
        raise ModelError(
            alone or [f"{path}: no such file; {folder} is no Hugging Face model folder"]
        )
    if problems := broken_texts(folder):
        raise ModelError(problems)
    raw = json.loads(read_utf8(path))
    if isinstance(raw, dict) and (
        foreign := _compressed(folder, raw) or _authors_layout(raw, path)
    ):
        raise ModelError([foreign])
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise ModelError([f"{path}: not a Hugging Face configuration with a model_type"])
    return raw


def problems_of(raw: Mapping[str, Any], folder: Path) -> list[str]:
    """Return a line for each thing that no family can read."""
    where = folder / CONFIG
    found = _adapter(folder)
    for place, section in _sections(raw):
        for key in QUANTIZED:
            if section.get(key):
                found.append(
                    f"{where}: {place}{key}: weights quantized by {_method(section[key])} cannot be read; "
                    "give the model that they were made from, or save it dequantized and without this key"
                )
        found += [
            f"{where}: {place}{key}: {section[key]!r} would have other files read than the folder's own; "
            "remove the key"
            for key in REDIRECTS
            if section.get(key)
        ]
        # transformers reads the older name where the newer is not there.
        key = next((name for name in DTYPE_KEYS if section.get(name) is not None), "")
        value = section.get(key)
        named = isinstance(value, str) and value.removeprefix("torch.") in DTYPES.values()
        if key and not named:
            found.append(
                f"{where}: {place}{key}: {value!r:.60} is not supported; supported: "
                f"{', '.join(DTYPES.values())}; correct it, or remove the key, and weights tell it"
            )
    found += [
        f"{where}: {key}: {value} is no number; correct it, or copy or download the file again"
        for key, value in _numbers(raw)
        if not math.isfinite(value)
    ]
    return found


def section_problems(
    section: Mapping[str, Any],
    where: str,
    *,
    counts: Iterable[str],
    eps: str,
    optional: Iterable[str] = (),
    layers: str = LAYERS,
) -> list[str]:
    """Return a line for each count or width below 1, depth that no model has and epsilon that is none.

    Args:
        section: of a configuration, as it is written or as transformers read it; what it leaves out is
            transformers' default.
        where: file and section, such as `folder/config.json: text_config`.
        counts: keys of numbers from 1 on.
        eps: key of what norms add.
        optional: keys of such numbers that may be null.
        layers: key of their number.
    """
    given = [key for key in counts if key in section]
    given += [key for key in optional if section.get(key) is not None]
    found = [
        f"{where}.{key}: {section[key]!r:.60} is not allowed; one number, 1 or more"
        for key in given
        if type(section[key]) is not int or section[key] < 1
    ]
    depth = section.get(layers)
    if type(depth) is int and depth > MOST_LAYERS:
        found.append(f"{where}.{layers}: {depth} is not allowed; 1 to {MOST_LAYERS}")
    return found + eps_problems(section.get(eps, 0.0), f"{where}.{eps}")


def eps_problems(value: Any, where: str) -> list[str]:
    """Return a line if what a norm adds is no number or below 0; `where` is file, section and key."""
    # What is not finite is told of whole configurations.
    if type(value) not in (int, float) or (math.isfinite(value) and value < 0):
        return [f"{where}: {value!r} is not allowed; one number, 0 or more"]
    return []


def theta_problems(rope: Any, where: str) -> list[str]:
    """Return a line if what rotations start from is no number above 0; `where` is file and section."""
    theta = rope.get("rope_theta", 1.0) if isinstance(rope, Mapping) else 1.0
    if type(theta) in (int, float) and 0 < theta < math.inf:
        return []
    return [f"{where}.rope_parameters.rope_theta: {theta!r:.60} is not allowed; a number above 0"]


def list_problems(section: Mapping[str, Any], key: str, where: str, *, layers: str) -> list[str]:
    """Return a line if a section's list of layers has others than the tower's, or one of them twice.

    Args:
        section: as in `section_problems`.
        key: of the list; one that is not there or null is transformers' default.
        where: file and section.
        layers: key of the number of layers.
    """
    found, depth = section.get(key), section.get(layers)
    if found is None:
        return []
    known = isinstance(found, list) and all(type(one) is int and one >= 0 for one in found)
    if not known or len(set(found)) < len(found):
        return [
            f"{where}.{key}: {found!r:.60} is not allowed; a list of different layers of the tower, from 0"
        ]
    if depth is not None and (beyond := [one for one in found if one >= depth]):
        return [f"{where}.{key}: {beyond} are not among the tower's {depth} layers"]
    return []


def image_token_problems(raw: Mapping[str, Any], where: str) -> list[str]:
    """Return a line for each id of the image token that is none, and for two that differ."""
    named = {key: raw[key] for key in IMAGE_TOKEN_KEYS if key in raw}
    found = [
        f"{where}: {key}: {value!r} is no id of a token; give that of the image token in tokenizer.json"
        for key, value in named.items()
        if type(value) is not int or value < 0
    ]
    if not found and len(set(named.values())) > 1:
        told = " and ".join(f"{key}: {value}" for key, value in named.items())
        found.append(f"{where}: {told} differ; keep the one that is the image token's id")
    return found


def plain_attention(config: Any) -> None:
    """Have attention computed by torch: what a configuration may ask for computes the same on a GPU."""
    if config._attn_implementation not in (None, *ATTENTIONS):  # noqa: SLF001 - transformers' name of the key
        config._attn_implementation = "sdpa"  # noqa: SLF001


def _sections(raw: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The configuration and the sections in it, with what their keys begin with."""
    yield "", raw
    for key, value in raw.items():
        if isinstance(value, dict) and key not in QUANTIZED:
            yield f"{key}.", value


def _numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number with a fraction in a configuration, with its dotted key."""
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(part, f"{place}.{key}".removeprefix("."))


def _method(value: Any) -> str:
    if not isinstance(value, dict):
        return repr(value)
    named = value.get("quant_method") or value.get("quantization_status")
    if named is None and any(key.startswith(("load_in_", "_load_in_", "bnb_")) for key in value):
        named = "bitsandbytes"
    return repr(named) if named else "a method that is not named"


def _adapter(folder: Path) -> list[str]:
    path = folder / ADAPTER
    if not path.exists():
        return []
    return [
        f"{path}: an adapter, which is not applied; merge it into its model (peft's merge_and_unload, then "
        "save_pretrained into a new folder) and give that folder, or remove the adapter's files"
    ]


def _compressed(folder: Path, raw: Mapping[str, Any]) -> str | None:
    """What is said of a folder that `compress` wrote."""
    ours = raw.get("model_type") == COMPRESSED_TYPE
    if not ours and (folder / PLAN).is_file():
        ours = any(name.startswith(COMPRESSED_TENSORS) for name in headers(folder))
    if not ours:
        return None
    return (
        f"{folder}: a folder that `vtcompress compress` wrote, not a model; start "
        "`vtcompress export --compressed` from it, or give the original as `model`"
    )


def _authors_layout(raw: Mapping[str, Any], where: Path) -> str | None:
    keys = [key for key in raw if key.startswith(AUTHORS_LAYOUT)]
    if not keys:
        return None
    return (
        f"{where}: {', '.join(keys[:3])}: the layout of the authors' own code, whose tensors have "
        f"other names; {CONVERTED}, such as those of https://huggingface.co/llava-hf"
    )
