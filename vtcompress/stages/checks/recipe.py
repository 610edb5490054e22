"""What a run refuses before weights are loaded: by small files first, then by the weights' digest.

Small files are all that is fetched of a hub id for the first part; the second fetches the weights and reads
every weight file once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from compressor.contract.asked import alike_words, method_words
from compressor.contract.method import layers_words
from compressor.errors import ArtifactError, PlanError, ProfileError, RecipeError
from compressor.facts import ModelFacts
from compressor.methods import CUTTERS, check_choosers, rows_kept_by
from compressor.plan.dead_rows import read_though_dead
from compressor.plan.edits import identity_plan
from compressor.plan.inner_widths import undivided
from compressor.plan.plan import Plan
from compressor.planner import check_methods, plan_recipe
from compressor.profile import Profile
from compressor.progress import SILENT, Progress
from compressor.recipe import Recipe
from compressor.schema.sections import BlockSize, ExportSection
from export.graphs.limits import check_fixed
from vtcompress.stages.build import check_targets
from vtcompress.stages.checks.prompts import Asked, check_recipe_prompts
from vtcompress.stages.inputs import model_digest, model_facts

CHANGED_WORDS = (
    "changed since it was made, so that no recipe is said to have made it; it is taken as it is"
)
"""Of a plan that was edited, in Python or by hand, which anyone may do."""


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
        recipe: the run's recipe.
        profile: an earlier calibration's; None: there is none.
        planned: the plan is made from `profile`, or from none; nothing is measured before.
        asked: all questions of the run.
        building: engines that the recipe asks for will be built.
        progress: prints notes that do not stop the run.

    Raises:
        VtcompressError: no such model, a processor or questions that cannot be used, methods that do not fit
            it, gates of other shapes, engines that cannot be built, no profile to plan by.
    """
    facts, gated = model_facts(recipe), recipe.gated
    gates = check_methods(facts, recipe.methods)
    kept = rows_kept_by(recipe.methods, facts)
    check_fixed(recipe.export, facts, gated.exit if gated else None, kept)
    if building:
        check_targets(recipe, facts)
    # Whole matrices first: a plan may cut them, and may not be known yet.
    check_blocks(recipe.export, identity_plan(facts, ""))
    check_recipe_prompts(recipe, asked, progress)
    if planned:
        # Gates are taken for this model's here; `check_digest` tells.
        plan = plan_recipe(recipe, facts, (gates and gates.model_digest) or "", profile)
        check_blocks(recipe.export, plan)
        recipe.healed_file(None, plan.work_digest)
    return facts


def check_blocks(export: ExportSection, plan: Plan) -> None:
    """Refuse blocks of weights that do not divide every matrix of a plan's decoder.

    Raises:
        RecipeError: a line for each kind of matrix, with the blocks that divide them all.
    """
    block = export.block_size
    if block is None:
        return
    fit = [str(size) for size in get_args(BlockSize) if not [*undivided(plan, size)]]
    remedy = f"give {' or '.join(fit)}" if fit else "give export.weights: float"
    if problems := [
        f"export.block: {block}{'' if export.block else ', the default,'} does not divide {width}, the inner "
        f"width of {words} ({layers_words(layers)}); {remedy}"
        for words, width, layers in undivided(plan, block)
    ]:
        raise RecipeError(problems)


def check_digest(
    recipe: Recipe, facts: ModelFacts, profile: Profile | None = None, name: Path = Path()
) -> str:
    """Return the digest of the recipe's model; refuse a profile and gates of another one.

    Args:
        recipe: names model and gates.
        facts: the model's facts.
        profile: an earlier calibration's; None: there is none.
        name: the profile's name in errors.

    Raises:
        VtcompressError: profile or gates are of another model, or weight files cannot be had or read.
    """
    digest = model_digest(recipe)
    if profile is not None:
        profile.check_belongs(name, model_digest=digest)
    if recipe.gated is not None:
        recipe.gate_file(facts, digest)
    for method in recipe.methods:
        method.check_weights(facts, digest)
    recipe.healed_file(digest, None)
    return digest


def check_plan_weights(plan: Plan, recipe: Recipe, facts: ModelFacts, digest: str | None) -> None:
    """Refuse a plan that was made already, if its gates or other weights are not the recipe's, or do not fit.

    Args:
        plan: a plan that was made already.
        recipe: names the gates and the routers.
        facts: facts about the model at hand.
        digest: the model's digest; None: not taken yet.

    Raises:
        GatesError: the recipe names none, or they do not fit.
        RoutersError: likewise.
        PlanError: weights of a choice in front of the decoder cannot be read, or healed weights are another
            plan's.
        ArtifactError: the plan was made with others.
    """
    if plan.gates is not None:
        plan.check_gates(recipe.gate_file(facts, digest).digest)
    if plan.runs():
        file = recipe.router_file(facts, digest, tuple(plan.runs()))
        plan.check_routers(None if file is None else file.digest)
    by = "" if plan.front is None else plan.front.by
    files = (method.front_weights() for method in recipe.methods if method.name == by)
    plan.check_front_weights("".join(file.digest for file in files if file is not None))
    recipe.healed_file(digest, plan.work_digest)


def check_plan_rules(plan: Plan, what: str = "the plan") -> None:
    """Refuse a plan that makes no sense: a copy of a plan with changes is not asked for that by itself.

    Raises:
        PlanError: it breaks a rule of plans, or calls rows dead that a layer reads.
    """
    remedy = "correct it, or make it anew with `vtcompress plan`"
    try:
        Plan.model_validate(plan.model_dump())
    except ValidationError as error:
        lines = (item["msg"].removeprefix("Value error, ") for item in error.errors())
        raise PlanError(f"{what}: {line}; {remedy}" for line in lines) from None
    try:
        check_choosers(plan)
    except PlanError as error:
        raise PlanError(f"{what}: {line}; {remedy}" for line in error.problems) from None
    if alive := read_though_dead(plan.layers):
        raise PlanError(
            [
                f"{what}: {layers_words(alive)}: frozen for the reason dead, though later layers read what "
                f"visual rows become there; give the name of a method as the reason, or {remedy}"
            ]
        )


def check_plan_facts(plan: Plan, facts: ModelFacts, what: str = "the plan") -> None:
    """Refuse a plan that makes no sense, or of another model by its facts, before any weights are here.

    Raises:
        PlanError: as `check_plan_rules`.
        ArtifactError: it was made for a decoder of another shape, or for another image size.
    """
    check_plan_rules(plan, what)
    made, here = plan.model, facts
    remedy = "make it anew with `vtcompress plan`"
    # Whether embedding and head are one is seen when weights are here.
    shape, other = (one.decoder.model_dump(exclude={"tied_embeddings"}) for one in (made, here))
    differs = [f"{key} {shape[key]}, not {other[key]}" for key in shape if shape[key] != other[key]]
    if differs:
        raise ArtifactError(
            [f"{what} was made for {made.name}, not for {here.name} ({differs[0]}); {remedy}"]
        )
    if made.cell is None and made.image_size != here.image_size:
        raise ArtifactError(
            [
                f"{what} was made for pictures of {made.image_size} pixels, but the model takes "
                f"{here.image_size}: set export.image_size={made.image_size}, or {remedy}"
            ]
        )
    if made.cell != here.cell:
        raise ArtifactError(
            [f"{what} was made for other pictures than {here.name} takes; {remedy}"]
        )
    if (made.budget, made.picture_rows) != (here.budget, here.picture_rows):
        given = made.budget.given if made.budget else ()
        asked = ", ".join(f"image.{key}={getattr(made.budget, key)}" for key in given)
        raise ArtifactError(
            [
                f"{what} was made for pictures of up to {made.picture_rows} visual tokens, and with this "
                f"recipe they have up to {here.picture_rows}: "
                f"{f'set {asked}' if asked else 'leave image out'}, or {remedy}"
            ]
        )


def _check_plan_methods(plan: Plan, recipe: Recipe, what: str = "the plan") -> None:
    """Refuse a recipe without the methods that a plan was made by: reports would tell another story.

    Args:
        plan: a plan that was made already.
        recipe: the run's recipe.
        what: the plan's name in errors.

    Raises:
        RecipeError: names the methods that the recipe lacks.
    """
    if recipe.searched is not None:
        return  # it may use what all of them offer
    known = {method.name for method in recipe.methods}
    foreign = [name for name in plan.methods if name not in known]
    if any(layer.cuts for layer in plan.layers) and not known & set(CUTTERS):
        foreign.append(" or ".join(CUTTERS))
    if foreign:
        raise RecipeError(
            [
                f"compress: {what} was made by {' and '.join(foreign)}, which the recipe does not have, so "
                "that reports would not tell what was done; give the recipe that the plan was made by"
            ]
        )


def check_made_by(
    plan: Plan,
    recipe: Recipe,
    profile: Profile | None = None,
    what: str = "the plan",
    remedy: str = "give the recipe that the plan was made by",
) -> None:
    """Refuse a recipe or a profile that a plan was not made by: reports would tell another story.

    Of a plan that was made by hand or changed, reports say so; it may have any that fit.

    Args:
        plan: a plan that was made already.
        recipe: the run's recipe.
        profile: shown in reports as what the plan was chosen by; None: none is.
        what: the plan's name in errors.
        remedy: ends the problem of another recipe.

    Raises:
        RecipeError: the recipe lacks the plan's methods, or asks other things of them.
        ProfileError: the profile is not the one that the plan was made by.
    """
    _check_plan_methods(plan, recipe, what)
    makers = plan.makers
    if makers is None:
        return
    given = [method_words(method) for method in recipe.methods]
    if not alike_words(makers.methods, given):
        made, asked = (", ".join(words) or "no method" for words in (makers.methods, given))
        raise RecipeError(
            [
                f"compress: {what} was made by {made}, and the recipe asks for {asked}, so that reports "
                f"would not tell what was done; {remedy}"
            ]
        )
    if profile is not None and makers.profile not in ("", profile.digest):
        raise ProfileError(
            [
                f"{what} was made by another profile than the one given, so that reports would not tell why; "
                "give the profile that it was made by, or none"
            ]
        )


def note_changed(plan: Plan, what: str, progress: Progress) -> None:
    """Say of a plan that it is no longer the one that was made, if so."""
    if plan.changed:
        progress.say(f"note: {what}: {CHANGED_WORDS}")


def check_plan(
    recipe: Recipe,
    plan: Plan,
    profile: Profile | None,
    what: str,
    asked: Sequence[Asked],
    progress: Progress = SILENT,
) -> ModelFacts:
    """Do what `check_recipe` does, for a plan that was made already.

    Args:
        recipe: the run's recipe.
        plan: the plan in place of the one that the recipe's methods would give.
        profile: what it is said to be chosen by; None: nothing.
        what: the plan's name in errors.
        asked: all questions of the run.
        progress: prints notes that do not stop the run.

    Raises:
        VtcompressError: as `check_recipe`; or the plan is of another model, or made by another recipe or
            profile.
    """
    facts = model_facts(recipe)
    check_plan_facts(plan, facts, what)
    check_plan_weights(plan, recipe, facts, None)
    check_made_by(plan, recipe, profile, what)
    note_changed(plan, what, progress)
    mode = plan.gates.mode if plan.gates else None
    check_fixed(recipe.export, plan.model, mode, plan.rows_kept)
    check_targets(recipe, plan.model)
    check_blocks(recipe.export, plan)
    check_recipe_prompts(recipe, asked, progress)
    return facts


def digest_of_plan(plan: Plan, recipe: Recipe, facts: ModelFacts, **words: str) -> str:
    """Return the digest of the recipe's model; refuse a plan or gates of another.

    Args:
        plan: a plan that was made already.
        recipe: names model and gates.
        facts: the model's facts.
        words: those of `Plan.check_belongs`.
    """
    digest = model_digest(recipe)
    plan.check_belongs(facts.name, digest, **words)
    check_plan_weights(plan, recipe, facts, digest)
    return digest
