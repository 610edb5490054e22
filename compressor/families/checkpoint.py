"""The weights of a model folder: their headers, and whether all that is needed was in them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.disk.paths import unusable
from compressor.errors import ModelError
from compressor.families.folder import weight_files
from compressor.families.guard import reading

SHOWN = 3
"""Names that a message gives of a longer list."""

AGAIN = "download or copy the model again, or write it with transformers' save_pretrained"


@dataclass(frozen=True)
class Header:
    """What a weight file says of one tensor.

    Attributes:
        path: the file.
        dtype: as safetensors writes it, such as `BF16`.
        shape: of the tensor.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]


def headers(folder: Path) -> dict[str, Header]:
    """Return the tensors of a model folder by name, without their values; none unless all files are here.

    Of a hub id, weights are fetched last; `folder.missing_weights` tells why there are none.

    Raises:
        ModelError: a weight file is broken.
    """
    try:
        files = weight_files(folder)
    except ModelError:
        return {}
    found = {}
    with _opened(files, folder) as stored:
        for name, (path, tensor) in stored.items():
            found[name] = Header(path, tensor.get_dtype(), tuple(tensor.get_shape()))
    return found


@contextmanager
def opened_weights(folder: Path) -> Iterator[dict[str, Any]]:
    """Give the tensors of a model folder by name, each read when it is sliced.

    Raises:
        ModelError: no weights, or a file is broken.
    """
    with _opened(weight_files(folder), folder) as stored:
        yield {name: tensor for name, (_, tensor) in stored.items()}


@contextmanager
def _opened(files: Iterable[Path], folder: Path) -> Iterator[dict[str, tuple[Path, Any]]]:
    from safetensors import safe_open

    with ExitStack() as stack:
        stored: dict[str, tuple[Path, Any]] = {}
        for path in files:
            if (reason := unusable(path)) is not None:
                raise ModelError([f"{path}: {reason}"])
            with reading(folder, path.name):
                file = stack.enter_context(safe_open(path, framework="pt"))
                stored |= {name: (path, file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
        yield stored


DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""Names of floating-point dtypes in safetensors files and in torch."""


def source_dtype(stored: Mapping[str, Header]) -> str | None:
    """Return the dtype of weights whose configuration names none: that of the first floating-point tensor."""
    return next((DTYPES[h.dtype] for h in stored.values() if h.dtype in DTYPES), None)


def equal(folder: Path, first: str, second: str) -> bool:
    """Return whether two tensors of a model folder have the same values; both are read once, row by row.

    Raises:
        ModelError: as `opened_weights`.
    """
    files = tuple(
        (path, path.stat().st_mtime_ns, path.stat().st_size) for path in weight_files(folder)
    )
    return _equal(folder, first, second, files)


@lru_cache(maxsize=8)
def _equal(
    folder: Path, first: str, second: str, _files: tuple[tuple[Path, int, int], ...]
) -> bool:
    with opened_weights(folder) as stored:
        a, b = stored[first], stored[second]
        if a.get_shape() != b.get_shape():
            return False
        rows = a.get_shape()[0]
        return all(
            torch.equal(a[start : start + ROWS], b[start : start + ROWS])
            for start in range(0, rows, ROWS)
        )


ROWS = 4096
"""Of two tensors that are compared at a time."""


def check_complete(info: Mapping[str, Any], folder: Path, unread: Callable[[str], bool]) -> None:
    """Refuse weights that were not in the files: transformers draws those at random and goes on.

    Args:
        info: transformers' loading information.
        folder: of the model.
        unread: whether no graph reads the tensor of that name.

    Raises:
        ModelError: weights are missing, of another shape, or in the files and of no use to the model.
    """
    missing = [name for name in info["missing_keys"] if not unread(name)]
    unexpected = [name for name in info["unexpected_keys"] if not unread(name)]
    shapes = [
        f"{name} (shape {list(found)}, expected {list(wanted)})"
        for name, found, wanted in info["mismatched_keys"]
        if not unread(name)
    ]
    problems = []
    if missing:
        problems.append(
            f"{folder}: weights are missing that config.json asks for: {listed(missing)}; they would be "
            f"random: {AGAIN}"
        )
    if unexpected:
        problems.append(
            f"{folder}: weights are there that config.json has no place for: {listed(unexpected)}; it is "
            f"another model's: {AGAIN}"
        )
    if shapes:
        problems.append(
            f"{folder}: weights are of another shape than config.json says: {listed(shapes)}; {AGAIN}"
        )
    problems += [f"{folder}: {line}; {AGAIN}" for line in info.get("error_msgs") or ()]
    if problems:
        raise ModelError(problems)


def check_floating(stored: Mapping[str, Header]) -> None:
    """Refuse weights of whole numbers or of a kind that needs scales: taken as they are, they are others.

    Raises:
        ModelError: names the files, the tensors and what they hold.
    """
    problems = []
    for path in dict.fromkeys(header.path for header in stored.values()):
        bad = {n: h.dtype for n, h in stored.items() if h.path == path and h.dtype not in DTYPES}
        if bad:
            problems.append(
                f"{path}: {listed(bad)}: of dtype {', '.join(sorted(set(bad.values())))}, no floats; "
                "quantized weights cannot be read: give the model that they were made from"
            )
    if problems:
        raise ModelError(problems)


def check_finite(
    tensors: Mapping[str, Tensor], folder: Path, unread: Callable[[str], bool] = lambda _: False
) -> None:
    """Refuse weights that are no numbers: everything computed with them would be none either.

    Raises:
        ModelError: tensors hold NaN or infinite values, in the dtype that they were loaded in.
    """
    bad = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.numel() and not unread(name) and not finite(tensor)
    ]
    if bad:
        raise ModelError(
            [
                f"{folder}: NaN or infinite values in {listed(bad)}; such a model answers nothing: {AGAIN}, "
                "or take an earlier checkpoint of the training"
            ]
        )


def finite(tensor: Tensor) -> bool:
    """Return whether all values are finite, in one pass without a copy: NaN is in both extremes."""
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) and torch.isfinite(high))


def listed(names: Iterable[str]) -> str:
    """Return the first names of a list in order, and how many there are."""
    names = sorted(names, key=_numbered)
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN:,} more"


def _numbered(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
