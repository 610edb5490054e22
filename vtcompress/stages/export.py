"""One run of `export`: the order in which models come and go, so that no two are in memory together."""

import gc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.disk.files import is_folder
from compressor.disk.mistaken import mistaken
from compressor.errors import ArtifactError, RecipeError, VtcompressError
from compressor.facts import ModelFacts
from compressor.plan.plan import Plan
from compressor.planner import plan_recipe
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.schema.arguments import check_above_zero, check_threads, check_whole
from compressor.schema.sections import ImageSection
from export.artifact import staging
from export.artifact.artifact import PLAN_FILE, PROFILE_FILE, RECIPE_FILE, write_manifest
from export.artifact.manifest import Manifest
from export.backends.torch_device import ON_CPU, check_device, whole_float32
from export.checks.rewrite import refuse
from export.graphs.limits import check_fixed
from export.report.pages.model_card import Origin
from export.results.answers import Answers
from export.results.loss_report import LossReport
from export.results.rewrite import RewriteReport, rewrite_words
from vtcompress.console import shown
from vtcompress.shipped import PathLike
from vtcompress.stages.build import build_targets, check_targets
from vtcompress.stages.calibrate import (
    calibration_task,
    drop_foreign,
    run_calibration,
    wants_calibration,
)
from vtcompress.stages.checks.forecast import (
    Forecast,
    check_memory,
    forecast,
    numbers_in,
    smaller,
)
from vtcompress.stages.checks.forecast_time import LEAST_COPIED, MachinePace, time_forecast
from vtcompress.stages.checks.prompts import Asked, check_prompts
from vtcompress.stages.checks.recipe import (
    check_blocks,
    check_digest,
    check_made_by,
    check_plan,
    check_recipe,
    digest_of_plan,
    note_changed,
)
from vtcompress.stages.checks.rewrite import check_rewrite, rewrite_prompt
from vtcompress.stages.checks.score import checked_score
from vtcompress.stages.compress import (
    compress_for_export,
    load_plan_gates,
    load_weights_in_front,
    refuse_healed,
)
from vtcompress.stages.exporting.from_folder import note_without_effect
from vtcompress.stages.exporting.healed_here import healed_here
from vtcompress.stages.exporting.job import Job
from vtcompress.stages.exporting.loss_by_layer import measure_loss
from vtcompress.stages.exporting.onnx_side import Fields, onnx_side
from vtcompress.stages.exporting.streaming import check_stream, not_run
from vtcompress.stages.exporting.torch_side import torch_side
from vtcompress.stages.float16 import range_samples
from vtcompress.stages.healing.course import HealCourse
from vtcompress.stages.inputs import (
    calibration_samples,
    check_streamed,
    load_model,
    model_digest,
    model_facts,
    model_folder,
    note_in_vain,
    note_no_validation,
    note_unread_data,
    on_cpu,
    open_plan,
    open_profile,
    read_files,
    require_compress,
    require_recipe,
    require_runtime,
    source_paths,
    validation_samples,
    warn_unjudged,
)
from vtcompress.stages.report import origin_of, write_reports
from vtcompress.stages.searching.finding import SearchRun, kept_while
from vtcompress.stages.searching.report import chosen_words

if TYPE_CHECKING:
    from compressor.compressed import CompressedModel
    from compressor.families import LoadedModel
    from compressor.samples.questions import Sample

ROUNDS = 15


class ExportRun:
    """Writes one artifact.

    Args:
        job: the export's recipe, data and settings.
        output: the artifact's folder.
        overwrite: replace what is there.
        sources: files and folders that the run reads, beside those that the recipe names.
        budget: seconds for a search of the plan; None: as long as it takes.

    Raises:
        VtcompressError: the recipe asks for a healing, and its questions or methods do not allow one.
    """

    def __init__(
        self,
        job: Job,
        output: Path,
        *,
        overwrite: bool,
        sources: Sequence[Path],
        budget: float | None = None,
    ) -> None:
        self.job, self.recipe, self.progress = job, job.recipe, job.progress
        self.output, self.overwrite, self.budget = output, overwrite, budget
        pictures = {path for sample in job.samples for path in sample.images}
        self.sources = (*source_paths(self.recipe), *sources, *pictures)
        self.healing = HealCourse.in_the_run(self.recipe)
        if self.healing is not None:
            pictures = {path for sample in self.healing.samples for path in sample.images}
            self.sources = (*self.sources, *pictures)
        self.origin = Origin()
        self.rewrite: RewriteReport | None = None

    def from_recipe(self, profile: Profile | None, profile_file: Path) -> Manifest:
        """Start from the recipe's model; calibrate unless a profile is given or none is needed.

        Args:
            profile: an earlier calibration's; None: there is none.
            profile_file: the profile's name in errors.
        """
        if self.recipe.searched is not None:
            return self._from_search(profile)
        measure = profile is None and wants_calibration(self.recipe)
        measured_on: tuple[Sample, ...] = ()
        # What can be refused is refused before weights are loaded.
        asked = self._asked()
        if measure:
            measured_on = calibration_samples(self.recipe)
            asked.append(Asked(measured_on))
        elif profile is None:
            self._note_unread_data("no method chooses by it")
        else:
            self._note_unread_data(f"{profile_file} is used instead")
        self._check_place()
        facts = check_recipe(
            self.recipe,
            profile,
            planned=not measure,
            asked=asked,
            building=True,
            progress=self.progress,
        )
        self._check_room(model_folder(self.recipe), facts)
        digest = check_digest(self.recipe, facts, profile, profile_file)
        resume = staging.calibration_file(self.output)

        def chosen(model: "LoadedModel") -> tuple[Plan, Profile | None]:
            measured = profile
            if measure:
                task = calibration_task(self.recipe, model.facts, model.digest)
                drop_foreign(resume, task)
                measured = run_calibration(model, self.recipe, task, resume, self.progress)
            return plan_recipe(self.recipe, model.facts, model.digest, measured), measured

        manifest = self._from_original(digest, measured_on, chosen)
        resume.unlink(missing_ok=True)
        return manifest

    def _from_search(self, given: Profile | None) -> Manifest:
        """Start from the recipe's model, and search for the plan."""
        if given is not None:
            problem = "profile: a search measures what it needs itself; leave the profile out"
            raise RecipeError([problem])
        search = SearchRun.of(self.recipe, self.budget)
        tokens = self.recipe.validation.max_new_tokens
        prompts = [*self._asked(), Asked(search.samples, tokens, forced=True)]
        self._check_place()
        facts = check_recipe(self.recipe, asked=prompts, building=True, progress=self.progress)
        search.check(facts)
        self._check_room(model_folder(self.recipe), facts)
        digest = check_digest(self.recipe, facts)
        kept = staging.search_folder(self.output)

        def chosen(model: "LoadedModel") -> tuple[Plan, Profile | None]:
            report, plans, profile = search.run(model, kept, self.progress)
            self.progress.say(chosen_words(report))
            for words in report.not_tried:
                self.progress.say(f"not tried: {words}")
            return plans[report.chosen], profile

        with kept_while(kept):
            return self._from_original(digest, search.samples, chosen)

    def from_plan(
        self, plan: Plan, what: str, profile: Profile | None, profile_file: Path
    ) -> Manifest:
        """Start from the recipe's model and a plan that was made already; nothing is measured.

        Args:
            plan: a plan for the recipe's model.
            what: the plan's name in errors.
            profile: what the plan was chosen by, for the reports; None: not given.
            profile_file: the profile's name in errors.
        """
        self._note_unread_data("the plan is made already")
        self._check_place()
        facts = check_plan(self.recipe, plan, profile, what, self._asked(), self.progress)
        self._check_room(model_folder(self.recipe), facts)
        digest = digest_of_plan(plan, self.recipe, facts, what=what)
        if profile is not None:
            profile.check_belongs(profile_file, model_digest=digest)
        return self._from_original(digest, (), lambda _: (plan, profile))

    def _from_original(
        self,
        digest: str,
        measured_on: "tuple[Sample, ...]",
        chosen: "Callable[[LoadedModel], tuple[Plan, Profile | None]]",
    ) -> Manifest:
        """Load the recipe's model, and write the artifact of the plan that is chosen for it.

        Args:
            digest: the model's digest.
            measured_on: calibration data that has been read.
            chosen: gives the plan, and the profile that it was chosen by.
        """
        warn_unjudged(self.recipe, self.progress)
        peaks = self.job.peaks
        with peaks.of("loading"):
            model = self._load(self.recipe, digest)
        self.origin = origin_of(self.recipe.model.id, model.folder)
        with staging.staged(self.output, **self._needs(model.folder, model.facts)) as folder:
            if self.job.stream:
                self.progress.say(not_run(self.recipe))
            else:
                self.progress.say("comparing the rewritten model with the original")
                with peaks.of("comparing the rewrite"):
                    self.rewrite = check_rewrite(model, self.job.samples, measured_on)
            with peaks.of("calibration and plan"):
                plan, profile = chosen(model)
            check_blocks(self.recipe.export, plan)
            original = self._original_answers(model)
            model = on_cpu(model)
            # Handed over and not kept: the torch side ends before ONNX Runtime starts.
            if self.healing is not None:
                checkpoint = staging.healing_file(self.output)
                self.job = healed_here(self.job, self.healing, model, plan, checkpoint, folder)
                self.recipe = self.job.recipe
            gates = load_plan_gates(plan, self.recipe, model)
            front = load_weights_in_front(plan, self.recipe)
            models = [compress_for_export(model, plan, self.recipe, gates, front)]
            lost = measure_loss(self.job, model, models[0], folder) if self.job.stream else None
            del gates, front, model
            manifest = self._finish(models, profile, original, folder, lost)
        staging.healing_file(self.output).unlink(missing_ok=True)
        return manifest

    def _asked(self) -> list[Asked]:
        """Return what the models will be asked."""
        tokens = self.recipe.validation.max_new_tokens
        asked = [Asked(self.job.samples, tokens), Asked(self.job.range_samples)]
        return asked if self.healing is None else [*asked, self.healing.asked]

    def _note_unread_data(self, why: str) -> None:
        # In float16 its prompts are run, if a model is there to run.
        if self.job.stream or self.recipe.export.dtype != "float16":
            note_unread_data(self.recipe, why, self.progress)

    def _check_place(self) -> None:
        """Refuse a place that the artifact cannot have."""
        staging.check_place(self.output, overwrite=self.overwrite, sources=self.sources)

    def _check_room(self, source: Path, facts: ModelFacts) -> None:
        """Say what disk, memory and time the export of a folder needs, and refuse what there is not."""
        staging.check_place(self.output, **self._needs(source, facts))
        needs, stream = self._forecast(source, facts), self.job.stream
        check_memory(needs, self.recipe, stream=stream, progress=self.progress)
        numbers = numbers_in(source, facts.dtype)
        pace = MachinePace.here(self.output if needs.disk > LEAST_COPIED else None)
        times = time_forecast(facts, numbers, needs.disk, pace, stream=stream)
        self.progress.say(times.words)

    def from_compressed(self, source: Path) -> Manifest:
        """Start from a folder that `compress` wrote."""
        from compressor.compressed import load_compressed, plain_of, read_compressed_processor

        refuse_healed(self.recipe, f"{source.name} holds the original's weights")
        if (problem := mistaken(source, "compressed")) is not None:
            raise ArtifactError([problem])
        plan = Plan.load(source / PLAN_FILE)
        self.sources += (source,)
        self._check_room(source, plan.model)
        profile_path, own = source / PROFILE_FILE, source / RECIPE_FILE
        profile = Profile.load(profile_path) if profile_path.is_file() else None
        remedy = f"give the folder's own recipe, {own}" if own.is_file() else "give that recipe"
        check_made_by(plan, self.recipe, profile, f"{source}: the plan", remedy)
        note_changed(plan, f"{source}: the plan", self.progress)
        check_targets(self.recipe, plan.model)
        check_blocks(self.recipe.export, plan)
        gates = plan.gates.mode if plan.gates else None
        check_fixed(self.recipe.export, plan.model, gates, plan.rows_kept)
        self._note_unread_data(f"{source} has its plan")
        original_too = self._wants_original()
        note_without_effect(self.job, source, plan.model.name, original_too=original_too)
        processor = read_compressed_processor(source, plan)
        limits = self.job.limits(plan)
        check_prompts(processor, source, plan.model, self._asked(), limits, self.progress)
        # Who does not load the original does not know whether it is the one that is named.
        of_hub = "/" in plan.model.name and self.recipe.model.id == plan.model.name
        self.origin = origin_of(plan.model.name if of_hub else None, source)
        digest = self._original_digest(plan, source) if self._wants_original() else None
        warn_unjudged(self.recipe, self.progress)
        with staging.staged(self.output, **self._needs(source, plan.model)) as folder:
            original, models = None, []
            with rewrite_prompt(self.job.samples) as prompt:
                reading = None
                if digest is not None:
                    # At the image size and within the budget that the folder was made for.
                    budget = plan.model.budget or ImageSection()
                    size = {
                        "export.image_size": None if plan.model.cell else plan.model.image_size,
                        "image": budget.model_dump(),
                    }
                    with self.job.peaks.of("loading"):
                        model = self._load(self.recipe.override(size), digest)
                    self.origin = origin_of(self.recipe.model.id, model.folder)
                    original = self._original_answers(model)
                    reading = prompt.read(model)
                    del model
                    gc.collect()  # hooks of a model on several devices are cycles that hold it
                self.progress.say(f"loading {source.name}")
                with self.job.peaks.of("loading"):
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
        return bool(self.job.samples) or (name is not None and is_folder(Path(name)))

    def _original_digest(self, plan: Plan, source: Path) -> str:
        """Return the digest of the recipe's model; refuse one that a folder was not made from."""
        name, digest = model_facts(self.recipe).name, model_digest(self.recipe)
        remedy = "give the model that the folder was made from"
        plan.check_belongs(name, digest, what=f"{source}: the plan", remedy=remedy)
        return digest

    def _needs(self, source: Path, facts: ModelFacts) -> dict[str, Any]:
        """Return what the place of the artifact must allow; see `staging.staged`."""
        return {
            "overwrite": self.overwrite,
            "needed_bytes": self._forecast(source, facts).disk,
            "remedy": smaller(self.recipe.export),
            "sources": self.sources,
        }

    def _forecast(self, source: Path, facts: ModelFacts) -> Forecast:
        stream, samples = self.job.stream, self.job.samples
        return forecast(self.recipe, source, facts, stream=stream, samples=samples)

    def _load(self, recipe: Recipe, digest: str) -> "LoadedModel":
        stream, device = self.job.stream, self.job.device
        # A search runs compressed models, on one device.
        several = self.recipe.searched is None
        return load_model(
            recipe, self.progress, digest, device=device, outline=stream, several=several
        )

    def _original_answers(self, model: "LoadedModel") -> Answers | None:
        if self.job.stream or not self.job.samples:
            return None
        from export.checks.original import measure_original

        tokens = self.recipe.validation.max_new_tokens
        with self.job.peaks.of("the original's answers"):
            return measure_original(model, self.job.samples, tokens, self.progress)

    def _finish(
        self,
        models: "list[CompressedModel]",
        profile: Profile | None,
        original: Answers | None,
        folder: Path,
        lost: LossReport | None = None,
    ) -> Manifest:
        written = torch_side(self.job, models.pop(), profile, original, folder)
        # Exported programs are cycles that hold the weights; without this they stay through the checks.
        gc.collect()
        fields = onnx_side(self.job, written, self.rewrite, lost, folder)
        manifest = self._write(folder, fields)
        if not build_targets(folder, self.recipe, self.progress):
            return manifest
        # The ladder of checks now reaches further.
        return self._write(folder, fields)

    def _write(self, folder: Path, fields: Fields) -> Manifest:
        write_reports(folder, Manifest(files={}, **fields), self.origin)
        return write_manifest(folder, **fields)


def export(
    recipe: Recipe,
    output: PathLike,
    *,
    profile: Profile | PathLike | None = None,
    plan: Plan | PathLike | None = None,
    compressed: PathLike | None = None,
    overwrite: bool = False,
    sources: Iterable[PathLike] = (),
    bench_rounds: int | None = None,
    threads: int = 1,
    stream: bool = False,
    budget: float | None = None,
    device: str = ON_CPU,
    progress: Progress | bool | None = None,
) -> Manifest:
    """Run all stages and write the artifact: calibrate, plan, compress, export, validate, time.

    Args:
        recipe: names the model and, where methods need it, calibration data.
        output: folder of the artifact; appears when complete.
        profile: an earlier calibration's profile or its file, instead of measuring; with a plan for the
            reports alone.
        plan: a plan for this model or its file, instead of planning: nothing is measured. Reports name the
            recipe's methods, so a plan by other methods is refused, and one that a recipe with other settings
            or another profile made; of a plan by hand they name no settings.
        compressed: start from the folder that `compress` wrote instead of the original. Compression loss
            then needs the recipe's model as well.
        overwrite: replace what this tool wrote at `output`; nothing else is ever replaced.
        sources: files that recipe, plan and profile were read from; no folder that holds one is replaced.
        bench_rounds: how often each call is timed; 0 for none; None: 15 times, and not at all with `stream`.
        threads: how many one operator has while timing, at most as many as there are processors.
        stream: copy weights one at a time, so that the model is never in memory. Both checks run by layer;
            what must run a whole model is not run: calibration, comparison with the original, times.
        budget: seconds for the search of a plan, where the recipe asks for one; None: as long as it takes.
        device: where the original runs, for calibration, search and its answers: `cpu`, a GPU as torch names
            it, or `auto`: a GPU that it fits, else several with layers that are left over in the CPU's
            memory, though not for a search, else the CPU; in float32. Graphs are made and checked on the CPU.
        progress: shows stages and loops; see the module.

    Returns:
        The manifest; `verdict` tells what became of both checks, `failures` which limits were missed.

    Raises:
        VtcompressError: input or environment; nothing is left half-written.
    """
    require_recipe(recipe)
    check_threads(threads)
    check_above_zero("budget", budget)
    check_device(device)
    if bench_rounds is not None:
        check_whole("bench_rounds", bench_rounds, 0)
    if stream:
        known = profile is not None or plan is not None
        check_stream(recipe, known=known, compressed=compressed, rounds=bench_rounds)
        check_streamed(device)
    bench_rounds = ROUNDS * (not stream) if bench_rounds is None else bench_rounds
    require_compress("export")
    require_runtime("checking the exported graphs")
    progress = shown(progress)
    note_no_validation(recipe, progress)
    if not bench_rounds and threads != 1:
        note_in_vain("threads", threads, "nothing is timed", progress)
    samples = validation_samples(recipe)
    # Read now: data that cannot be used is refused before anything runs.
    prompts = () if stream else range_samples(recipe, samples)
    score = checked_score(recipe, samples)
    job = Job(recipe, bench_rounds, threads, progress, samples, score, prompts, stream, device)
    read = read_files(sources, profile, plan)
    run = ExportRun(job, Path(output), overwrite=overwrite, sources=read, budget=budget)
    _note_budget(run, given=plan is not None or compressed is not None)
    with whole_float32(device):
        return _run(run, profile, plan, compressed)


def _run(
    run: ExportRun,
    profile: Profile | PathLike | None,
    plan: Plan | PathLike | None,
    compressed: PathLike | None,
) -> Manifest:
    if compressed is not None:
        for name, given in (("profile", profile), ("plan", plan)):
            if given is not None:
                raise VtcompressError(
                    f"{compressed}: holds plan and profile already, so another {name} is not read; "
                    "leave it out"
                )
        return run.from_compressed(Path(compressed))
    if plan is not None:
        return run.from_plan(*open_plan(plan), *open_profile(profile))
    return run.from_recipe(*open_profile(profile))


def _note_budget(run: ExportRun, *, given: bool) -> None:
    """Say that a time for a search has no effect where none is made."""
    if run.budget is not None and (given or run.recipe.searched is None):
        note_in_vain("budget", f"{run.budget:g} s", "no plan is searched", run.progress)
