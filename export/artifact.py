"""An artifact on disk: written beside its place and moved there when complete, verified when opened."""

import os
import re
import resource
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from compressor.errors import ArtifactError, VtcompressError
from compressor.files import read_text, sha256_of, write_text
from compressor.locks import exclusive
from export.engine_set import ENGINES_FOLDER, unnamed_files
from export.graphs import in_order
from export.manifest import MANIFEST_FILE, MANIFEST_FORMAT, FileEntry, Manifest
from export.onnx_header import check_graph

RECIPE_FILE, PLAN_FILE, PROFILE_FILE = "recipe.yaml", "plan.json", "profile.json"
STAGING_MARK = ".vtcompress-staging-"
OLD_MARK = "-old"
NEEDED_GRAPHS = ("vision", "embed")


@dataclass(frozen=True)
class Artifact:
    """An artifact that was opened.

    Attributes:
        folder: where it lies.
        manifest: what it says of itself.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> "Artifact":
        """Read the manifest and check the files against it.

        Args:
            folder: the artifact.
            verify: compare sha256 as well as names, sizes and where the graphs' tensors lie.

        Raises:
            ArtifactError: not an artifact, of a newer format, or files missing or altered; all are named.
                Nothing but the manifest has been parsed by a library then.
        """
        folder = Path(folder)
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise ArtifactError([f"{folder}: no artifact; it has no {MANIFEST_FILE}"])
        text = read_text(path, ArtifactError)
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            raise ArtifactError(_explain(path, error)) from None
        problems = [
            f"{path}: the graph {spec.name} is in {spec.file!r}, which is not among the files"
            for spec in manifest.graphs
            if spec.file not in manifest.files
        ]
        names = [spec.name for spec in manifest.graphs]
        problems += [
            f"{path}: has {names.count(name)} graphs named {name!r}; copy the artifact anew"
            for name in NEEDED_GRAPHS
            if names.count(name) != 1
        ]
        if not in_order(manifest.graphs, "decoder"):
            problems.append(f"{path}: has no decoder; copy the artifact anew")
        problems += [
            p for name, entry in manifest.files.items() for p in _check(folder, name, entry, verify)
        ]
        if verify and not problems:
            unnamed = [folder / name for name in sorted(_names(folder) - manifest.files.keys())]
            problems = [
                f"{path}: not named in the manifest; remove it, or copy the artifact anew"
                for path in (*unnamed, *unnamed_files(folder))
            ]
        if not problems:
            sizes = {name: entry.size for name, entry in manifest.files.items()}
            for file in sorted({spec.file for spec in manifest.graphs}):
                problems += check_graph(folder, file, sizes)
        if problems:
            raise ArtifactError(problems)
        return cls(folder, manifest)


def _explain(path: Path, error: ValidationError) -> list[str]:
    for item in error.errors():
        if item["loc"] == ("manifest_format",) and isinstance(item["input"], int):
            return [
                f"{path}: artifact format {item['input']}; this vtcompress reads up to {MANIFEST_FORMAT}: "
                "upgrade vtcompress or export the model anew"
            ]
    return [
        f"{path}: {'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}" for e in error.errors()
    ]


def _check(folder: Path, name: str, entry: FileEntry, verify: bool) -> Iterator[str]:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        yield f"{folder}: the manifest names {name!r}, which leaves the folder; do not use this artifact"
        return
    path = folder / name
    try:
        inside = path.is_file() and path.resolve().is_relative_to(folder.resolve())
    except OSError:  # a name that no file system takes
        inside = False
    if not inside:
        yield f"{path}: missing, or a link out of the artifact; copy the artifact anew"
    elif path.stat().st_size != entry.size:
        yield f"{path}: {path.stat().st_size} bytes, the manifest says {entry.size}; copy the artifact anew"
    elif verify and sha256_of(path) != entry.sha256:
        yield f"{path}: its sha256 is not the manifest's; copy the artifact anew"


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Return all files of a folder by relative name, but the manifest and engines, which have their own."""
    return {
        name: FileEntry(sha256=sha256_of(folder / name), size=(folder / name).stat().st_size)
        for name in sorted(_names(folder))
    }


def _names(folder: Path) -> set[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = {path.as_posix() for path in files if path.parts[0] != ENGINES_FOLDER}
    return names - {MANIFEST_FILE}


def write_manifest(folder: Path, **fields: Any) -> Manifest:
    """Write the manifest of everything that lies in the folder, and return it."""
    manifest = Manifest(files=list_files(folder), **fields)
    write_text(folder / MANIFEST_FILE, manifest.model_dump_json(indent=1) + "\n")
    return manifest


@contextmanager
def staged(output: Path, *, overwrite: bool = False, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a fresh folder beside `output` that takes its place when the block ends well.

    On an error or interrupt nothing is left and `output` is as it was.

    Args:
        output: final place.
        overwrite: replace what is there.
        needed_bytes: free space that the writing will take.

    Raises:
        VtcompressError: `output` exists or is being written by another run, its parent cannot be written,
            or the disk has too little room.
    """
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise VtcompressError(f"{output.parent}: cannot write: {failure.strerror}") from None
    with exclusive(output):
        _clear_strays(output)
        if output.exists() and not overwrite and (not output.is_dir() or any(output.iterdir())):
            raise VtcompressError(f"{output}: exists; choose another --output or add --overwrite")
        staging = output.parent / f".{output.name}{STAGING_MARK}{uuid.uuid4().hex[:8]}"
        try:
            _make_staging(staging, needed_bytes)
            yield staging
            _replace(staging, output)
        except VtcompressError:
            raise
        except Exception as failure:
            if (reason := _system_error(failure)) is None:
                raise
            raise VtcompressError(f"{output}: cannot write: {reason}") from failure
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _make_staging(staging: Path, needed_bytes: int) -> None:
    try:
        check_room(staging.parent, needed_bytes)
        staging.mkdir()
    except OSError as failure:
        raise VtcompressError(f"{staging.parent}: cannot write: {failure.strerror}") from None


def _system_error(failure: Exception) -> str | None:
    """The system's words for a failed write, also from libraries in Rust: `... (os error 28)`."""
    if isinstance(failure, OSError):
        return failure.strerror or str(failure)
    number = re.search(r"\(os error (\d+)\)", str(failure))
    return os.strerror(int(number[1])) if number else None


def _clear_strays(output: Path) -> None:
    """Remove what killed runs left; an old artifact that was moved aside goes back to its place."""
    mark = f".{output.name}{STAGING_MARK}"
    strays = [entry for entry in output.parent.iterdir() if entry.name.startswith(mark)]
    for entry in strays:
        if entry.name.endswith(OLD_MARK) and not output.exists():
            entry.rename(output)
        else:
            shutil.rmtree(entry, ignore_errors=True)


def _replace(staging: Path, output: Path) -> None:
    if output.exists():
        old = staging.with_name(staging.name + OLD_MARK)
        output.rename(old)
        try:
            staging.rename(output)
        except BaseException:
            old.rename(output)
            raise
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    else:
        staging.rename(output)


def check_room(folder: Path, needed_bytes: int) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        VtcompressError: fewer than `needed_bytes` are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise VtcompressError(
            f"{folder}: {_mebibytes(needed_bytes)} are needed, {_mebibytes(free)} are free; "
            "make room or choose another --output"
        )


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def peak_memory_bytes() -> int:
    """Return the highest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


__all__ = [
    "Artifact",
    "check_room",
    "folder_bytes",
    "list_files",
    "peak_memory_bytes",
    "staged",
    "write_manifest",
]
