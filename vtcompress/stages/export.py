"""One run of `export`: the order in which models come and go, so that no two are in memory together."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.disk.files import is_folder
from compressor.errors import VtcompressError
from compressor.families.picture_steps import Steps
from compressor.generation import write_keys
from compressor.plan.cost import BYTES, predict, predicted_speedup
from compressor.plan.plan import Plan
from compressor.planner import (
    plan_recipe,
)
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import ExportSection, Recipe
from export.artifact import artifact as artifacts
from export.artifact import staging
from export.artifact.artifact import PLAN_FILE, PROFILE_FILE
from export.artifact.manifest import Manifest, Predicted, tool_versions
from export.checks import bench as timing
from export.checks import fidelity, loss, memory, stored
from export.checks.bfloat16 import missing_kernels, open_for_checks
from export.checks.onnx_checker import check_graphs
from export.checks.rewrite import refuse
from export.graphs.limits import Limits, buffer_bytes, cache_limits, check_fixed
from export.graphs.spec import GraphSpec, decoder_graph, decoder_graphs, embed_graph, vision_graph
from export.report.pages.model_card import Origin
from export.report.questions import chosen_places, question_of
from export.results.loss_report import LossReport
from export.results.rewrite import RewriteReport, rewrite_words
from export.runtime.runtime import Runtime
from vtcompress.stages.build import build_targets, check_targets, engine_targets
from vtcompress.stages.checks.prompts import Asked, check_prompts
from vtcompress.stages.checks.recipe import check_digest, check_recipe
from vtcompress.stages.checks.rewrite import check_rewrite, rewrite_prompt
from vtcompress.stages.float16 import keep_wide_nodes, range_samples
from vtcompress.stages.inputs import (
    calibration_samples,
    load_model,
    model_digest,
    model_facts,
    model_folder,
    note_unread_data,
    source_paths,
    validation_samples,
)
from vtcompress.stages.report import origin_of, write_reports

if TYPE_CHECKING:
    from compressor.compressed import CompressedModel
    from compressor.decoder import Decoder
    from compressor.families import LoadedModel
    from compressor.samples.questions import Sample
from collections.abc import Iterable
from typing import TYPE_CHECKING

from export.results.answers import Answers
from export.results.bench import BenchReport
from export.results.fidelity import FidelityReport
from export.results.footprint import Footprint
from vtcompress.console import shown
from vtcompress.stages.calibrate import (
    calibration_task,
    drop_foreign,
    run_calibration,
    wants_calibration,
)
from vtcompress.stages.compress import compress_for_export, load_plan_gates, write_inputs
from vtcompress.stages.inputs import (
    open_profile,
    require_compress,
    require_recipe,
    require_runtime,
)
from vtcompress.stages.validate import check_fidelity, loss_limits, record_torch, validation_name

if TYPE_CHECKING:
    from compressor.compressed import CompressedModel
from vtcompress.shipped import PathLike
from vtcompress.stages.compress import _read_files

# Graphs without weights, tokenizer, plots and small pictures take less.
SMALL_FILES_BYTES = 64 << 20


@dataclass(frozen=True)
class Written:
    """What the torch side leaves for the checks of the ONNX side.

    Attributes:
        plan: of the compressed model.
        graphs: that were written.
        reference: outputs of the compressed torch model.
        original: answers of the original model; None without validation data.
        image_token: text of the image token.
        picture_steps: what is done to a picture before the vision graph.
    """

    plan: Plan
    graphs: tuple[GraphSpec, ...]
    reference: fidelity.Recording
    original: Answers | None
    image_token: str
    picture_steps: Steps


class ExportRun:
    """Writes one artifact.

    Args:
        recipe: what to do.
        output: final place of the artifact.
        rounds: how often each call is timed; 0 for none.
        threads: of one operator while timing.
        progress: shows stages and loops.
        sources: files and folders that the run reads, beside those that the recipe names.
    """

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        rounds: int,
        threads: int,
        progress: Progress,
        sources: Sequence[Path] = (),
    ) -> None:
        self.recipe, self.output = recipe, output
        self.rounds, self.threads, self.progress = rounds, threads, progress
        self.samples = validation_samples(recipe)
        # Read now: data that cannot be used is refused before anything runs.
        self.range_samples = range_samples(recipe, self.samples)
        pictures = {path for sample in self.samples for path in sample.images}
        self.sources = (*source_paths(recipe), *sources, *pictures)
        self.origin = Origin()
        self.rewrite: RewriteReport | None = None

    def from_original(
        self, profile: Profile | None, profile_file: Path, *, overwrite: bool
    ) -> Manifest:
        """Start from the recipe's model; calibrate unless a profile is given or none is needed.

        Args:
            profile: of an earlier calibration.
            profile_file: what errors call it.
            overwrite: replace what is at the output.
        """
        measure = profile is None and wants_calibration(self.recipe)
        measured_on: tuple[Sample, ...] = ()
        # What can be refused is refused before weights are loaded.
        asked = self._asked()
        if measure:
            measured_on = calibration_samples(self.recipe)
            asked.append(Asked(measured_on))
        elif self.recipe.export.dtype != "float16":
            why = (
                "no method chooses by it" if profile is None else f"{profile_file} is used instead"
            )
            note_unread_data(self.recipe, why, self.progress)
        staging.check_place(self.output, overwrite=overwrite, sources=self.sources)
        facts = check_recipe(
            self.recipe,
            profile,
            planned=not measure,
            asked=asked,
            building=True,
            progress=self.progress,
        )
        needs = self._needs(model_folder(self.recipe), facts.dtype, overwrite)
        staging.check_place(self.output, **needs)
        digest = check_digest(self.recipe, facts, profile, profile_file)
        model = load_model(self.recipe, self.progress, digest)
        self.origin = origin_of(self.recipe.model.id, model.folder)
        resume = staging.calibration_file(self.output)
        needs = self._needs(model.folder, model.facts.dtype, overwrite)
        with staging.staged(self.output, **needs) as folder:
            self.progress.say("comparing the rewritten model with the original")
            self.rewrite = check_rewrite(model, self.samples, measured_on)
            if measure:
                task = calibration_task(self.recipe, model.facts, model.digest)
                drop_foreign(resume, task)
                profile = run_calibration(model, self.recipe, task, resume, self.progress)
            plan = plan_recipe(self.recipe, model.facts, model.digest, profile)
            original = self._original_answers(model)
            # Handed over and not kept: the torch side ends before ONNX Runtime starts.
            gates = load_plan_gates(plan, self.recipe, model)
            models = [compress_for_export(model, plan, self.recipe, gates)]
            del model
            manifest = self._finish(models, profile, original, folder)
        resume.unlink(missing_ok=True)
        return manifest

    def _asked(self) -> list[Asked]:
        """What the artifact will be asked."""
        tokens = self.recipe.validation.max_new_tokens
        return [Asked(self.samples, tokens), Asked(self.range_samples)]

    def from_compressed(self, source: Path, *, overwrite: bool) -> Manifest:
        """Start from a folder that `compress` wrote."""
        from compressor.compressed import load_compressed, plain_of, read_processor

        plan = Plan.load(source / PLAN_FILE)
        self.sources += (source,)
        needs = self._needs(source, plan.model.dtype, overwrite)
        staging.check_place(self.output, **needs)
        check_targets(self.recipe, plan.model)
        check_fixed(self.recipe.export, plan.model, plan.gates.mode if plan.gates else None)
        limits = cache_limits(self.recipe.export, plan.model)
        if self.recipe.export.dtype != "float16":
            note_unread_data(self.recipe, f"{source} has its plan", self.progress)
        processor = read_processor(source, plan)
        check_prompts(processor, source, plan.model, self._asked(), limits, self.progress)
        self.origin = origin_of(self.recipe.model.id, source)
        profile_path = source / PROFILE_FILE
        profile = Profile.load(profile_path) if profile_path.is_file() else None
        digest = self._original_digest(plan, source) if self._wants_original() else None
        with staging.staged(self.output, **needs) as folder:
            original, models = None, []
            with rewrite_prompt(self.samples) as prompt:
                reading = None
                if digest is not None:
                    # At the image size that the folder was made for.
                    size = {"export.image_size": plan.model.image_size}
                    model = load_model(self.recipe.override(size), self.progress, digest)
                    self.origin = origin_of(self.recipe.model.id, model.folder)
                    original = self._original_answers(model)
                    reading = prompt.read(model)
                    del model
                self.progress.say(f"loading {source.name}")
                models.append(load_compressed(source, logits=self.recipe.export.logits))
                if reading is None:
                    self.progress.say(rewrite_words(None))
                else:
                    self.rewrite = prompt.compare(reading, plain_of(models[0]))
                    refuse(self.rewrite, source.name)
            return self._finish(models, profile, original, folder)

    def _wants_original(self) -> bool:
        """Whether an export from a folder loads the original as well: for its answers, or if it is here."""
        name = self.recipe.model.id
        return name is not None and bool(self.samples or is_folder(Path(name)))

    def _original_digest(self, plan: Plan, source: Path) -> str:
        """Return the digest of the recipe's model; refuse one that a folder was not made from."""
        name, digest = model_facts(self.recipe).name, model_digest(self.recipe)
        remedy = "give the model that the folder was made from"
        plan.check_belongs(name, digest, what=f"{source}: the plan", remedy=remedy)
        return digest

    def _needs(self, source: Path, source_dtype: str, overwrite: bool) -> dict[str, Any]:
        """Return what the place of the artifact must allow; see `staging.staged`."""
        weights = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        needed = weights * BYTES[self.recipe.export.dtype] // BYTES[source_dtype]
        keep = self.recipe.validation.keep_pictures == "all"
        pictures = {path for sample in self.samples if keep for path in sample.images}
        # Engines hold the weights too.
        needed *= 1 + len(engine_targets(self.recipe))
        needed += sum(path.stat().st_size for path in pictures) + SMALL_FILES_BYTES
        return {"overwrite": overwrite, "needed_bytes": needed, "sources": self.sources}

    def _original_answers(self, model: "LoadedModel") -> Answers | None:
        if not self.samples:
            return None
        from export.checks.original import measure_original

        tokens = self.recipe.validation.max_new_tokens
        return measure_original(model, self.samples, tokens, self.progress)

    def _finish(
        self,
        models: "list[CompressedModel]",
        profile: Profile | None,
        original: Answers | None,
        folder: Path,
    ) -> Manifest:
        written = self._torch_side(models.pop(), profile, original, folder)
        # Exported programs are cycles that hold the weights; without this they stay through the checks.
        gc.collect()
        manifest = self._onnx_side(written, folder)
        if not build_targets(folder, self.recipe, self.progress):
            return manifest
        # The ladder of checks now reaches further.
        write_reports(folder, manifest, self.origin)
        fields = {name: value for name, value in manifest if name != "files"}
        return artifacts.write_manifest(folder, **fields)

    def _torch_side(
        self,
        small: "CompressedModel",
        profile: Profile | None,
        original: Answers | None,
        folder: Path,
    ) -> Written:
        from compressor.families.registry import picture_steps

        write_inputs(folder, self.recipe, small.plan, profile)
        small.processor.save_pretrained(folder)
        write_keys(folder, small.generation)
        self.progress.say("running the compressed model in torch")
        reference = record_torch(small, cache_limits(self.recipe.export, small.plan.model))
        graphs = self._write_graphs(small, folder)
        token, steps = small.processor.image_token, picture_steps(small.processor, small.plan.model)
        return Written(small.plan, graphs, reference, original, token, steps)

    def _write_graphs(self, small: "CompressedModel", folder: Path) -> tuple[GraphSpec, ...]:
        import torch

        from compressor.compressed import naive_decoder
        from compressor.decoder.weights import joined_parts
        from export.writer.weights import SharedWeights
        from export.writer.write import export_decoder, export_embed, export_vision, save_graph

        settings, plan = self.recipe.export, small.plan
        dtype, logits = settings.dtype, settings.logits
        limits = cache_limits(settings, plan.model)
        small = small.to(getattr(torch, dtype))
        specs = (
            vision_graph(plan.model, dtype),
            embed_graph(plan.model, dtype),
            *decoder_graphs(plan, dtype, logits, limits),
            decoder_graph(plan.naive(), dtype, logits, name="baseline_decoder", limits=limits),
        )
        makers = (
            lambda spec: export_vision(small, spec, settings),
            lambda spec: export_embed(small, spec, settings),
            *decoder_makers(small.decoder, plan, settings),
            lambda spec: export_decoder(
                naive_decoder(small), spec, joined_parts(small.decoder), settings
            ),
        )
        with SharedWeights(folder) as weights:
            pairs = list(zip(specs, makers, strict=True))
            for spec, make in self.progress.track(pairs, "exporting graphs", len(pairs)):
                save_graph(make(spec), folder / spec.file, weights)
        return specs

    def _onnx_side(self, written: Written, folder: Path) -> Manifest:
        from export.writer.passes.order import pass_words

        recipe, plan, graphs = self.recipe, written.plan, written.graphs
        if recipe.export.dtype == "float16":
            self.progress.say("looking for values that float16 cannot hold")
        ranges = keep_wide_nodes(
            recipe,
            self.range_samples,
            folder,
            graphs,
            plan,
            written.image_token,
            written.picture_steps,
        )
        checker = check_graphs(folder, graphs)
        # A method of its own: its session is gone before timing loads both decoders.
        first, second = self._both_checks(written, folder)
        missing = missing_kernels(folder, graphs) if recipe.export.dtype == "bfloat16" else ()
        timed = self.rounds and recipe.export.dtype != "bfloat16"
        fields: dict[str, Any] = {
            "tools": tool_versions(plan.model),
            "model": plan.model,
            "model_digest": plan.model_digest,
            "image_token": written.image_token,
            "picture_steps": written.picture_steps,
            "dtype": recipe.export.dtype,
            "logits": recipe.export.logits,
            "graphs": graphs,
            "predicted": predicted(
                plan, recipe.export.dtype, cache_limits(recipe.export, plan.model)
            ),
            "checker": checker,
            "fidelity": first,
            "loss": second,
            "rewrite": self.rewrite,
            "ranges": ranges,
            "missing_kernels": missing,
            "passes": pass_words(graphs, recipe.export),
            "measured": self._times(folder, graphs, plan) if timed else None,
            "memory": self._footprint(folder, graphs, plan) if timed else None,
            "peak_memory_bytes": artifacts.peak_memory_bytes(),
        }
        write_reports(folder, Manifest(files={}, **fields), self.origin)
        return artifacts.write_manifest(folder, **fields)

    def _both_checks(
        self, written: Written, folder: Path
    ) -> tuple[FidelityReport, LossReport | None]:
        recipe, plan, original = self.recipe, written.plan, written.original
        self.progress.say("checking export fidelity")
        session = open_for_checks(folder, written.graphs, recipe.export.dtype)
        first = check_fidelity(session, written.graphs, plan, written.reference, recipe)
        if original is None:
            return first, None
        runtime = Runtime.on_session(
            session, folder, plan.model, written.image_token, written.picture_steps
        )
        found = loss.measure(runtime, self.samples, original.max_new_tokens, self.progress)
        self._store(folder, original, found)
        limits, name = loss_limits(recipe), validation_name(recipe)
        return first, loss.compare(self.samples, original, found, limits, name)

    def _store(self, folder: Path, original: Answers, found: Answers) -> None:
        """Write samples and answers, and pictures as far as the recipe keeps them."""
        pairs = zip(self.samples, original.answers, found.answers, strict=True)
        shown = chosen_places([question_of(*row) for row in pairs])
        keep = self.recipe.validation.keep_pictures
        stored.store_original(folder, self.samples, original, keep, shown)
        stored.write_answers(folder / stored.COMPRESSED_FILE, found)

    def _times(self, folder: Path, graphs: Sequence[GraphSpec], plan: Plan) -> BenchReport | None:
        limits, text = cache_limits(self.recipe.export, plan.model), plan.workload.text
        if limits is not None:  # the prompt and a decode step must fit
            text = min(text, limits.max_context - plan.model.image_rows - 1)
        if text < 1:
            self.progress.say(
                "times are not in the report: no room for a decode step in max_context"
            )
            return None
        return timing.bench(
            folder,
            graphs,
            plan.model,
            text=text,
            rounds=self.rounds,
            threads=self.threads,
            progress=self.progress,
        )

    def _footprint(self, folder: Path, graphs: Sequence[GraphSpec], plan: Plan) -> Footprint | None:
        self.progress.say("measuring memory")
        try:
            return memory.measure(folder, graphs, plan.model)
        except VtcompressError as failure:  # a figure less is no reason to lose the artifact
            self.progress.say(f"memory is not in the report: {failure}")
            return None


def decoder_makers(
    decoder: "Decoder", plan: Plan, settings: ExportSection | None = None
) -> list[Callable[[GraphSpec], Any]]:
    """Return what exports each of the plan's decoder graphs, in order; without settings by the defaults."""
    from compressor.decoder import Stage
    from export.writer.write import export_decoder

    export = partial(export_decoder, settings=settings or ExportSection())
    if plan.gates is None or plan.gates.mode == "dynamic":
        return [partial(export, decoder)]
    stages = [Stage(decoder, number).eval() for number in range(len(plan.segments()))]
    return [partial(export, stage) for stage in stages]


def predicted(plan: Plan, dtype: str, limits: Limits | None = None) -> Predicted:
    """Return the figures that a plan predicts for its workload; `limits` are those of fixed caches."""
    buffers = {}
    if limits is not None:
        size = BYTES[dtype]
        buffers["kv_buffer_bytes_original"] = buffer_bytes(plan.naive(), limits, size)
        buffers["kv_buffer_bytes"] = buffer_bytes(plan, limits, size)
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
        **buffers,
    )


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
