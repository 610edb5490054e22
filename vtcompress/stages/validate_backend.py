"""`vtcompress validate --backend`: another backend beside ONNX Runtime on the CPU, without torch."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor.errors import BackendError, VtcompressError
from compressor.plan.plan import Plan
from compressor.progress import Progress
from compressor.recipe import fidelity_thresholds, load_recipe
from compressor.schema.arguments import check_threads, check_whole
from export.artifact.artifact import PLAN_FILE, RECIPE_FILE, Artifact
from export.artifact.manifest import Compared
from export.backends.checked_on import CHECKED_ON
from export.backends.compared import keep
from export.backends.registry import BACKENDS, find_backend, open_session
from export.checks import fidelity, stored
from export.checks.backend_parity import compare_answers, compare_outputs, reference_outputs
from export.graphs.limits import cache_limits
from export.results.backend_parity import BackendParity
from export.results.fidelity import FidelityLimits
from vtcompress.console import shown
from vtcompress.stages.checks.score import artifact_score
from vtcompress.stages.inputs import require_runtime
from vtcompress.stages.validate import loss_limits, validation_name, with_limits


def validate_backend(
    path: str | Path,
    backend: str,
    *,
    data: str | Path | None = None,
    precision: str = "f32",
    threads: int | None = None,
    gpu: int = 0,
    limits: Mapping[str, Any] | None = None,
    score: str | None = None,
    progress: Progress | bool | None = None,
) -> BackendParity:
    """Compare a backend's numbers with ONNX Runtime's on the CPU, and its answers with the original's.

    Both are judged by the thresholds of the artifact's recipe. How engines ran is stored beside them; of
    other backends the manifest keeps whether they passed. Nothing else in the artifact is changed.

    Args:
        path: the artifact.
        backend: one of `export.backends.registry.BACKENDS`, but the one that artifacts are checked on.
        data: the data that the artifact was validated on, for its pictures; None: answers are compared only
            where the artifact holds them.
        precision: see `export.backends.registry.open_session`.
        threads: how many one operator has; None: the backend's choice.
        gpu: number of the GPU, for backends that run on one.
        limits: other limits than the artifact's recipe sets; see `vtcompress.stages.validate.validate`.
        score: what makes an answer right; see `vtcompress.stages.validate.validate`.
        progress: shows stages and samples; None: on a terminal alone.

    Raises:
        VtcompressError: the artifact is broken, the backend cannot run here, or `limits` sets what is no
            limit, or one that nothing is measured for.
    """
    check_threads(threads)
    check_whole("gpu", gpu, 0)
    if backend == CHECKED_ON.name:
        others = ", ".join(name for name in BACKENDS if name != backend)
        raise BackendError(
            f"{backend}: is what other backends are compared with; leave it out to check the artifact "
            f"itself, or give one of {others}"
        )
    require_runtime("comparing a backend with ONNX Runtime")
    path, progress = Path(path), shown(progress)
    artifact = Artifact.open(path, progress=progress)
    recipe = load_recipe(path / RECIPE_FILE, stored=True)
    plan = Plan.load(path / PLAN_FILE)
    given = None if data is None else Path(data)
    asked = None
    if given is not None or stored.keeps_pictures(path):
        asked = stored.original_for(path, artifact.manifest.loss, recipe.validation, given)
    else:
        progress.say(f"answers are not compared: {stored.NOT_KEPT}")
    why = stored.why_unmeasured(path, artifact.manifest.loss) if asked is None else ""
    recipe = with_limits(recipe, limits or {}, anew=True, unmeasured=why)
    scorer = artifact_score(artifact, recipe, score, why)
    scorer.check(() if asked is None else asked[0])
    name = validation_name(recipe) if given is None else given.name
    session = open_session(artifact, backend, precision, threads, gpu=gpu)
    entry = find_backend(backend)
    engines = entry.engines(session)
    most = None if engines is None else engines.facts.limits.max_images
    images = [n for n in fidelity.IMAGE_COUNTS if most is None or n <= most]
    progress.say("running ONNX Runtime on the CPU")
    sizes = cache_limits(recipe.export, plan.model, plan.rows_kept)
    if engines is not None:
        sizes = engines.facts.limits
    room = None if sizes is None else sizes.max_context
    reference = reference_outputs(artifact, plan, threads, images, room)
    progress.say(f"running {backend}")
    numeric = FidelityLimits(**asdict(fidelity_thresholds(recipe)))
    parity = BackendParity(
        backend=backend,
        precision=precision,
        device=entry.device_name(gpu),
        outputs=compare_outputs(artifact, plan, session, reference, numeric, images, room),
        loss=None
        if asked is None
        else compare_answers(artifact, session, asked, loss_limits(recipe), name, scorer, progress),
    )
    if engines is not None:
        parity.save(engines.folder)
        return parity
    outcome = Compared(backend=backend, precision=precision, passed=not parity.failures)
    try:
        keep(artifact, outcome)
    except VtcompressError as failure:  # the outcome is told all the same
        progress.say(f"not noted in the artifact: {failure}")
    return parity
