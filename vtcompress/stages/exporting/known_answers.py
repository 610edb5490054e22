"""The known answers of an export: what its runtime has of made pictures, for `vtcompress selftest`."""

from pathlib import Path

from compressor.errors import VtcompressError
from export.artifact.manifest import KnownFacts
from export.backends.checked_on import OnnxSession
from export.checks.bfloat16 import ShadowSession, open_for_checks
from export.checks.known.answers import KnownAnswers, KnownGraphs, KnownLayer
from export.checks.known.record import record_known, rounding_of
from export.results.fidelity import Difference
from export.runtime.runtime import Runtime
from vtcompress.stages.exporting.job import Job
from vtcompress.stages.exporting.torch_side import Written


def known_answers(
    job: Job, written: Written, folder: Path, session: OnnxSession | ShadowSession
) -> KnownAnswers | None:
    """Return what a session has, but for the states between layers; None: the recipe asks for none.

    Args:
        job: the export.
        written: its torch side.
        folder: the artifact under construction.
        session: computes as exactly as checks do.
    """
    if not job.recipe.export.selftest:
        return None
    job.progress.say("recording known answers")
    return record_known(_runtime(written, folder, session), folder)


def with_rounding(
    written: Written, folder: Path, session: OnnxSession | ShadowSession, known: KnownAnswers
) -> KnownAnswers:
    """Return known answers with how far logits are off in a session as users have it."""
    off = rounding_of(_runtime(written, folder, session), folder, known)
    return known.model_copy(update={"rounding": off})


def known_without_decoder(job: Job, written: Written, folder: Path) -> KnownAnswers | None:
    """Return what is known where the decoder was never in memory; None: the recipe asks for none."""
    if not job.recipe.export.selftest:
        return None
    job.progress.say("recording known answers, but for the decoder's")
    session = open_for_checks(folder, written.graphs, job.recipe.export.dtype, mapped=True)
    return record_known(_runtime(written, folder, session), folder, decoder=False)


def write_known(
    job: Job, written: Written, folder: Path, known: KnownAnswers | None
) -> KnownFacts | None:
    """Write known answers, with the states between layers if the decoder ran; return what manifests say."""
    if known is None:
        return None
    graphs = known.graphs
    if graphs is not None and graphs.logits is not None:
        layers, within = _layers(job, written, folder, graphs)
        graphs = graphs.model_copy(update={"layers": layers})
        known = known.model_copy(update={"graphs": graphs, "rounding_within": within})
    known.save(folder)
    return KnownFacts(
        selftest_format=known.selftest_format,
        pictures=len(known.pictures),
        parts=known.parts,
        layers=0 if known.graphs is None else len(known.graphs.layers),
        left_out=known.left_out,
    )


def _layers(
    job: Job, written: Written, folder: Path, graphs: KnownGraphs
) -> tuple[tuple[KnownLayer, ...], Difference | None]:
    """Return the states between layers, and how far they are off where inputs are rounded."""
    from export.checks.known.layers import record_layers, states_apart

    settings = job.recipe.export
    given = (folder, written.graphs, written.plan.model, settings.dtype, graphs)
    try:
        layers = record_layers(*given)
        if settings.weights == "float":
            return layers, None
        return layers, states_apart(layers, record_layers(*given, exact=False))
    except VtcompressError as failure:  # a help less is no reason to lose the artifact
        job.progress.say(f"states between layers are not among the known answers: {failure}")
        return (), None


def _runtime(written: Written, folder: Path, session: OnnxSession | ShadowSession) -> Runtime:
    return Runtime.on_session(session, folder, written.plan.model, written.form)
