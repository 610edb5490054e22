"""Reading and writing small files: atomically, with errors that name the file and the remedy."""

import hashlib
import os
import tempfile
from pathlib import Path

from compressor.errors import ProblemsError, VtcompressError

MAX_TEXT_BYTES = 256 * 1024 * 1024


def read_text(path: Path, error: type[ProblemsError]) -> str:
    """Return the UTF-8 text of `path`.

    Raises:
        error: there is no such file, it cannot be read, is no UTF-8 or absurdly large.
    """
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise error(
                [f"{path}: larger than {MAX_TEXT_BYTES >> 20} MiB; not a file of this tool"]
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error([f"{path}: no such file"]) from None
    except UnicodeDecodeError:
        raise error([f"{path}: not UTF-8 text"]) from None
    except OSError as failure:
        raise error([f"{path}: {failure.strerror}"]) from None


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old content or the new, never a part.

    Raises:
        VtcompressError: the folder is missing or not writable, or the disk is full.
    """
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as failure:
        raise VtcompressError(f"{path}: cannot write: {failure.strerror}") from None


def sha256_of(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
