"""Backend parity: one backend's numbers beside ONNX Runtime's on the CPU, both on the artifact's own graphs.

Needs neither torch nor the original. The reference is not torch: that ONNX Runtime computes what the
compressed model does is export fidelity, checked when the artifact was made. The original's stored answers
are compared with the backend's as well, from image file to text.
"""

from collections.abc import Sequence

from compressor.plan.plan import Plan
from compressor.progress import SILENT, Progress
from compressor.samples.questions import Sample
from compressor.samples.scores import EXACT, Score
from export.artifact.artifact import Artifact
from export.checks import fidelity, loss
from export.checks.bfloat16 import open_for_checks
from export.results.answers import Answers
from export.results.backend_parity import REFERENCE
from export.results.fidelity import FidelityLimits, FidelityReport
from export.results.loss_report import LossLimits, LossReport
from export.runtime.runtime import Runtime
from export.session.session import Session


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
    limits: FidelityLimits,
    images: Sequence[int] = fidelity.IMAGE_COUNTS,
    room: int | None = None,
) -> FidelityReport:
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
    asked: tuple[tuple[Sample, ...], Answers],
    limits: LossLimits,
    name: str,
    score: Score = EXACT,
    progress: Progress = SILENT,
) -> LossReport:
    """Compare the original's stored answers, and the samples that they answer, with the backend's.

    Raises:
        DataError: a score of the user's own failed.
    """
    folder, manifest = artifact.folder, artifact.manifest
    samples, original = asked
    runtime = Runtime.on_session(session, folder, manifest.model, manifest.picture_form)
    found = loss.measure_answers(runtime, samples, original.max_new_tokens, progress)
    return loss.compare(samples, original, found, limits, name, score)
