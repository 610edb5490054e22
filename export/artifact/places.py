"""Whether something may be written to a place: this tool replaces its own alone, see `contents`.

What somebody else put there is never removed.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from compressor.disk.paths import check_path
from compressor.errors import VtcompressError
from export.artifact.contents import (
    FILE_WORDS,
    FileKind,
    foreign_files,
    is_empty,
    kind_of_file,
    kind_of_folder,
    names_below,
)
from export.artifact.engine_set import ENGINES_FOLDER

MOST_COUNTED = 10_000


def check_folder(output: Path, *, overwrite: bool, sources: Iterable[Path] = ()) -> None:
    """Refuse a folder that cannot be written without losing something.

    Args:
        output: folder that a result is to fill; nothing there, or an empty folder, is fine in itself.
        overwrite: replace what this tool wrote there.
        sources: files and folders that the run reads; neither a folder that is or holds one is replaced, nor
            is anything written into a folder among them.

    Raises:
        VtcompressError: what lies there, and what to do.
    """
    sources = tuple(sources)
    check_where(output, sources)
    place = resolved(output)
    if not os.path.lexists(place):
        return
    if not place.is_dir():
        raise VtcompressError(f"{output}: is a file, not a folder; choose another `output`")
    try:
        _check_content(output, place, overwrite, sources)
    except OSError as failure:
        raise VtcompressError(
            f"{failure.filename or output}: cannot be read: {failure.strerror}, so that nobody knows what "
            "would be replaced; choose another `output`"
        ) from None


def check_where(output: Path, sources: Iterable[Path] = ()) -> None:
    """Refuse a place by where it is, whatever lies there.

    Args:
        output: file or folder that will be written.
        sources: files and folders that the run reads; nothing is written into a folder among them.

    Raises:
        VtcompressError: where it is, and what to do.
    """
    place = resolved(output)
    _refuse_inside(output, place)
    for source in sources:
        read = resolved(source)
        if read.is_dir() and read in place.parents:
            raise VtcompressError(
                f"{output}: lies in {source}, which this run reads, and nothing is written there; "
                "choose another `output`"
            )


def _check_content(output: Path, place: Path, overwrite: bool, sources: tuple[Path, ...]) -> None:
    if is_empty(place):
        return
    if reason := _never_replaced(place, sources):
        raise VtcompressError(f"{output}: {reason}; choose another `output`")
    kind = kind_of_folder(place)
    if kind is None and kind_of_file(place / "plan.json") == "plan":
        raise VtcompressError(
            f"{output}: holds a plan, but no list of what vtcompress wrote (an earlier version kept none); "
            "remove what is of no use any more, or choose another `output`"
        )
    if kind is None:
        raise VtcompressError(
            f"{output}: holds {_count(place)} that vtcompress did not write, such as "
            f"{next(names_below(place))}; choose another `output`"
        )
    if foreign := list(foreign_files(place)):
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise VtcompressError(
            f"{output}: holds {kind} of vtcompress, and what it did not write: "
            f"{', '.join(foreign[:3])}{more}; move that away, or choose another `output`"
        )
    if not overwrite:
        raise VtcompressError(
            f"{output}: holds {kind}; choose another `output` or add `overwrite` to replace it"
        )


def check_file(
    path: Path, kind: FileKind, *, overwrite: bool = True, sources: Iterable[Path] = ()
) -> None:
    """Refuse a file that cannot be written without losing something.

    Args:
        path: file that a result is to be written to; nothing there is always fine.
        kind: of the result; a file of another kind is not replaced.
        overwrite: replace a file of this kind.
        sources: files and folders that the run reads; nothing is written into such a folder.

    Raises:
        VtcompressError: what lies there, and what to do.
    """
    check_where(path, sources)
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise VtcompressError(f"{path}: is a folder, not a file; choose another `output`")
    found = kind_of_file(path)
    if found != kind:
        what = (
            "is no file that vtcompress knows as its own"
            if found is None
            else f"holds {FILE_WORDS[found]}"
        )
        raise VtcompressError(
            f"{path}: {what}, so that {FILE_WORDS[kind]} does not replace it; choose another name, or "
            "remove it"
        )
    if not overwrite:
        raise VtcompressError(f"{path}: exists; choose another `output` or add `overwrite`")


def _refuse_inside(output: Path, place: Path) -> None:
    """Refuse to add to, or change, what another run wrote as a whole; engines alone come later."""
    for folder in place.parents:
        kind = kind_of_folder(folder)
        if kind is not None and place.parent != folder / ENGINES_FOLDER:
            raise VtcompressError(
                f"{output}: lies in {folder}, which is {kind} and would be none any more; "
                "choose another `output`"
            )


def resolved(output: Path) -> Path:
    """Return the place behind a path: where a link points to, absolute.

    Raises:
        VtcompressError: no file can have such a path, links that lead nowhere, or no working folder.
    """
    check_path(output)
    try:
        return output.absolute().resolve()
    except (OSError, RuntimeError) as failure:
        reason = getattr(failure, "strerror", None) or "links that point at each other"
        raise VtcompressError(
            f"{output}: cannot write: {reason}; choose another `output`"
        ) from None


def _count(folder: Path) -> str:
    count = 0
    for _ in names_below(folder):
        count += 1
        if count > MOST_COUNTED:
            return f"more than {MOST_COUNTED:,} files"
    return f"{count:,} file{'s' if count > 1 else ''}"


def _never_replaced(place: Path, sources: Iterable[Path]) -> str | None:
    """Return why a folder is not replaced whatever it holds; None: it may be, if it is this tool's."""
    if place == Path(place.anchor):
        return "is the root of the file system, which is never replaced"
    home = Path(os.path.expanduser("~")).resolve()  # noqa: PTH111 - Path.home() raises without a home
    if place == home or place in home.parents:
        return "is the home folder or holds it, and is never replaced"
    working = Path.cwd().resolve()
    if place == working or place in working.parents:
        return "is the working folder or holds it, and is never replaced"
    for source in sources:
        read = resolved(source)
        if place == read or place in read.parents:
            what = "is" if place == read else "holds"
            return f"{what} {source}, which this run reads, and is not replaced"
    return None
