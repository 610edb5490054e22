"""The models that a training towards the original runs: the original, and what is to be trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.contract.learned import PartTraining
from compressor.errors import PlanError, VtcompressError
from compressor.plan.plan import Plan
from compressor.planner import plan_recipe
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.samples.questions import Sample
from vtcompress.stages.checks.prompts import Asked
from vtcompress.stages.checks.recipe import (
    check_digest,
    check_plan,
    check_recipe,
    digest_of_plan,
)
from vtcompress.stages.checks.rewrite import check_rewrite
from vtcompress.stages.compress import load_weights_in_front, with_routers
from vtcompress.stages.inputs import load_model

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.compressed import CompressedModel
    from compressor.families import LoadedModel


@dataclass(frozen=True)
class Chosen:
    """What a plan is made by, or is.

    Attributes:
        profile: of a calibration; None: none is needed.
        name: the profile's in errors.
        plan: that was made already; None: the recipe's methods make it.
        what: the plan's name in errors.
    """

    profile: Profile | None
    name: Path
    plan: Plan | None = None
    what: str = ""


def refuse_both(train: PartTraining, minutes: float | None) -> None:
    """Refuse a number of steps beside a time, which says how many there are.

    Raises:
        VtcompressError: both are given.
    """
    if minutes is not None and "steps" in train.model_fields_set:
        problem = f"the time says how many there are; leave steps or minutes ({minutes:g}) out"
        raise VtcompressError(f"steps: {train.steps}: {problem}")


def model_to_train(
    recipe: Recipe,
    chosen: Chosen,
    asked: Asked,
    device: str,
    progress: Progress,
    *,
    remedy: str,
) -> "tuple[LoadedModel, Plan]":
    """Load a recipe's model, and make the plan whose decoder is trained; all is checked that can be.

    Args:
        recipe: names the model and the methods.
        chosen: a plan, or what it is made by.
        asked: the training's questions.
        device: where the model runs.
        progress: announces it.
        remedy: for plans that cannot be trained; see `check_trainable`.

    Raises:
        VtcompressError: model, data or recipe cannot be used, or the plan cannot be trained.
    """
    if chosen.plan is None:
        facts = check_recipe(recipe, chosen.profile, planned=True, asked=[asked], progress=progress)
        digest = check_digest(recipe, facts, chosen.profile, chosen.name)
    else:
        plan, profile, what = chosen.plan, chosen.profile, chosen.what
        facts = check_plan(recipe, plan, profile, what, [asked], progress)
        digest = digest_of_plan(plan, recipe, facts, what=what)
    model = load_model(recipe, progress, digest, device=device)
    check_rewrite(model, asked.samples, progress=progress)
    made = chosen.plan or plan_recipe(recipe, model.facts, digest, chosen.profile)
    check_trainable(made, remedy)
    return model, made


def check_trainable(plan: Plan, remedy: str) -> None:
    """Refuse plans that read the end of the prompt, where a training has the answer.

    Raises:
        PlanError: says so.
    """
    by = sorted({kept.by for kept in plan.keeps().values()})
    words = ["gates decide at"] if plan.gates is not None else []
    words += [f"{' and '.join(by)} chooses by"] if by else []
    if words:
        raise PlanError(
            [
                f"compress: {words[0]} the end of the prompt, and a training goes on to the answer; {remedy}"
            ]
        )


def compressed_to_train(
    model: "LoadedModel", plan: Plan, recipe: Recipe
) -> "tuple[CompressedModel, dict[str, Tensor]]":
    """Return a plan's compressed model, and all tensors that its decoder is filled from, by source."""
    from compressor.compressed import compress

    routed, embedding = with_routers(model, plan, recipe), model.embedding
    near = {name: tensor.to(embedding.device) for name, tensor in routed.tensors.items()}
    front = load_weights_in_front(plan, recipe).beside(embedding)
    return compress(replace(routed, tensors=near), plan, logits="all", front=front), near


def parted(samples: Sequence[Sample], judged: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return the samples that are not judged."""
    others = set(map(id, judged))
    return tuple(sample for sample in samples if id(sample) not in others)
