"""What a run refuses before weights are loaded: by small files first, then by the weights' digest.

Small files are all that is fetched of a hub id for the first part; the second fetches the weights and reads
every weight file once.
"""

from collections.abc import Sequence
from pathlib import Path

from compressor.facts import ModelFacts
from compressor.plan.plan import Plan
from compressor.planner import check_methods, plan_recipe
from compressor.profile import Profile
from compressor.progress import SILENT, Progress
from compressor.recipe import Recipe
from export.graphs.limits import check_fixed
from vtcompress.stages.build import check_targets
from vtcompress.stages.checks.prompts import Asked, check_recipe_prompts
from vtcompress.stages.inputs import model_digest, model_facts


def check_recipe(
    recipe: Recipe,
    profile: Profile | None = None,
    *,
    planned: bool = False,
    asked: Sequence[Asked] = (),
    building: bool = False,
    progress: Progress = SILENT,
) -> ModelFacts:
    """Refuse what the model's small files rule out; no weights are fetched or read.

    Args:
        recipe: what will be done.
        profile: of an earlier calibration.
        planned: the plan is made from `profile`, or from none; nothing is measured before.
        asked: questions that will be asked.
        building: engines that the recipe asks for will be built.
        progress: is told what need not stop the run.

    Raises:
        VtcompressError: no such model, a processor or questions that cannot be used, methods that do not fit
            it, gates of other shapes, engines that cannot be built, no profile to plan by.
    """
    facts, gated = model_facts(recipe), recipe.gated
    gates = check_methods(facts, recipe.methods)
    check_fixed(recipe.export, facts, gated.exit if gated else None)
    if building:
        check_targets(recipe, facts)
    check_recipe_prompts(recipe, asked, progress)
    if planned:
        # Gates are taken for this model's here; `check_digest` tells.
        plan_recipe(recipe, facts, (gates and gates.model_digest) or "", profile)
    return facts


def check_digest(
    recipe: Recipe, facts: ModelFacts, profile: Profile | None = None, name: Path = Path()
) -> str:
    """Return the digest of the recipe's model; refuse a profile and gates of another one.

    Args:
        recipe: names model and gates.
        facts: of the model.
        profile: of an earlier calibration.
        name: what errors call it.

    Raises:
        VtcompressError: profile or gates are of another model, or weight files cannot be had or read.
    """
    digest = model_digest(recipe)
    if profile is not None:
        profile.check_belongs(name, model_digest=digest)
    if recipe.gated is not None:
        recipe.gate_file(facts, digest)
    return digest


def check_plan_gates(plan: Plan, recipe: Recipe, facts: ModelFacts, digest: str | None) -> None:
    """Refuse a plan that was made already, if it has gates and the recipe's are not there or do not fit.

    Args:
        plan: that was made.
        recipe: names its gates.
        facts: of the model at hand.
        digest: of that model; None: not taken yet.

    Raises:
        GatesError: the recipe names none, or they do not fit.
        ArtifactError: the plan was made with others.
    """
    if plan.gates is not None:
        plan.check_gates(recipe.gate_file(facts, digest).digest)
