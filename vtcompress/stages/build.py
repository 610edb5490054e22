"""Engines as a part of an export: what a recipe's targets ask for; and their plan for machines."""

from pathlib import Path
from typing import Any

from compressor.errors import RecipeError, VtcompressError
from compressor.facts import ModelFacts
from compressor.methods import rows_kept_by
from compressor.progress import Progress
from compressor.recipe import Recipe
from export.artifact.engine_set import OpenedSet
from export.backends.gpus import find_gpu
from export.backends.tensorrt.build import EnginePlan, build_engines, plan_engines
from export.backends.tensorrt.targets import (
    TARGETS,
    Target,
    check_capabilities,
    load_package,
)
from export.backends.tensorrt.trtexec import command_line
from export.graphs.limits import limits_of


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
    limits = limits_of(section.profiles, facts, rows_kept_by(recipe.methods, facts))
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
    return tuple(
        build_engines(plan_engines(folder, target.name, verify=False, progress=progress))
        for target in engine_targets(recipe)
    )
