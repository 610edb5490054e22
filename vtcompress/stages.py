"""The stages of the tool as functions; the command line is a thin layer over them.

Stages that take long have an argument `progress`: bars and stages on stderr where that is a terminal, nothing
elsewhere; an object of your own (`compressor.progress.Progress`) gets both, and `SILENT` of that module none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.calibration.data import Sample, read_samples
from compressor.calibration.profile import Profile
from compressor.errors import ArtifactError, VtcompressError
from compressor.files import read_text
from compressor.locks import exclusive
from compressor.plan import Plan
from compressor.planner import check_methods, make_plan
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.recipe import load_recipe as read_recipe
from export import artifact as artifacts
from export import bench as timing
from export.artifact import PLAN_FILE, PROFILE_FILE, RECIPE_FILE, Artifact
from export.backends import check_dtype
from export.bfloat16 import open_for_checks
from export.limits import cache_limits
from export.manifest import Manifest
from export.parity import fidelity, loss
from export.parity.loss_report import LossReport
from export.runtime import Runtime
from export.verdict import Verdict, verdict_of, worst
from vtcompress.console import shown
from vtcompress.exporting import (
    ExportRun,
    check_fidelity,
    check_recipe,
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
    require_compress,
    require_runtime,
)
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


def calibrate(recipe: Recipe, output: PathLike, *, progress: Progress | None = None) -> Profile:
    """Measure the recipe's model on its calibration data; a profile at `output` is continued.

    Also draws `output` without its suffix as PNG and SVG, with the layers that the recipe would freeze.

    Raises:
        VtcompressError: model or data cannot be used, or `output` belongs to others or is being written
            by another run.
    """
    progress = shown(progress)
    output = Path(output)
    with exclusive(output):
        calibration_samples(recipe)
        model = load_model(recipe, progress, check_recipe(recipe))
        profile = run_calibration(model, recipe, output, progress)
        chosen = make_plan(model.facts, model.digest, recipe.methods, profile)
        draw(profile, chosen, output.with_suffix(""))
    return profile


def plan(
    recipe: Recipe, profile: Profile | None = None, *, progress: Progress | None = None
) -> Plan:
    """Decide what visual rows do in each layer; loads no weights.

    Raises:
        VtcompressError: the model is not supported, or the methods cannot be applied; all reasons.
    """
    require_compress("planning")
    facts = model_facts(recipe)
    check_methods(facts, recipe.methods)
    shown(progress).say(f"reading the weights of {recipe.model.id} for their digest")
    digest = model_digest(recipe)
    if profile is not None:
        profile.check_belongs(Path(PROFILE_FILE), model_digest=digest)
    return make_plan(facts, digest, recipe.methods, profile)


def compress(
    recipe: Recipe,
    plan: Plan,
    output: PathLike,
    *,
    profile: Profile | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the compressed model as a folder that `load_compressed` and `export` read.

    Raises:
        VtcompressError: the plan is for another model, or the folder cannot be written.
    """
    model = load_model(recipe, shown(progress))
    from compressor.compressed import save_compressed

    gates = load_plan_gates(plan, recipe, model)
    # Refuses a plan of another model before anything is written.
    compress_for_export(model, plan, recipe, gates)
    output = Path(output)
    needed = sum(p.stat().st_size for p in model.folder.glob("*.safetensors"))
    with artifacts.staged(output, overwrite=overwrite, needed_bytes=needed) as folder:
        save_compressed(model, plan, folder, gates)
        write_inputs(folder, recipe, plan, profile)
    return output


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
    profile: Profile | None = None,
    compressed: PathLike | None = None,
    overwrite: bool = False,
    bench_rounds: int = 15,
    threads: int = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Run all stages and write the artifact: calibrate, plan, compress, export, validate, time.

    Args:
        recipe: names the model and, where methods need it, calibration data.
        output: folder of the artifact; appears when complete.
        profile: of an earlier calibration, instead of measuring.
        compressed: start from the folder that `compress` wrote instead of the original. Compression loss
            then needs the recipe's model as well.
        overwrite: replace what is at `output`.
        bench_rounds: how often each call is timed; 0 for none.
        threads: of one operator while timing.
        progress: shows stages and loops; see the module.

    Returns:
        The manifest; `verdict` tells what became of both checks, `failures` which limits were missed.

    Raises:
        VtcompressError: input or environment; nothing is left half-written.
    """
    require_compress("export")
    require_runtime("checking the exported graphs")
    run = ExportRun(recipe, Path(output), bench_rounds, threads, shown(progress))
    if compressed is not None:
        return run.from_compressed(Path(compressed), overwrite=overwrite)
    return run.from_original(profile, overwrite=overwrite)


@dataclass(frozen=True)
class Validation:
    """Outcome of `validate`.

    Attributes:
        fidelity: of the export; measured anew only if the original model was given.
        loss: on the data that was asked for; None if nothing could be compared.
    """

    fidelity: fidelity.FidelityReport | None
    loss: LossReport | None

    @property
    def failures(self) -> tuple[str, ...]:
        """Every missed threshold of both checks."""
        checks = (self.fidelity, self.loss)
        return tuple(line for check in checks if check is not None for line in check.failures)

    @property
    def verdict(self) -> Verdict:
        """What became of both checks together."""
        return worst(verdict_of(check) for check in (self.fidelity, self.loss))


def validate(
    path: PathLike,
    *,
    data: PathLike | None = None,
    model: str | None = None,
    gates: PathLike | None = None,
    limits: Mapping[str, Any] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Validation:
    """Check an artifact again; nothing in it is changed.

    Args:
        path: the artifact.
        data: other samples than the artifact's own; their original answers must be measured.
        model: the original, hub id or folder; needed for other data and to measure fidelity anew.
        gates: file of the gates' weights, where the artifact's plan has gates and `model` is given.
        limits: other limits than the artifact's recipe sets, such as `{"validate.loss.min_agreement": 0.9}`.
        threads: of one operator.
        progress: shows the samples; see the module.

    Raises:
        VtcompressError: the artifact is broken, other data is given without the original, or `limits` sets
            what is no limit, or one that nothing is measured for.
    """
    path, progress = Path(path), shown(progress)
    artifact = Artifact.open(path)
    recipe = with_limits(read_recipe(path / RECIPE_FILE), limits or {}, anew=model is not None)
    if gates is not None:
        recipe = recipe.with_gates(Path(gates))
    if data is not None and model is None:
        raise ArtifactError(
            [
                f"{data}: the original's answers to this data are not stored; give --model ORIGINAL as well"
            ]
        )
    first: fidelity.FidelityReport | None = artifact.manifest.fidelity
    original: loss.Answers | None = None
    samples: tuple[Sample, ...] = ()
    manifest = artifact.manifest
    session = open_for_checks(path, manifest.graphs, manifest.dtype, threads=threads)
    if model is not None:
        reference, original, samples = _measure_again(artifact, recipe, model, data, progress)
        first = check_fidelity(
            session, artifact.manifest.graphs, Plan.load(path / PLAN_FILE), reference, recipe
        )
        name = Path(data).name if data is not None else validation_name(recipe)
    if original is None and (path / loss.ORIGINAL_FILE).is_file():
        samples, original = loss.stored_original(path)
        name = validation_name(recipe)
    second = None
    if original is not None:
        runtime = Runtime.on_session(session, path, manifest.model, manifest.image_token)
        found = loss.measure(runtime, samples, original.max_new_tokens, progress)
        second = loss.compare(samples, original, found, loss_limits(recipe), name)
    return Validation(first, second)


def _measure_again(
    artifact: Artifact, recipe: Recipe, original_id: str, data: PathLike | None, progress: Progress
) -> tuple[fidelity.Recording, loss.Answers | None, tuple[Sample, ...]]:
    require_compress("measuring the original")
    from export.parity.original import measure_original

    changed = recipe.override({"model.id": original_id, "model.revision": None})
    model = load_model(changed, progress)
    plan = Plan.load(artifact.folder / PLAN_FILE)
    small = compress_for_export(model, plan, recipe, load_plan_gates(plan, recipe, model))
    samples: tuple[Sample, ...] = ()
    original = None
    if data is not None:
        samples = read_samples(Path(data))
        original = measure_original(model, samples, recipe.validation.max_new_tokens, progress)
    limits = cache_limits(recipe.export, plan.model)
    return record_torch(small, limits), original, samples


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
        A JSON-like mapping; `kind` says which of them it is.

    Raises:
        VtcompressError: none of them.
    """
    path = Path(path)
    if path.is_dir() and (path / "manifest.json").is_file():
        manifest = Artifact.open(path, verify=False).manifest
        return {"kind": "artifact", **manifest.model_dump(mode="json")}
    if path.is_dir() and (path / PLAN_FILE).is_file():
        return {"kind": "compressed model", **Plan.load(path / PLAN_FILE).model_dump(mode="json")}
    if path.is_file():
        return _inspect_file(path)
    require_compress("inspecting a model")
    from compressor.families import describe

    return {"kind": "model", **describe(str(path)).model_dump(mode="json")}


def _inspect_file(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, ArtifactError))
    except (ArtifactError, ValueError, RecursionError):
        content = None
    if isinstance(content, Mapping) and "plan_format" in content:
        return {"kind": "plan", **Plan.load(path).model_dump(mode="json")}
    if isinstance(content, Mapping) and "profile_format" in content:
        return {"kind": "profile", **Profile.load(path).model_dump(mode="json")}
    raise VtcompressError(
        f"{path}: neither a plan nor a profile; give a folder or one of these files"
    )
