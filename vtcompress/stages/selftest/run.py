"""`vtcompress selftest`: what a device computes beside the known answers of an artifact, without torch."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor.errors import BackendError, VtcompressError
from compressor.progress import Progress
from compressor.recipe import fidelity_thresholds, load_recipe
from compressor.schema.arguments import check_threads, check_whole
from export.artifact.artifact import RECIPE_FILE, Artifact
from export.backends.backend import Options
from export.backends.checked_on import CHECKED_ON
from export.backends.registry import find_backend, open_session
from export.checks.known.answers import KNOWN_FOLDER, KnownAnswers
from export.checks.known.judge import judge, widened
from export.checks.known.locate import located, states_of
from export.checks.known.made_calls import made_calls
from export.checks.known.observe import observe
from export.checks.known.report import Located, SelftestReport
from export.results.fidelity import FidelityLimits
from export.runtime.runtime import Runtime
from vtcompress.console import shown
from vtcompress.stages.inputs import require_runtime
from vtcompress.stages.validate import with_limits

log = logging.getLogger(__name__)

DTYPE_OF = {"bf16": "bfloat16"}
"""Of a precision in which a backend computes less exactly than graphs say, the dtype of its numbers."""


def selftest(
    path: str | Path,
    *,
    backend: str = CHECKED_ON.name,
    precision: str = "f32",
    threads: int | None = None,
    gpu: int = 0,
    verify: bool = True,
    locate: bool = False,
    limits: Mapping[str, Any] | None = None,
    progress: Progress | bool | None = None,
) -> SelftestReport:
    """Compare what this device computes with what the machine had that exported the artifact.

    Each part is judged by itself, as far as what it reads is right: preprocessing, prompt, vision, decoder,
    cache. Nothing in the artifact is changed.

    Args:
        path: the artifact.
        backend: one of `export.backends.registry.BACKENDS`.
        precision: see `export.backends.registry.open_session`.
        threads: how many one operator has; None: the backend's choice.
        gpu: number of the GPU, for backends that run on one.
        verify: compare every file's sha256 with the manifest first.
        locate: find the first layer behind which states are others.
        limits: other limits than those of backend parity, such as `{"validate.fidelity.max_abs": 0.01}`.
        progress: shows stages; None: on a terminal alone.

    Raises:
        VtcompressError: the artifact is broken, holds no known answers, or the backend cannot run here.
    """
    check_threads(threads)
    check_whole("gpu", gpu, 0)
    require_runtime("comparing with known answers")
    path, progress = Path(path), shown(progress)
    artifact = Artifact.open(path, verify=verify, progress=progress)
    known = KnownAnswers.load(path)
    allowed = _limits(path, precision, limits or {})
    progress.say(f"running {find_backend(backend).title}")
    session = open_session(artifact, backend, precision, threads, gpu=gpu)
    manifest = artifact.manifest
    runtime = Runtime.on_session(session, path, manifest.model, manifest.picture_form)
    made = None
    if known.graphs is not None:
        with_decoder = known.graphs.logits is not None
        made = made_calls(session, manifest.model, known.graphs, decoder=with_decoder)
    pictures = progress.track(known.pictures, "pictures", len(known.pictures))
    found = [
        observe(runtime, path / KNOWN_FOLDER / one.image, one.question, len(one.steps), one)
        for one in pictures
    ]
    report = SelftestReport(
        backend=backend,
        precision=precision,
        known_in=known.measured_in,
        parts=judge(known, found, made, allowed),
    )
    if not locate:
        return report
    del session, runtime, made  # of the graphs that it loads there would be two
    options = Options(precision, threads, gpu=gpu)
    try:
        place = _located(artifact, backend, options, known, widened(allowed, known.rounding_within))
    except VtcompressError as error:
        return report.model_copy(update={"not_located": str(error)})
    return report.model_copy(update={"located": place})


def _limits(path: Path, precision: str, given: Mapping[str, Any]) -> FidelityLimits:
    """Return the limits of backend parity; where the precision is less than the graphs', its dtype's."""
    recipe = load_recipe(path / RECIPE_FILE, stored=True)
    if precision in DTYPE_OF:
        recipe = recipe.override({"export.dtype": DTYPE_OF[precision]})
    recipe = with_limits(recipe, given, anew=True, unmeasured="a selftest asks no questions")
    return FidelityLimits(**asdict(fidelity_thresholds(recipe)))


def _located(
    artifact: Artifact, backend: str, options: Options, known: KnownAnswers, limits: FidelityLimits
) -> Located:
    if known.graphs is None or not known.graphs.layers:
        raise BackendError("the artifact holds no states of its layers")
    entry = find_backend(backend)
    session = open_session(artifact, backend, options.precision, options.threads, gpu=options.gpu)
    if entry.engines(session) is not None:
        raise BackendError(f"{backend}: runs engines, which give nothing of what is within them")
    embedded, states = states_of(
        session,
        artifact.manifest.model,
        known.graphs,
        lambda spec, names: entry.watch(artifact, options, spec, names),
        known.graphs.layers,
    )
    return located(known.graphs, embedded, states, limits)
