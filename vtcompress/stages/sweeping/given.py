"""Points of a sweep whose plans are made already: those that a search wrote."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from compressor.errors import RecipeError
from compressor.facts import ModelFacts
from compressor.plan.plan import Workload
from compressor.recipe import Recipe
from vtcompress.shipped import PathLike
from vtcompress.stages.checks.recipe import (
    check_made_by,
    check_plan_facts,
    check_plan_weights,
)
from vtcompress.stages.inputs import open_plan
from vtcompress.stages.sweeping.points import Point

SPEED = re.compile(r"-?[\d.]+x(-\d+)?$")
"""How the name of a search's plan ends."""


def given_points(
    recipes: Sequence[Recipe], plans: Iterable[PathLike]
) -> tuple[tuple[Recipe, ...], tuple[Point, ...]]:
    """Return the recipes whose plans a sweep makes, and a point for each plan that a search wrote.

    Args:
        recipes: of the sweep; with plans, one of them is the search's.
        plans: files of a search's folder; points are called as they are.

    Raises:
        RecipeError: plans are given without the search's recipe, or twice.
        PlanError: a file cannot be read.
    """
    files = tuple(map(Path, plans))
    if not files:
        return tuple(recipes), ()
    searches = [one for one in recipes if isinstance(one, Recipe) and one.searched is not None]
    if len(searches) != 1:
        raise RecipeError(
            [
                f"plan: plans of a search go with its recipe, and {len(searches) or 'none'} of those given "
                "leaves its plan to a search; give the recipe.yaml that stands beside front.json"
            ]
        )
    if twice := sorted({file.name for file in files if files.count(file) > 1}):
        raise RecipeError([f"plan: {', '.join(twice)}: is given twice; give each once"])
    ruled = tuple(one for one in recipes if one is not searches[0])
    # A sweep has one calibration, which a search's plans are not made by.
    calibrate = ruled[0].calibrate.model_dump() if ruled else {}
    recipe = searches[0].override({f"calibrate.{key}": value for key, value in calibrate.items()})
    name = recipe.methods[0].name
    points = tuple(
        Point(
            label=f"{name} {file.stem}",
            series=f"{name} {SPEED.sub('', file.stem)}".strip(),
            recipe=recipe,
            searched=True,
            plan=open_plan(file)[0],
        )
        for file in files
    )
    return ruled, points


def check_given(point: Point, facts: ModelFacts, digest: str) -> None:
    """Refuse a plan that was made for another model or by another recipe.

    Args:
        point: with the plan.
        facts: of the sweep's model.
        digest: of it; empty: not taken yet.

    Raises:
        VtcompressError: it was.
    """
    if point.plan is None:
        raise RuntimeError(f"{point.label} has no plan")
    check_plan_facts(point.plan, facts, "the plan")
    check_made_by(point.plan, point.recipe)
    if digest:
        point.plan.check_belongs(facts.name, digest)
    check_plan_weights(point.plan, point.recipe, facts, digest or None)


def workload_of(points: Sequence[Point]) -> Workload:
    """Return the prefill that all points are predicted for: that of the plans which the sweep makes.

    Plans of a search may have been made for prompts of another length.
    """
    plans = [point.plan for point in sorted(points, key=lambda point: point.searched)]
    return next(plan.workload for plan in plans if plan is not None)
