"""An artifact on disk: its manifest written, and verified with all files when it is opened."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from compressor.disk.files import read_text, write_text
from compressor.disk.mistaken import mistaken
from compressor.disk.opening import most_bytes, sha256_of, too_large, why_unread
from compressor.disk.paths import shown_path, unusable
from compressor.errors import ArtifactError, PlanError, VtcompressError
from compressor.plan.plan import Plan
from compressor.progress import SILENT, Megabytes, Progress
from export.artifact.contents import FILES_FILE, FILES_FORMAT
from export.artifact.contradictions import contradictions
from export.artifact.engine_set import ENGINES_FOLDER, unnamed_files
from export.artifact.manifest import MANIFEST_FILE, MANIFEST_FORMAT, FileEntry, Manifest
from export.artifact.onnx_header import check_graph
from export.graphs.spec import in_order

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]
KNOWS_PEAK = resource is not None

RECIPE_FILE, PLAN_FILE, PROFILE_FILE = "recipe.yaml", "plan.json", "profile.json"
HEALED_FILE = "healed.safetensors"
"""What an export trained itself; see `compressor.contract.healing`."""
NEEDED_GRAPHS = ("vision", "embed")
GRAPH_ENDING = ".onnx"
SHOWN = 3
"""Names that a message gives of a longer list."""
Stamp = tuple[int, int, int, int]
"""Number of a file on its disk, its size, when it was written last, and when anything of it was changed."""


@dataclass(frozen=True)
class Artifact:
    """An artifact that was opened.

    Attributes:
        folder: where it lies.
        manifest: what it says of itself.
        stamps: by which files are known to be those that were checked.
        verified: whether sha256 were compared.
    """

    folder: Path
    manifest: Manifest
    stamps: Mapping[str, Stamp | None] = field(default_factory=dict, compare=False, repr=False)
    verified: bool = field(default=False, compare=False, repr=False)

    def check_unchanged(self) -> None:
        """Refuse files that were replaced or written since they were checked.

        Raises:
            ArtifactError: names them.
        """
        changed = [
            name for name, found in self.stamps.items() if _stamp(self.folder / name) != found
        ]
        if changed:
            names = ", ".join(changed[:SHOWN]) + (" ..." if changed[SHOWN:] else "")
            words = f"{self.folder}: {names} changed since it was checked; load the artifact anew"
            raise ArtifactError([words])

    @classmethod
    def open(
        cls, folder: str | Path, *, verify: bool = True, progress: Progress = SILENT
    ) -> "Artifact":
        """Read the manifest and check the files against it; again if the artifact was replaced meanwhile.

        Args:
            folder: the artifact.
            verify: compare sha256 as well as names, sizes and where the graphs' tensors lie.
            progress: shows the megabytes that were compared.

        Raises:
            ArtifactError: not an artifact, of a newer format, or files missing or altered; all are named.
                Nothing but the manifest has been parsed by a library then. Or what the manifest says of the
                model contradicts the plan, the processor's files or the graphs beside it.
        """
        if not isinstance(folder, str | os.PathLike):
            raise TypeError(f"path: {folder!r:.60} is no path of an artifact's folder")
        folder = Path(folder)
        while True:
            before = _identity(folder)
            try:
                artifact = cls._read(folder, verify, progress)
            except (VtcompressError, OSError):
                if _identity(folder) == before:
                    raise
            else:
                if _identity(folder) == before:
                    return artifact

    @classmethod
    def _read(cls, folder: Path, verify: bool, progress: Progress) -> "Artifact":
        path = folder / MANIFEST_FILE
        if (reason := unusable(folder)) is not None:
            raise ArtifactError([f"{shown_path(folder)}: {reason}"])
        if not path.is_file():
            lacks = f"it has no {MANIFEST_FILE}" if folder.is_dir() else "there is no such folder"
            raise ArtifactError([mistaken(folder, "artifact") or f"{folder}: no artifact; {lacks}"])
        text = read_text(path, ArtifactError)
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            raise ArtifactError(_explain(path, error)) from None
        graphs = sorted({spec.file for spec in manifest.graphs})
        stamps = {name: _stamp(folder / name) for name in manifest.files}
        problems = _graph_problems(path, manifest)
        files = manifest.files
        outside = [name for name in files if _leaves(name)]
        problems += [
            f"{folder}: the manifest names {name!r}, which leaves the folder; do not use this artifact"
            for name in outside
        ]
        inside = {name: entry for name, entry in files.items() if name not in outside}
        wrong = dict(_misfits(folder, inside))
        if verify:
            there = {name: entry for name, entry in inside.items() if name not in wrong}
            wrong |= _altered(folder, there, progress)
        problems += _alike(folder, wrong)
        if verify and not problems:
            unnamed = [folder / name for name in sorted(_names(folder) - manifest.files.keys())]
            problems = [
                f"{path}: not named in the manifest; remove it, or copy the artifact anew"
                for path in (*unnamed, *unnamed_files(folder))
            ]
        if not problems:
            sizes = {name: entry.size for name, entry in manifest.files.items()}
            for file in graphs:
                problems += check_graph(folder, file, sizes)
        if not problems:
            plan = _plan(folder, manifest)
            found = contradictions(folder, manifest, plan)
            problems = [f"{path}: {problem}; export the model again" for problem in found]
        if problems:
            raise ArtifactError(problems)
        return cls(folder, manifest, stamps, verify)


def _stamp(path: Path) -> Stamp | None:
    """Return what tells a file from another in its place, or from itself once it was written again."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    # Whoever writes a file may set back when it was written, and not when it was changed.
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return what tells a folder from another one that took its name; None: there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _graph_problems(path: Path, manifest: Manifest) -> list[str]:
    problems = [
        f"{path}: the graph {spec.name} is in {spec.file!r}, which is not among the files"
        for spec in manifest.graphs
        if spec.file not in manifest.files
    ]
    # By another ending runtimes take a file for another format, which is not looked into here.
    problems += [
        f"{path}: the graph {spec.name} is in {spec.file!r}, whose name does not end with {GRAPH_ENDING}"
        for spec in manifest.graphs
        if not spec.file.endswith(GRAPH_ENDING)
    ]
    names = [spec.name for spec in manifest.graphs]
    problems += [
        f"{path}: has {names.count(name)} graphs named {name!r}; copy the artifact anew"
        for name in NEEDED_GRAPHS
        if names.count(name) != 1
    ]
    if not in_order(manifest.graphs, "decoder"):
        problems.append(f"{path}: has no decoder; copy the artifact anew")
    return problems


def _plan(folder: Path, manifest: Manifest) -> Plan | None:
    if PLAN_FILE not in manifest.files:
        return None
    try:
        return Plan.load(folder / PLAN_FILE)
    except PlanError as error:
        raise ArtifactError(error.problems) from None


def _explain(path: Path, error: ValidationError) -> list[str]:
    for item in error.errors():
        if item["loc"] == ("manifest_format",) and isinstance(item["input"], int):
            return [
                f"{path}: artifact format {item['input']}; this vtcompress reads up to {MANIFEST_FORMAT}: "
                "upgrade vtcompress or export the model anew"
            ]
    newer, wrong = "upgrade vtcompress or export the model anew", "export the model again"
    return [
        f"{path}: {'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}; "
        f"{newer if e['type'] == 'union_tag_invalid' else wrong}"
        for e in error.errors()
    ]


def _alike(folder: Path, wrong: Mapping[str, str]) -> list[str]:
    """Return a line for each thing that is wrong with files: where it is with many, of the first names."""
    names: dict[str, list[str]] = {}
    for name, reason in wrong.items():
        names.setdefault(reason, []).append(name)
    lines = []
    for reason, (first, *others) in names.items():
        more = f" and {len(others) + 1 - SHOWN} more" if len(others) >= SHOWN else ""
        several = f"{folder}: {', '.join([first, *others][:SHOWN])}{more}"
        lines.append(f"{several if others else folder / first}: {reason}")
    return lines


def _altered(
    folder: Path, files: Mapping[str, FileEntry], progress: Progress
) -> Iterator[tuple[str, str]]:
    """Yield the files whose bytes are not those of the manifest, and what is wrong with each."""
    done = Megabytes(progress, "comparing files with the manifest, MB")
    with done.of(sum(entry.size for entry in files.values())):
        for name, entry in files.items():
            path = folder / name
            try:
                same = sha256_of(path, done.add) == entry.sha256
            except OSError as failure:
                yield name, why_unread(failure)
                continue
            if not same:
                yield name, "sha256 is not the manifest's; copy the artifact anew"


def _leaves(name: str) -> bool:
    """Whether a name of a manifest is one of another folder."""
    pure = PurePosixPath(name)
    return pure.is_absolute() or ".." in pure.parts or "\\" in name


def _misfits(folder: Path, files: Mapping[str, FileEntry]) -> Iterator[tuple[str, str]]:
    """Yield the files that are not there as the manifest says, unread, and what is wrong with each."""
    for name, entry in files.items():
        path = folder / name
        try:
            inside = path.is_file() and path.resolve().is_relative_to(folder.resolve())
        except OSError:  # a name that no file system takes
            inside = False
        if not inside:
            yield name, "missing, or a link out of the artifact; copy the artifact anew"
        elif (size := path.stat().st_size) != entry.size:
            yield name, "not as many bytes as the manifest says; copy the artifact anew"
        elif size > (most := most_bytes(path.name) or size):
            yield name, f"{too_large(most)}; copy the artifact anew"


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Return all files of a folder by relative name, but the manifest and engines, which have their own."""
    return {
        name: FileEntry(sha256=sha256_of(folder / name), size=(folder / name).stat().st_size)
        for name in sorted(_names(folder))
    }


def _names(folder: Path) -> set[str]:
    # A link to a folder, a pipe and a device are no files, and no more named than one.
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    files = (path.relative_to(folder) for path in found)
    names = {path.as_posix() for path in files if path.parts[0] != ENGINES_FOLDER}
    return names - {MANIFEST_FILE}


def write_manifest(folder: Path, **fields: Any) -> Manifest:
    """Write the manifest of everything that lies in the folder, and return it."""
    manifest = Manifest(files=list_files(folder), **fields)
    write_text(folder / MANIFEST_FILE, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def write_file_list(folder: Path) -> None:
    """Write the list of all files of a folder that has no manifest, by which it is known as this tool's."""
    files = {name: entry.model_dump() for name, entry in list_files(folder).items()}
    document = {FILES_FORMAT: 1, "files": files}
    write_text(folder / FILES_FILE, json.dumps(document, ensure_ascii=False, indent=1) + "\n")


def peak_memory_bytes() -> int:
    """Return the highest resident memory of this process so far; 0 where the system does not tell."""
    if not KNOWS_PEAK:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
