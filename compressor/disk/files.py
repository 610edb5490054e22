"""Reading and writing small files: atomically, with errors that name the file and the remedy."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from compressor.disk.locks import LOCKS, is_at, lock
from compressor.disk.opening import read_utf8, why_unread
from compressor.disk.paths import check_path, shown_path, unusable, why_unwritten, working_stem
from compressor.errors import ProblemsError, VtcompressError

TEMPORARY = ".tmp"
# Stands in every drawing of this tool, so that it is known as its own and may be drawn again.
DRAWING_MARK = "drawn by vtcompress"
# Windows changes line ends in files that were not opened so.
_BINARY = getattr(os, "O_BINARY", 0)

Value = TypeVar("Value", bound=BaseModel)


def read_text(path: Path, error: type[ProblemsError]) -> str:
    """Return the UTF-8 text of `path`.

    Raises:
        error: there is no such file, it cannot be read, is no UTF-8 or larger than its kind
            may be.
    """
    if (reason := unusable(path)) is not None:
        raise error([f"{shown_path(path)}: {reason}"])
    try:
        return read_utf8(path)
    except FileNotFoundError:
        raise error([f"{path}: no such file"]) from None
    except UnicodeDecodeError as failure:
        line = failure.object.count(b"\n", 0, failure.start) + 1
        raise error([f"{path}:{line}: not UTF-8 text; save the file as UTF-8"]) from None
    except OSError as failure:
        raise error([f"{path}: {why_unread(failure)}"]) from None


def read_json(
    path: Path, kind: type[Value], error: type[ProblemsError], what: str, remedy: str
) -> Value:
    """Return a value that was stored as JSON.

    Args:
        path: its file.
        kind: class of the value.
        error: to raise.
        what: the value is, for problems that concern no key of it.
        remedy: what each problem ends with.

    Raises:
        error: as `read_text`, or no such value; every problem.
    """
    try:
        return kind.model_validate_json(read_text(path, error))
    except ValidationError as failure:
        raise error(
            f"{path}: {'.'.join(map(str, e['loc'])) or what}: {_said(e)}; {remedy}"
            for e in failure.errors()
        ) from None


def _said(problem: ErrorDetails) -> str:
    """Return what is wrong, as pydantic or our own rule says it."""
    key = str(problem["loc"][-1]) if problem["loc"] else ""
    number = problem["input"]
    if key.endswith("_format") and isinstance(number, int) and number > 1:
        return f"written for a newer vtcompress (format {number}): upgrade vtcompress"
    return problem["msg"].removeprefix("Value error, ")


def is_file(path: Path) -> bool:
    """Return whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def is_folder(path: Path) -> bool:
    """Return whether there is such a folder; a name that no folder can have is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):  # as above
        return False


def make_parent(path: Path) -> None:
    """Make the folder that `path` will lie in, and those above it.

    Raises:
        VtcompressError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise VtcompressError(f"{path.parent}: cannot write: {why_unwritten(failure)}") from None


@contextmanager
def made_parent(path: Path) -> Iterator[None]:
    """Make the folders that `path` will lie in; those of them that are empty in the end go again.

    Raises:
        VtcompressError: they cannot be made.
    """
    missing = [folder for folder in path.absolute().parents if not os.path.lexists(folder)]
    try:
        make_parent(path)
        yield
    finally:
        for folder in missing:  # the innermost comes first
            with contextlib.suppress(OSError):
                folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old content or the new, never a part.

    Folders that are missing are made; of a link, the target is written. What killed writers left beside
    `path` is removed; what living ones write there is not.

    Raises:
        VtcompressError: the folder is not writable, or the disk is full.
    """
    check_path(path)
    make_parent(path)
    try:
        path = path.resolve() if path.is_symlink() else path
        _clear_strays(path)
        handle, temporary = _temporary(path)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
                if LOCKS:
                    # Still locked, so that nobody takes it for a stray.
                    temporary.replace(path)
            if not LOCKS:  # such systems do not rename what is open
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as failure:
        raise VtcompressError(f"{path}: cannot write: {why_unwritten(failure)}") from None


def _temporary(path: Path) -> tuple[int, Path]:
    """Return a new file beside `path`, open and locked; the kernel drops the lock of a killed writer."""
    while True:
        temporary = path.with_name(f".{working_stem(path.name)}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
        # Unlike the files of `tempfile`, its mode is what the umask leaves of 666, as that of any file.
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        if lock(handle) and is_at(handle, temporary):
            return handle, temporary
        os.close(handle)  # another writer took it for a stray before it was locked


def _clear_strays(path: Path) -> None:
    if not LOCKS:  # nothing tells living writers from killed ones
        return
    start = f".{working_stem(path.name)}."
    for entry in path.parent.iterdir():
        if entry.name.startswith(start) and entry.name.endswith(TEMPORARY):
            with contextlib.suppress(OSError):
                handle = os.open(entry, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    if lock(handle):
                        entry.unlink()
                finally:
                    os.close(handle)
