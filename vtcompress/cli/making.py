"""The commands that make something of a recipe: `calibrate`, `search`, `plan`, `compress`, `export`, ..."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vtcompress.cli.backend_options import device_option
from vtcompress.cli.checking import raise_if_missed
from vtcompress.cli.kinds import FILE, FOLDER, READ, Duration
from vtcompress.cli.options import (
    files_read,
    read_over,
    read_recipe,
    read_recipes,
    recipe_options,
    recipes_options,
    score_option,
)
from vtcompress.console import Output
from vtcompress.stages.plan import predicted

if TYPE_CHECKING:
    from compressor.profile import Profile


budget_option = click.option(
    "--budget",
    type=Duration(),
    help="Time for a search, e.g. 20m; what it is too short for is left out, and said.",
)


@click.command()
@recipe_options
@click.option("--output", type=FILE, default="profile.json", help="Profile to write or continue.")
@click.option(
    "--overwrite", is_flag=True, help="Start anew, whatever the profile at --output holds."
)
@click.option(
    "--shard", metavar="K/N", help="Measure one of N shares of the samples; see merge-profiles."
)
@click.option(
    "--stream",
    is_flag=True,
    help="Read each layer's weights when it runs: for models larger than the memory.",
)
@device_option
@click.pass_obj
def calibrate(
    out: Output,
    /,
    output: Path,
    overwrite: bool,
    shard: str | None,
    device: str,
    stream: bool,
    **options: Any,
) -> None:
    """Measure what the recipe's methods choose by: how much each layer needs visual tokens.

    A profile of the same model and data is continued, also with more --samples.
    """
    import vtcompress

    profile = vtcompress.calibrate(
        read_recipe(options),
        output,
        shard=shard,
        device=device,
        stream=stream,
        overwrite=overwrite,
        progress=out,
    )
    plot = "" if shard is not None else ", its plot as .png and .svg beside it"
    of = f"shard {profile.shard}, " if profile.shard is not None else ""
    words = f"{of}{len(profile.samples)} samples; written: {output}{plot}"
    _show_measured(out, profile, output, words)


def _show_measured(out: Output, profile: "Profile", output: Path, words: str) -> None:
    from vtcompress.cli import brief, show

    show.show_profile(out, profile)
    out.line(words)
    brief.written(out, output)
    out.result(profile.model_dump(mode="json"))


@click.command()
@recipe_options
@click.option("--output", type=FOLDER, required=True, help="Folder of the front and its plans.")
@budget_option
@click.option("--costs", type=READ, help="What `costs` wrote: a speed-up is one in predicted time.")
@device_option
@click.option("--overwrite", is_flag=True, help="Replace what vtcompress wrote at --output.")
@click.pass_obj
def search(
    out: Output,
    /,
    output: Path,
    budget: float | None,
    costs: Path | None,
    device: str,
    overwrite: bool,
    **options: Any,
) -> None:
    """Search for the fastest plan that keeps the answers; write all plans of the front.

    Plans are chosen on one half of the questions and judged on the other. A stopped search goes on.
    """
    import vtcompress
    from vtcompress.stages.searching.report import chosen_words, show_search

    report = vtcompress.search(
        read_recipe(options),
        output,
        budget=budget,
        costs=costs,
        device=device,
        overwrite=overwrite,
        sources=files_read(options),
        progress=out,
    )
    show_search(out, report)
    out.always(chosen_words(report))
    out.always(
        f"written: {output} (the chosen plan: {output / 'chosen.json'}, report: {output / 'front.html'})"
    )
    out.result(report.model_dump(mode="json"))


@click.command("merge-profiles")
@click.argument("shards", nargs=-1, required=True, type=READ, metavar="SHARD...")
@click.option("--output", type=FILE, default="profile.json", help="Profile to write.")
@click.option("--overwrite", is_flag=True, help="Replace a profile at --output.")
@click.pass_obj
def merge_profiles(out: Output, /, shards: tuple[Path, ...], output: Path, overwrite: bool) -> None:
    """Make one profile of all shards that `calibrate --shard` wrote, as one run would have written it."""
    import vtcompress

    profile = vtcompress.merge_profiles(shards, output, overwrite=overwrite, progress=out)
    words = f"{len(shards)} shards, {len(profile.samples)} samples; written: {output}"
    _show_measured(out, profile, output, words)


@click.command()
@recipe_options
@click.option(
    "--profile", type=READ, help="What `calibrate` wrote; needed unless layers are listed."
)
@click.option(
    "--costs", "costs_file", type=READ, help="What `costs` wrote: say predicted time, too."
)
@click.option("--output", type=FILE, default="plan.json", help="Plan to write.")
@click.pass_obj
def plan(
    out: Output,
    /,
    profile: Path | None,
    costs_file: Path | None,
    output: Path,
    **options: Any,
) -> None:
    """Decide what visual tokens do in each layer; print the predicted costs."""
    import vtcompress
    from compressor.plan.measured_cost import MeasuredCosts
    from export.artifact.places import check_file
    from vtcompress.cli import brief, show
    from vtcompress.stages.inputs import source_paths
    from vtcompress.stages.plan import open_costs, predicted_time

    recipe = read_recipe(options)
    check_file(output, "plan", sources=source_paths(recipe))
    if costs_file is not None:
        MeasuredCosts.load(costs_file)  # a file that cannot be read is told before the model is
    chosen = vtcompress.plan(recipe, profile, progress=out)
    measured = open_costs(costs_file, recipe, chosen.model, out) if costs_file else None
    chosen.save(output)
    dtype = recipe.export.dtype
    show.show_plan(out, chosen, dtype, measured)
    brief.planned(out, chosen, dtype)
    out.always(f"written: {output}")
    found: dict[str, Any] = {
        "plan": chosen.model_dump(mode="json"),
        "predicted": predicted(chosen, dtype).model_dump(mode="json"),
    }
    if measured is not None:
        found["predicted_time"] = predicted_time(measured, chosen)
    out.result(found)


@click.command()
@recipe_options
@click.option("--plan", "plan_file", type=READ, required=True, help="What `plan` wrote.")
@click.option("--profile", type=READ, help="What `calibrate` wrote; stored beside the plan.")
@click.option("--output", type=FOLDER, required=True, help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace what vtcompress wrote at --output.")
@click.pass_obj
def compress(
    out: Output,
    /,
    plan_file: Path,
    profile: Path | None,
    output: Path,
    overwrite: bool,
    **options: Any,
) -> None:
    """Apply a plan: write a folder of safetensors, configuration and plan."""
    import vtcompress
    from compressor.plan.plan import Plan

    folder = vtcompress.compress(
        read_recipe(options),
        Plan.load(plan_file),
        output,
        profile=profile,
        overwrite=overwrite,
        sources=files_read(options, plan_file, profile),
        progress=out,
    )
    out.always(f"written: {folder}")
    out.result({"output": str(folder)})


@click.command()
@recipe_options
@click.option(
    "--profile", type=READ, help="Use this calibration instead of measuring; with --plan, show it."
)
@click.option("--plan", "plan_file", type=READ, help="Use this plan instead of making one.")
@click.option("--compressed", type=READ, help="Start from the folder that `compress` wrote.")
@click.option("--output", type=FOLDER, required=True, help="Folder of the artifact.")
@click.option("--overwrite", is_flag=True, help="Replace what vtcompress wrote at --output.")
@click.option(
    "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Of weights and graphs."
)
@click.option(
    "--weights",
    type=click.Choice(["float", "int8", "int4"]),
    help="How the decoder's matrices are stored; float: as --dtype says.",
)
@click.option(
    "--block",
    type=click.Choice(["32", "64", "128"]),
    help="How many int8 or int4 weights have a scale together; 32 by default.",
)
@click.option("--validate-data", type=READ, help="Held-out questions (jsonl) for compression loss.")
@click.option("--validate-samples", type=click.IntRange(min=1), help="How many of them.")
@score_option
@click.option(
    "--bench-rounds", type=click.IntRange(min=0), help="0: no timing; else 15, with --stream none."
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, help="Of one operator, in timing."
)
@click.option(
    "--stream",
    is_flag=True,
    help="Copy weights one at a time, the model never in memory; both checks run by layer.",
)
@budget_option
@device_option
@click.pass_obj
def export(
    out: Output,
    /,
    profile: Path | None,
    plan_file: Path | None,
    compressed: Path | None,
    output: Path,
    overwrite: bool,
    dtype: str | None,
    weights: str | None,
    block: str | None,
    validate_data: Path | None,
    validate_samples: int | None,
    score: str | None,
    bench_rounds: int | None,
    threads: int,
    stream: bool,
    budget: float | None,
    device: str,
    **options: Any,
) -> None:
    """Run all stages: calibrate, plan, compress, export to ONNX, check against the original, time."""
    import vtcompress
    from compressor.plan.plan import Plan
    from export.report.words.ladder import engine_facts
    from vtcompress.cli import brief, show

    own = {
        "dtype": dtype,
        "weights": weights,
        "block": None if block is None else int(block),
        "validate_data": validate_data,
        "validate_samples": validate_samples,
        "score": score,
    }
    recipe = read_recipe(options | own)
    manifest = vtcompress.export(
        recipe,
        output,
        profile=profile,
        plan=plan_file,
        compressed=compressed,
        overwrite=overwrite,
        sources=files_read(options, profile, plan_file),
        bench_rounds=bench_rounds,
        threads=threads,
        stream=stream,
        budget=budget,
        device=device,
        progress=out,
    )
    chosen = Plan.load(output / "plan.json")
    show.show_plan(out, chosen, manifest.dtype)
    show.show_checks(out, manifest, chosen, engine_facts(output, manifest))
    brief.timed(out, manifest.measured)
    brief.checked(out, manifest.fidelity, manifest.loss)
    out.always(f"written: {output} (report: {output / 'report.html'})")
    out.result(manifest.model_dump(mode="json"))
    raise_if_missed(manifest.failures)


@click.command()
@recipes_options
@click.option(
    "--over",
    multiple=True,
    metavar="KEY=VALUES",
    help="Values of a key of compress, e.g. --over compress.pool.keep=0.5,0.25; several make the product.",
)
@click.option("--plan", "plans", type=READ, multiple=True, help="A point that `search` made.")
@click.option(
    "--validate-data", type=READ, help="Held-out questions (jsonl); overrides the recipe."
)
@click.option("--validate-samples", type=click.IntRange(min=1), help="How many of them.")
@score_option
@click.option("--output", type=FOLDER, required=True, help="Folder of table, plot and plans.")
@click.option("--overwrite", is_flag=True, help="Replace what vtcompress wrote at --output.")
@click.option("--no-baselines", is_flag=True, help="Leave out choices that look at nothing.")
@click.option("--no-measure", is_flag=True, help="Export and time nothing.")
@click.option("--rounds", type=click.IntRange(min=1), default=15, help="How often each is timed.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, help="Of one operator, in timing."
)
@device_option
@click.option("--dry-run", is_flag=True, help="List the points; do nothing.")
@click.pass_obj
def sweep(
    out: Output,
    /,
    over: tuple[str, ...],
    plans: tuple[Path, ...],
    validate_data: Path | None,
    validate_samples: int | None,
    score: str | None,
    output: Path,
    overwrite: bool,
    no_baselines: bool,
    no_measure: bool,
    rounds: int,
    threads: int,
    device: str,
    dry_run: bool,
    **options: Any,
) -> None:
    """Compare plans of one model: answers against speed, beside baselines, in one table and plot.

    One calibration and one original serve all. A sweep that was stopped goes on where it was.
    """
    import vtcompress
    from compressor.schema.arguments import check_threads
    from export.backends.torch_device import check_device
    from export.report.sweep.page import sweep_table
    from vtcompress.cli import brief, show
    from vtcompress.stages.sweep import list_points

    check_threads(threads)
    check_device(device)
    own = {"validate_data": validate_data, "validate_samples": validate_samples, "score": score}
    recipes, values = read_recipes(options | own), read_over(over)
    points = list_points(recipes, values, plans=plans, baselines=not no_baselines)
    show.show_points(out, points)
    if dry_run:
        out.line("nothing was done")
        out.result([{"point": point.label, "over": dict(point.over)} for point in points])
        return
    report = vtcompress.sweep(
        recipes,
        output,
        over=values,
        plans=plans,
        baselines=not no_baselines,
        measure=not no_measure,
        rounds=rounds,
        threads=threads,
        device=device,
        overwrite=overwrite,
        sources=files_read(options),
        progress=out,
    )
    show.show_blocks(out, [sweep_table(report)])
    brief.swept(out, report)
    out.always(f"written: {output} (report: {output / 'sweep.html'})")
    out.result(report.model_dump(mode="json"))
