"""Which backends an artifact was compared on, and a word where it was not.

Export fidelity compares ONNX Runtime on the CPU with torch, so that backend needs no word. What
`vtcompress validate --backend` finds for another is kept in the manifest, or beside engines.
"""

from typing import TYPE_CHECKING

from compressor.files import write_text
from export.engine_session import EngineSession
from export.engine_set import PARITY_FILE
from export.manifest import MANIFEST_FILE, Compared

if TYPE_CHECKING:
    from export.artifact import Artifact
    from export.sessions import Session

REFERENCE = "onnxruntime"
"""The backend that artifacts are checked on when they are made."""


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
    if backend == REFERENCE:
        return None
    more = "" if precision == "f32" else f" --precision {precision}"
    command = f"`vtcompress validate {artifact.folder} --backend {backend}{more}`"
    if isinstance(session, EngineSession):
        if (session.engines.folder / PARITY_FILE).is_file():
            return None
        return f"these engines were never compared with ONNX Runtime; run {command}"
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


def keep(artifact: "Artifact", outcome: Compared) -> None:
    """Write into the manifest what a comparison found, instead of an earlier one of the same backend.

    The manifest is replaced as a whole; no other file changes.

    Raises:
        VtcompressError: the artifact cannot be written.
    """
    key = (outcome.backend, outcome.precision)
    others = [c for c in artifact.manifest.compared if (c.backend, c.precision) != key]
    compared = tuple(sorted([*others, outcome], key=lambda c: (c.backend, c.precision)))
    manifest = artifact.manifest.model_copy(update={"compared": compared})
    write_text(artifact.folder / MANIFEST_FILE, manifest.model_dump_json(indent=1) + "\n")
