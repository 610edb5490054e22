"""The stages of the tool as functions; the command line is a thin layer over them."""

import gc
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.calibration.data import Sample, choose, read_samples
from compressor.calibration.profile import Profile
from compressor.cost import predict, predicted_speedup
from compressor.errors import ArtifactError, MissingExtraError, RecipeError, VtcompressError
from compressor.plan import Plan
from compressor.planner import make_plan, needs_profile
from compressor.progress import SILENT, Progress
from compressor.recipe import Recipe, dump_recipe, fidelity_thresholds
from compressor.recipe import load_recipe as read_recipe
from export import artifact as artifacts
from export import bench as timing
from export.artifact import Artifact
from export.graphs import GraphSpec, decoder_graph, embed_graph, vision_graph
from export.manifest import Manifest, Predicted, tool_versions
from export.parity import fidelity, loss
from export.report import REPORT_FILE, markdown_report
from export.runtime import Runtime
from export.sessions import OnnxSession
from vtcompress.shipped import find_recipe

if TYPE_CHECKING:
    from compressor.compressed import CompressedModel
    from compressor.families import LoadedModel

COMPRESS_PACKAGES = ("torch", "transformers", "optimum", "onnx", "onnxscript", "safetensors")
RECIPE_FILE, PLAN_FILE, PROFILE_FILE = "recipe.yaml", "plan.json", "profile.json"
PathLike = str | Path


def load_recipe(name_or_path: PathLike) -> Recipe:
    """Read a recipe file, or a shipped recipe by name.

    Raises:
        RecipeError: there is no such recipe, or it is not valid.
    """
    return read_recipe(find_recipe(str(name_or_path)))


def calibrate(recipe: Recipe, output: PathLike, *, progress: Progress = SILENT) -> Profile:
    """Measure the recipe's model on its calibration data; a profile at `output` is continued.

    Also draws `output` without its suffix as PNG and SVG, with the layers that the recipe would freeze.

    Raises:
        VtcompressError: model or data cannot be used, or `output` belongs to others.
    """
    model = _load_model(recipe, progress)
    profile = _calibrate(model, recipe, Path(output), progress)
    chosen = make_plan(model.facts, model.digest, recipe.methods, profile)
    _draw(profile, chosen, Path(output).with_suffix(""))
    return profile


def plan(recipe: Recipe, profile: Profile | None = None) -> Plan:
    """Decide what visual rows do in each layer; loads no weights.

    Raises:
        VtcompressError: the model is not supported, or the methods cannot be applied; all reasons.
    """
    require_compress("planning")
    from compressor.families.registry import describe, digest, local_folder

    model_id = _model_id(recipe)
    facts = describe(model_id, recipe.model.revision, image_size=recipe.export.image_size)
    model_digest = digest(local_folder(model_id, recipe.model.revision))
    if profile is not None:
        profile.check_belongs(Path(PROFILE_FILE), model_digest=model_digest)
    return make_plan(facts, model_digest, recipe.methods, profile)


def compress(
    recipe: Recipe,
    plan: Plan,
    output: PathLike,
    *,
    profile: Profile | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Write the compressed model as a folder that `load_compressed` and `export` read.

    Raises:
        VtcompressError: the plan is for another model, or the folder cannot be written.
    """
    model = _load_model(recipe, progress)
    from compressor.compressed import compress as apply
    from compressor.compressed import save_compressed

    apply(model, plan)  # refuses a plan of another model before anything is written
    output = Path(output)
    needed = sum(p.stat().st_size for p in model.folder.glob("*.safetensors"))
    with artifacts.staged(output, overwrite=overwrite, needed_bytes=needed) as folder:
        save_compressed(model, plan, folder)
        _write_inputs(folder, recipe, plan, profile)
    return output


def load_compressed(folder: PathLike) -> "CompressedModel":
    """Load what `compress` wrote, in float32.

    Raises:
        VtcompressError: files are missing or broken.
    """
    require_compress("loading a compressed model")
    from compressor.compressed import load_compressed as load

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
    progress: Progress = SILENT,
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
        progress: shows stages and loops.

    Returns:
        The manifest; `passed` tells whether both checks did.

    Raises:
        VtcompressError: input or environment; nothing is left half-written.
    """
    output = Path(output)
    run = _Export(recipe, output, bench_rounds, threads, progress)
    if compressed is not None:
        return run.from_compressed(Path(compressed), overwrite=overwrite)
    return run.from_original(profile, overwrite=overwrite)


class _Export:
    """One run of `export`: the order in which models come and go, so that never two are in memory."""

    def __init__(
        self, recipe: Recipe, output: Path, rounds: int, threads: int, progress: Progress
    ) -> None:
        require_compress("export")
        require_runtime("checking the exported graphs")
        self.recipe, self.output = recipe, output
        self.rounds, self.threads, self.progress = rounds, threads, progress
        self.samples = validation_samples(recipe)

    def from_original(self, profile: Profile | None, *, overwrite: bool) -> Manifest:
        """Start from the recipe's model."""
        from compressor.compressed import compress as apply

        recipe = self.recipe
        if needs_profile(recipe.methods) and profile is None:
            calibration_samples(recipe)  # refused before the model is loaded
        model = _load_model(recipe, self.progress)
        with self._staged(model.folder, model.facts.dtype, overwrite) as folder:
            resume = self.output.absolute().with_name(f".{self.output.name}.calibration.json")
            if profile is None and needs_profile(recipe.methods):
                self._drop_foreign(resume, model)
                profile = _calibrate(model, recipe, resume, self.progress)
            plan = make_plan(model.facts, model.digest, recipe.methods, profile)
            original = self._original_answers(model, folder)
            small = apply(model, plan, logits=recipe.export.logits)
            del model
            manifest = self._finish(small, profile, original, folder)
        resume.unlink(missing_ok=True)
        return manifest

    def from_compressed(self, source: Path, *, overwrite: bool) -> Manifest:
        """Start from a folder that `compress` wrote."""
        from compressor.compressed import load_compressed as load

        plan = Plan.load(source / PLAN_FILE)
        profile_path = source / PROFILE_FILE
        profile = Profile.load(profile_path) if profile_path.is_file() else None
        with self._staged(source, plan.model.dtype, overwrite) as folder:
            original = None
            if self.samples and self.recipe.model.id:
                original = self._original_answers(_load_model(self.recipe, self.progress), folder)
            gc.collect()
            self.progress.say(f"loading {source.name}")
            small = load(source, logits=self.recipe.export.logits)
            return self._finish(small, profile, original, folder)

    def _staged(self, source: Path, source_dtype: str, overwrite: bool) -> Any:
        from compressor.cost import BYTES

        weights = sum(p.stat().st_size for p in source.glob("*.safetensors"))
        needed = weights * BYTES[self.recipe.export.dtype] // BYTES[source_dtype]
        # Graphs without weights, tokenizer and pictures are small beside 64 MiB.
        return artifacts.staged(self.output, overwrite=overwrite, needed_bytes=needed + (64 << 20))

    def _drop_foreign(self, resume: Path, model: "LoadedModel") -> None:
        """Remove a calibration that was left by a run on another model or other data."""
        from compressor.calibration.data import data_digest
        from compressor.errors import ProfileError

        if resume.exists():
            digest = data_digest(calibration_samples(self.recipe))
            try:
                Profile.load(resume).check_belongs(
                    resume, model_digest=model.digest, data_digest=digest
                )
            except ProfileError:
                resume.unlink()

    def _original_answers(self, model: "LoadedModel", folder: Path) -> loss.Answers | None:
        if not self.samples:
            return None
        from export.parity.original import measure_original

        tokens = self.recipe.validation.max_new_tokens
        original = measure_original(model, self.samples, tokens, self.progress)
        loss.store_original(folder, self.samples, original)
        return original

    def _finish(
        self,
        small: "CompressedModel",
        profile: Profile | None,
        original: loss.Answers | None,
        folder: Path,
    ) -> Manifest:
        recipe, plan = self.recipe, small.plan
        _write_inputs(folder, recipe, plan, profile)
        _save_processor(small.processor, folder)
        image_token = small.processor.image_token
        self.progress.say("running the compressed model in torch")
        reference = _record_torch(small)
        graphs = self._write_graphs(small, folder)
        del small
        gc.collect()
        self.progress.say("checking export fidelity")
        session = OnnxSession(folder, graphs)
        first = _fidelity(session, graphs, plan, reference, recipe)
        second = None
        if original is not None:
            runtime = Runtime.on_session(session, folder, plan.model, image_token)
            found = loss.measure(runtime, self.samples, original.max_new_tokens, self.progress)
            loss.write_answers(folder / loss.COMPRESSED_FILE, found)
            second = loss.compare(
                self.samples, original, found, _loss_limits(recipe), _validation_name(recipe)
            )
        del session
        measured = None
        if self.rounds:
            measured = timing.bench(
                folder,
                graphs,
                plan.model,
                text=plan.workload.text,
                rounds=self.rounds,
                threads=self.threads,
                progress=self.progress,
            )
        fields: dict[str, Any] = {
            "tools": tool_versions(),
            "model": plan.model,
            "model_digest": plan.model_digest,
            "image_token": image_token,
            "dtype": recipe.export.dtype,
            "logits": recipe.export.logits,
            "graphs": graphs,
            "predicted": predicted(plan, recipe.export.dtype),
            "fidelity": first,
            "loss": second,
            "measured": measured,
            "peak_memory_bytes": artifacts.peak_memory_bytes(),
        }
        report = markdown_report(Manifest(files={}, **fields), plan)
        (folder / REPORT_FILE).write_text(report, encoding="utf-8")
        return artifacts.write_manifest(folder, **fields)

    def _write_graphs(self, small: "CompressedModel", folder: Path) -> tuple[GraphSpec, ...]:
        import torch

        from compressor.compressed import naive_decoder
        from export.onnx_graph import export_decoder, export_embed, export_vision, save_graph
        from export.weights import SharedWeights

        dtype, logits = self.recipe.export.dtype, self.recipe.export.logits
        plan = small.plan
        small = small.to(getattr(torch, dtype))
        specs = (
            vision_graph(plan.model, dtype),
            embed_graph(plan.model, dtype),
            decoder_graph(plan, dtype, logits),
            decoder_graph(plan.naive(), dtype, logits, name="baseline_decoder"),
        )
        makers = (
            lambda spec: export_vision(small, spec),
            lambda spec: export_embed(small, spec),
            lambda spec: export_decoder(small.decoder, spec),
            lambda spec: export_decoder(naive_decoder(small), spec),
        )
        with SharedWeights(folder) as weights:
            pairs = list(zip(specs, makers, strict=True))
            for spec, make in self.progress.track(pairs, "exporting graphs", len(pairs)):
                save_graph(make(spec), folder / spec.file, weights)
        return specs


@dataclass(frozen=True)
class Validation:
    """Outcome of `validate`.

    Attributes:
        fidelity: of the export; measured anew only if the original model was given.
        loss: on the data that was asked for; None if nothing could be compared.
    """

    fidelity: fidelity.FidelityReport | None
    loss: loss.LossReport | None

    @property
    def failures(self) -> tuple[str, ...]:
        """Every missed threshold of both checks."""
        checks = (self.fidelity, self.loss)
        return tuple(line for check in checks if check is not None for line in check.failures)


def validate(
    path: PathLike,
    *,
    data: PathLike | None = None,
    model: str | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Validation:
    """Check an artifact again; nothing in it is changed.

    Args:
        path: the artifact.
        data: other samples than the artifact's own; their original answers must be measured.
        model: the original, hub id or folder; needed for other data and to measure fidelity anew.
        threads: of one operator.
        progress: shows the samples.

    Raises:
        VtcompressError: the artifact is broken, or other data is given without the original.
    """
    path = Path(path)
    artifact = Artifact.open(path)
    recipe = read_recipe(path / RECIPE_FILE)
    if data is not None and model is None:
        raise ArtifactError(
            [
                f"{data}: the original's answers to this data are not stored; give --model ORIGINAL as well"
            ]
        )
    first: fidelity.FidelityReport | None = artifact.manifest.fidelity
    original: loss.Answers | None = None
    samples: tuple[Sample, ...] = ()
    session = OnnxSession(path, artifact.manifest.graphs, threads=threads)
    if model is not None:
        reference, original, samples = _measure_again(artifact, recipe, model, data, progress)
        first = _fidelity(
            session, artifact.manifest.graphs, Plan.load(path / PLAN_FILE), reference, recipe
        )
        name = Path(data).name if data is not None else _validation_name(recipe)
    if original is None and (path / loss.ORIGINAL_FILE).is_file():
        samples, original = loss.stored_original(path)
        name = _validation_name(recipe)
    second = None
    if original is not None:
        manifest = artifact.manifest
        runtime = Runtime.on_session(session, path, manifest.model, manifest.image_token)
        found = loss.measure(runtime, samples, original.max_new_tokens, progress)
        second = loss.compare(samples, original, found, _loss_limits(recipe), name)
    return Validation(first, second)


def _measure_again(
    artifact: Artifact, recipe: Recipe, model_id: str, data: PathLike | None, progress: Progress
) -> tuple[fidelity.Recording, loss.Answers | None, tuple[Sample, ...]]:
    require_compress("measuring the original")
    from compressor.compressed import compress as apply
    from export.parity.original import measure_original

    changed = recipe.override({"model.id": model_id, "model.revision": None})
    model = _load_model(changed, progress)
    small = apply(model, Plan.load(artifact.folder / PLAN_FILE), logits=recipe.export.logits)
    samples: tuple[Sample, ...] = ()
    original = None
    if data is not None:
        samples = read_samples(Path(data))
        original = measure_original(model, samples, recipe.validation.max_new_tokens, progress)
    return _record_torch(small), original, samples


def bench(
    path: PathLike,
    *,
    images: int = 1,
    text: int | None = None,
    rounds: int = 15,
    threads: int = 1,
    progress: Progress = SILENT,
) -> timing.BenchReport:
    """Time an artifact beside the naive original; see `export.bench.bench`.

    Raises:
        VtcompressError: the artifact is broken.
    """
    artifact = Artifact.open(Path(path))
    manifest = artifact.manifest
    return timing.bench(
        artifact.folder,
        manifest.graphs,
        manifest.model,
        images=images,
        text=text or manifest.predicted.text,
        rounds=rounds,
        threads=threads,
        progress=progress,
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
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if isinstance(content, Mapping) and "plan_format" in content:
        return {"kind": "plan", **Plan.load(path).model_dump(mode="json")}
    if isinstance(content, Mapping) and "profile_format" in content:
        return {"kind": "profile", **Profile.load(path).model_dump(mode="json")}
    raise VtcompressError(
        f"{path}: neither a plan nor a profile; give a folder or one of these files"
    )


def predicted(plan: Plan, dtype: str) -> Predicted:
    """Return the figures that a plan predicts for its workload."""
    before, after = predict(plan.naive()), predict(plan)
    return Predicted(
        images=plan.workload.images,
        visual=plan.visual,
        text=plan.workload.text,
        flops_original=before.flops,
        flops=after.flops,
        speedup=predicted_speedup(plan),
        kv_bytes_original=before.kv_bytes(dtype),
        kv_bytes=after.kv_bytes(dtype),
    )


def require_compress(what: str) -> None:
    """Refuse a stage whose packages are not installed.

    Raises:
        MissingExtraError: names the extra.
    """
    if any(importlib.util.find_spec(name) is None for name in COMPRESS_PACKAGES):
        raise MissingExtraError(what, "compress")


def require_runtime(what: str) -> None:
    """Refuse a stage that runs graphs where ONNX Runtime is not installed.

    Raises:
        MissingExtraError: names the extra.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtraError(what, "cpu")


def calibration_samples(recipe: Recipe) -> tuple[Sample, ...]:
    """Return the samples that the recipe's calibration uses.

    Raises:
        RecipeError: no data is named.
        DataError: the data cannot be used.
    """
    section = recipe.calibrate
    if section.data is None:
        raise RecipeError(
            ["calibrate.data: the recipe's methods need calibration data; give --data FILE"]
        )
    return choose(read_samples(section.data), section.samples, section.seed)


def validation_samples(recipe: Recipe) -> tuple[Sample, ...]:
    """Return the samples of the second check, none if the recipe names no data.

    Raises:
        DataError: the data cannot be used.
    """
    section = recipe.validation
    if section.data is None:
        return ()
    return choose(read_samples(section.data), section.samples, section.seed)


def _model_id(recipe: Recipe) -> str:
    if recipe.model.id is None:
        raise RecipeError(["model.id: the recipe names no model; give --model ID_OR_FOLDER"])
    return recipe.model.id


def _load_model(recipe: Recipe, progress: Progress) -> "LoadedModel":
    require_compress("loading a model")
    from compressor.families import load

    model_id = _model_id(recipe)
    progress.say(f"loading {model_id}")
    return load(
        model_id,
        revision=recipe.model.revision,
        image_size=recipe.export.image_size,
        trust_remote_code=recipe.model.trust_remote_code,
    )


def _calibrate(model: "LoadedModel", recipe: Recipe, path: Path, progress: Progress) -> Profile:
    from compressor.calibration.run import calibrate as run

    samples = calibration_samples(recipe)
    name = recipe.calibrate.data.name if recipe.calibrate.data else ""
    return run(model, samples, path, data_name=name, progress=progress)


def _draw(profile: Profile, plan: Plan, base: Path) -> None:
    from compressor.calibration.plot import draw_profile

    chosen = [layer.index for layer in plan.layers if layer.reason not in ("", "dead")]
    draw_profile(profile, chosen, base)


def _write_inputs(folder: Path, recipe: Recipe, plan: Plan, profile: Profile | None) -> None:
    (folder / RECIPE_FILE).write_text(dump_recipe(recipe, portable=True), encoding="utf-8")
    plan.save(folder / PLAN_FILE)
    if profile is not None:
        profile.save(folder / PROFILE_FILE)
        _draw(profile, plan, folder / "profile")


def _save_processor(processor: Any, folder: Path) -> None:
    processor.save_pretrained(folder)


def _record_torch(small: "CompressedModel") -> fidelity.Recording:
    from export.torch_session import TorchSession

    return fidelity.record(TorchSession(small), small.plan)


def _fidelity(
    session: OnnxSession,
    graphs: tuple[GraphSpec, ...],
    plan: Plan,
    reference: fidelity.Recording,
    recipe: Recipe,
) -> fidelity.FidelityReport:
    limits = fidelity_thresholds(recipe)
    declared = []
    for spec in graphs:
        loaded = session.graph(spec.name).session
        declared += fidelity.check_declared(spec, loaded.get_inputs(), loaded.get_outputs())
    return fidelity.compare(
        reference,
        fidelity.record(session, plan),
        graphs,
        declared,
        fidelity.Limits(
            max_abs=limits.max_abs, max_relative=limits.max_relative, min_cosine=limits.min_cosine
        ),
    )


def _loss_limits(recipe: Recipe) -> loss.LossLimits:
    return loss.LossLimits(**recipe.validation.loss.model_dump())


def _validation_name(recipe: Recipe) -> str:
    return recipe.validation.data.name if recipe.validation.data else ""
