"""The stages of the tool as functions; the command line is a thin layer over them.

Stages that take long have an argument `progress`: bars and stages on stderr where that is a terminal, nothing
elsewhere; an object of your own (`compressor.progress.Progress`) gets both, and `SILENT` of that module none.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.calibration.data import Sample, read_samples
from compressor.calibration.profile import Profile
from compressor.errors import ArtifactError, VtcompressError
from compressor.files import is_file, is_folder, made_parent, read_text
from compressor.locks import exclusive
from compressor.paths import check_path
from compressor.plan import Plan
from compressor.planner import plan_recipe
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.recipe import load_recipe as read_recipe
from export import bench as timing
from export import staging
from export.artifact import PLAN_FILE, RECIPE_FILE, Artifact, write_file_list
from export.backends import check_dtype
from export.bfloat16 import open_for_checks
from export.limits import cache_limits
from export.manifest import Manifest
from export.parity import fidelity, loss, stored
from export.parity.loss_report import LossReport
from export.parity.rewrite import RewriteReport
from export.places import check_file
from export.runtime import Runtime
from export.verdict import Verdict, verdict_of, worst
from vtcompress.console import shown
from vtcompress.exporting import (
    ExportRun,
    calibration_task,
    check_fidelity,
    compress_for_export,
    draw,
    load_plan_gates,
    loss_limits,
    predicted,
    record_torch,
    run_calibration,
    validation_name,
    with_limits,
    write_inputs,
)
from vtcompress.gates_training import train_gates
from vtcompress.inputs import (
    calibration_samples,
    load_model,
    model_digest,
    model_facts,
    model_folder,
    note_unread_data,
    open_profile,
    require_compress,
    require_recipe,
    require_runtime,
    source_paths,
)
from vtcompress.prompt_check import Asked, check_recipe_prompts, processor_problems
from vtcompress.recipe_check import check_digest, check_plan_gates, check_recipe
from vtcompress.rewrite_check import check_rewrite, rewrite_prompt
from vtcompress.shipped import find_recipe

if TYPE_CHECKING:
    from compressor.compressed import CompressedModel

PathLike = str | Path

__all__ = [
    "Validation",
    "bench",
    "calibrate",
    "compress",
    "export",
    "inspect",
    "load_compressed",
    "load_recipe",
    "plan",
    "predicted",
    "train_gates",
    "validate",
]


def load_recipe(name_or_path: PathLike) -> Recipe:
    """Read a recipe file, or a shipped recipe by name.

    Raises:
        RecipeError: there is no such recipe, or it is not valid.
    """
    return read_recipe(find_recipe(str(name_or_path)))


def calibrate(
    recipe: Recipe,
    output: PathLike,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Profile:
    """Measure the recipe's model on its calibration data; a profile at `output` is continued.

    Also draws `output` without its suffix as PNG and SVG, with the layers that the recipe would freeze.

    Args:
        recipe: names model and data.
        output: file of the profile. One of the same model, with these samples or some of them, is continued.
        overwrite: start anew, whatever the profile there holds.
        progress: shows the samples.

    Raises:
        VtcompressError: model or data cannot be used, or `output` holds another profile, was not written by
            this tool, or is being written by another run.
    """
    require_recipe(recipe)
    progress = shown(progress)
    output = Path(output)
    base = output.with_suffix("")
    drawings = tuple(base.with_name(base.name + suffix) for suffix in (".png", ".svg"))
    if output in drawings:
        raise VtcompressError(
            f"{output}: is where the profile is drawn; give --output {base.name}.json"
        )

    def check() -> None:
        check_file(output, "profile", sources=source_paths(recipe))
        for path in drawings:
            check_file(path, "drawing")

    check()
    with made_parent(output), exclusive(output):
        check()
        asked = [Asked(calibration_samples(recipe))]
        facts = check_recipe(recipe, asked=asked, progress=progress)
        digest = check_digest(recipe, facts)
        task = calibration_task(recipe, facts, digest)
        if not overwrite:
            task.go_on(output)
        model = load_model(recipe, progress, digest)
        check_rewrite(model, calibration=task.samples)
        profile = run_calibration(model, recipe, task, output, progress, anew=overwrite)
        chosen = plan_recipe(recipe, model.facts, model.digest, profile)
        draw(profile, chosen, base)
    return profile


def plan(
    recipe: Recipe, profile: Profile | PathLike | None = None, *, progress: Progress | None = None
) -> Plan:
    """Decide what visual rows do in each layer; loads no weights.

    Args:
        recipe: names the model and the methods.
        profile: of an earlier calibration, or its file; needed where methods choose by it.
        progress: is told what is read.

    Raises:
        VtcompressError: the model is not supported, or the methods cannot be applied; all reasons.
    """
    require_recipe(recipe)
    require_compress("planning")
    progress = shown(progress)
    measured, name = open_profile(profile)
    note_unread_data(recipe, "a plan is made from a profile", progress)
    facts = check_recipe(recipe, measured, planned=True, progress=progress)
    progress.say(f"reading the weights of {recipe.model.id} for their digest")
    digest = check_digest(recipe, facts, measured, name)
    # Read again: the weights of a hub id are here now, and tell whether embedding and head are one.
    return plan_recipe(recipe, model_facts(recipe), digest, measured)


def compress(
    recipe: Recipe,
    plan: Plan,
    output: PathLike,
    *,
    profile: Profile | PathLike | None = None,
    overwrite: bool = False,
    sources: Iterable[PathLike] = (),
    progress: Progress | None = None,
) -> Path:
    """Write the compressed model as a folder that `load_compressed` and `export` read.

    Args:
        recipe: names the model.
        plan: made for it.
        output: folder to write.
        profile: stored beside the plan.
        overwrite: replace what this tool wrote at `output`.
        sources: files that recipe, plan and profile were read from; no folder that holds one is replaced.
        progress: shows stages.

    Raises:
        VtcompressError: plan or profile are of another model, or the folder cannot be written.
    """
    require_recipe(recipe)
    progress = shown(progress)
    measured, name = open_profile(profile)
    note_unread_data(recipe, "the plan is made already", progress)
    output = Path(output)
    needs: dict[str, Any] = {
        "overwrite": overwrite,
        "sources": (*source_paths(recipe), *_read_files(sources, profile)),
    }
    staging.check_place(output, **needs)
    check_recipe_prompts(recipe, (), progress)
    check_plan_gates(plan, recipe, model_facts(recipe), None)
    weights = model_folder(recipe).glob("*.safetensors")
    needs["needed_bytes"] = sum(path.stat().st_size for path in weights)
    staging.check_place(output, **needs)
    digest = _digest_of_plan(plan, recipe)
    if measured is not None:
        measured.check_belongs(name, model_digest=digest)
    model = load_model(recipe, progress, digest)
    from compressor.compressed import save_compressed

    gates = load_plan_gates(plan, recipe, model)
    # Refuses what weights alone tell before anything is written.
    compress_for_export(model, plan, recipe, gates)
    check_rewrite(model)
    with staging.staged(output, **needs) as folder:
        save_compressed(model, plan, folder, gates)
        write_inputs(folder, recipe, plan, measured)
        write_file_list(folder)
    return output


def _digest_of_plan(plan: Plan, recipe: Recipe, **words: str) -> str:
    """Return the digest of the recipe's model; refuse a plan or gates of another.

    `words` are those of `Plan.check_belongs`.
    """
    facts, digest = model_facts(recipe), model_digest(recipe)
    plan.check_belongs(facts.name, digest, **words)
    check_plan_gates(plan, recipe, facts, digest)
    return digest


def _read_files(
    sources: Iterable[PathLike], profile: Profile | PathLike | None
) -> tuple[Path, ...]:
    """Return what a stage reads beside what its recipe names."""
    given = () if profile is None or isinstance(profile, Profile) else (profile,)
    return tuple(map(Path, (*sources, *given)))


def load_compressed(folder: PathLike, *, progress: Progress | None = None) -> "CompressedModel":
    """Load what `compress` wrote, in float32.

    Raises:
        VtcompressError: files are missing or broken.
    """
    require_compress("loading a compressed model")
    from compressor.compressed import load_compressed as load

    shown(progress).say(f"loading {folder}")
    return load(Path(folder))


def export(
    recipe: Recipe,
    output: PathLike,
    *,
    profile: Profile | PathLike | None = None,
    compressed: PathLike | None = None,
    overwrite: bool = False,
    sources: Iterable[PathLike] = (),
    bench_rounds: int = 15,
    threads: int = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Run all stages and write the artifact: calibrate, plan, compress, export, validate, time.

    Args:
        recipe: names the model and, where methods need it, calibration data.
        output: folder of the artifact; appears when complete.
        profile: of an earlier calibration, or its file, instead of measuring.
        compressed: start from the folder that `compress` wrote instead of the original. Compression loss
            then needs the recipe's model as well.
        overwrite: replace what this tool wrote at `output`; nothing else is ever replaced.
        sources: files that recipe and profile were read from; no folder that holds one is replaced.
        bench_rounds: how often each call is timed; 0 for none.
        threads: of one operator while timing.
        progress: shows stages and loops; see the module.

    Returns:
        The manifest; `verdict` tells what became of both checks, `failures` which limits were missed.

    Raises:
        VtcompressError: input or environment; nothing is left half-written.
    """
    require_recipe(recipe)
    require_compress("export")
    require_runtime("checking the exported graphs")
    read = _read_files(sources, profile)
    run = ExportRun(recipe, Path(output), bench_rounds, threads, shown(progress), read)
    if compressed is not None:
        if profile is not None:
            raise VtcompressError(
                f"{compressed}: holds plan and profile already, so another profile is not read; leave it out"
            )
        return run.from_compressed(Path(compressed), overwrite=overwrite)
    return run.from_original(*open_profile(profile), overwrite=overwrite)


@dataclass(frozen=True)
class Validation:
    """Outcome of `validate`.

    Attributes:
        fidelity: of the export; measured anew only if the original model was given.
        loss: on the data that was asked for; None if nothing could be compared.
        rewrite: how far the rewritten model, nothing cut, is from the original, as this artifact's tokenizer
            and processor files are read; None: the original was not given.
    """

    fidelity: fidelity.FidelityReport | None
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
    limits: Mapping[str, Any] | None = None,
    threads: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Validation:
    """Check an artifact again; nothing in it is changed.

    Args:
        path: the artifact.
        data: the data that the artifact was validated on, needed where it does not hold the pictures; or
            other data, for which the original is needed as well.
        model: the original, hub id or folder; needed for other data and to measure fidelity anew.
        gates: file of the gates' weights, where the artifact's plan has gates and `model` is given.
        limits: other limits than the artifact's recipe sets, such as `{"validate.loss.min_agreement": 0.9}`.
        threads: of one operator.
        trust_remote_code: let the repository of `model` run code of its own; what the artifact says does not.
        progress: shows the samples; see the module.

    Raises:
        VtcompressError: the artifact is broken, or does not hold its pictures and neither data nor the
            original is given; other data is given without the original; `limits` sets what is no limit, or
            one that nothing is measured for.
    """
    path, progress = Path(path), shown(progress)
    artifact = Artifact.open(path)
    recipe = read_recipe(path / RECIPE_FILE, stored=True).override(
        {"model.trust_remote_code": trust_remote_code}
    )
    if gates is not None:
        recipe = recipe.with_gates(Path(gates))
    rewritten: RewriteReport | None = None
    manifest = artifact.manifest
    given = None if data is None else Path(data)
    asked = None
    if model is None or (given is None and stored.keeps_pictures(path)):
        asked = stored.original_for(path, manifest.loss, recipe.validation, given)
    elif given is None:
        progress.say(f"compression loss is not measured: {stored.NOT_KEPT}")
    measured = asked is not None or (model is not None and given is not None)
    why = "" if measured else stored.why_unmeasured(path)
    recipe = with_limits(recipe, limits or {}, anew=model is not None, unmeasured=why)
    first: fidelity.FidelityReport | None = manifest.fidelity
    session = open_for_checks(path, manifest.graphs, manifest.dtype, threads=threads)
    if model is not None:
        reference, original, samples, rewritten = _measure_again(
            artifact, recipe, model, data, progress
        )
        plan = Plan.load(path / PLAN_FILE)
        first = check_fidelity(session, manifest.graphs, plan, reference, recipe)
        if original is not None:
            asked = samples, original
    second = None
    if asked is not None:
        samples, original = asked
        name = validation_name(recipe) if given is None else given.name
        runtime = Runtime.on_session(session, path, manifest.model, manifest.image_token)
        found = loss.measure(runtime, samples, original.max_new_tokens, progress)
        second = loss.compare(samples, original, found, loss_limits(recipe), name)
    return Validation(first, second, rewritten)


def _measure_again(
    artifact: Artifact, recipe: Recipe, original_id: str, data: PathLike | None, progress: Progress
) -> tuple[fidelity.Recording, loss.Answers | None, tuple[Sample, ...], RewriteReport]:
    require_compress("measuring the original")
    from compressor.compressed import plain
    from export.parity.original import measure_original

    changed = recipe.override({"model.id": original_id, "model.revision": None})
    samples = () if data is None else read_samples(Path(data))
    tokens = recipe.validation.max_new_tokens
    check_recipe_prompts(changed, [Asked(samples, tokens)], progress)
    plan = Plan.load(artifact.folder / PLAN_FILE)
    check_plan_gates(plan, changed, model_facts(changed), None)
    what, remedy = f"{artifact.folder}: the plan", "give the model that it was exported from"
    digest = _digest_of_plan(plan, changed, what=what, remedy=remedy)
    model = load_model(changed, progress, digest)
    with rewrite_prompt(samples) as prompt:
        rewritten = prompt.compare(prompt.read(model), plain(model), artifact.folder)
    small = compress_for_export(model, plan, recipe, load_plan_gates(plan, recipe, model))
    original = None
    if samples:
        original = measure_original(model, samples, tokens, progress)
    limits = cache_limits(recipe.export, plan.model)
    return record_torch(small, limits), original, samples, rewritten


def bench(
    path: PathLike,
    *,
    images: int = 1,
    text: int | None = None,
    rounds: int = 15,
    threads: int = 1,
    progress: Progress | None = None,
) -> timing.BenchReport:
    """Time an artifact beside the naive original; see `export.bench.bench`.

    Raises:
        VtcompressError: the artifact is broken, or ONNX Runtime cannot run its dtype.
    """
    artifact = Artifact.open(Path(path))
    manifest = artifact.manifest
    check_dtype("onnxruntime", manifest.dtype)
    return timing.bench(
        artifact.folder,
        manifest.graphs,
        manifest.model,
        images=images,
        text=text or manifest.predicted.text,
        rounds=rounds,
        threads=threads,
        progress=shown(progress),
    )


def inspect(path: PathLike) -> dict[str, Any]:
    """Tell what a model folder, compressed folder, artifact, plan or profile is, without loading weights.

    Returns:
        A JSON-like mapping; `kind` says which of them it is. Of a model `problems` holds what is wrong with
        its processor and which weights of a folder are not there, if anything is.

    Raises:
        VtcompressError: none of them.
    """
    model, path = str(path), Path(path)  # as it was given: `Path` takes `./nope` for `nope`
    check_path(path)
    if is_folder(path) and is_file(path / "manifest.json"):
        manifest = Artifact.open(path, verify=False).manifest
        return {"kind": "artifact", **manifest.model_dump(mode="json")}
    if is_folder(path) and is_file(path / PLAN_FILE):
        return {"kind": "compressed model", **Plan.load(path / PLAN_FILE).model_dump(mode="json")}
    if is_file(path):
        return _inspect_file(path)
    if is_folder(path):
        _check_known(path)
    require_compress("inspecting a model")
    from compressor.families import describe
    from compressor.families.folder import missing_weights

    found: dict[str, Any] = {"kind": "model", **describe(model).model_dump(mode="json")}
    # Of a hub id no weights were fetched.
    problems = (missing_weights(path) if is_folder(path) else ()) + processor_problems(model)
    return found | ({"problems": list(problems)} if problems else {})


def _check_known(folder: Path) -> None:
    """Refuse a folder of which nothing shows what it could be, and say what would."""
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as failure:
        raise VtcompressError(f"{folder}: {failure.strerror}; make the folder readable") from None
    if not names & {"config.json", "adapter_config.json"}:
        what = "is nothing that is known here" if names else "is empty"
        raise VtcompressError(
            f"{folder}: {what}; give the folder of a model (it holds config.json), an artifact "
            f"(manifest.json), what `compress` wrote ({PLAN_FILE}), or the file of a plan or profile"
        )


def _inspect_file(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, ArtifactError))
    except (ArtifactError, ValueError, RecursionError):
        content = None
    if isinstance(content, Mapping) and "plan_format" in content:
        return {"kind": "plan", **Plan.load(path).model_dump(mode="json")}
    if isinstance(content, Mapping) and "profile_format" in content:
        return {"kind": "profile", **Profile.load(path).model_dump(mode="json")}
    folder = path.absolute().parent
    of_model = f", such as {folder}" if is_file(folder / "config.json") else ""
    raise VtcompressError(
        f"{path}: neither a plan nor a profile; give one of these files or a folder{of_model}"
    )
