"""Engines as a stage of the tool: from an artifact's folder, or at the end of an export."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import RecipeError, VtcompressError
from compressor.facts import ModelFacts
from compressor.progress import SILENT, Progress
from compressor.recipe import Recipe, load_recipe
from export.artifact.artifact import RECIPE_FILE, Artifact
from export.artifact.engine_set import OpenedSet
from export.backends.gpus import find_gpu
from export.backends.tensorrt.build import EnginePlan, artifact_limits, build_engines, plan_engines
from export.backends.tensorrt.targets import (
    TARGETS,
    Target,
    check_capabilities,
    find_target,
    load_package,
)
from export.backends.tensorrt.trtexec import command_line
from export.graphs.limits import limits_of


def settle(
    path: str | Path,
    target: str,
    *,
    limits: Mapping[str, int] | None = None,
    capabilities: tuple[str, ...] | None = None,
    baseline: bool = False,
    device: int = 0,
    dry: bool = False,
    progress: Progress = SILENT,
) -> EnginePlan:
    """Open an artifact and settle what a build of its engines will do; see `plan_engines`.

    Args:
        path: the artifact; every file is verified.
        target: `tensorrt-rtx` or `tensorrt`.
        limits: sizes that differ from the artifact's recipe, by name.
        capabilities: GPUs that the engines serve; none: those of the recipe, else the target's default.
        baseline: build the original decoder too.
        device: GPU that `tensorrt` builds on.
        dry: the plan will be shown and not built; see `plan_engines`.
        progress: shows the builder's phases.

    Raises:
        VtcompressError: as `plan_engines`, or the artifact is broken.
    """
    artifact = Artifact.open(path)
    return plan_engines(
        artifact,
        target,
        limits=artifact_limits(artifact, limits or {}),
        capabilities=capabilities or artifact_capabilities(artifact, target),
        baseline=baseline,
        device=device,
        dry=dry,
        progress=progress,
    )


def build(plan: EnginePlan, *, overwrite: bool = False) -> OpenedSet:
    """Build the engines; see `export.backends.tensorrt.build.build_engines`."""
    return build_engines(plan, overwrite=overwrite)


def as_json(plan: EnginePlan) -> dict[str, Any]:
    """Return a plan for machines: sizes, profiles, and the vendor's commands or why there is none."""
    return {
        "target": plan.target.name,
        "compute_capabilities": list(plan.capabilities),
        "folder": str(plan.folder),
        "limits": plan.limits.model_dump(),
        "profiles": {
            spec.name: [profile.model_dump() for profile in profiles]
            for spec, profiles in plan.profiles
        },
        "commands": {name: command_line(words) for name, words in plan.commands().items()},
        "without_command": plan.without_command(),
    }


def engine_targets(recipe: Recipe) -> list[Target]:
    """Return the targets of a recipe that engines are built for."""
    return [TARGETS[name] for name in recipe.export.targets if name in TARGETS]


def check_targets(recipe: Recipe, facts: ModelFacts) -> None:
    """Refuse engines that cannot be built as a recipe asks, before weights are loaded.

    Raises:
        RecipeError: every reason: a target that is not installed, an unknown compute capability, float32,
            gates that compute a size, limits that make no sense together.
    """
    section = recipe.export
    targets = engine_targets(recipe)
    if not targets:
        return
    problems = []
    if section.dtype == "float32":
        problems.append(
            f"export.dtype: float32; {targets[0].name} has no float32 kernel for Attention: give float16"
        )
    if recipe.gated is not None and recipe.gated.exit == "dynamic":
        problems.append(
            f"compress.{recipe.gated.name}.exit: dynamic; {targets[0].name} takes no size from a computed "
            "value: give staged or baked"
        )
    positions = facts.decoder.max_positions
    limits = limits_of(section.profiles, facts)
    problems += [f"export.profiles.{line}" for line in limits.problems(positions)]
    for target in targets:
        try:
            trt = load_package(target, f"export.targets: {target.name}: building engines")
            wanted = section.profiles.compute_capabilities
            check_capabilities(target, wanted if target.ahead else None, trt)
            if not target.ahead:
                find_gpu(0)
        except VtcompressError as failure:
            problems.append(str(failure))
    if problems:
        raise RecipeError(problems)


def build_targets(folder: Path, recipe: Recipe, progress: Progress) -> tuple[OpenedSet, ...]:
    """Build what a recipe's targets ask for, into an artifact that is complete but for its engines."""
    artifact = Artifact.open(folder, verify=False)
    return tuple(
        build_engines(
            plan_engines(
                artifact,
                target.name,
                capabilities=recipe_capabilities(recipe, target.name),
                progress=progress,
            )
        )
        for target in engine_targets(recipe)
    )


def artifact_capabilities(artifact: Artifact, target: str) -> tuple[str, ...] | None:
    """Return the compute capabilities that an artifact's recipe names, where the target takes any."""
    return recipe_capabilities(load_recipe(artifact.folder / RECIPE_FILE, stored=True), target)


def recipe_capabilities(recipe: Recipe, target: str) -> tuple[str, ...] | None:
    """Return the compute capabilities that a recipe names, where the target takes any."""
    return recipe.export.profiles.compute_capabilities if find_target(target).ahead else None
