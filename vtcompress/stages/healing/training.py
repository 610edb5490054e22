"""The stage that heals: the compressed decoder learns to say what the original says."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.contract.asked import method_words
from compressor.contract.healing import (
    HEALED,
    QUESTIONS,
    Healed,
    HealTraining,
)
from compressor.disk.gate_file import stable_header
from compressor.disk.weight_file import MODEL_DIGEST
from compressor.errors import DataError, PlanError, RecipeError
from compressor.plan.plan import Plan
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.samples.questions import (
    Sample,
    check_pictures,
    check_unseen,
    choose,
    data_digest,
    question_number,
    read_samples,
)
from compressor.schema.arguments import check_above_zero
from export.backends.torch_device import ON_CPU, check_device
from vtcompress.console import shown
from vtcompress.stages.checks.prompts import Asked
from vtcompress.stages.healing.report import HealReport
from vtcompress.stages.inputs import (
    open_plan,
    open_profile,
    read_files,
    require_compress,
    require_recipe,
    source_paths,
)
from vtcompress.stages.training.model import Chosen, compressed_to_train, model_to_train, parted
from vtcompress.stages.training.place import TrainedFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from compressor.families import LoadedModel

JUDGED_SHARE, MOST_JUDGED = 5, 256
"""One question of so many judges the training and is not learned from; and at most how many do."""
_NOTHING = (
    "neurons_scale alone, and in no layer of this plan have visual rows some of the neurons; add norms or "
    "lora"
)


def heal(
    recipe: Recipe,
    data: str | Path,
    output: str | Path,
    *,
    train: HealTraining | None = None,
    minutes: float | None = None,
    profile: Profile | str | Path | None = None,
    plan: Plan | str | Path | None = None,
    device: str = ON_CPU,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> HealReport:
    """Train some weights of a compressed decoder; write their changes, and a report as JSON beside them.

    The compressed decoder is trained towards the original's next-token distributions at answers
    (self-distillation): right ones, or the original's own where the data has none. A recipe with the file as
    its `heal.file` exports the compressed decoder with these weights; the original's stay the baseline's. A
    run that was stopped goes on from its checkpoint, a hidden file beside `output`.

    Args:
        recipe: names the model and the methods, and by `validate.data` questions that are not learned from.
        data: jsonl file of questions with pictures; all are used, a share of them to judge alone.
        output: safetensors file, as the recipe's `heal.file` takes it.
        train: what is trained, steps, batch, learning rate, rank and seed; None: the usual ones.
        minutes: after which no step begins; None: all steps are taken.
        profile: an earlier calibration's or its file; needed where methods choose by it.
        plan: a plan that was made already, or its file; None: the recipe's methods make it.
        device: where both models run: `cpu`, or a GPU as torch names it; in float32.
        overwrite: replace healed weights that this tool wrote at `output`.
        progress: shows prompts and steps; None: on a terminal alone.

    Raises:
        VtcompressError: model, data or recipe cannot be used, questions are held out by `validate.data`, or
            `output` exists, is being written by another run, or holds the checkpoint of another training.
    """
    require_recipe(recipe)
    check_device(device)
    check_above_zero("minutes", minutes)
    train, progress, data = train or HealTraining(), shown(progress), Path(data)
    if recipe.heal.file is not None:
        problem = "a healing starts at the original's weights; set it to null"
        raise RecipeError([f"heal.file: {recipe.heal.file}: {problem}"])
    given, what = (None, "") if plan is None else open_plan(plan)
    chosen = Chosen(*open_profile(profile), given, what)
    sources = (*source_paths(recipe), *read_files((data,), profile, plan))
    file = TrainedFile(output, "heal", overwrite=overwrite, sources=sources)
    with file.held(device):
        require_compress("healing")
        samples = _questions(recipe, data)
        file.check_outside(recipe)
        tokens = recipe.validation.max_new_tokens
        asked = Asked(samples, tokens, forced=True)
        remedy = "such a plan cannot be healed: leave it out"
        model, made = model_to_train(recipe, chosen, asked, device, progress, remedy=remedy)
        answered = _answered(model, samples, tokens, progress)
        judged = choose(answered, min(MOST_JUDGED, -(-len(answered) // JUDGED_SHARE)), train.seed)
        learned_from = parted(answered, judged)
        from compressor.training.distillation import distil
        from compressor.training.healing import Healing, HealTask

        small, tensors = compressed_to_train(model, made, recipe)
        healing = Healing(small, tensors, train)
        if not healing.learned:
            raise PlanError([f"train: {_NOTHING}"])
        task = HealTask(
            model_digest=model.digest,
            data_digest=data_digest(samples),
            plan=made.work_digest,
            train=train,
        )
        trained = distil(
            model,
            small,
            learned_from,
            task,
            healing.learned,
            file.checkpoint,
            judged=judged,
            stand_ins=healing.parameters,
            minutes=minutes,
            progress=progress,
        )
        healed = Healed(
            model_digest=model.digest,
            work_digest=made.work_digest,
            train=train,
            trained=healing.counts,
            steps=trained.steps,
            best_step=trained.best,
            data=data.name,
            data_digest=task.data_digest,
            samples=len(learned_from),
            judged=len(judged),
            own_answers=sum(not has_answer(sample) for sample in samples),
            kl_before=trained.before,
            kl_after=trained.after,
        )
        content = _content(healed, trained.tensors, samples)
        report = HealReport(
            **healed.model_dump(),
            model=model.facts.name,
            asked=tuple(map(method_words, recipe.methods)),
            heal_digest=hashlib.sha256(content).hexdigest(),
            seconds=trained.seconds,
        )
        file.write(report, content)
    return report


def has_answer(sample: Sample) -> bool:
    """Return whether the data has a right answer that a training can force."""
    return bool((sample.answer or "").strip())


def _questions(recipe: Recipe, data: Path) -> tuple[Sample, ...]:
    """Return what may be learned from.

    Raises:
        DataError: the data cannot be used, or is held out.
    """
    samples = read_samples(data)
    check_pictures(samples, data.name, "healing")
    if len(samples) < 2:
        problem = "has one question, and some are learned from while others judge; give two or more"
        raise DataError([f"{data}: {problem}"])
    if (held := recipe.validation.data) is not None:
        numbers = {question_number(sample) for sample in read_samples(held)}
        problem = f"are held out by validate.data ({held.name}), and would prove nothing then"
        check_unseen(samples, numbers, problem, "leave them out of what is learned from")
    return samples


def _answered(
    model: "LoadedModel", samples: Sequence[Sample], tokens: int, progress: Progress
) -> tuple[Sample, ...]:
    """Return samples with answers: the original's own where the data has none."""
    from export.checks.original import measure_original

    bare = [sample for sample in samples if not has_answer(sample)]
    if not bare:
        return tuple(samples)
    said = iter(measure_original(model, bare, tokens, progress).answers)
    return tuple(s if has_answer(s) else replace(s, answer=next(said).text) for s in samples)


def _content(healed: Healed, tensors: "Mapping[str, Tensor]", samples: Sequence[Sample]) -> bytes:
    """Return the file; see `compressor.contract.healing`."""
    import torch
    from safetensors.torch import save

    numbers = torch.tensor(sorted({question_number(sample) for sample in samples}))
    metadata = {MODEL_DIGEST: healed.model_digest, HEALED: healed.model_dump_json()}
    named = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
    return stable_header(save({**named, QUESTIONS: numbers}, metadata))
