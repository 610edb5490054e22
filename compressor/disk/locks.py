"""One run at a time on one place: locks that the kernel drops when their holder ends, however it ends.

Where the system has no such locks (Windows) nothing is locked: it is then up to the user that no two runs
write one place.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.disk.paths import why_unwritten, working_stem
from compressor.errors import VtcompressError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

LOCKS = fcntl is not None
LOCK_MARK = ".vtcompress-lock"
# The same of a result that is being made.
STAGING_MARK = ".vtcompress-staging-"


def lock(handle: int) -> bool:
    """Lock an open file for this process alone, until it is closed; return whether that was possible.

    On systems and file systems that know no locks, every file counts as locked by whoever asks.
    """
    if not LOCKS:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one that lies at `path`."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(handle))


@contextmanager
def exclusive(target: Path, path: Path | None = None) -> Iterator[None]:
    """Keep other runs from writing `target` while the block runs.

    The lock is on a file, which goes when the block ends. A killed run leaves the file but not the lock, so
    that the next run takes it over.

    Args:
        target: what will be written.
        path: of the lock file; None: `.NAME.vtcompress-lock` beside the target.

    Raises:
        VtcompressError: another run holds it, or the folder cannot be written.
    """
    if not LOCKS:
        yield
        return
    target = target.absolute()
    path = path or target.with_name(f".{working_stem(target.name)}{LOCK_MARK}")
    try:
        handle = _locked(path, target)
    except OSError as failure:
        raise VtcompressError(f"{target}: cannot write: {why_unwritten(failure)}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is unlocked: nobody else can have locked it yet
        os.close(handle)


def _locked(path: Path, target: Path) -> int:
    attempts = 10
    while True:
        # A run that ends without a result takes the empty folders away that it made.
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:  # also of folders like /proc, where no file can be made
            attempts -= 1
            if not attempts:
                raise
            continue
        taken = lock(handle)
        if taken and is_at(handle, path):
            with contextlib.suppress(OSError):  # on a full disk the lock does without the number
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            return handle
        holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip()
        os.close(handle)
        if not taken:
            pid = f" (pid {holder})" if holder.isdigit() else ""
            raise VtcompressError(
                f"{target}: is being written by another run{pid}; "
                "wait for it or choose another `output`"
            )
        # Else its holder removed it between our opening and our locking.
