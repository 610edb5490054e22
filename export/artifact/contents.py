"""What lies in a folder or file, and which of it this tool wrote.

A folder is this tool's if it holds a list of its files that this tool wrote: an artifact's manifest, the
engines' `engines.json`, the `files.json` of a compressed model, a sweep's `sweep.json`, a search's
`front.json`, or a packed folder's `pack.json`. What is not on the list was put there by somebody else. A file
is this tool's if it says so in its first bytes.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from compressor.contract.healing import HEALED
from compressor.disk.files import DRAWING_MARK, read_text
from compressor.disk.locks import LOCK_MARK, STAGING_MARK
from compressor.disk.mistaken import PACK_FILE
from compressor.disk.opening import open_regular, sha256_of
from compressor.disk.paths import working_stem
from compressor.disk.weight_file import MODEL_DIGEST, PART_OF
from compressor.errors import ArtifactError
from compressor.search.results import FRONT_FILE
from export.artifact.engine_set import ENGINES_FILE, ENGINES_FOLDER, TIMING_FILE
from export.artifact.manifest import MANIFEST_FILE
from export.results.backend_parity import PARITY_FILE

FILES_FILE = "files.json"
FILES_FORMAT = "files_format"
CALIBRATION_MARK = ".calibration.json"
# What a sweep that is not finished keeps; see `vtcompress.stages.sweeping`.
SWEEP_MARK = ".vtcompress-sweep"
SWEEP_FILE = "sweep.json"
# The same of a search.
SEARCH_MARK = ".vtcompress-search"
SWEEP_FORMAT = "sweep_format"
SEARCH_FORMAT = "search_format"
# What a stock client loads; see `export.clients`.
PACK_FORMAT = "pack_format"
# A file system's own folder, in the root of every ext disk.
LOST_AND_FOUND = "lost+found"
# Words of people are small; above this a file that differs from its list is damaged, not edited.
LARGEST_EDITED = 1 << 20
# The checkpoint of a healing that an export makes.
HEALING_MARK = ".vtcompress-healing.safetensors"
WEIGHTS = (".onnx", ".bin", ".safetensors")
HEAD_BYTES = 4096

FileKind = Literal[
    "plan",
    "profile",
    "costs",
    "gates",
    "gates report",
    "parts",
    "parts report",
    "heal",
    "heal report",
    "page",
    "drawing",
]
FILE_WORDS: dict[FileKind, str] = {
    "plan": "a plan",
    "profile": "a calibration profile",
    "costs": "measured costs",
    "gates": "gates",
    "gates report": "a report on gates",
    "parts": "trained parts",
    "parts report": "a report on trained parts",
    "heal": "healed weights",
    "heal report": "a report on healed weights",
    "page": "a page",
    "drawing": "a drawing",
}
_JSON_KINDS: dict[str, FileKind] = {
    "plan_format": "plan",
    "profile_format": "profile",
    "costs_format": "costs",
    "gates_report_format": "gates report",
    "parts_report_format": "parts report",
    "heal_report_format": "heal report",
}
PAGE_MARK = b'<meta name="generator" content="vtcompress">'


def kind_of_file(path: Path) -> FileKind | None:
    """Return what this tool wrote there; None: nothing that it knows as its own."""
    try:
        with open_regular(path) as stream:
            head = stream.read(HEAD_BYTES)
            if PAGE_MARK in head:
                return "page"
            if DRAWING_MARK.encode() in head:
                return "drawing"
            length = int.from_bytes(head[:8], "little")
            if head[8:9] == b"{" and length < 1 << 24:
                header = json.loads((head[8:] + stream.read(length))[:length])
                metadata = header.get("__metadata__", {})
                kind: FileKind = "parts" if PART_OF in metadata else "gates"
                kind = "heal" if HEALED in metadata else kind
                return kind if MODEL_DIGEST in metadata else None
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return None
    document = _json(path)
    return next((kind for key, kind in _JSON_KINDS.items() if key in document), None)


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what runs of this tool keep there while they write."""
    return next(names_below(folder), None) is None


def entries(folder: Path) -> list[Path]:
    """Return what lies directly in a folder, without this tool's working files and the file system's own."""
    mount = is_mount(folder)
    return [
        path
        for path in sorted(folder.iterdir())
        if not is_working_file(path, folder) and not (mount and path.name == LOST_AND_FOUND)
    ]


def is_mount(folder: Path) -> bool:
    """Whether a file system is mounted there, also one that shares its disk with the folder around it."""
    if os.path.ismount(folder):
        return True
    try:
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    escaped = str(folder).replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")
    return any(line.split()[4] == escaped for line in table.splitlines())


def is_working_file(path: Path, folder: Path) -> bool:
    """Whether this tool keeps such an entry in a folder only while it writes it."""
    own = f".{working_stem(folder.name)}"
    marks = (
        STAGING_MARK,
        LOCK_MARK,
        CALIBRATION_MARK,
        SWEEP_MARK,
        SEARCH_MARK,
        HEALING_MARK,
    )
    # The others: files that are being written, see `compressor.disk.files`.
    written = (f".{working_stem(own + mark)}." for mark in (CALIBRATION_MARK, HEALING_MARK))
    return path.name.startswith((*(own + mark for mark in marks), *written))


def names_below(folder: Path) -> Iterator[str]:
    """Yield the relative names of all files below a folder, links and empty folders too."""
    for top in entries(folder):
        if top.is_symlink() or not top.is_dir():
            yield top.name
            continue
        for root, folders, files in os.walk(top, onerror=_raise):
            here = Path(root)
            links = [name for name in folders if (here / name).is_symlink()]
            for name in sorted(files + links):
                yield (here / name).relative_to(folder).as_posix()
            if not folders and not files:
                yield here.relative_to(folder).as_posix() + "/"


def _raise(failure: OSError) -> None:
    raise failure  # a folder that cannot be looked into may hold anything


def kind_of_folder(folder: Path) -> str | None:
    """Return what a folder of this tool is, in words; None: it is none."""
    if "manifest_format" in _json(folder / MANIFEST_FILE):
        return "an artifact"
    if FILES_FORMAT in _json(folder / FILES_FILE):
        return "a compressed model"
    if SWEEP_FORMAT in _json(folder / SWEEP_FILE):
        return "a sweep"
    if SEARCH_FORMAT in _json(folder / FRONT_FILE):
        return "a search"
    if PACK_FORMAT in _json(folder / PACK_FILE):
        return "a packed artifact"
    if "engines_format" in _json(folder / ENGINES_FILE):
        return "engines"
    return None


def _listed(folder: Path) -> dict[str, Any]:
    """Return what this tool wrote into a folder: names, with size and sha256 where the list has them."""
    manifest = _json(folder / MANIFEST_FILE)
    if "manifest_format" in manifest:
        listed = {MANIFEST_FILE: None, **_files(manifest)}
        for made in sorted(folder.glob(f"{ENGINES_FOLDER}/*/{ENGINES_FILE}")):
            below = made.parent.relative_to(folder).as_posix()
            listed |= {f"{below}/{name}": None for name in _listed_engines(made.parent)}
        return listed
    kinds = (
        (FILES_FILE, FILES_FORMAT),
        (SWEEP_FILE, SWEEP_FORMAT),
        (FRONT_FILE, SEARCH_FORMAT),
        (PACK_FILE, PACK_FORMAT),
    )
    for name, key in kinds:
        document = _json(folder / name)
        if key in document:
            return {name: None, **_files(document)}
    return _listed_engines(folder)


def _files(document: dict[str, Any]) -> dict[str, Any]:
    files = document.get("files")
    return files if isinstance(files, dict) else {}


def _listed_engines(folder: Path) -> dict[str, Any]:
    engines = _json(folder / ENGINES_FILE).get("engines")
    rows = engines if isinstance(engines, list) else []
    named = [row.get("file") for row in rows if isinstance(row, dict)]
    names = [name for name in named if isinstance(name, str)]
    return dict.fromkeys([ENGINES_FILE, TIMING_FILE, PARITY_FILE, *names])


def foreign_files(folder: Path) -> Iterator[str]:
    """Yield what is not this tool's in a folder of its own: other files, and small ones that were edited."""
    listed = _listed(folder)
    for name in names_below(folder):
        if name.endswith("/"):
            continue  # an empty folder
        if name not in listed:
            yield name
        elif _edited(folder / name, listed[name]):
            yield f"{name} (changed since)"


def _edited(path: Path, entry: Any) -> bool:
    if not isinstance(entry, dict) or path.suffix in WEIGHTS:
        return False
    try:
        size = path.stat().st_size
        return size <= LARGEST_EDITED and sha256_of(path) != entry.get("sha256", "")
    except OSError:
        return False


def _json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; empty where there is none."""
    try:
        document = json.loads(read_text(path, ArtifactError))
    except (ArtifactError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
