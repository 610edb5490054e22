"""Trains some of a compressed model: its next tokens towards the original's.

Source: "Distilling the Knowledge in a Neural Network" (Hinton et al., 2015), of a model into itself.

Rule: both models read a prompt with its right answer forced behind it. The loss of a prompt is the mean over
its A answer tokens of KL(original || compressed), of a step the mean over a batch. AdamW moves the learned
tensors alone; nothing else has a gradient. A tensor's step is the learning rate times its root mean square
at the start (as in Adafactor, Shazeer and Stern, 2018), as routers are small and norms are not; how it grows
and falls is in `compressor.training.pace`.

Which rows run a layer is what the routers say at each step, as in the compressed model; its gradient is an
estimate, see `compressor.decoder.layers.running`. What else is chosen has none.

At the start, where the rate begins to fall, half way down and at the end the training is judged, on prompts
that it does not learn from or, where there are none, on the training prompts, and what was best is what it
gives: choices jump, and so does the loss.

What a step draws depends on seed and number alone, so that a run that was killed ends with the very weights
of one that was not.

Limitations:
- Prompts stay in memory, with their pictures where the vision side learns; of their embeddings and the
  original's logits at answers, what has no room there is in a file.
- A prompt and its answer are one call: a choice that reads the prompt's last token would see the answer's.
- On other numbers of threads, or another machine, sums are rounded otherwise.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compressor.chosen_rows import ChosenRows
from compressor.compressed import CompressedModel
from compressor.decoder import Decoder
from compressor.decoder.full_pass import FullPass, full_pass, kl_divergence
from compressor.decoder.weights import decoder_from, stored_weights
from compressor.families import LoadedModel
from compressor.plan.edits import identity_plan
from compressor.progress import SILENT, Progress
from compressor.samples.prompts import (
    embed,
    encode_answered,
    fronts_of,
)
from compressor.samples.questions import Sample
from compressor.training import pace as pacing
from compressor.training.checkpoint import DistilTask
from compressor.training.lessons import Lessons, lessons_of
from compressor.training.pace import Pace, share_of_rate
from compressor.training.run import TrainingRun

MOST_JUDGED = 256
"""Prompts on which a training is judged, evenly taken."""
PERCENT = 100
BEST = "best/"
"""How names of the best tensors begin in a checkpoint."""

Start = Callable[[Iterable[FullPass], Mapping[str, tuple[int, ...]], int], Mapping[str, Tensor]]
"""`Method.learned_start`."""


StandIns = Callable[[], Mapping[str, Tensor]]
"""Gives what a call of the decoder takes in place of parameters, by name, as learned tensors now are."""


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Attributes:
        tensors: the best that there were, by name.
        steps: that were taken.
        planned: that the learning rate fell to 0 at; more than were taken where the time was over before.
        best: the step behind which these were; 0: the start.
        seconds: that it took, all runs together.
        before: mean KL(original || compressed) over answer tokens and judged prompts, at the start, in nats.
        after: the same of the best.
    """

    tensors: dict[str, Tensor]
    steps: int
    planned: int
    best: int
    seconds: float
    before: float
    after: float


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
        minutes: that steps and judging may take, those of earlier runs included, and that say how many steps
            there are (`Pace`); None: the settings say it.
        progress: shows prompts, then steps, or the share of the time.

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
    task = task.model_copy(update={"timed": minutes is not None})
    seen = {id(parameter) for parameter in small.vision.parameters()}
    alike = not any(id(one.parameter) in seen for one in learned.values())
    asked, folder = [*samples, *judged], checkpoint.parent
    lessons = lessons_of(model, original, small, asked, folder, progress, sees_alike=alike)
    with _learning(small, learned):
        run = _Run(task, checkpoint, learned, small, lessons, len(judged), stand_ins, minutes)
        try:
            return run.learn(progress)
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


class _Run(TrainingRun):
    """A training towards the original under way; the last `judged` lessons are not learned from."""

    task: DistilTask

    def __init__(
        self,
        task: DistilTask,
        path: Path,
        learned: Mapping[str, Learned],
        small: CompressedModel,
        lessons: Lessons,
        judged: int,
        stand_ins: StandIns,
        minutes: float | None,
    ) -> None:
        self.learned, self.small, self.lessons = learned, small, lessons
        self.stand_ins, self.count = stand_ins, len(lessons) - judged
        self.judged = range(self.count, len(lessons))
        if not judged:
            self.judged = range(0, self.count, -(-self.count // MOST_JUDGED))
        weights = {name: one.parameter for name, one in learned.items()}
        self.before, self.looked = math.inf, -1
        self.best: dict[str, Tensor] = {}
        self.best_kl, self.best_step = math.inf, 0
        # Of the start, whatever the weights are when a run goes on.
        self.sizes = torch.tensor([_size(one.tensor) for one in learned.values()])
        groups = [{"params": [weight]} for weight in weights.values()]
        # One kernel a tensor; on a GPU it would want the counts of steps there.
        fused = all(weight.device.type == "cpu" for weight in weights.values())
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=fused)
        super().__init__(task, path, weights, optimizer)
        seconds = None if minutes is None else 60 * minutes
        self.pace = Pace(None if task.timed else task.train.steps, seconds)
        self.resume()

    def beside(self) -> dict[str, Tensor]:
        """Return sizes, the best tensors, the pace, and what is told at the end."""
        told = (self.before, self.looked, self.best_kl, self.best_step)
        best = {f"{BEST}{name}": tensor for name, tensor in self.best.items()}
        told_too = {"told": _numbers(*told), "pace": _numbers(*self.pace.kept())}
        return {"sizes": self.sizes, **told_too, **best}

    def take_back(self, beside: Mapping[str, Tensor]) -> None:
        """Take them of a checkpoint."""
        self.sizes = beside["sizes"]
        self.before, looked, self.best_kl, best_step = beside["told"].tolist()
        self.looked, self.best_step = int(looked), int(best_step)
        self.pace.take_back(*beside["pace"].tolist())
        self.best = {n.removeprefix(BEST): t for n, t in beside.items() if n.startswith(BEST)}

    def learn(self, progress: Progress) -> Trained:
        """Take the steps that are left, or those that there is time for."""
        steps = self.pace.steps
        if self.pace.seconds is None and steps is not None:
            left = steps - self.step
            for _ in progress.track(self._steps(), "training", left):
                pass
        else:
            for _ in progress.track(self._percents(), "training, % of the time", PERCENT):
                pass
        self._look()
        planned = self.step if self.pace.steps is None else self.pace.steps
        told = (self.step, planned, self.best_step, self.pace.elapsed, self.before, self.best_kl)
        return Trained(self.best, *told)

    def _percents(self) -> Iterator[int]:
        """Take steps, and yield each percent of the time when it is over."""
        shown = 0
        for _ in self._steps():
            over = int(PERCENT * self.pace.share)
            while shown < over:
                yield shown
                shown += 1
        yield from range(shown, PERCENT)

    def _steps(self) -> Iterator[int]:
        """Take the steps one by one, and yield their numbers; see `compressor.training.pace`."""
        train = self.task.train
        while True:
            if self.looked < 0:
                self._look()
            self.pace.settle(self.step)
            if self.step in self.pace.looks():
                self._look()
            if self.step == self.pace.steps or self.pace.over(self.step):
                return
            drawn = random.Random(f"{train.seed}:{self.step}")  # noqa: S311
            places = drawn.choices(range(self.count), k=train.batch)
            rate = (train.learning_rate or 0.0) * share_of_rate(self.step, self.pace.steps)
            for group, size in zip(self.optimizer.param_groups, self.sizes.tolist(), strict=True):
                group["lr"] = rate * size
            with self.one_step():
                self._leave_gradients(places)
            yield self.step - 1

    def _leave_gradients(self, places: Sequence[int]) -> None:
        """Leave the gradients of the mean loss of some lessons."""
        made = self.stand_ins()
        # What they are made from gets its gradient once for all calls.
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in made.items()}
        for loss in self._losses(places, leaves):
            (loss.sum() / len(places)).backward()
        moved = [name for name, leaf in leaves.items() if leaf.grad is not None]
        if moved:
            torch.autograd.backward([made[n] for n in moved], [leaves[n].grad for n in moved])

    @torch.no_grad()
    def _look(self) -> None:
        """Judge the weights as they are, unless that was done, and keep them if they are the best."""
        if self.looked == self.step:
            return
        began, made = pacing.clock(), self.stand_ins()
        found = sum(loss.sum().item() for loss in self._losses(self.judged, made))
        found /= len(self.judged)
        if self.looked < 0:
            self.before = found
        if found < self.best_kl:
            self.best_kl, self.best_step = found, self.step
            self.best = {name: one.tensor.clone() for name, one in self.learned.items()}
        self.looked = self.step
        self.pace.looked(pacing.clock() - began)

    def _losses(self, places: Sequence[int], given: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield the losses [B] of the prompts of each call that some lessons take.

        Args:
            places: of the lessons; one may be there twice.
            given: what the decoder takes in place of parameters.
        """
        decoder = self.small.decoder
        for shared in self.lessons.shared(places):
            call = shared.call
            inputs = (*call[:4], decoder.empty_past(len(shared.ends)), *call[4:])
            logits, _ = functional_call(decoder, {**given}, inputs)
            yield torch.stack([kl_divergence(*pair).mean() for pair in shared.said(logits)])


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _size(tensor: Tensor) -> float:
    """Return the root mean square; of a tensor that is 0, that of a fresh matrix of its width."""
    return tensor.double().square().mean().sqrt().item() or tensor.shape[-1] ** -0.5
