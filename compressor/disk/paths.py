"""Names that a file system takes, and the names of what a run keeps beside its result while it works."""

import errno
import hashlib
import os
import stat
from pathlib import Path

from compressor.errors import VtcompressError

MOST_NAME_BYTES = 255
# What is put around a name, such as `..NAME.calibration.json.0a1b2c3d.tmp`, takes less than the rest.
MOST_WORKING_BYTES = 190
SHOWN_CHARACTERS = 24
# Folders of the hub's cache: links to files as a model has them, and the files.
SNAPSHOTS, BLOBS = "snapshots", "blobs"
# What opens like a file and may wait for ever, give nothing twice or be gone when it is replaced.
SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


# What to do where a place cannot be written; of all else there is but another place.
WRITE_REMEDIES = {
    errno.ENOSPC: "make room, or choose another place",
    errno.EDQUOT: "make room, or choose another place",
    errno.EACCES: "make it writable, or choose another place",
    errno.EPERM: "make it writable, or choose another place",
}


def why_unwritten(failure: OSError) -> str:
    """Return why a place cannot be written, in the system's words, and the remedy."""
    words = failure.strerror or str(failure)
    return f"{words}; {WRITE_REMEDIES.get(failure.errno or 0, 'choose another place')}"


def unusable(path: Path) -> str | None:
    """Return why no file or folder can have this path, or what else has it, and the remedy; None: one can."""
    try:
        longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
        if longest > MOST_NAME_BYTES:
            return (
                f"a name of {longest} bytes, and a file system takes {MOST_NAME_BYTES} at most; "
                "choose a shorter one"
            )
        path.lstat()
        if (special := SPECIAL.get(stat.S_IFMT(path.stat().st_mode))) is not None:
            return f"is {special}, neither a file nor a folder; choose an ordinary one"
    except ValueError as failure:  # a null character, or half a character of UTF-16
        return f"no file can have this name ({failure}); choose another one"
    except OSError as failure:
        if failure.errno in (errno.EACCES, errno.EPERM):
            return "Permission denied: a folder above it must not be looked into; make it readable"
        if failure.errno == errno.ENAMETOOLONG:
            return "the path is too long for the system; choose a shorter one"
    return None


def leads_out(path: Path, folder: Path) -> bool:
    """Return whether a file of a folder lies elsewhere, behind a link.

    What the hub's cache shows as a model are links into a folder beside it, which count as inside.
    """
    folder = folder.resolve()
    places = [folder]
    if folder.parent.name == SNAPSHOTS:  # MODEL/snapshots/COMMIT
        places.append(folder.parent.parent / BLOBS)
    found = path.resolve()
    return not any(found.is_relative_to(place) for place in places)


def at_home(path: str) -> str:
    """Return a path that begins with `~` from the home folder on; another one as it is.

    Shells leave `--model=~/name` as it is, and nobody means a folder named `~`.
    """
    # expanduser leaves a user that does not exist as it is.
    return os.path.expanduser(path) if path.startswith("~") else path  # noqa: PTH111


def check_path(path: Path) -> None:
    """Refuse a path that no file can have, or something else has, whether it is to be read or written.

    Raises:
        VtcompressError: why, and what to do.
    """
    if (reason := unusable(path)) is not None:
        raise VtcompressError(f"{shown_path(path)}: {reason}")


def shown_path(path: Path) -> str:
    """Return a path for people: in one line that ends, and of characters that can be printed."""
    text = str(path).encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    return text if len(text) <= MOST_NAME_BYTES else f"{text[:60]}...{text[-20:]}"


def working_stem(name: str) -> str:
    """Return what stands for a name in those of working files: the name, or of a long one its digest.

    A legal name may leave no room for what the others have around it.
    """
    encoded = os.fsencode(name)
    if len(encoded) <= MOST_WORKING_BYTES:
        return name
    return f"{name[:SHOWN_CHARACTERS]}~{hashlib.sha256(encoded).hexdigest()[:16]}"
