"""Finds the engines of an artifact that this GPU may run, and checks them before any library sees one."""

from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import ArtifactError
from export.artifact.engine_set import Machine, OpenedSet, artifact_digest, engine_sets
from export.graphs.spec import in_order

if TYPE_CHECKING:
    from export.artifact.artifact import Artifact


def find_set(artifact: "Artifact", target: str, here: Machine) -> OpenedSet:
    """Return the artifact's engines for a target and this GPU, checked.

    Raises:
        ArtifactError: there are none, or they must not be loaded; says why and what to do.
    """
    sets = [found for found in engine_sets(artifact.folder) if found.facts.target == target]
    if not sets:
        raise ArtifactError(
            [
                f"{artifact.folder}: has no engines for {target}; make them with "
                f"`vtcompress build {artifact.folder} --target {target}`"
            ]
        )
    serving = [found for found in sets if here.capability in found.facts.compute_capabilities]
    # The set made for fewest kinds of GPU; where none serves this one, opening any tells why.
    best = min(serving or sets, key=lambda found: len(found.facts.compute_capabilities))
    return open_set(best.folder, artifact, here)


def open_set(folder: Path, artifact: "Artifact", here: Machine) -> "OpenedSet":
    """Read a set whose engines are to be run.

    Raises:
        ArtifactError: it is broken, altered, of another artifact, version or GPU; all reasons. No
            TensorRT library has seen an engine then.
    """
    opened = OpenedSet.read(folder)
    found = opened.facts.problems(here, artifact_digest(artifact.manifest))
    problems = [f"{folder}: {problem}" for problem in found]
    problems += [problem for entry in opened.facts.engines for problem in opened.check(entry)]
    graphs = {entry.graph for entry in opened.facts.engines}
    needed = (
        "vision",
        "embed",
        *(g.name for g in in_order(artifact.manifest.graphs, "decoder")),
    )
    problems += [
        f"{folder}: has no engine of {name}; build the engines anew"
        for name in needed
        if name not in graphs
    ]
    if problems:
        raise ArtifactError(problems)
    return opened
