"""Which backends an artifact was compared on, and a word where it was not.

Export fidelity compares ONNX Runtime on the CPU with torch, so that backend needs no word. What
`vtcompress validate --backend` finds for another is kept in the manifest, or beside engines.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from compressor.disk.files import write_text
from compressor.errors import ArtifactError
from export.artifact.manifest import MANIFEST_FILE, MANIFEST_FORMAT, Compared
from export.artifact.staging import exclusively
from export.backends.checked_on import CHECKED_ON
from export.backends.registry import find_backend
from export.results.backend_parity import BackendParity

if TYPE_CHECKING:
    from export.artifact.artifact import Artifact
    from export.session.session import Session


def uncompared(
    artifact: "Artifact", session: "Session", backend: str, precision: str
) -> str | None:
    """Return in one line that a backend's numbers are not known to be right here; None: they are.

    Args:
        artifact: that runs.
        session: of the backend on the artifact.
        backend: its name.
        precision: it runs in.
    """
    if backend == CHECKED_ON.name:
        return None
    more = "" if precision == "f32" else f" --precision {precision}"
    command = f"`vtcompress validate {artifact.folder} --backend {backend}{more}`"
    if (engines := find_backend(backend).engines(session)) is not None:
        return _of_engines(engines.folder, command)
    name = f"{backend} ({precision})"
    found = [
        c for c in artifact.manifest.compared if (c.backend, c.precision) == (backend, precision)
    ]
    if not found:
        return f"{name} was never compared with ONNX Runtime on this artifact; run {command}"
    if not found[0].passed:
        return (
            f"{name} failed when it was compared with ONNX Runtime on this artifact: see {command}"
        )
    return None


def _of_engines(folder: Path, command: str) -> str | None:
    try:
        parity = BackendParity.load(folder)
    except ArtifactError as error:
        return str(error)
    if parity is None:
        return f"these engines were never compared with ONNX Runtime; run {command}"
    if parity.failures:
        return f"these engines failed when they were compared with ONNX Runtime: see {command}"
    return None


def keep(artifact: "Artifact", outcome: Compared) -> None:
    """Write into the manifest what a comparison found, instead of an earlier one of the same backend.

    The manifest is replaced as a whole; no other file changes. It is read again first: what another
    comparison has noted since the artifact was opened stays.

    Raises:
        VtcompressError: the artifact cannot be written, is being written, or is another one by now.
    """
    with exclusively(artifact.folder):
        manifest = type(artifact).open(artifact.folder, verify=False).manifest
        if manifest.files != artifact.manifest.files:
            raise ArtifactError(
                [f"{artifact.folder}: was written anew while it was compared; compare it again"]
            )
        key = (outcome.backend, outcome.precision)
        others = [c for c in manifest.compared if (c.backend, c.precision) != key]
        compared = tuple(sorted([*others, outcome], key=lambda c: (c.backend, c.precision)))
        # What is written has the keys of the newest format, which older versions refuse by its number.
        changed = {"compared": compared, "manifest_format": MANIFEST_FORMAT}
        text = manifest.model_copy(update=changed).model_dump_json(indent=1)
        write_text(artifact.folder / MANIFEST_FILE, text + "\n")
