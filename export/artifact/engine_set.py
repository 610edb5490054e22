"""Engines of one artifact for one target and kind of GPU: a folder with a manifest of its own.

    ARTIFACT/engines/tensorrt-rtx-SM86/engines.json, vision.engine, embed.engine, decoder.engine

An engine is code that a GPU will run, so it is checked before a library sees it: its sha256, that
the artifact is the one it was built from, the versions, and the GPU.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from compressor.disk.files import read_json
from compressor.disk.locks import LOCK_MARK, STAGING_MARK
from compressor.disk.opening import sha256_of
from compressor.errors import ArtifactError
from compressor.facts import Facts
from export.artifact.manifest import FileEntry, Manifest
from export.graphs.limits import Limits
from export.graphs.profiles import ShapeProfile
from export.graphs.spec import WEIGHTS_FILE
from export.results.backend_parity import PARITY_FILE

ENGINES_FOLDER, ENGINES_FILE, TIMING_FILE = "engines", "engines.json", "timing.cache"


class EngineEntry(Facts):
    """One engine.

    Attributes:
        graph: name of the graph that it was built from.
        file: in the set's folder.
        sha256: of the file.
        size: of the file, in bytes.
        seconds: that the build took.
        profiles: what it was built for, the widest first.
    """

    graph: str
    file: str = Field(pattern=r"^[A-Za-z0-9_]+\.engine$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    seconds: float = Field(ge=0)
    profiles: tuple[ShapeProfile, ...] = Field(min_length=1)


class EngineSet(Facts):
    """What a set of engines holds and what it was built for; stored as `engines.json`.

    Attributes:
        target: the backend that runs them.
        version: of the builder; engines of another version are not loaded.
        compute_capabilities: of the GPUs that it serves, such as `SM86`.
        device: name of the GPU that it was built on; empty: none, it was built ahead of time.
        platform: system and processor of the machine that built it.
        limits: the largest sizes of its calls.
        artifact: digest of the artifact's graphs and weights.
        engines: in the order of the calls.
        timing: the timing cache, `timing.cache`; None: the target has none.
    """

    engines_format: Literal[1] = 1
    target: str = Field(pattern="^[a-z][a-z0-9-]*$")
    version: str
    compute_capabilities: tuple[str, ...] = Field(min_length=1)
    device: str = ""
    platform: str
    limits: Limits
    artifact: str
    engines: tuple[EngineEntry, ...]
    timing: FileEntry | None = None

    @property
    def name(self) -> str:
        """The folder's name: the target and what it serves."""
        return set_name(self.target, self.compute_capabilities)

    def problems(self, here: "Machine", artifact: str) -> tuple[str, ...]:
        """Return why its engines must not be loaded, a line each; none: they may.

        Args:
            here: what would run them.
            artifact: digest of the artifact as it is now.
        """
        rebuild = (
            f"build it anew with `vtcompress build ARTIFACT --target {self.target} --overwrite`"
        )
        found = []
        if self.artifact != artifact:
            found.append(f"the artifact changed since the engines were built: {rebuild}")
        if self.version != here.version:
            found.append(
                f"built by {self.target} {self.version}, installed is {here.version}: {rebuild}, or install "
                f"version {self.version}"
            )
        if here.capability not in self.compute_capabilities:
            others = f"{self.target} {', '.join(self.compute_capabilities)}"
            found.append(
                f"built for {others}, this GPU ({here.gpu}) is {here.capability}: {rebuild}"
            )
        return tuple(found)


@dataclass(frozen=True)
class Machine:
    """What would run engines.

    Attributes:
        version: of the target's installed package.
        capability: of the GPU, such as `SM86`.
        gpu: its name.
    """

    version: str
    capability: str
    gpu: str


@dataclass(frozen=True)
class OpenedSet:
    """A set whose manifest was read.

    Attributes:
        folder: where it lies.
        facts: its manifest.
    """

    folder: Path
    facts: EngineSet

    @classmethod
    def read(cls, folder: Path) -> "OpenedSet":
        """Read a set's manifest; its engines are not looked at.

        Raises:
            ArtifactError: there is none, or it is broken or of another format.
        """
        remedy = "build the engines anew"
        facts = read_json(folder / ENGINES_FILE, EngineSet, ArtifactError, "engines", remedy)
        return cls(folder, facts)

    def check(self, entry: EngineEntry) -> Iterator[str]:
        """Yield what is wrong with an engine's file."""
        path = self.folder / entry.file
        if not path.is_file() or path.is_symlink():
            yield f"{path}: missing, or a link; build the engines anew"
        elif path.stat().st_size != entry.size or sha256_of(path) != entry.sha256:
            yield f"{path}: its sha256 is not that of the engine that was built; build the engines anew"

    def timing(self, version: str) -> bytes:
        """Return the timing cache for a builder of this version; empty if it is another's, or was altered."""
        path, entry = self.folder / TIMING_FILE, self.facts.timing
        if entry is None or self.facts.version != version or not path.is_file():
            return b""
        content = path.read_bytes()
        return content if hashlib.sha256(content).hexdigest() == entry.sha256 else b""


def set_name(target: str, capabilities: tuple[str, ...]) -> str:
    """Return the folder name of a set: `tensorrt-rtx-SM86`, `tensorrt-rtx-SM86-SM120`."""
    return "-".join((target, *capabilities))


def artifact_digest(manifest: Manifest) -> str:
    """Return the digest that engines remember: of the graphs and the weight file, not of reports."""
    names = sorted({spec.file for spec in manifest.graphs} | {WEIGHTS_FILE})
    sums = [manifest.files[name].sha256 for name in names if name in manifest.files]
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def engine_sets(folder: Path) -> tuple[OpenedSet, ...]:
    """Return the sets of an artifact in the order of their names.

    Raises:
        ArtifactError: a manifest is broken.
    """
    places = sorted(folder.glob(f"{ENGINES_FOLDER}/*/{ENGINES_FILE}"))
    return tuple(
        OpenedSet.read(path.parent)
        for path in places
        if not _hidden(path.parent) and not _linked(path.parent)
    )


def unnamed_files(folder: Path) -> tuple[Path, ...]:
    """Return files among an artifact's engines that no set names; what a running build writes is none."""
    root = folder / ENGINES_FOLDER
    if root.is_symlink():
        return (root,)
    found = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        named = _being_written(parts[0]) or parts[1:] in _named(path.parent)
        # A pipe or a device is no file, and no more named than one.
        if path.is_symlink() or not (path.is_dir() or (named and path.is_file())):
            found.append(path)
    return tuple(found)


def _being_written(name: str) -> bool:
    return name.startswith(".") and (STAGING_MARK in name or name.endswith(LOCK_MARK))


def _named(folder: Path) -> set[tuple[str, ...]]:
    try:
        facts = OpenedSet.read(folder).facts
    except ArtifactError:
        return set()
    files = (entry.file for entry in facts.engines)
    return {(name,) for name in (ENGINES_FILE, TIMING_FILE, PARITY_FILE, *files)}


def _linked(folder: Path) -> bool:
    """Return whether a set lies elsewhere, behind a link."""
    return folder.is_symlink() or folder.parent.is_symlink()


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")
