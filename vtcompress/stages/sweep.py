"""The stage that compares several plans of one model: one calibration, one original, one table and plot."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.calibration.resume import Task
from compressor.disk.files import write_text
from compressor.errors import RecipeError
from compressor.plan.cost import BYTES
from compressor.plan.plan import Plan, Workload
from compressor.planner import measures_of, plan_recipe
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import Recipe, dump_recipe
from compressor.samples.questions import Sample, data_digest
from compressor.schema.arguments import check_threads, check_whole
from export.artifact import staging
from export.artifact.artifact import PROFILE_FILE, list_files
from export.artifact.contents import SWEEP_FILE
from export.artifact.manifest import tool_versions
from export.backends.torch_device import ON_CPU, check_device, whole_float32
from export.checks import loss
from export.checks.bench import processor_name
from export.report.render.html import html
from export.report.render.markdown import markdown
from export.report.sweep.page import (
    CHART_FILE,
    PAGE_FILE,
    TEXT_FILE,
    point_words,
    sweep_chart,
    sweep_document,
)
from export.report.text.svg import standalone
from export.report.words.exits import leaves_of
from export.results.answers import Answers, scored
from export.results.loss_report import LossReport
from export.results.sweep import SweepPoint, SweepReport
from export.runtime.runtime import Runtime
from vtcompress.console import shown
from vtcompress.shipped import PathLike
from vtcompress.stages.calibrate import drop_foreign, wants_calibration
from vtcompress.stages.checks.prompts import Asked, check_recipe_prompts
from vtcompress.stages.checks.recipe import check_digest, note_changed
from vtcompress.stages.checks.rewrite import check_rewrite
from vtcompress.stages.checks.score import checked_score
from vtcompress.stages.compress import compress_for_export, load_weights_in_front
from vtcompress.stages.inputs import (
    calibration_samples,
    check_not_learned,
    load_model,
    model_facts,
    model_folder,
    note_in_vain,
    note_unread_data,
    on_cpu,
    refuse_searched,
    require_compress,
    require_runtime,
    source_paths,
    validation_samples,
)
from vtcompress.stages.plan import predicted
from vtcompress.stages.sweeping.findings import Findings, digest_of
from vtcompress.stages.sweeping.given import check_given, given_points, workload_of
from vtcompress.stages.sweeping.points import (
    Over,
    Point,
    baselines_of,
    named,
    one_gated,
    points_of,
    with_plans,
)
from vtcompress.stages.sweeping.timing import timer
from vtcompress.stages.validate import loss_limits, validation_name

if TYPE_CHECKING:
    from compressor.compressed import CompressedModel
    from compressor.decoder.weights import LoadedGates
    from compressor.facts import ModelFacts
    from compressor.families import LoadedModel

Recipes = Recipe | list[Recipe] | tuple[Recipe, ...]

PLANS, RECIPES = "plans", "recipes"
# Tables, plans and a plot take less.
SMALL_FILES_BYTES = 16 << 20


def list_points(
    recipes: Recipes,
    over: Over | None = None,
    *,
    plans: Iterable[PathLike] = (),
    baselines: bool = True,
) -> tuple[Point, ...]:
    """Return the points of a sweep, baselines last; reads the model's small files, and does nothing.

    Plans are made as far as they can be without a calibration; baselines of the others follow from theirs.
    Their predicted figures may be of another prompt than a sweep's, which is the calibration's.

    Args:
        recipes: of one model and data; each is a point, or several.
        over: values by dotted key of `compress`; a key concerns the recipes that have its method, and several
            make the product.
        plans: files that a search wrote, each a point that comes first; one recipe is the search's.
        baselines: add those of `Method.baseline` to points that keep some of the visual rows.

    Raises:
        VtcompressError: keys or values that are not allowed, methods that do not fit the model; all of them.
    """
    require_compress("a sweep")
    every = recipes if isinstance(recipes, list | tuple) else (recipes,)
    ruled, given = given_points(every, plans)
    for one in ruled:
        refuse_searched(one, "a sweep makes its plans by rules")
    points = points_of(ruled, over or {}, given)
    facts = model_facts(points[0].recipe)
    for point in given:
        check_given(point, facts, "")
    made = with_plans(points, facts, "", None)
    beside = baselines_of(made, facts) if baselines else ()
    return named((*made, *with_plans(beside, facts, "", None)))


def sweep(
    recipes: Recipes,
    output: PathLike,
    *,
    over: Over | None = None,
    plans: Iterable[PathLike] = (),
    baselines: bool = True,
    measure: bool = True,
    rounds: int = 15,
    threads: int = 1,
    device: str = ON_CPU,
    overwrite: bool = False,
    sources: Iterable[PathLike] = (),
    progress: Progress | bool | None = None,
) -> SweepReport:
    """Compare plans of one model, and write table, plot and the plans.

    Calibration and the original's answers are made once. Answers are those of the compressed torch models;
    times those of graphs in ONNX Runtime, in float32, beside the original's in turns. A sweep that was
    stopped goes on with what it found, as far as that rests on the same inputs.

    Args:
        recipes: see `list_points`.
        output: folder to write; appears when complete.
        over: see `list_points`.
        plans: see `list_points`.
        baselines: see `list_points`.
        measure: export each point's graphs and time them; else only times that a stopped run took are told.
        rounds: how often each call is timed.
        threads: how many one operator has while timing.
        device: where original and compressed models run in torch: `cpu`, a GPU as torch names it, or `auto`:
            a GPU that the original fits, else the CPU; in float32. Graphs are timed on the CPU.
        overwrite: replace what this tool wrote at `output`.
        sources: files that recipes were read from; no folder that holds one is replaced.
        progress: shows stages and loops, and the time left.

    Raises:
        VtcompressError: input or environment; nothing is left half-written.
    """
    check_threads(threads)
    check_whole("rounds", rounds, 1)
    check_device(device)
    if measure:
        require_runtime("timing the points of a sweep")
    progress, output = shown(progress), Path(output)
    plans = tuple(plans)
    points = list_points(recipes, over, plans=plans, baselines=baselines)
    run = _Run(points, output, baselines=baselines, device=device, progress=progress)
    if not measure and (rounds, threads) != (15, 1):
        note_in_vain("rounds and threads", f"{rounds}, {threads}", "nothing is timed", progress)
    needs: dict[str, Any] = {
        "overwrite": overwrite,
        "sources": (*run.sources, *map(Path, (*sources, *plans))),
    }
    staging.check_place(output, **needs)
    digest = run.check()
    if measure:
        folder = model_folder(run.recipe)
        stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        weights = stored * BYTES["float32"] // BYTES[run.facts.dtype]
        needs["needed_bytes"] = weights + SMALL_FILES_BYTES
    with whole_float32(device), staging.staged(output, **needs) as folder:
        report = run.made(digest, folder, rounds if measure else 0, threads)
    run.findings.remove()
    return report


class _Run:
    """One sweep.

    Args:
        points: with their plans, as far as these are made.
        output: the folder that it writes.
        baselines: whether points that are planned later get any.
        device: where torch runs the models.
        progress: shows stages and loops.
    """

    def __init__(
        self,
        points: tuple[Point, ...],
        output: Path,
        *,
        baselines: bool,
        device: str,
        progress: Progress,
    ) -> None:
        self.points, self.baselines, self.progress = points, baselines, progress
        self.workload = Workload()  # that of the plans, once they are there
        self.output, self.device = output, device
        self.recipe = points[0].recipe
        self.facts: ModelFacts = model_facts(self.recipe)
        if self.recipe.validation.data is None:
            problem = "a sweep compares answers to held-out questions; give `validate.data`"
            raise RecipeError([f"validate.data: {problem}"])
        if asked := {p.recipe.export.weights for p in points} - {"float"}:
            raise RecipeError(
                [
                    f"export.weights: {' and '.join(sorted(asked))}: a sweep compares plans on float "
                    "weights; leave it at float here, and give it to the export of the point that you choose"
                ]
            )
        self.samples = validation_samples(self.recipe)
        for point in points:
            check_not_learned(point.recipe, self.samples)
        self.score = checked_score(self.recipe, self.samples)
        measuring = [point.recipe for point in points if wants_calibration(point.recipe)]
        self.calibration: tuple[Sample, ...] = ()
        if measuring:
            self.calibration = calibration_samples(self.recipe)
        else:
            note_unread_data(self.recipe, "no method chooses by it", progress)
        self.with_gates = one_gated(points, self.facts.decoder.layers)
        self.measures = measures_of([method for r in measuring for method in r.methods])
        pictures = {path for sample in self.samples for path in sample.images}
        read = dict.fromkeys(path for point in points for path in source_paths(point.recipe))
        self.sources = (*read, *pictures)

    @property
    def findings(self) -> Findings:
        """What it keeps until its folder is written."""
        return Findings(staging.sweep_folder(self.output))

    def check(self) -> str:
        """Refuse what can be refused before weights are loaded; return the model's digest."""
        tokens = self.recipe.validation.max_new_tokens
        asked = [Asked(self.samples, tokens), Asked(self.calibration)]
        check_recipe_prompts(self.recipe, asked, self.progress)
        for point in self.points:
            if point.plan is not None and point.searched:
                note_changed(point.plan, f"{point.label}: the plan", self.progress)
        digest = check_digest(self.recipe, self.facts)
        if self.with_gates is not None:
            self.with_gates.gate_file(self.facts, digest)
        return digest

    def made(self, digest: str, folder: Path, rounds: int, threads: int) -> SweepReport:
        """Find everything out and write it.

        Args:
            digest: the model's digest.
            folder: takes the files.
            rounds: how often each call is timed; 0: nothing is.
            threads: of one operator, while timing.
        """
        from compressor.compressed import plain
        from compressor.families.registry import picture_form

        model = load_model(self.recipe, self.progress, digest, device=self.device)
        self.progress.say("comparing the rewritten model with the original")
        check_rewrite(model, self.samples, self.calibration)
        profile, gates = self._calibrated(model)
        points = self._planned(model, profile, gates)
        self.workload = workload_of(points)
        same = {"model": model.digest, "data": data_digest(self.samples)} | {
            "tokens": self.recipe.validation.max_new_tokens,
            "pictures": model.facts.model_dump(mode="json"),
        }
        original = scored(self.samples, self._original(model, digest_of(**same)), self.score)
        model.processor.save_pretrained(files := self.findings.graphs())
        form = picture_form(model.processor, model.facts)
        timed_by = digest_of(rounds=rounds, threads=threads, processor=processor_name())
        scored_by = same | {
            "score": self.score.name,
            "workload": self.workload.model_dump(mode="json"),
        }
        keys = {point.name: _rests_on(point, scored_by) for point in points}
        wanted = timed_by if rounds else None
        found = {
            name: kept
            for name, key in keys.items()
            if (kept := self.findings.point(name, key, wanted)) is not None
        }
        if found:
            there = f"{len(found)} of {len(points)} points are answered already"
            self.progress.say(f"going on with a sweep that was stopped: {there}")

        def small(point: Point) -> "CompressedModel":
            plan = _plan(point)
            return compress_for_export(
                model,
                plan,
                point.recipe.override({"export.logits": "last"}),
                gates if plan.gates is not None else None,
                load_weights_in_front(plan, point.recipe),
            )

        # All answers first: whoever stops a run that still times has the table.
        unanswered = [point for point in points if point.name not in found]
        for point in _told(unanswered, "answers", self.progress):
            runtime = Runtime.on_session(_session(small(point)), files, model.facts, form)
            found[point.name] = self._answered(point, runtime, original)
            self.findings.keep_point(found[point.name], keys[point.name], "")
        untimed = [point for point in points if rounds and found[point.name].measured is None]
        model = on_cpu(model)
        with timer(plain(model), files, rounds, threads, self.progress) as clock:
            for point in _told(untimed, "times", self.progress):
                timed = {"measured": clock.time(small(point))}
                found[point.name] = found[point.name].model_copy(update=timed)
                self.findings.keep_point(found[point.name], keys[point.name], timed_by)
        report = self._report(points, tuple(found[point.name] for point in points), profile)
        return self._written(folder, points, report, profile)

    def _calibrated(self, model: "LoadedModel") -> "tuple[Profile | None, LoadedGates | None]":
        """Return one profile for all points, and their gates."""
        if not self.calibration and self.with_gates is None:
            return None, None
        from compressor.calibration.run import calibrate
        from compressor.decoder.weights import load_gates

        gates, asked = None, {}
        if self.with_gates is not None and (method := self.with_gates.gated) is not None:
            layers = method.gate_layers(model.facts.decoder.layers)
            gates = load_gates(self.with_gates.gate_file(model.facts, model.digest), layers)
            asked = {"gate_layers": layers, "gates_digest": gates.digest}
        if not self.calibration:
            return None, gates
        data = self.recipe.calibrate.data
        task = Task.of(
            model.facts, model.digest, self.calibration, data.name if data else "", self.measures, **asked
        )  # fmt: skip
        drop_foreign(self.findings.profile, task)
        return calibrate(
            model, task, self.findings.profile, gates=gates, progress=self.progress
        ), gates

    def _planned(
        self, model: "LoadedModel", profile: Profile | None, gates: "LoadedGates | None"
    ) -> tuple[Point, ...]:
        own = [point for point in self.points if not point.baseline]
        made = []
        for point in with_plans(own, model.facts, model.digest, profile):
            plan = _plan(point)
            if point.searched:
                check_given(point, model.facts, model.digest)
            if profile is not None and gates is not None and plan.gates is not None:
                plan = self._asked_again(model, point, plan, profile, gates)
            made.append(replace(point, plan=plan))
        beside = baselines_of(made, model.facts) if self.baselines else ()
        return named((*made, *with_plans(beside, model.facts, model.digest, profile)))

    def _asked_again(
        self,
        model: "LoadedModel",
        point: Point,
        plan: Plan,
        profile: Profile,
        gates: "LoadedGates",
    ) -> Plan:
        """Return a plan by what its gates say behind its other cuts; see `ask_gates_again`."""
        if plan.gates_see() == profile.gates_under:
            return plan
        from compressor.calibration.run import ask_gates_again

        behind = ask_gates_again(model, self.calibration, profile, plan, gates, self.progress)
        return plan_recipe(point.recipe, model.facts, model.digest, behind)

    def _original(self, model: "LoadedModel", rests_on: str) -> Answers:
        if (kept := self.findings.original(rests_on)) is not None:
            return kept
        from export.checks.original import measure_original

        tokens = self.recipe.validation.max_new_tokens
        answers = measure_original(model, self.samples, tokens, self.progress)
        self.findings.keep_original(answers, rests_on)
        return answers

    def _answered(self, point: Point, runtime: Runtime, original: Answers) -> SweepPoint:
        plan, dtype = _plan(point), self.recipe.export.dtype
        answers = loss.measure_answers(
            runtime, self.samples, original.max_new_tokens, self.progress, f"answers of {point.label}"
        )  # fmt: skip
        answers = scored(self.samples, answers, self.score)
        limits, name = loss_limits(point.recipe), validation_name(point.recipe)
        compared = loss.compare_scored(self.samples, original, answers, limits, name, self.score)
        costs = predicted(plan.model_copy(update={"workload": self.workload}), dtype)
        return SweepPoint(
            name=point.name,
            label=point.label,
            series=point.series,
            methods=plan.made_by.methods if plan.made_by else (),
            over=point.over,
            baseline=point.baseline,
            searched=point.searched,
            plan=f"{PLANS}/{point.name}.json",
            recipe=f"{RECIPES}/{point.name}.yaml",
            done=point_words(plan, point.recipe.methods),
            leaves=leaves_of(plan),
            predicted=costs.speedup,
            kv_bytes_original=costs.kv_bytes_original,
            kv_bytes=costs.kv_bytes,
            loss=compared,
            **self._told_of_each(compared, original, answers),
            notes=plan.notes,
        )

    def _told_of_each(
        self, compared: LossReport, original: Answers, answers: Answers
    ) -> dict[str, Any]:
        """Return `hits` or `scores` of a point."""
        if not compared.overall.answered:
            same = original.logits.argmax(axis=1) == answers.logits.argmax(axis=1)
            return {"hits": "".join("01"[int(hit)] for hit in same)}
        each = [answer.score for answer in answers.answers]
        if self.score.graded:
            return {"hits": "", "scores": tuple(each)}
        return {"hits": "".join("-" if score is None else "01"[int(score)] for score in each)}

    def _report(
        self, points: Sequence[Point], found: tuple[SweepPoint, ...], profile: Profile | None
    ) -> SweepReport:
        plan, section = _plan(points[0]), self.recipe.validation
        return SweepReport(
            tools=tool_versions(plan.model),
            model=plan.model.name,
            model_digest=plan.model_digest,
            data=validation_name(self.recipe),
            data_digest=data_digest(self.samples),
            questions=len(self.samples),
            max_new_tokens=section.max_new_tokens,
            calibration="" if profile is None else profile.data,
            calibration_samples=0 if profile is None else len(profile.samples),
            visual=plan.image_tokens,
            text=self.workload.text,
            assumed=self.workload.assumed,
            dtype=self.recipe.export.dtype,
            points=found,
        )

    def _written(
        self,
        folder: Path,
        points: Sequence[Point],
        report: SweepReport,
        profile: Profile | None,
    ) -> SweepReport:
        for point in points:
            _plan(point).save(folder / PLANS / f"{point.name}.json")
            # Data is given again: where it lies is of no use to others.
            recipe = point.recipe.override({"calibrate.data": None, "validate.data": None})
            text = dump_recipe(recipe, portable=True)
            write_text(folder / RECIPES / f"{point.name}.yaml", text)
        if profile is not None:
            profile.save(folder / PROFILE_FILE)
        document = sweep_document(report)
        write_text(folder / TEXT_FILE, markdown(document))
        write_text(folder / PAGE_FILE, html(document))
        write_text(folder / CHART_FILE, standalone(sweep_chart(report)))
        files = {name: entry.model_dump() for name, entry in list_files(folder).items()}
        report = report.model_copy(update={"files": files})
        write_text(folder / SWEEP_FILE, report.model_dump_json(indent=1) + "\n")
        return report


def _plan(point: Point) -> Plan:
    if point.plan is None:
        raise RuntimeError(f"{point.label} has no plan")
    return point.plan


def _session(small: "CompressedModel") -> Any:
    from export.backends.torch_model import TorchSession

    return TorchSession(small)


def _rests_on(point: Point, same: dict[str, Any]) -> str:
    """Return the digest of what a point's answers and times rest on, beside what all points do."""
    healed = point.recipe.healed_file(None, None)
    return digest_of(
        **same,
        healed="" if healed is None else healed.digest,
        plan=_plan(point).model_dump(mode="json"),
        label=point.label,
        limits=point.recipe.validation.loss.model_dump(),
        dtype=point.recipe.export.dtype,
    )


def _told(points: Sequence[Point], what: str, progress: Progress) -> Iterator[Point]:
    """Yield points, and say of which one something is found, and how long the others will take."""
    started, left = time.monotonic(), ""
    for number, point in enumerate(points):
        if number:
            seconds = (time.monotonic() - started) / number * (len(points) - number)
            left = f"; {seconds:.0f} s left"
        progress.say(f"{what}, {number + 1} of {len(points)}: {point.label}{left}")
        yield point
