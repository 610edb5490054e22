"""One run of `export`: the order in which models come and go, so that no two are in memory together."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.calibration.profile import Profile
from compressor.calibration.resume import Task
from compressor.cost import BYTES, predict, predicted_speedup
from compressor.dims import ModelFacts
from compressor.errors import ProfileError, RecipeError, VtcompressError
from compressor.generation import write_keys
from compressor.methods import DyVTE
from compressor.paths import is_folder
from compressor.plan import Plan
from compressor.planner import (
    check_methods,
    gate_candidates,
    gate_file,
    measures_needed,
    measures_of,
    plan_recipe,
)
from compressor.progress import SILENT, Progress
from compressor.recipe import Recipe, dump_recipe, fidelity_thresholds
from export import artifact as artifacts
from export import bench as timing
from export import memory, staging
from export.artifact import PLAN_FILE, PROFILE_FILE, RECIPE_FILE
from export.bfloat16 import ShadowSession, missing_kernels, open_for_checks
from export.graphs import GraphSpec, decoder_graph, decoder_graphs, embed_graph, vision_graph
from export.limits import Limits, buffer_bytes, cache_limits, check_fixed
from export.manifest import Manifest, Predicted, tool_versions
from export.model_card import Origin
from export.onnx_check import check_graphs
from export.parity import fidelity, loss, stored
from export.parity.loss_report import LossLimits, LossReport
from export.parity.rewrite import RewriteReport, refuse, rewrite_words
from export.questions import chosen_places, question_of
from export.runtime import Runtime
from export.sessions import OnnxSession
from export.targets import TARGETS
from vtcompress.engine_building import build_targets, check_targets
from vtcompress.float16 import keep_wide_nodes, range_samples
from vtcompress.inputs import (
    calibration_samples,
    load_model,
    model_digest,
    model_facts,
    model_folder,
    note_unread_data,
    source_paths,
    validation_samples,
)
from vtcompress.prompt_check import Asked, check_prompts, check_recipe_prompts
from vtcompress.reporting import origin_of, write_reports
from vtcompress.rewrite_check import check_rewrite, rewrite_prompt

if TYPE_CHECKING:
    from compressor.compressed import CompressedModel
    from compressor.decoder import Decoder
    from compressor.decoder.weights import LoadedGates
    from compressor.families import LoadedModel

# Graphs without weights, tokenizer, plots and small pictures take less.
SMALL_FILES_BYTES = 64 << 20

LOSS_KEYS, FIDELITY_KEYS = "validate.loss.", "validate.fidelity."


@dataclass(frozen=True)
class Written:
    """What the torch side leaves for the checks of the ONNX side.

    Attributes:
        plan: of the compressed model.
        graphs: that were written.
        reference: outputs of the compressed torch model.
        original: answers of the original model; None without validation data.
        image_token: text of the image token.
    """

    plan: Plan
    graphs: tuple[GraphSpec, ...]
    reference: fidelity.Recording
    original: loss.Answers | None
    image_token: str


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
        # What can be refused is refused before weights are loaded.
        asked = self._asked()
        if measure:
            asked.append(Asked(calibration_samples(self.recipe)))
        elif self.recipe.export.dtype != "float16":
            why = (
                "no method chooses by it" if profile is None else f"{profile_file} is used instead"
            )
            note_unread_data(self.recipe, why, self.progress)
        facts, source = model_facts(self.recipe), model_folder(self.recipe)
        staging.check_place(self.output, **self._needs(source, facts.dtype, overwrite))
        digest = check_recipe(
            self.recipe,
            (profile, profile_file),
            asked=asked,
            building=True,
            progress=self.progress,
        )
        model = load_model(self.recipe, self.progress, digest)
        self.origin = origin_of(self.recipe.model.id, model.folder)
        resume = staging.calibration_file(self.output)
        needs = self._needs(model.folder, model.facts.dtype, overwrite)
        with staging.staged(self.output, **needs) as folder:
            self.progress.say("comparing the rewritten model with the original")
            self.rewrite = check_rewrite(model, self.recipe, self.samples)
            if measure:
                drop_foreign(resume, calibration_task(self.recipe, model.facts, model.digest))
                profile = run_calibration(model, self.recipe, resume, self.progress)
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
        with staging.staged(self.output, **needs) as folder:
            original, models = None, []
            with rewrite_prompt(self.recipe, self.samples) as prompt:
                reading = None
                if self._wants_original():
                    # At the image size that the folder was made for.
                    size = {"export.image_size": plan.model.image_size}
                    model = load_model(self.recipe.override(size), self.progress)
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

    def _needs(self, source: Path, source_dtype: str, overwrite: bool) -> dict[str, Any]:
        """Return what the place of the artifact must allow; see `staging.staged`."""
        weights = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        needed = weights * BYTES[self.recipe.export.dtype] // BYTES[source_dtype]
        keep = self.recipe.validation.keep_pictures == "all"
        pictures = {path for sample in self.samples if keep for path in sample.images}
        # Engines hold the weights too.
        needed *= 1 + len(set(self.recipe.export.targets) & TARGETS.keys())
        needed += sum(path.stat().st_size for path in pictures) + SMALL_FILES_BYTES
        return {"overwrite": overwrite, "needed_bytes": needed, "sources": self.sources}

    def _original_answers(self, model: "LoadedModel") -> loss.Answers | None:
        if not self.samples:
            return None
        from export.parity.original import measure_original

        tokens = self.recipe.validation.max_new_tokens
        return measure_original(model, self.samples, tokens, self.progress)

    def _finish(
        self,
        models: "list[CompressedModel]",
        profile: Profile | None,
        original: loss.Answers | None,
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
        original: loss.Answers | None,
        folder: Path,
    ) -> Written:
        write_inputs(folder, self.recipe, small.plan, profile)
        small.processor.save_pretrained(folder)
        write_keys(folder, small.generation)
        self.progress.say("running the compressed model in torch")
        reference = record_torch(small, cache_limits(self.recipe.export, small.plan.model))
        graphs = self._write_graphs(small, folder)
        return Written(small.plan, graphs, reference, original, small.processor.image_token)

    def _write_graphs(self, small: "CompressedModel", folder: Path) -> tuple[GraphSpec, ...]:
        import torch

        from compressor.compressed import naive_decoder
        from compressor.decoder.weights import joined_parts
        from export.onnx_graph import export_decoder, export_embed, export_vision, save_graph
        from export.weights import SharedWeights

        dtype, logits = self.recipe.export.dtype, self.recipe.export.logits
        plan = small.plan
        limits = cache_limits(self.recipe.export, plan.model)
        small = small.to(getattr(torch, dtype))
        specs = (
            vision_graph(plan.model, dtype),
            embed_graph(plan.model, dtype),
            *decoder_graphs(plan, dtype, logits, limits),
            decoder_graph(plan.naive(), dtype, logits, name="baseline_decoder", limits=limits),
        )
        makers = (
            lambda spec: export_vision(small, spec),
            lambda spec: export_embed(small, spec),
            *decoder_makers(small.decoder, plan),
            lambda spec: export_decoder(
                naive_decoder(small), spec, joined_parts(small.decoder, plan)
            ),
        )
        with SharedWeights(folder) as weights:
            pairs = list(zip(specs, makers, strict=True))
            for spec, make in self.progress.track(pairs, "exporting graphs", len(pairs)):
                save_graph(make(spec), folder / spec.file, weights)
        return specs

    def _onnx_side(self, written: Written, folder: Path) -> Manifest:
        recipe, plan, graphs = self.recipe, written.plan, written.graphs
        if recipe.export.dtype == "float16":
            self.progress.say("looking for values that float16 cannot hold")
        ranges = keep_wide_nodes(
            recipe, self.range_samples, folder, graphs, plan, written.image_token
        )
        checker = check_graphs(folder, graphs)
        # A method of its own: its session is gone before timing loads both decoders.
        first, second = self._both_checks(written, folder)
        missing = missing_kernels(folder, graphs) if recipe.export.dtype == "bfloat16" else ()
        timed = self.rounds and recipe.export.dtype != "bfloat16"
        fields: dict[str, Any] = {
            "tools": tool_versions(),
            "model": plan.model,
            "model_digest": plan.model_digest,
            "image_token": written.image_token,
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
            "measured": self._times(folder, graphs, plan) if timed else None,
            "memory": self._footprint(folder, graphs, plan) if timed else None,
            "peak_memory_bytes": artifacts.peak_memory_bytes(),
        }
        write_reports(folder, Manifest(files={}, **fields), self.origin)
        return artifacts.write_manifest(folder, **fields)

    def _both_checks(
        self, written: Written, folder: Path
    ) -> tuple[fidelity.FidelityReport, LossReport | None]:
        recipe, plan, original = self.recipe, written.plan, written.original
        self.progress.say("checking export fidelity")
        session = open_for_checks(folder, written.graphs, recipe.export.dtype)
        first = check_fidelity(session, written.graphs, plan, written.reference, recipe)
        if original is None:
            return first, None
        runtime = Runtime.on_session(session, folder, plan.model, written.image_token)
        found = loss.measure(runtime, self.samples, original.max_new_tokens, self.progress)
        self._store(folder, original, found)
        limits, name = loss_limits(recipe), validation_name(recipe)
        return first, loss.compare(self.samples, original, found, limits, name)

    def _store(self, folder: Path, original: loss.Answers, found: loss.Answers) -> None:
        """Write samples and answers, and pictures as far as the recipe keeps them."""
        pairs = zip(self.samples, original.answers, found.answers, strict=True)
        shown = chosen_places([question_of(*row) for row in pairs])
        keep = self.recipe.validation.keep_pictures
        stored.store_original(folder, self.samples, original, keep, shown)
        stored.write_answers(folder / stored.COMPRESSED_FILE, found)

    def _times(
        self, folder: Path, graphs: Sequence[GraphSpec], plan: Plan
    ) -> timing.BenchReport | None:
        limits, text = cache_limits(self.recipe.export, plan.model), plan.workload.text
        if limits is not None:  # the prompt and a decode step must fit
            text = min(text, limits.max_context - plan.model.visual_tokens - 1)
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

    def _footprint(
        self, folder: Path, graphs: Sequence[GraphSpec], plan: Plan
    ) -> memory.Footprint | None:
        self.progress.say("measuring memory")
        try:
            return memory.measure(folder, graphs, plan.model)
        except VtcompressError as failure:  # a figure less is no reason to lose the artifact
            self.progress.say(f"memory is not in the report: {failure}")
            return None


def decoder_makers(decoder: "Decoder", plan: Plan) -> list[Callable[[GraphSpec], Any]]:
    """Return what exports each of the plan's decoder graphs, in order."""
    from compressor.decoder import Stage
    from export.onnx_graph import export_decoder

    if plan.gates is None or plan.gates.mode == "dynamic":
        return [lambda spec: export_decoder(decoder, spec)]
    stages = [Stage(decoder, number).eval() for number in range(len(plan.segments()))]
    return [partial(export_decoder, stage) for stage in stages]


def compress_for_export(
    model: "LoadedModel", plan: Plan, recipe: Recipe, gates: "LoadedGates | None" = None
) -> "CompressedModel":
    """Apply a plan to a loaded model, with the logits that the recipe asks for."""
    from compressor.compressed import compress

    return compress(model, plan, logits=recipe.export.logits, gates=gates)


def load_plan_gates(plan: Plan, recipe: Recipe, model: "LoadedModel") -> "LoadedGates | None":
    """Load the gates of the recipe that a plan asks for; None if it has no gates.

    Raises:
        GatesError: the recipe names none, or they do not fit the model.
    """
    from compressor.decoder.weights import load_gates

    if plan.gates is None:
        return None
    method = recipe.dyvte or DyVTE()
    return load_gates(gate_file(method, model.facts, model.digest), plan.gates.candidates)


def calibration_task(recipe: Recipe, facts: ModelFacts, model_digest: str) -> Task:
    """Return what a calibration of the recipe's data measures; loads no weights."""
    dyvte = recipe.dyvte
    return Task(
        model=facts.name,
        model_digest=model_digest,
        layers=facts.decoder.layers,
        data=recipe.calibrate.data.name if recipe.calibrate.data else "",
        samples=calibration_samples(recipe),
        measures=measures_of(recipe.methods),
        gate_layers=gate_candidates(dyvte, facts.decoder.layers) if dyvte else (),
        gates_digest=gate_file(dyvte, facts, model_digest).digest if dyvte else "",
    )


def drop_foreign(path: Path, task: Task) -> None:
    """Remove a calibration that was left by a run on another model or other data."""
    try:
        task.go_on(path)
    except ProfileError:
        path.unlink()


def run_calibration(
    model: "LoadedModel", recipe: Recipe, path: Path, progress: Progress, *, anew: bool = False
) -> Profile:
    """Calibrate a loaded model on the recipe's data; the profile grows at `path`.

    Args:
        model: the original.
        recipe: names the data.
        path: of the profile, which is continued.
        progress: shows the samples.
        anew: replace the profile instead.
    """
    from compressor.calibration.run import Asked, ask_gates_again, calibrate
    from compressor.decoder.weights import load_gates

    name = recipe.calibrate.data.name if recipe.calibrate.data else ""
    samples = calibration_samples(recipe)
    gates = None
    if recipe.dyvte is not None:
        candidates = gate_candidates(recipe.dyvte, model.facts.decoder.layers)
        gates = load_gates(gate_file(recipe.dyvte, model.facts, model.digest), candidates)
    asked = Asked(measures_of(recipe.methods), gates)
    profile = calibrate(
        model, samples, path, data_name=name, asked=asked, anew=anew, progress=progress
    )
    if gates is None:
        return profile
    # Only now is known what the gates will read: the states that the other methods leave.
    chosen = plan_recipe(recipe, model.facts, model.digest, profile)
    if chosen.gates is not None and chosen.gates_see() != profile.gates_under:
        profile = ask_gates_again(model, samples, profile, chosen, gates, progress)
        profile.save(path)
    return profile


def draw(profile: Profile, plan: Plan, base: Path) -> None:
    """Draw a profile as PNG and SVG, with the layers marked that a method chose."""
    from compressor.calibration.plot import draw_profile

    draw_profile(profile, plan, base)


def write_inputs(folder: Path, recipe: Recipe, plan: Plan, profile: Profile | None) -> None:
    """Write what a result was made from: recipe, plan, and profile with its plots."""
    (folder / RECIPE_FILE).write_text(dump_recipe(recipe, portable=True), encoding="utf-8")
    plan.save(folder / PLAN_FILE)
    if profile is not None:
        profile.save(folder / PROFILE_FILE)
        draw(profile, plan, folder / "profile")


def record_torch(small: "CompressedModel", limits: Limits | None = None) -> fidelity.Recording:
    """Run the fidelity check's calls on a compressed torch model, those that fit the limits."""
    from export.torch_session import TorchSession

    return fidelity.record(
        TorchSession(small), small.plan, room=limits.max_context if limits else None
    )


def check_fidelity(
    session: OnnxSession | ShadowSession,
    graphs: Sequence[GraphSpec],
    plan: Plan,
    reference: fidelity.Recording,
    recipe: Recipe,
) -> fidelity.FidelityReport:
    """Compare the graphs with what the compressed torch model gave."""
    wanted = fidelity_thresholds(recipe)
    declared = []
    for spec in graphs:
        declared += fidelity.check_declared(spec, *session.declared(spec))
    limits = fidelity.Limits(
        max_abs=wanted.max_abs, max_relative=wanted.max_relative, min_cosine=wanted.min_cosine
    )
    caches = cache_limits(recipe.export, plan.model)
    found = fidelity.record(session, plan, room=caches.max_context if caches else None)
    return fidelity.compare(reference, found, graphs, declared, limits)


def loss_limits(recipe: Recipe) -> LossLimits:
    """Return the recipe's limits of compression loss."""
    return LossLimits(**recipe.validation.loss.model_dump())


def with_limits(recipe: Recipe, limits: Mapping[str, Any], *, anew: bool) -> Recipe:
    """Return an artifact's recipe with other limits.

    Args:
        recipe: of the artifact.
        limits: by dotted key.
        anew: export fidelity is measured again, so that its limits mean something.

    Raises:
        RecipeError: keys that are no limits, or have nothing to judge; all of them.
    """
    problems = [
        f"command line: {key}: is no limit, and the artifact was exported already; only keys of "
        f"{LOSS_KEYS}* and {FIDELITY_KEYS}* can be set"
        for key in limits
        if not key.startswith((LOSS_KEYS, FIDELITY_KEYS))
    ]
    problems += [
        f"command line: {key}: export fidelity is not measured anew; add --model ORIGINAL or --backend"
        for key in limits
        if key.startswith(FIDELITY_KEYS) and not anew
    ]
    if problems:
        raise RecipeError(problems)
    return recipe.override(limits)


def validation_name(recipe: Recipe) -> str:
    """Return the name of the recipe's validation data, without folders."""
    return recipe.validation.data.name if recipe.validation.data else ""


def wants_calibration(recipe: Recipe) -> bool:
    """Whether methods choose by calibration, or gates can be counted on data that is given."""
    counted = recipe.dyvte is not None and recipe.calibrate.data is not None
    return counted or bool(measures_needed(recipe.methods))


def check_recipe(
    recipe: Recipe,
    profile: tuple[Profile | None, Path] = (None, Path(PROFILE_FILE)),
    *,
    asked: Sequence[Asked] = (),
    building: bool = False,
    progress: Progress = SILENT,
) -> str:
    """Refuse what the model's files alone rule out, without loading weights; return the model's digest.

    Args:
        recipe: what will be done.
        profile: of an earlier calibration, and what errors call it.
        asked: questions that will be asked.
        building: engines that the recipe asks for will be built.
        progress: is told what need not stop the run.

    Raises:
        VtcompressError: no such model, a processor or questions that cannot be used, layers that it does not
            have, gates or a profile of another model, engines that cannot be built.
    """
    facts, dyvte = model_facts(recipe), recipe.dyvte
    # All that small files tell comes first: for the digest every weight file is read.
    gates = check_methods(facts, recipe.methods)
    check_fixed(recipe.export, facts, dyvte.exit if dyvte else None)
    if building:
        check_targets(recipe, facts)
    check_recipe_prompts(recipe, asked, progress)
    digest = model_digest(recipe)
    measured, name = profile
    if measured is not None:
        measured.check_belongs(name, model_digest=digest)
    if dyvte is not None and gates is not None:
        gates.check(facts, digest, gate_candidates(dyvte, facts.decoder.layers))
    return digest


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
