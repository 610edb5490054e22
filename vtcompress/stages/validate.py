"""The stage that proves what was lost: export fidelity and compression loss."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import RecipeError, VtcompressError
from compressor.plan.plan import Plan
from compressor.progress import Progress
from compressor.recipe import Recipe, fidelity_thresholds
from compressor.recipe import load_recipe as read_recipe
from compressor.recipe_override import check_dotted
from compressor.samples.questions import Sample, read_samples
from compressor.samples.scores import Score
from compressor.schema.arguments import check_threads
from compressor.schema.sections import ExportSection
from export.artifact.artifact import HEALED_FILE, PLAN_FILE, RECIPE_FILE, Artifact
from export.backends.checked_on import OnnxSession
from export.backends.torch_device import ON_CPU, check_device, whole_float32
from export.checks import fidelity, loss, stored
from export.checks.bfloat16 import ShadowSession, open_for_checks
from export.graphs.limits import Limits, cache_limits
from export.graphs.spec import GraphSpec
from export.results.answers import Answers
from export.results.fidelity import FidelityLimits, FidelityReport
from export.results.loss_report import LossLimits, LossReport
from export.results.rewrite import RewriteReport
from export.results.verdict import Verdict, verdict_of, worst
from export.runtime.runtime import Runtime
from vtcompress.console import shown
from vtcompress.shipped import PathLike
from vtcompress.stages.checks.prompts import Asked, check_recipe_prompts
from vtcompress.stages.checks.recipe import check_plan_weights, digest_of_plan
from vtcompress.stages.checks.rewrite import rewrite_prompt
from vtcompress.stages.checks.score import artifact_score
from vtcompress.stages.compress import (
    as_stored,
    compress_for_export,
    load_plan_gates,
    load_weights_in_front,
)
from vtcompress.stages.inputs import (
    check_not_learned,
    load_model,
    model_facts,
    on_cpu,
    require_compress,
)

if TYPE_CHECKING:
    from compressor.compressed import CompressedModel

HEALED_BY = "give the file that it was healed by as `healed`"
LOSS_KEYS, FIDELITY_KEYS = "validate.loss.", "validate.fidelity."


def record_torch(small: "CompressedModel", limits: Limits | None = None) -> fidelity.Recording:
    """Run the fidelity check's calls on a compressed torch model, those that fit the limits."""
    from export.backends.torch_model import TorchSession

    return fidelity.record(
        TorchSession(small), small.plan, room=limits.max_context if limits else None
    )


def check_fidelity(
    session: OnnxSession | ShadowSession,
    graphs: Sequence[GraphSpec],
    plan: Plan,
    reference: fidelity.Recording,
    recipe: Recipe,
) -> FidelityReport:
    """Compare the graphs with what the compressed torch model gave."""
    declared = []
    for spec in graphs:
        declared += fidelity.check_declared(spec, *session.declared(spec))
    caches = cache_limits(recipe.export, plan.model, plan.rows_kept)
    recorded = fidelity.record(session, plan, room=caches.max_context if caches else None)
    return fidelity.compare(reference, recorded, graphs, declared, fidelity_limits(recipe))


def fidelity_limits(recipe: Recipe) -> FidelityLimits:
    """Return the recipe's limits of export fidelity, those of the dtype where it sets none."""
    return FidelityLimits(**asdict(fidelity_thresholds(recipe)))


def for_answers(
    session: OnnxSession | ShadowSession,
    folder: Path,
    graphs: Sequence[GraphSpec],
    settings: ExportSection,
    threads: int | None = None,
) -> OnnxSession | ShadowSession:
    """Return the session that answers, as users' sessions do, where one computes exactly for the first check.

    They are one where weights are float.
    """
    if settings.weights == "float":
        return session
    return open_for_checks(folder, graphs, settings.dtype, threads=threads, exact=False)


def loss_limits(recipe: Recipe) -> LossLimits:
    """Return the recipe's limits of compression loss."""
    return LossLimits(**recipe.validation.loss.model_dump())


def with_limits(
    recipe: Recipe, limits: Mapping[str, Any], *, anew: bool, unmeasured: str = ""
) -> Recipe:
    """Return an artifact's recipe with other limits.

    Args:
        recipe: the artifact's recipe.
        limits: other limits, by dotted key.
        anew: export fidelity is measured again, so that its limits mean something.
        unmeasured: why compression loss will not be measured; empty if it will.

    Raises:
        RecipeError: keys that are no limits, or have nothing to judge; all of them.
    """
    check_dotted(limits, "limits")
    problems = [
        f"limits: {key}: is no limit, and the artifact was exported already; only keys of "
        f"{LOSS_KEYS}* and {FIDELITY_KEYS}* can be set"
        for key in limits
        if not key.startswith((LOSS_KEYS, FIDELITY_KEYS))
    ]
    problems += [
        f"limits: {key}: export fidelity is not measured anew; give `model` or a backend"
        for key in limits
        if key.startswith(FIDELITY_KEYS) and not anew
    ]
    problems += [
        f"command line: {key}: compression loss is not measured: {unmeasured}"
        for key in limits
        if key.startswith(LOSS_KEYS) and unmeasured
    ]
    if problems:
        raise RecipeError(problems)
    return recipe.override(limits, source="limits")


def validation_name(recipe: Recipe) -> str:
    """Return the name of the recipe's validation data, without folders."""
    return recipe.validation.data.name if recipe.validation.data else ""


@dataclass(frozen=True)
class Validation:
    """Outcome of `validate`.

    Attributes:
        fidelity: export fidelity; measured anew only if the original model was given.
        loss: on the data that was asked for; None if nothing could be compared.
        rewrite: how far the rewritten model, nothing cut, is from the original, as this artifact's tokenizer
            and processor files are read; None: the original was not given.
    """

    fidelity: FidelityReport | None
    loss: LossReport | None
    rewrite: RewriteReport | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """Every missed threshold of both checks, and what of the rewritten model is not the original's."""
        checks = (self.rewrite, self.fidelity, self.loss)
        return tuple(line for check in checks if check is not None for line in check.failures)

    @property
    def verdict(self) -> Verdict:
        """What became of both checks together."""
        checks = [verdict_of(check) for check in (self.fidelity, self.loss)]
        return worst(checks if self.rewrite is None else [self.rewrite.verdict, *checks])


def validate(
    path: PathLike,
    *,
    data: PathLike | None = None,
    model: str | None = None,
    gates: PathLike | None = None,
    weights: PathLike | None = None,
    healed: PathLike | None = None,
    limits: Mapping[str, Any] | None = None,
    score: str | None = None,
    threads: int | None = None,
    trust_remote_code: bool = False,
    device: str = ON_CPU,
    progress: Progress | bool | None = None,
) -> Validation:
    """Check an artifact again; nothing in it is changed.

    Args:
        path: the artifact.
        data: the data that the artifact was validated on, needed where it does not hold the pictures; or
            other data, for which the original is needed as well.
        model: the original, hub id or folder; needed for other data and to measure fidelity anew.
        gates: file of gates or routers, where the artifact's plan has any and `model` is given.
        weights: likewise of a projector, where the plan's choice in front of the decoder reads one.
        healed: likewise what `heal` wrote, where the artifact has healed weights and not the file.
        limits: other limits than the artifact's recipe sets, such as `{"validate.loss.min_agreement": 0.9}`.
        score: what makes an answer right, as `validate.score` of a recipe; None: what the artifact was
            validated by, but a function of somebody's own must be given.
        threads: how many one operator has; None: the backend's choice.
        trust_remote_code: let the repository of `model` run code of its own; what the artifact says does not.
        device: where the original runs, where it is given: `cpu`, a GPU as torch names it, or `auto`: a GPU
            that it fits, else several with layers that are left over in the CPU's memory, else the CPU; in
            float32. Export fidelity is measured on the CPU.
        progress: shows the samples; see the module.

    Raises:
        VtcompressError: the artifact is broken, or does not hold its pictures and neither data nor the
            original is given; other data is given without the original; `limits` sets what is no limit, or
            one that nothing is measured for; the same of `score`.
    """
    check_threads(threads)
    check_device(device)
    _check_alone(
        model,
        gates=gates is not None,
        weights=weights is not None,
        healed=healed is not None,
        trust_remote_code=trust_remote_code,
        device=device != ON_CPU,
    )
    path, progress = Path(path), shown(progress)
    artifact = Artifact.open(path, progress=progress)
    recipe = read_recipe(path / RECIPE_FILE, stored=True).override(
        {"model.trust_remote_code": trust_remote_code}
    )
    manifest = artifact.manifest
    if healed is None and (path / HEALED_FILE).is_file():  # trained by the export itself
        healed = path / HEALED_FILE
    recipe = _with_files(recipe, artifact, gates, weights, healed)
    if model is not None and manifest.healed is not None and healed is None:
        raise VtcompressError(f"{path}: has healed weights, which the original lacks; {HEALED_BY}")
    rewritten: RewriteReport | None = None
    given = None if data is None else Path(data)
    asked = None
    if model is None or (given is None and stored.keeps_pictures(path)):
        asked = stored.original_for(path, manifest.loss, recipe.validation, given)
    elif given is None:
        progress.say(f"compression loss is not measured: {stored.NOT_KEPT}")
    measured = asked is not None or (model is not None and given is not None)
    why = "" if measured else stored.why_unmeasured(path, manifest.loss)
    recipe = with_limits(recipe, limits or {}, anew=model is not None, unmeasured=why)
    scorer = artifact_score(artifact, recipe, score, why)
    scorer.check(asked[0] if asked else ())
    first: FidelityReport | None = manifest.fidelity
    session = open_for_checks(path, manifest.graphs, manifest.dtype, threads=threads)
    if model is not None:
        with whole_float32(device):
            reference, original, samples, rewritten = _measure_again(
                artifact, recipe, model, data, scorer, device, progress
            )
        plan = Plan.load(path / PLAN_FILE)
        first = check_fidelity(session, manifest.graphs, plan, reference, recipe)
        if original is not None:
            asked = samples, original
    second = None
    if asked is not None:
        samples, original = asked
        name = validation_name(recipe) if given is None else given.name
        session = for_answers(session, path, manifest.graphs, recipe.export, threads)
        runtime = Runtime.on_session(session, path, manifest.model, manifest.picture_form)
        answers = loss.measure_answers(runtime, samples, original.max_new_tokens, progress)
        second = loss.compare(samples, original, answers, loss_limits(recipe), name, scorer)
    return Validation(first, second, rewritten)


def _with_files(
    recipe: Recipe,
    artifact: Artifact,
    gates: PathLike | None,
    weights: PathLike | None,
    healed: PathLike | None,
) -> Recipe:
    """Return an artifact's recipe with the files that are given, which are not in the artifact.

    Raises:
        RecipeError: no entry reads what is given, or the artifact was not healed by it.
    """
    if gates is not None:
        recipe = recipe.with_gates(Path(gates))
    if weights is not None:
        recipe = recipe.with_weights(Path(weights))
    if healed is not None:
        recipe = recipe.override({"heal.file": Path(healed)})
        found, manifest = recipe.healed_file(None, None), artifact.manifest
        if found is not None and found.digest != manifest.healed_digest:
            remedy = HEALED_BY if manifest.healed else "leave it out: the artifact was not healed"
            raise RecipeError([f"{healed}: {artifact.folder} was not healed by it; {remedy}"])
    return recipe


def _check_alone(model: str | None, **asked_for: bool) -> None:
    for name, asked in asked_for.items():
        if asked and model is None:
            raise VtcompressError(f"{name}: is read with the original alone; give model as well")


def _measure_again(
    artifact: Artifact,
    recipe: Recipe,
    original_id: str,
    data: PathLike | None,
    score: Score,
    device: str,
    progress: Progress,
) -> tuple[fidelity.Recording, Answers | None, tuple[Sample, ...], RewriteReport]:
    require_compress("measuring the original")
    from compressor.compressed import plain
    from export.checks.original import measure_original

    changed = recipe.override({"model.id": original_id, "model.revision": None})
    samples = () if data is None else read_samples(Path(data))
    check_not_learned(recipe, samples)
    score.check(samples)
    tokens = recipe.validation.max_new_tokens
    check_recipe_prompts(changed, [Asked(samples, tokens)], progress)
    plan = Plan.load(artifact.folder / PLAN_FILE)
    facts = model_facts(changed)
    check_plan_weights(plan, changed, facts, None)
    what, remedy = f"{artifact.folder}: the plan", "give the model that it was exported from"
    digest = digest_of_plan(plan, changed, facts, what=what, remedy=remedy)
    model = load_model(changed, progress, digest, device=device, several=True)
    with rewrite_prompt(samples) as prompt:
        form = artifact.manifest.picture_form
        rewritten = prompt.compare(prompt.read(model), plain(model), artifact.folder, form)
    original = None
    if samples:
        original = measure_original(model, samples, tokens, progress)
    model = on_cpu(model)
    gates, front = load_plan_gates(plan, recipe, model), load_weights_in_front(plan, recipe)
    small = compress_for_export(model, plan, recipe, gates, front)
    limits = cache_limits(recipe.export, plan.model, plan.rows_kept)
    reference = record_torch(as_stored(small, recipe.export), limits)
    return reference, original, samples, rewritten
