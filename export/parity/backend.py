"""Backend parity: one backend's numbers beside ONNX Runtime's on the CPU, both on the artifact's own graphs.

Needs neither torch nor the original. The reference is not torch: that ONNX Runtime computes what the
compressed model does is export fidelity, checked when the artifact was made. The original's stored answers
are compared with the backend's as well, from image file to text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from compressor.calibration.data import Sample
from compressor.errors import ArtifactError
from compressor.files import read_json, write_text
from compressor.plan import Plan
from compressor.progress import SILENT, Progress
from export.artifact import Artifact
from export.bfloat16 import open_for_checks
from export.engine_set import PARITY_FILE
from export.parity import fidelity
from export.parity import loss as answers
from export.parity.loss_report import LossLimits, LossReport
from export.runtime import Runtime
from export.sessions import Session
from export.verdict import Judged, Verdict, worst

REFERENCE = "ONNX Runtime on the CPU"


class BackendParity(Judged):
    """The outcome; beside an engine set it is stored as `parity.json`.

    Attributes:
        backend: that was compared.
        precision: it ran in.
        device: it ran on, as the backend names it; empty: the CPU.
        outputs: its numbers beside the reference's.
        loss: the original's stored answers beside its own; None: the artifact holds none, or its pictures
            were not at hand.
    """

    parity_format: Literal[1, 2] = 2
    backend: str
    precision: str
    device: str = ""
    outputs: fidelity.FidelityReport
    loss: LossReport | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """Every missed threshold."""
        return (*self.outputs.failures, *(self.loss.failures if self.loss else ()))

    def _judge(self) -> Verdict:
        # Without stored answers of the original there is nothing to compare answers with.
        return worst(check.verdict for check in (self.outputs, self.loss) if check is not None)

    def save(self, folder: Path) -> Path:
        """Write it into an engine set, at once or not at all; return the file."""
        path = folder / PARITY_FILE
        write_text(path, self.model_dump_json(indent=1) + "\n")
        return path

    @classmethod
    def load(cls, folder: Path) -> "BackendParity | None":
        """Read an engine set's; None: its engines were not compared.

        Raises:
            ArtifactError: the file is broken.
        """
        path = folder / PARITY_FILE
        if not path.is_file():
            return None
        remedy = "run `vtcompress validate ARTIFACT --backend BACKEND` anew"
        return read_json(path, cls, ArtifactError, "parity", remedy)


def reference_outputs(
    artifact: Artifact,
    plan: Plan,
    threads: int | None = None,
    images: Sequence[int] = fidelity.IMAGE_COUNTS,
    room: int | None = None,
) -> fidelity.Recording:
    """Run the fidelity check's calls in ONNX Runtime on the CPU; its session is gone afterwards.

    For bfloat16 in the graphs' float32 shadows, as the artifact was checked.
    `images` and `room` as in `compare_outputs`.
    """
    manifest = artifact.manifest
    session = open_for_checks(artifact.folder, manifest.graphs, manifest.dtype, threads=threads)
    return fidelity.record(session, plan, images=images, room=room)


def compare_outputs(
    artifact: Artifact,
    plan: Plan,
    session: Session,
    reference: fidelity.Recording,
    limits: fidelity.Limits,
    images: Sequence[int] = fidelity.IMAGE_COUNTS,
    room: int | None = None,
) -> fidelity.FidelityReport:
    """Run the same calls in a backend and judge what comes out.

    Args:
        artifact: what runs.
        plan: of the artifact.
        session: the backend's.
        reference: of `reference_outputs`, with the same `images`.
        limits: of every output.
        images: of the prompts; a backend whose engines take fewer is compared with fewer.
        room: rows of a conversation in caches of fixed size; see `fidelity.record`.
    """
    found = fidelity.record(session, plan, images=images, room=room)
    graphs = artifact.manifest.graphs
    return fidelity.compare(reference, found, graphs, (), limits, beside=REFERENCE)


def compare_answers(
    artifact: Artifact,
    session: Session,
    asked: tuple[tuple[Sample, ...], answers.Answers],
    limits: LossLimits,
    name: str,
    progress: Progress = SILENT,
) -> LossReport:
    """Compare the original's stored answers, and the samples that they answer, with the backend's."""
    folder, manifest = artifact.folder, artifact.manifest
    samples, original = asked
    runtime = Runtime.on_session(session, folder, manifest.model, manifest.image_token)
    found = answers.measure(runtime, samples, original.max_new_tokens, progress)
    return answers.compare(samples, original, found, limits, name)
