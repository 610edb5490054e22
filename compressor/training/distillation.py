"""Trains some of a compressed model: its next tokens towards the original's.

Source: "Distilling the Knowledge in a Neural Network" (Hinton et al., 2015), of a model into itself.

Rule: both models read a prompt with its right answer forced behind it. The loss of a prompt is the mean over
its A answer tokens of KL(original || compressed), of a step the mean over a batch. AdamW moves the learned
tensors alone; nothing else has a gradient. A tensor's step is the learning rate times its root mean square
at the start (as in Adafactor, Shazeer and Stern, 2018), as routers are small and norms are not. It grows over
the first twentieth of the steps, and falls to 0 at the last.

Which rows run a layer is what the routers say at each step, as in the compressed model; its gradient is an
estimate, see `compressor.decoder.layers.running`. What else is chosen has none.

At the start, after each fifth of the steps and at the end the training is judged, on prompts that it does not
learn from or, where there are none, on the training prompts, and what was best is what it gives: choices
jump, and so does the loss.

What a step draws depends on seed and number alone, so that a run that was killed ends with the very weights
of one that was not.

Limitations:
- Prompts with their pictures, and the original's logits at answers, stay in memory.
- A prompt and its answer are one call: a choice that reads the prompt's last token would see the answer's.
- On other numbers of threads, or another machine, sums are rounded otherwise.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compressor.chosen_rows import ChosenRows
from compressor.compressed import CompressedModel
from compressor.contract.learned import PartTraining
from compressor.decoder import Decoder
from compressor.decoder.full_pass import FullPass, full_pass, kl_divergence
from compressor.decoder.weights import decoder_from, stored_weights
from compressor.errors import PlanError
from compressor.families import LoadedModel
from compressor.plan.edits import identity_plan
from compressor.progress import SILENT, Progress
from compressor.samples.prompts import (
    EncodedPrompt,
    PromptRows,
    embed,
    embed_to_train,
    encode_answered,
    fronts_of,
)
from compressor.samples.questions import Sample
from compressor.training.checkpoint import TrainingTask
from compressor.training.run import TrainingRun

WARM_UP = 20
"""The learning rate grows over one of so many steps."""

MOST_JUDGED = 256
"""Prompts on which a training is judged, evenly taken."""
LOOKS = 5
"""How often it is judged, the start aside."""
BEST = "best/"
"""How names of the best tensors begin in a checkpoint."""

Start = Callable[[Iterable[FullPass], Mapping[str, tuple[int, ...]], int], Mapping[str, Tensor]]
"""`Method.learned_start`."""


StandIns = Callable[[], Mapping[str, Tensor]]
"""Gives what a call of the decoder takes in place of parameters, by name, as learned tensors now are."""


class DistilTask(TrainingTask):
    """What decides how weights come out that are trained towards the original.

    Attributes:
        plan: digest of what the compressed model does.
        train: settings, with a learning rate.
    """

    error: ClassVar = PlanError

    plan: str
    train: PartTraining


class PartTask(DistilTask):
    """The same of a method's parts.

    Attributes:
        method: whose they are.
    """

    words: ClassVar[Mapping[str, str]] = {
        "method": "another method",
        "plan": "another recipe",
        "train": "other settings",
    }

    method: str


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Attributes:
        tensors: the best that there were, by name.
        steps: that were taken.
        best: the step behind which these were; 0: the start.
        seconds: that it took, all runs together.
        before: mean KL(original || compressed) over answer tokens and judged prompts, at the start, in nats.
        after: the same of the best.
    """

    tensors: dict[str, Tensor]
    steps: int
    best: int
    seconds: float
    before: float
    after: float


@dataclass(frozen=True)
class _Lesson:
    """A prompt with its answer, and the original's logits [A, vocab] at the answer's tokens."""

    prompt: EncodedPrompt
    taught: Tensor


@dataclass(frozen=True)
class Learned:
    """A parameter that is trained.

    Attributes:
        parameter: of the compressed model, or of what its parameters are made from.
        transposed: whether the tensor's file has it the other way round.
    """

    parameter: nn.Parameter
    transposed: bool

    @property
    def tensor(self) -> Tensor:
        """The parameter as its file has it, sharing its memory."""
        found = self.parameter.detach()
        return found.T if self.transposed else found


def learned_in(small: CompressedModel, names: Iterable[str]) -> dict[str, Learned]:
    """Return the parameters of a compressed model that hold some tensors, by the tensors' names.

    Args:
        small: the compressed model.
        names: as `Method.learned_shapes` has them; those that the plan does not use are left out.
    """
    wanted = set(names)
    found = {
        stored.source: Learned(small.decoder.get_parameter(name), stored.transposed)
        for name, stored in stored_weights(small.decoder).items()
        if stored.source in wanted
    }
    if isinstance(small.vision, ChosenRows):
        front = small.vision.parameters_by_name.items()
        found |= {name: Learned(p, False) for name, p in front if name in wanted}
    return found


def _as_they_are(
    passes: Iterable[FullPass],  # noqa: ARG001 - as `Start` has it
    shapes: Mapping[str, tuple[int, ...]],  # noqa: ARG001
    seed: int,  # noqa: ARG001
) -> dict[str, Tensor]:
    return {}


def distil(
    model: LoadedModel,
    small: CompressedModel,
    samples: Sequence[Sample],
    task: DistilTask,
    learned: Mapping[str, Learned],
    checkpoint: Path,
    *,
    start: Start = _as_they_are,
    start_samples: Sequence[Sample] = (),
    judged: Sequence[Sample] = (),
    stand_ins: StandIns = dict,
    minutes: float | None = None,
    progress: Progress = SILENT,
) -> Trained:
    """Train some tensors of a compressed model, in place; nothing else changes.

    Args:
        model: the original.
        small: made of it, with logits of all text rows.
        samples: to learn from, with answers.
        task: what is trained, and how.
        learned: the tensors.
        checkpoint: file that the run grows and goes on from; left behind when it is done.
        start: see `Method.learned_start`; as it stands, tensors are as they are.
        start_samples: whose passes `start` gets.
        judged: what the training is judged on; none: evenly taken of `samples`.
        stand_ins: what calls of the compressed decoder take in place of its parameters.
        minutes: after which no step begins, those of earlier runs included; None: all steps are taken.
        progress: shows prompts, then steps.

    Raises:
        DataError: a picture cannot be read, or a prompt does not fit the model.
        PlanError: the checkpoint belongs to another training.
    """
    original = decoder_from(identity_plan(model.facts, model.digest), model.tensors, logits="all")
    if not checkpoint.exists():
        shapes = {name: tuple(one.tensor.shape) for name, one in learned.items()}
        passes = _passes(model, original, start_samples, progress)
        with torch.no_grad():
            for name, tensor in start(passes, shapes, task.train.seed).items():
                learned[name].tensor.copy_(tensor)
    asked = [*samples, *judged]
    lessons = [
        _lesson(model, original, sample)
        for sample in progress.track(asked, "asking the original", len(asked))
    ]
    with _learning(small, learned):
        run = _Run(task, checkpoint, learned, small, lessons, len(judged), stand_ins)
        try:
            return run.learn(minutes, progress)
        finally:
            run.save()


@contextmanager
def _learning(small: CompressedModel, learned: Mapping[str, Learned]) -> Iterator[None]:
    """Let the learned parameters alone have gradients, and layers compute as in a training."""
    vision = [parameter for parameter in small.vision.parameters() if parameter.requires_grad]
    for parameter in vision:
        parameter.requires_grad_(False)
    for one in learned.values():
        one.parameter.requires_grad_(True)
    small.decoder.train()
    try:
        yield
    finally:
        small.decoder.eval()
        for one in learned.values():
            one.parameter.requires_grad_(False).grad = None
        for parameter in vision:
            parameter.requires_grad_(True)


def _passes(
    model: LoadedModel, original: Decoder, samples: Sequence[Sample], progress: Progress
) -> Iterator[FullPass]:
    for sample in progress.track(samples, "looking where to start", len(samples)):
        prompt, _ = encode_answered(model.processor, sample, model.facts)
        full = full_pass(original, *embed(model, prompt).call)
        yield replace(full, fronts=partial(fronts_of, model, prompt))


def _lesson(model: LoadedModel, original: Decoder, sample: Sample) -> _Lesson:
    prompt, answer = encode_answered(model.processor, sample, model.facts)
    full = full_pass(original, *embed(model, prompt).call)
    with torch.no_grad():
        taught = original.next_token_logits(full.text[-1][:, -len(answer) :])[0]
    return _Lesson(prompt, taught.clone())


class _Run(TrainingRun):
    """A training towards the original under way; the last `judged` lessons are not learned from."""

    task: DistilTask

    def __init__(
        self,
        task: DistilTask,
        path: Path,
        learned: Mapping[str, Learned],
        small: CompressedModel,
        lessons: Sequence[_Lesson],
        judged: int,
        stand_ins: StandIns,
    ) -> None:
        self.learned, self.small, self.lessons = learned, small, lessons
        self.stand_ins, self.count = stand_ins, len(lessons) - judged
        self.judged = range(self.count, len(lessons))
        if not judged:
            self.judged = range(0, self.count, -(-self.count // MOST_JUDGED))
        weights = {name: one.parameter for name, one in learned.items()}
        seen = {id(parameter) for parameter in small.vision.parameters()}
        self.sees_alike = not any(id(parameter) in seen for parameter in weights.values())
        self.rows: dict[int, PromptRows] = {}
        self.seconds, self.before, self.looked = 0.0, math.inf, -1
        self.best: dict[str, Tensor] = {}
        self.best_kl, self.best_step = math.inf, 0
        # Of the start, whatever the weights are when a run goes on.
        self.sizes = torch.tensor([_size(one.tensor) for one in learned.values()])
        groups = [{"params": [weight]} for weight in weights.values()]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        super().__init__(task, path, weights, optimizer)
        self.resume()
        self.began = time.monotonic() - self.seconds

    def beside(self) -> dict[str, Tensor]:
        """Return sizes, the best tensors, and what is told at the end."""
        self.seconds = time.monotonic() - self.began
        told = (self.seconds, self.before, self.looked, self.best_kl, self.best_step)
        best = {f"{BEST}{name}": tensor for name, tensor in self.best.items()}
        return {"sizes": self.sizes, "told": torch.tensor(told, dtype=torch.float64), **best}

    def take_back(self, beside: Mapping[str, Tensor]) -> None:
        """Take them of a checkpoint."""
        self.sizes = beside["sizes"]
        self.seconds, self.before, looked, self.best_kl, best_step = beside["told"].tolist()
        self.looked, self.best_step = int(looked), int(best_step)
        self.best = {n.removeprefix(BEST): t for n, t in beside.items() if n.startswith(BEST)}

    def learn(self, minutes: float | None, progress: Progress) -> Trained:
        """Take the steps that are left, or those that there is time for."""
        train = self.task.train
        looks = {train.steps * part // LOOKS for part in range(LOOKS)}
        todo = range(self.step, train.steps)
        for number in progress.track(todo, "training", len(todo)):
            if number in looks:
                self._look()
            if minutes is not None and time.monotonic() - self.began >= 60 * minutes:
                break
            places = range(self.count)
            drawn = random.Random(f"{train.seed}:{number}").choices(places, k=train.batch)  # noqa: S311
            rate = (train.learning_rate or 0.0) * _share_of_rate(number, train.steps)
            for group, size in zip(self.optimizer.param_groups, self.sizes.tolist(), strict=True):
                group["lr"] = rate * size
            with self.one_step():
                for place in drawn:
                    (self._loss(place) / train.batch).backward()
        self._look()
        seconds = time.monotonic() - self.began
        return Trained(self.best, self.step, self.best_step, seconds, self.before, self.best_kl)

    @torch.no_grad()
    def _look(self) -> None:
        """Judge the weights as they are, unless that was done, and keep them if they are the best."""
        if self.looked == self.step:
            return
        found = sum(self._loss(place).item() for place in self.judged) / len(self.judged)
        if self.looked < 0:
            self.before = found
        if found < self.best_kl:
            self.best_kl, self.best_step = found, self.step
            self.best = {name: one.tensor.clone() for name, one in self.learned.items()}
        self.looked = self.step

    def _loss(self, place: int) -> Tensor:
        lesson, decoder = self.lessons[place], self.small.decoder
        call = self._rows(place).call
        given = (*call[:4], decoder.empty_past(1), *call[4:])
        logits, _ = functional_call(decoder, {**self.stand_ins()}, given)
        return kl_divergence(lesson.taught, logits[0, -len(lesson.taught) :]).mean()

    def _rows(self, place: int) -> PromptRows:
        prompt = self.lessons[place].prompt
        if not self.sees_alike:
            return embed_to_train(self.small, prompt)
        if place not in self.rows:
            self.rows[place] = embed_to_train(self.small, prompt)
        return self.rows[place]


def _size(tensor: Tensor) -> float:
    """Return the root mean square; of a tensor that is 0, that of a fresh matrix of its width."""
    return tensor.double().square().mean().sqrt().item() or tensor.shape[-1] ** -0.5


def _share_of_rate(number: int, steps: int) -> float:
    """Return the share of the learning rate that a step has: rising, then falling to 0."""
    return min(1.0, WARM_UP * (number + 1) / steps) * (1 - number / steps)
