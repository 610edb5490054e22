"""The stage that searches for the fastest plan that keeps the answers, and writes all plans of its front."""

from collections.abc import Iterable
from pathlib import Path

from compressor.disk.files import write_text
from compressor.plan.measured_cost import MeasuredCosts
from compressor.progress import Progress
from compressor.recipe import Recipe, dump_recipe
from compressor.schema.arguments import check_above_zero
from compressor.search.results import CHOSEN_FILE, FRONT_FILE, SearchReport
from export.artifact import staging
from export.artifact.artifact import PROFILE_FILE, RECIPE_FILE, list_files
from export.artifact.manifest import tool_versions
from export.backends.torch_device import ON_CPU, check_device, whole_float32
from export.report.search.files import write_pages
from vtcompress.console import shown
from vtcompress.shipped import PathLike
from vtcompress.stages.checks.prompts import Asked
from vtcompress.stages.checks.recipe import check_digest, check_recipe
from vtcompress.stages.checks.rewrite import check_rewrite
from vtcompress.stages.inputs import (
    load_model,
    require_compress,
    require_recipe,
    source_paths,
)
from vtcompress.stages.searching.finding import SearchRun, kept_while

# Plans and tables take less.
SMALL_FILES_BYTES = 16 << 20


def search(
    recipe: Recipe,
    output: PathLike,
    *,
    budget: float | None = None,
    costs: PathLike | None = None,
    device: str = ON_CPU,
    overwrite: bool = False,
    sources: Iterable[PathLike] = (),
    progress: Progress | bool | None = None,
) -> SearchReport:
    """Search for the fastest plan that keeps what the recipe's entry asks for, and write the front.

    Written are `front.json`, the report, and the same as page, text and plots; `plans/`, every plan of it;
    `chosen.json`, the chosen plan; the calibration and the recipe. Each plan can be given to `export` with
    that recipe. A search that was stopped goes on with what it measured, as far as model and questions are
    the same. Answers are judged by `validate.score` where right ones are given.

    Args:
        recipe: names model and questions, and has an entry whose plan a search finds.
        output: folder to write; appears when complete.
        budget: seconds for the whole search; None: as long as it takes.
        costs: file that the stage `costs` wrote, so that a speed-up is one in predicted time; None: in
            FLOPs or bytes, by the entry's target.
        device: where the models run: `cpu`, a GPU as torch names it, or `auto`: a GPU that it fits, else
            the CPU; in float32.
        overwrite: replace what this tool wrote at `output`.
        sources: files that the recipe was read from; no folder that holds one is replaced.
        progress: shows what is done, and the time left.

    Raises:
        VtcompressError: input or environment, or nothing keeps what is asked; nothing is left half-written.
    """
    require_recipe(recipe)
    require_compress("searching a plan")
    check_above_zero("budget", budget)
    check_device(device)
    progress, output = shown(progress), Path(output)
    asked = SearchRun.of(recipe, budget)
    if costs is not None:
        MeasuredCosts.load(Path(costs))  # a file that cannot be read is told before the model is
    pictures = {path for sample in asked.samples for path in sample.images}
    needs = {
        "overwrite": overwrite,
        "sources": (*source_paths(recipe), *map(Path, sources), *pictures),
        "needed_bytes": SMALL_FILES_BYTES,
    }
    staging.check_place(output, **needs)  # type: ignore[arg-type]
    tokens = recipe.validation.max_new_tokens
    prompts = [Asked(asked.samples, tokens, forced=True)]
    facts = check_recipe(recipe, asked=prompts, progress=progress)
    asked.check(facts)
    if costs is not None:
        asked = asked.by_time(Path(costs), facts, progress)
    digest = check_digest(recipe, facts)
    kept = staging.search_folder(output)
    with (
        kept_while(kept),
        whole_float32(device),
        staging.staged(output, **needs) as folder,  # type: ignore[arg-type]
    ):
        model = load_model(recipe, progress, digest, device=device)
        progress.say("comparing the rewritten model with the original")
        check_rewrite(model, calibration=asked.samples)
        report, plans, profile = asked.run(model, kept, progress)
        for point in report.points:
            plans[point.name].save(folder / point.plan)
        plans[report.chosen].save(folder / CHOSEN_FILE)
        if profile is not None:
            profile.save(folder / PROFILE_FILE)
        # Data is given again: where it lies is of no use to others.
        bare = recipe.override({"calibrate.data": None, "validate.data": None})
        write_text(folder / RECIPE_FILE, dump_recipe(bare, portable=True))
        report = report.model_copy(update={"tools": tool_versions(model.facts)})
        write_pages(folder, report)
        files = {name: entry.model_dump() for name, entry in list_files(folder).items()}
        report = report.model_copy(update={"files": files})
        report.save(folder / FRONT_FILE)
    return report
