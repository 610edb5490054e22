"""One way to open every file that was given: a regular one, no larger than its kind may be.

A pipe is not waited for, a device not read without end, and a sparse file of 64 GiB not read at all.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from compressor.disk.paths import SPECIAL

MIB = 1 << 20
MAX_TEXT_BYTES = 256 * MIB
MAX_PICTURE_BYTES = 512 * MIB
"""Of the file of a picture; the most pixels that are read take less in every format."""

_SETTINGS = (
    "added_tokens.json",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
LARGEST: Final[Mapping[str, int]] = {
    **dict.fromkeys(_SETTINGS, 16 * MIB),
    "manifest.json": 64 * MIB,
    "tokenizer.json": 64 * MIB,
    "tokenizer.model": 64 * MIB,
    "vocab.json": 64 * MIB,
    "vocab.txt": 64 * MIB,
    "merges.txt": 64 * MIB,
    "model.safetensors.index.json": 64 * MIB,
    "chat_template.jinja": MIB,
}
"""Bytes that files of models and artifacts may have, by name; every known one is far smaller."""

TEXT_ENDINGS: Final = (".json", ".jsonl", ".jinja", ".yaml", ".txt", ".md", ".html", ".svg")
_BLOCK = 8 * MIB
# Neither waits for whoever writes a pipe, nor makes a terminal ours; Windows has other words.
_FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY")
)


class UnfitError(OSError):
    """A path that is there and is no file that may be read; `strerror` says why, with the remedy."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(errno.EINVAL, why, str(path))


def why_unread(failure: OSError) -> str:
    """Return why a file cannot be read, in the system's words where we have no better, and the remedy."""
    words = failure.strerror or str(failure)
    if isinstance(failure, UnfitError):
        return words
    if isinstance(failure, IsADirectoryError):
        return "is a folder, not a file; name a file, or put the right one in its place"
    if isinstance(failure, PermissionError):
        return f"{words}; make the file readable"
    return f"{words}; put a file there that can be read"


def most_bytes(name: str) -> int | None:
    """Return how many bytes a file of this name may have; None: as many as it likes, such as weights."""
    if name in LARGEST:
        return LARGEST[name]
    return MAX_TEXT_BYTES if name.endswith(TEXT_ENDINGS) else None


def open_regular(path: Path, most: int | None = None) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: of the file.
        most: bytes that it may have; None: as many as it likes.

    Raises:
        UnfitError: it is no regular file, or larger.
        OSError: it cannot be opened.
    """
    # Python owns the handle from the first: one of ours that a signal has it close too is closed twice.
    stream = open(path, "rb", opener=lambda name, _: os.open(name, _FLAGS))  # noqa: SIM115
    try:
        _check(path, os.fstat(stream.fileno()), most)
    except BaseException:
        stream.close()
        raise
    return stream


def _check(path: Path, found: os.stat_result, most: int | None) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        special = SPECIAL.get(stat.S_IFMT(found.st_mode), "something else")
        raise UnfitError(path, f"is {special}, neither a file nor a folder; choose an ordinary one")
    if most is not None and found.st_size > most:
        raise UnfitError(path, too_large(most))


def too_large(most: int) -> str:
    """Return what is said of a file that has more bytes than it may."""
    return f"larger than {most >> 20} MiB; not a file of this kind"


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """Return all bytes of a regular file.

    Args:
        path: of the file.
        most: bytes that it may have; None: what its name tells, see `most_bytes`.

    Raises:
        UnfitError: as `open_regular`.
        OSError: as `open_regular`, or it cannot be read.
    """
    most = most_bytes(path.name) if most is None else most
    with open_regular(path, most) as stream:
        if most is None:
            return stream.read()
        # What grows while it is read, or has no size of its own, ends here too.
        content = stream.read(most + 1)
    if len(content) > most:
        raise UnfitError(path, too_large(most))
    return content


def read_utf8(path: Path) -> str:
    """Return the text of a regular file no larger than its name allows; see `read_bytes`.

    Raises:
        OSError: as `read_bytes`.
        UnicodeDecodeError: it is no UTF-8.
    """
    most = most_bytes(path.name) or MAX_TEXT_BYTES
    return read_bytes(path, most).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def sha256_of(path: Path, step: Callable[[int], object] | None = None) -> str:
    """Return the hexadecimal sha256 of a regular file's bytes.

    Args:
        path: of the file.
        step: told of the bytes that were read, block by block; may end it by raising.

    Raises:
        OSError: as `open_regular`, or it cannot be read.
    """
    total, block = hashlib.sha256(), bytearray(_BLOCK)
    with open_regular(path) as stream:
        while count := stream.readinto(block):  # type: ignore[attr-defined]
            total.update(memoryview(block)[:count])
            if step is not None:
                step(count)
    return total.hexdigest()
