"""What the name of a picture stands for, in data and at the runtime alike: a file, or why it is none."""

import os
import re
from pathlib import Path

from compressor.disk.files import is_file, is_folder
from compressor.disk.opening import MAX_PICTURE_BYTES
from compressor.disk.paths import shown_path, unusable

MOST_SHOWN = 60


def picture_file(name: str, folder: Path) -> tuple[Path, str | None]:
    """Return the file that a picture's name stands for, and what is wrong with it; None: nothing.

    Args:
        name: as it was given; a leading `~` is the home folder.
        folder: where relative names start.
    """
    if not name.strip():
        remedy = "leave it out, or null, for a question without a picture"
        return folder, f"the name of a picture is empty; {remedy}"
    if re.match(r"data:|[A-Za-z0-9+/=\s]{300,}$", name):
        remedy = "is a picture's content, not a file's name: save it as a file and name that"
        return folder, f"{shown_name(name)} {remedy}"
    # One slash: a `Path` of an address has no second. One letter: a drive of Windows.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name):
        return folder, f"{shown_name(name)} is an address: download the picture and name the file"
    # expanduser leaves a user that does not exist as it is.
    path = folder / os.path.expanduser(name)  # noqa: PTH111
    if is_file(path):
        return path, _unfit(path)
    if (reason := unusable(path)) is not None:
        return path, f"{shown_path(path)}: {reason}"
    if is_folder(path):
        return path, f"{path}: is a folder; name a picture in it"
    if "\\" in name and is_file(folder / name.replace("\\", "/")):
        return path, f"{path}: no such file; write / instead of \\"
    return path, f"{path}: no such file"


def _unfit(path: Path) -> str | None:
    size = path.stat().st_size
    if not os.access(path, os.R_OK):
        return f"{shown_path(path)}: cannot be read (permission denied); make it readable"
    if size > MAX_PICTURE_BYTES:
        return f"{shown_path(path)}: {size:,} bytes; {MAX_PICTURE_BYTES >> 20} MiB are read at most"
    return None


def shown_name(text: str) -> str:
    """Return a text in quotes, a long one cut off."""
    return repr(text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "...")
