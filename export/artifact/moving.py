"""How a complete folder takes the place of another one: renamed, or part by part, and back on an error."""

import contextlib
import ctypes
import errno
import os
import shutil
import uuid
from pathlib import Path

from compressor.disk.held_signals import HeldSignals
from export.artifact.contents import entries
from export.artifact.manifest import MANIFEST_FILE

OLD_MARK, FULL_MARK = "-old", "-full"
SERIAL = 8
"""Characters that tell the folders of runs on one place apart."""
# Of Linux's renameat2.
AT_FDCWD, RENAME_EXCHANGE = -100, 2
# A folder cannot be renamed: it is in use by the system, on another disk, or not ours to move.
IMMOVABLE = (errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES)


def serial() -> str:
    """Return what tells the folder of one run apart."""
    return uuid.uuid4().hex[:SERIAL]


def move_in(staging: Path, target: Path) -> None:
    """Put a complete result, beside its place or in it, there; on an error the place is as it was.

    All of it has reached the disk before its name is that of the place. Signals that end the run wait for the
    end of it, but not of a copy to another disk.

    Raises:
        OSError: it cannot be put there.
    """
    with HeldSignals() as signals:
        signals.pass_on()  # it may take long
        _sync_all(staging)
        signals.wait = True
        if staging.parent != target:
            try:
                _swap(staging, target)
            except OSError as failure:
                if failure.errno not in IMMOVABLE or not target.is_dir():
                    raise
            else:
                return
            # The folder stays and its content changes; a copy where it lies on another disk.
            inner = target / staging.name
            try:
                staging.rename(inner)
            except OSError as failure:
                if failure.errno != errno.EXDEV:
                    raise
                _copy(staging, inner, signals)
                # From here on the copy is the result: what cannot be removed here is of no use any more.
                shutil.rmtree(staging, ignore_errors=True)
            staging = inner
        _exchange(staging, target)


def _copy(source: Path, copy: Path, signals: HeldSignals) -> None:
    """Copy a folder to another disk; its name is there when all of it has reached that disk."""
    partial = copy.with_name(f"{copy.name[:-SERIAL]}{serial()}")
    try:
        signals.pass_on()  # it may take long
        shutil.copytree(source, partial, symlinks=True)
        _sync_all(partial)
        signals.wait = True
        partial.rename(copy)
    except BaseException as failure:
        signals.wait = True
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(failure, shutil.Error):  # a line for each file; the first says why
            raise OSError(failure.args[0][0][-1]) from failure
        raise


def _sync_all(folder: Path) -> None:
    """Wait until a folder's files, and then their names, have reached the disk."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            _sync(path)


def _sync_names(folder: Path) -> None:
    """Sync a folder's names, if it may be read: what was moved is in its place, and nothing is undone."""
    with contextlib.suppress(OSError):
        _sync(folder)


def _sync(path: Path) -> None:
    if os.name == "nt":  # it syncs nothing that was opened to be read
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as failure:
        if failure.errno != errno.EINVAL:  # file systems that cannot
            raise
    finally:
        os.close(handle)


def _swap(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        _sync_names(target.parent)
        return
    if exchanged(staging, target):
        _sync_names(target.parent)
        # Under the name of one that is being written: where it stays, the next run removes it.
        shutil.rmtree(staging, ignore_errors=True)
        return
    old = staging.with_name(staging.name + OLD_MARK)
    target.rename(old)
    try:
        staging.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)  # the result lies in its place; the next run tries again


def exchanged(one: Path, other: Path) -> bool:
    """Exchange the names of two folders, so that at no time there is none; whether the system can.

    Raises:
        OSError: it can, and these cannot be exchanged.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or a C library without it
        return False
    if call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    # An old kernel, or a file system that cannot.
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _exchange(staging: Path, target: Path) -> None:
    """Replace what a folder holds by what lies in a folder inside it."""
    before = entries(target)
    old = target / (staging.name + OLD_MARK)
    full = target / (staging.name + FULL_MARK)
    try:
        if before:
            old.mkdir()
            _move(_manifest_last(before)[::-1], old)
        staging.rename(full)
    except BaseException:
        if old.is_dir():
            move_up(old, target)
            old.rmdir()
        raise
    # From here on the result counts as written: what is interrupted now is finished by the next run.
    finish(full, old, target)


def finish(full: Path, old: Path, target: Path) -> None:
    """Move a complete result up out of a folder in its place, and remove what was there before."""
    move_up(full, target)
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(OSError):
        full.rmdir()


def move_up(folder: Path, target: Path) -> None:
    """Move what lies in a folder into the one around it, the manifest last."""
    if folder.is_dir():
        _move(_manifest_last(list(folder.iterdir())), target)


def _manifest_last(paths: list[Path]) -> list[Path]:
    """Sort so that a folder has its manifest only while all that it names is there."""
    return sorted(paths, key=lambda path: (path.name == MANIFEST_FILE, path.name))


def _move(paths: list[Path], folder: Path) -> None:
    """Move files into a folder on the same disk; on an error those that were moved go back."""
    if there := [path.name for path in paths if os.path.lexists(folder / path.name)]:
        raise FileExistsError(errno.EEXIST, f"{', '.join(there)} appeared there meanwhile")
    moved: list[Path] = []
    try:
        for path in paths:
            path.rename(folder / path.name)
            moved.append(path)
    except BaseException:
        for path in reversed(moved):
            (folder / path.name).rename(path)
        raise
