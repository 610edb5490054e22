"""What a healing is asked for, and how it runs: one way for the command and for an export that heals."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.contract.asked import method_words
from compressor.contract.healing import HEALED, QUESTIONS, Healed, HealTraining
from compressor.contract.method import Trait
from compressor.disk.gate_file import stable_header
from compressor.disk.weight_file import MODEL_DIGEST
from compressor.errors import DataError, PlanError, RecipeError
from compressor.plan.plan import Plan
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.samples.questions import (
    Sample,
    check_pictures,
    check_unseen,
    choose,
    data_digest,
    question_numbers,
    read_samples,
)
from compressor.schema.arguments import check_above_zero
from vtcompress.stages.checks.prompts import Asked
from vtcompress.stages.healing.report import HealReport
from vtcompress.stages.inputs import calibration_samples
from vtcompress.stages.training.model import check_trainable, compressed_to_train, parted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from compressor.families import LoadedModel
    from compressor.training.healing import HealTask

JUDGED_SHARE, MOST_JUDGED = 5, 256
"""One question of so many judges the training and is not learned from; and at most how many do."""
REMEDY = "such a plan cannot be healed: leave it out"
_NOTHING = (
    "neurons_scale alone, and in no layer of this plan have visual rows some of the neurons; add norms or "
    "lora"
)


@dataclass(frozen=True)
class HealCourse:
    """One healing; of the model nothing is known yet.

    Attributes:
        recipe: names the model, the methods, and questions that are held out.
        data: name of the questions.
        samples: to learn from, and to judge by.
        train: what is trained, and how.
        minutes: that say how many steps there are; None: `train` says it.
    """

    recipe: Recipe
    data: str
    samples: tuple[Sample, ...]
    train: HealTraining
    minutes: float | None

    @classmethod
    def of(
        cls, recipe: Recipe, data: Path | None, train: HealTraining, minutes: float | None
    ) -> "HealCourse":
        """Return the healing of a recipe's decoder; its questions are read.

        Args:
            recipe: see the class.
            data: jsonl file of questions; None: the recipe's calibration questions.
            train: what is trained, and how.
            minutes: see the class.

        Raises:
            DataError: questions cannot be used, or are held out.
            RecipeError: there are none.
        """
        check_above_zero("minutes", minutes)
        if data is not None:
            samples, name = read_samples(data), data.name
        elif (own := recipe.calibrate.data) is not None:
            samples, name = calibration_samples(recipe), own.name
        else:
            problem = "trains, and there are no questions; give heal.data or calibrate.data"
            raise RecipeError([f"{recipe.heal.trained_in_the_run} {problem}"])
        _check(recipe, samples, name)
        return cls(recipe, name, samples, train, minutes)

    @classmethod
    def in_the_run(cls, recipe: Recipe) -> "HealCourse | None":
        """Return the healing that a recipe asks an export for; None: for none.

        Raises:
            RecipeError: its methods choose by the end of the prompt, or there are no questions.
            DataError: questions cannot be used, or are held out.
        """
        asked = recipe.heal.trained_in_the_run
        if not asked:
            return None
        claims = [claim for m in recipe.methods for claim in m.claims(m.asked())]
        by = [claim.key for claim in claims if claim.trait is Trait.LEAVING]
        if recipe.gated is not None or by:
            problem = "goes by the end of the prompt, and a training goes on to the answer"
            name = by[0] if recipe.gated is None else recipe.gated.name
            raise RecipeError([f"{asked}: compress.{name} {problem}; set it to null"])
        section = recipe.heal
        return cls.of(recipe, section.data, section.training, section.minutes)

    @property
    def asked(self) -> Asked:
        """What both models are asked."""
        return Asked(self.samples, self.recipe.validation.max_new_tokens, forced=True)

    def task(self, model: "LoadedModel", plan: Plan) -> "HealTask":
        """Return what decides how weights come out, which the checkpoint is bound to."""
        from compressor.training.healing import HealTask

        return HealTask(
            model_digest=model.digest,
            data_digest=data_digest(self.samples),
            plan=plan.work_digest,
            train=self.train,
            timed=self.minutes is not None,
        )

    def drop_foreign(self, model: "LoadedModel", plan: Plan, checkpoint: Path) -> None:
        """Remove a checkpoint that was left by another training."""
        from compressor.training.checkpoint import Checkpoint

        if checkpoint.exists():
            try:
                Checkpoint.read(checkpoint, self.task(model, plan))
            except PlanError:
                checkpoint.unlink()

    def run(
        self, model: "LoadedModel", plan: Plan, checkpoint: Path, progress: Progress
    ) -> tuple[HealReport, bytes]:
        """Train, or go on with it.

        Args:
            model: the original.
            plan: whose decoder is healed.
            checkpoint: file that the run grows and goes on from; left behind when it is done.
            progress: shows prompts, then steps.

        Returns:
            What came of it, and the file.

        Raises:
            PlanError: the plan cannot be trained, or the checkpoint belongs to another training.
        """
        from compressor.training.distillation import distil
        from compressor.training.healing import Healing

        check_trainable(plan, REMEDY)
        train, task = self.train, self.task(model, plan)
        answered = _answered(model, self.samples, self.asked.new_tokens, progress)
        count = min(MOST_JUDGED, -(-len(answered) // JUDGED_SHARE))
        judged = choose(answered, count, train.seed)
        learned_from = parted(answered, judged)
        small, tensors = compressed_to_train(model, plan, self.recipe)
        healing = Healing(small, tensors, train)
        if not healing.learned:
            raise PlanError([f"train: {_NOTHING}"])
        trained = distil(
            model,
            small,
            learned_from,
            task,
            healing.learned,
            checkpoint,
            judged=judged,
            stand_ins=healing.parameters,
            minutes=self.minutes,
            progress=progress,
        )
        healed = Healed(
            model_digest=model.digest,
            work_digest=plan.work_digest,
            # As many steps repeat what the clock had for these minutes.
            train=train.model_copy(update={"steps": max(1, trained.planned)}),
            trained=healing.counts,
            steps=trained.steps,
            best_step=trained.best,
            data=self.data,
            data_digest=task.data_digest,
            samples=len(learned_from),
            judged=len(judged),
            own_answers=sum(not has_answer(sample) for sample in self.samples),
            kl_before=trained.before,
            kl_after=trained.after,
        )
        content = _content(healed, trained.tensors, self.samples)
        report = HealReport(
            **healed.model_dump(),
            model=model.facts.name,
            asked=tuple(map(method_words, self.recipe.methods)),
            heal_digest=hashlib.sha256(content).hexdigest(),
            seconds=trained.seconds,
            minutes=self.minutes,
        )
        return report, content


def has_answer(sample: Sample) -> bool:
    """Return whether the data has a right answer that a training can force."""
    return bool((sample.answer or "").strip())


def _check(recipe: Recipe, samples: Sequence[Sample], name: str) -> None:
    """Refuse questions that nothing may be learned from."""
    check_pictures(samples, name, "healing")
    if len(samples) < 2:
        problem = "has one question, and some are learned from while others judge; give two or more"
        raise DataError([f"{name}: {problem}"])
    if (held := recipe.validation.data) is not None:
        numbers = {*question_numbers(read_samples(held))}
        problem = f"are held out by validate.data ({held.name}), and would prove nothing then"
        check_unseen(samples, numbers, problem, "leave them out of what is learned from")


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

    numbers = torch.tensor(sorted({*question_numbers(samples)}))
    metadata = {MODEL_DIGEST: healed.model_digest, HEALED: healed.model_dump_json()}
    named = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
    return stable_header(save({**named, QUESTIONS: numbers}, metadata))
