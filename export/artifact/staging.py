"""Folders are written whole or not at all: beside or inside their place, and moved there when complete.

A place where nothing lies yet, or an old result of this tool, is written beside and renamed, so that whoever
looks sees the old result, the new one, or none. Where a folder must stay what it is, because it is empty and
somebody made it, a mount point, or in a folder that we may not write, the result is written inside it and its
parts are moved up one by one. Names, all starting with `.NAME.vtcompress-staging-XXXXXXXX`
(of a long NAME `compressor.disk.paths.working_stem`):

    (no ending)  being written; a run that finds it unlocked removes it
    -old         what was there before; a run that finds it without -full beside it puts it back
    -full        complete, inside its place and being moved up; a run that finds it finishes that
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

from compressor.disk.files import made_parent
from compressor.disk.held_signals import HeldSignals
from compressor.disk.locks import LOCK_MARK, STAGING_MARK, exclusive
from compressor.disk.paths import why_unwritten, working_stem
from compressor.errors import VtcompressError
from export.artifact.contents import (
    CALIBRATION_MARK,
    HEALING_MARK,
    SEARCH_MARK,
    SWEEP_MARK,
    is_empty,
    is_mount,
    is_working_file,
)
from export.artifact.moving import FULL_MARK, OLD_MARK, SERIAL, finish, move_in, move_up, serial
from export.artifact.places import check_folder, check_where, resolved


@dataclass(frozen=True)
class _Place:
    """Where a result will lie.

    Attributes:
        output: as the user named it; for messages.
        target: the folder behind it.
        work: where staging and lock lie: inside the target, or the folder around it.
    """

    output: Path
    target: Path
    work: Path

    @classmethod
    def of(cls, output: Path) -> "_Place":
        target = resolved(output)
        try:
            inside = target.is_dir() and (
                is_empty(target)
                or is_mount(target)
                or any(is_working_file(path, target) for path in target.iterdir())
                or not os.access(target.parent, os.W_OK | os.X_OK)
            )
        except OSError as failure:
            raise VtcompressError(
                f"{failure.filename or output}: cannot be read: {_words(failure)}; choose another `output`"
            ) from None
        return cls(output, target, target if inside else target.parent)

    @property
    def inside(self) -> bool:
        return self.work == self.target

    def beside(self, mark: str) -> Path:
        """Return a name that this place's runs keep for themselves."""
        return self.work / f".{working_stem(self.target.name)}{mark}"

    def left(self, ending: str) -> list[Path]:
        """Return what runs left here, by the ending of its name."""
        if not self.work.is_dir():
            return []
        start = re.escape(self.beside(STAGING_MARK).name)
        name = re.compile(f"{start}[0-9a-f]{{{SERIAL}}}{ending}")
        try:
            return [path for path in self.work.iterdir() if name.fullmatch(path.name)]
        except FileNotFoundError:  # meanwhile
            return []
        except OSError as failure:
            raise VtcompressError(
                f"{self.work}: cannot be read: {_words(failure)}, so that what killed runs left is "
                "unknown; make it readable or choose another `output`"
            ) from None


class Room(NamedTuple):
    """Free space that a result needs, and what would make that less."""

    needed: int
    remedy: str


@contextmanager
def staged(
    output: Path,
    *,
    overwrite: bool = False,
    needed_bytes: int = 0,
    remedy: str = "",
    sources: Iterable[Path] = (),
) -> Iterator[Path]:
    """Yield a fresh folder whose content takes the place of `output` when the block ends well.

    On an error or interrupt in the block nothing is left and `output` is as it was. A result that is complete
    and cannot be moved to its place is kept beside it.

    Args:
        output: final place; an empty folder there is filled, the target of a link is written.
        overwrite: replace what this tool wrote there.
        needed_bytes: free space that the writing will take.
        remedy: what would make that less; empty: nothing.
        sources: files and folders that the run reads; see `check_folder`.

    Raises:
        VtcompressError: `output` holds what may not be replaced or is being written by another run, it cannot
            be written, or its disk has too little room.
    """
    place, sources = _Place.of(output), tuple(sources)
    with (
        HeldSignals() as signals,
        _opened(place, overwrite, Room(needed_bytes, remedy), sources) as staging,
    ):
        try:
            signals.pass_on()
            yield staging
            _share_modes(staging)
            _put_in_place(staging, place, overwrite, sources)
        finally:
            signals.wait = True


def _put_in_place(staging: Path, place: _Place, overwrite: bool, sources: tuple[Path, ...]) -> None:
    output = place.output
    try:
        check_folder(output, overwrite=overwrite, sources=sources)
        move_in(staging, place.target)
    except (OSError, VtcompressError) as failure:
        reason = str(failure) if isinstance(failure, VtcompressError) else _words(failure)
        kept = _keep(staging, place)
        _recover(_Place.of(output))
        where = f"is complete and lies in {kept}" if kept else "was removed meanwhile; run again"
        raise VtcompressError(
            f"{output}: cannot be put in place: {reason}; the result {where}"
        ) from failure


def check_place(
    output: Path,
    *,
    overwrite: bool = False,
    needed_bytes: int = 0,
    remedy: str = "",
    sources: Iterable[Path] = (),
) -> None:
    """Try all that `staged` would refuse, before the work begins; arguments and errors are its own."""
    place, sources = _Place.of(output), tuple(sources)
    with HeldSignals(), _opened(place, overwrite, Room(needed_bytes, remedy), sources):
        pass


@contextmanager
def exclusively(output: Path) -> Iterator[None]:
    """Keep runs from replacing a folder while one file in it changes.

    Raises:
        VtcompressError: one is writing it, or no lock can be put there.
    """
    with _lock(_Place.of(output)):
        yield


def _lock(place: _Place) -> AbstractContextManager[None]:
    return exclusive(place.output, place.beside(LOCK_MARK))


def calibration_file(output: Path) -> Path:
    """Return where a calibration is kept while `output` is being written, for a run that goes on with it."""
    return _Place.of(output).beside(CALIBRATION_MARK)


def sweep_folder(output: Path) -> Path:
    """Return where a sweep keeps what it has found while `output` is not written, for a run that goes on."""
    return _Place.of(output).beside(SWEEP_MARK)


def search_folder(output: Path) -> Path:
    """Return where a search keeps what it has measured while `output` is not written, likewise."""
    return _Place.of(output).beside(SEARCH_MARK)


def healing_file(output: Path) -> Path:
    """Return where the checkpoint of a healing is kept while `output` is not written, likewise."""
    return _Place.of(output).beside(HEALING_MARK)


@contextmanager
def _opened(
    place: _Place, overwrite: bool, room: Room, sources: tuple[Path, ...]
) -> Iterator[Path]:
    # Judged before anything is made, and again when nobody else writes there. What a run has left there, half
    # moved or a lock, is not what its user has there: that is finished and removed first.
    check_where(place.output, sources)
    leftovers = any(map(place.left, ("", OLD_MARK, FULL_MARK)))
    if not leftovers and not os.path.lexists(place.beside(LOCK_MARK)):
        check_folder(place.output, overwrite=overwrite, sources=sources)
    with made_parent(place.target), _lock(place):
        _recover(place)
        check_folder(place.output, overwrite=overwrite, sources=sources)
        staging = place.beside(f"{STAGING_MARK}{serial()}")
        try:
            _make_staging(staging, room)
            yield staging
        except VtcompressError:
            raise
        except Exception as failure:
            if (found := _system_error(failure)) is None:
                raise
            raise VtcompressError(
                f"{place.output}: cannot write: {why_unwritten(found)}"
            ) from failure
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _make_staging(staging: Path, room: Room) -> None:
    try:
        check_room(staging.parent, room.needed, room.remedy)
        staging.mkdir()
    except OSError as failure:
        raise VtcompressError(f"{staging.parent}: cannot write: {why_unwritten(failure)}") from None


def _share_modes(folder: Path) -> None:
    """Give all files the mode of the user's umask; libraries make some for their owner alone."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):  # file systems without modes
                path.chmod(mode)


def _system_error(failure: Exception) -> OSError | None:
    """The system's error of a failed write, also from libraries in Rust: `... (os error 28)`."""
    if isinstance(failure, OSError):
        return failure
    number = re.search(r"\(os error (\d+)\)", str(failure))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def _words(failure: OSError) -> str:
    return failure.strerror or str(failure)


def _recover(place: _Place) -> None:
    """Finish or undo what killed runs left, and remove what is of no use."""
    if place.inside:
        for full in place.left(FULL_MARK):
            old = full.with_name(full.name.removesuffix(FULL_MARK) + OLD_MARK)
            finish(full, old, place.target)
    for old in place.left(OLD_MARK):
        if place.inside:
            move_up(old, place.target)
            old.rmdir()
        elif not place.target.exists():
            old.rename(place.target)
        else:
            shutil.rmtree(old, ignore_errors=True)
    for stray in place.left(""):
        shutil.rmtree(stray, ignore_errors=True)


def _keep(staging: Path, place: _Place) -> Path | None:
    """Move a complete result that has no place where its user finds it; None: it is gone."""
    kept = _free(place.work, place)
    full = place.target / (staging.name + FULL_MARK)
    inner = place.target / staging.name
    # Last: beside a copy on another disk it may be what could not be removed of the original.
    found = next((path for path in (full, inner, staging) if path.is_dir()), None)
    if found is None:
        return None
    try:
        found.rename(kept)
    except OSError as failure:
        if failure.errno != errno.EXDEV:
            raise
        kept = _free(found.parent, place)
        found.rename(kept)
    return kept


def _free(folder: Path, place: _Place) -> Path:
    """Return a name in a folder that nothing has yet, for a result without a place."""
    stem = f"{working_stem(place.target.name)}-new-"
    return next(
        path for number in count(1) if not os.path.lexists(path := folder / f"{stem}{number}")
    )


def check_room(folder: Path, needed_bytes: int, remedy: str = "") -> None:
    """Refuse to start what the disk cannot hold; `remedy` as in `staged`.

    Raises:
        VtcompressError: fewer than `needed_bytes` are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise VtcompressError(
            f"{folder}: {_mebibytes(needed_bytes)} are needed, {_mebibytes(free)} are free; "
            f"make room or choose another `output`{f', or {remedy}' if remedy else ''}"
        )


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
