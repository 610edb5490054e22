"""What reports show of an artifact: read from its files once, with the figures of the headline."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compressor.contract.asked import asked_of
from compressor.contract.method import Method
from compressor.disk.files import read_text
from compressor.errors import ArtifactError
from compressor.plan.cost import BYTES, predict
from compressor.plan.plan import Plan
from compressor.profile import Profile
from compressor.recipe import load_recipe
from export.artifact.artifact import PLAN_FILE, PROFILE_FILE, RECIPE_FILE
from export.artifact.manifest import Manifest
from export.report.questions import Question, stored_questions
from export.report.words.cuts import kept_heads, neurons_kept, semantics, text_alone_values
from export.report.words.exits import cache_figures, staying
from export.report.words.ladder import EngineFacts, Rung, claim, engine_facts, ladder
from export.report.words.methods import methods_done
from export.results.bench import slower

# What gets faster, in words that need no explanation.
READING = "reading of picture and question (prefill)"

# What dashboards get of a manifest as it is stored.
STORED = {"model_digest", "dtype", "ranges", "missing_kernels", "predicted", "measured", "fidelity"}
STORED |= {"rewrite", "loss", "tools", "peak_memory_bytes", "peak_memory_by_stage"}


@dataclass(frozen=True)
class ReportData:
    """Everything that a report is made from.

    Attributes:
        profile: None if the layers were not chosen by calibration.
        recipe: text of the resolved recipe.
        methods: that made the plan, in the recipe's order.
        questions: with both models' answers; none if compression loss did not run.
        engines: sets of engines that belong to the artifact as it is.
        by_recipe: the plan was made by what the recipe asks of its methods; None: nobody knows.
    """

    manifest: Manifest
    plan: Plan
    profile: Profile | None = None
    recipe: str = ""
    methods: tuple[Method, ...] = ()
    questions: tuple[Question, ...] = ()
    engines: tuple[EngineFacts, ...] = ()
    by_recipe: bool | None = True

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The ladder of checks."""
        return ladder(self.manifest, self.engines)


def report_data(folder: Path, manifest: Manifest) -> ReportData:
    """Read what an artifact's reports need; the manifest is given, because it is written last.

    Raises:
        VtcompressError: a file is missing or broken.
    """
    plan = Plan.load(folder / PLAN_FILE)
    path = folder / PROFILE_FILE
    profile = Profile.load(path) if path.is_file() else None
    if profile is not None and (profile.layers != len(plan.layers) or not profile.samples):
        raise ArtifactError([f"{path}: does not fit {PLAN_FILE}; copy the artifact anew"])
    recipe = load_recipe(folder / RECIPE_FILE, stored=True)
    methods, by_recipe = methods_done(plan, recipe.methods)
    return ReportData(
        manifest=manifest,
        plan=plan,
        profile=profile,
        recipe=read_text(folder / RECIPE_FILE, ArtifactError),
        methods=methods,
        by_recipe=by_recipe,
        questions=stored_questions(
            folder, graded=manifest.loss is not None and manifest.loss.words.graded
        ),
        engines=engine_facts(folder, manifest),
    )


def measured(profile: Profile | None, measure: str) -> Any:
    """Return a measure's means over the samples, one entry a layer; None if it was not measured."""
    if profile is None or measure not in profile.measures:
        return None
    return profile.mean(measure)


Figure = tuple[str, str]
"""A value of the headline, e.g. `1.78 x`, and what it is the figure of; says so if it was not measured."""


def headline(manifest: Manifest) -> tuple[Figure, Figure, Figure]:
    """Return how much faster, how much of the work, and how many answers were kept."""
    p = manifest.predicted
    work = "of the original's work for that reading is left (FLOPs)"
    if p.kv_bytes != p.kv_bytes_original:
        work += f", {p.kv_bytes / p.kv_bytes_original:.0%} of its KV cache"
    return _faster(manifest), (f"{p.flops / p.flops_original:.0%}", work), _kept(manifest)


def _faster(manifest: Manifest) -> Figure:
    if manifest.measured is None:
        ratio = manifest.predicted.speedup
        figure, how = (1 / ratio, "the") if slower(ratio) else (ratio, "less")
        return f"{figure:.2f} x", f"{how} work for {READING}, predicted; no time was measured"
    t = manifest.measured.prefill
    steady = "" if t.steady else "not steady: "
    spread = f"measured ({steady}quartiles {t.ratio_low:.2f} to {t.ratio_high:.2f}"
    if slower(t.ratio):
        meaning = f"the original's time for {READING}: slower, {spread} of original / compressed)"
        return f"{1 / t.ratio:.2f} x", meaning
    return f"{t.ratio:.2f} x", f"faster {READING}, {spread})"


def _kept(manifest: Manifest) -> Figure:
    if manifest.loss is None:
        return "unknown", "answers kept: not checked, there was no validation data"
    all_, right = manifest.loss.overall, manifest.loss.words
    value, interval = all_.exact_match_kept, all_.exact_match_kept_interval
    if value is None:
        value, interval = all_.agreement, all_.agreement_interval
        none = f", whose {right.right} is 0" if right.graded else ", which gave no right answer"
        unknown = none if all_.answered else "; right answers are not known"
        meaning = f"of first answer tokens equal to the original's{unknown}"
    else:
        meaning = (
            f"of the original's {right.kept} ({all_.exact_match_original:.1%} "
            f"{'' if right.graded else 'right '}before, {all_.exact_match:.1%} now)"
        )
    if interval is not None:
        meaning += f"; 95% interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f}%"
    return f"{value:.1%}", meaning


def figures(data: ReportData) -> dict[str, Any]:
    """Return the report for dashboards: plain values, without pictures, questions and file list."""
    manifest, plan = data.manifest, data.plan
    before, after = predict(plan.naive()), predict(plan)
    size, dims, profile = BYTES[manifest.dtype], plan.model.decoder, data.profile
    unknown = (None,) * len(plan.layers)
    scores, contribution, left = (
        measured(profile, name) or unknown
        for name in ("head_score", "layer_contribution", "exit_kl")
    )
    stays, alone = staying(plan), text_alone_values(plan)
    layers = [
        {
            "index": i,
            "visual": layer.visual,
            "reason": layer.reason,
            "visual_stays": stays[i],
            "heads": len(kept_heads(layer, dims)),
            "window": layer.window,
            "neurons": neurons_kept(layer, dims),
            "masked": layer.masked,
            "head_score": scores[i],
            "contribution": contribution[i],
            "exit_kl": left[i],
            "flops_original": before.layer_flops[i],
            "flops": after.layer_flops[i],
            "kv_bytes_original": before.layer_kv_values[i] * size,
            "kv_bytes": after.layer_kv_values[i] * size,
            "kv_bytes_text_heads": alone[i] * size,
        }
        for i, layer in enumerate(plan.layers)
    ]
    return manifest.model_dump(mode="json", include=STORED) | {
        "model": manifest.model.name,
        "methods": [{m.name: asked_of(m) if data.by_recipe else None} for m in data.methods],
        "plan_given": None if data.by_recipe is None else not data.by_recipe,
        "verdict": manifest.verdict,
        "passed": manifest.passed,
        "warnings": list(manifest.loss.warnings) if manifest.loss else [],
        "score": manifest.loss and manifest.loss.score,
        "exact_match_kept": manifest.loss and manifest.loss.overall.exact_match_kept,
        "ladder": [asdict(rung) for rung in data.rungs],
        "claim": claim(data.rungs),
        "layers": layers,
        "frozen_layers": len(plan.frozen_layers()),
        "exit_layer": plan.exit_layer,
        "front": plan.front and plan.front.model_dump(mode="json"),
        "semantics": semantics(plan, data.methods),
        "notes": list(plan.notes),
        "gates": plan.gates and plan.gates.model_dump(mode="json"),
        "kv_cache": manifest.measured and cache_figures(plan, manifest.measured, manifest.dtype),
        "questions": len(data.questions),
        "answers_equal": sum(question.equal for question in data.questions),
    }
