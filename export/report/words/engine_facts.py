"""What reports say of an artifact's engines: the sets that were built from it as it is now."""

from pathlib import Path

from export.artifact.engine_set import artifact_digest, engine_sets
from export.artifact.manifest import Manifest
from export.report.words.ladder import EngineFacts
from export.results.backend_parity import BackendParity


def engine_facts(folder: Path, manifest: Manifest) -> tuple[EngineFacts, ...]:
    """Return the facts of every set of engines that belongs to the artifact as it is.

    Raises:
        ArtifactError: a set's manifest or its record of a run is broken.
    """
    digest = artifact_digest(manifest)
    return tuple(
        EngineFacts(
            target=opened.facts.target,
            compute_capabilities=opened.facts.compute_capabilities,
            version=opened.facts.version,
            engines=tuple(entry.graph for entry in opened.facts.engines),
            device=opened.facts.device,
            parity=BackendParity.load(opened.folder),
        )
        for opened in engine_sets(folder)
        if opened.facts.artifact == digest
    )
