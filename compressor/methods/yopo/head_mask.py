"""A file that says which visual heads stay: one bool array [L, H], True: visual tokens take part."""

from pathlib import Path
from typing import Any

from compressor.disk.files import is_file
from compressor.disk.paths import shown_path, unusable
from compressor.errors import PlanError
from compressor.facts import DecoderDims

HeadMask = tuple[tuple[bool, ...], ...]
"""[L][H], True: the head stays."""


def read_head_mask(path: Path, dims: DecoderDims) -> HeadMask:
    """Read a mask as the authors store it; nothing in the file is executed.

    Args:
        path: a .npy file, or a .safetensors file with one tensor.
        dims: of the decoder that it is for.

    Raises:
        PlanError: missing, not readable, of another shape or not bool; shape and type are both named.
    """
    if (reason := unusable(path)) is not None:
        raise PlanError([f"{shown_path(path)}: {reason}"])
    if not is_file(path):
        raise PlanError([f"{path}: no such file"])
    array = _safetensors(path) if path.suffix == ".safetensors" else _npy(path)
    problems = []
    wanted = (dims.layers, dims.heads)
    if tuple(array.shape) != wanted:
        problems.append(
            f"{path}: shape {list(array.shape)}; the model has {dims.layers} layers of {dims.heads} heads: "
            f"{list(wanted)}"
        )
    if array.dtype != bool:
        problems.append(
            f"{path}: numbers of type {array.dtype}; bool is needed, True: the head stays"
        )
    if problems:
        raise PlanError(problems)
    return tuple(tuple(row) for row in array.tolist())


# A damaged header may raise nearly anything in the two parsers; that of a .npy file is in Python's syntax.


def _npy(path: Path) -> Any:
    from numpy.lib.format import open_memmap

    try:
        # Mapped, so that a file of another kind and size is not loaded; it never unpickles.
        return open_memmap(path, mode="r")
    except Exception as failure:  # noqa: BLE001 - see above
        raise _unreadable(path, ".npy", failure) from None


def _safetensors(path: Path) -> Any:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            tensor = file.get_tensor(names[0]) if len(names) == 1 else None
    except Exception as failure:  # noqa: BLE001 - see above
        raise _unreadable(path, ".safetensors", failure) from None
    if tensor is None:
        listed = ", ".join(names[:4]) or "none"
        raise PlanError([f"{path}: {len(names)} tensors ({listed}); one is needed"])
    return tensor


def _unreadable(path: Path, kind: str, failure: Exception) -> PlanError:
    # Some parsers' messages have several lines; a problem is one.
    reason = " ".join(f"{type(failure).__name__}: {failure}".split())
    return PlanError([f"{path}: no readable {kind} file: {reason}"])
