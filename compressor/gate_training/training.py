"""Trains DyVTE's gates; everything else is frozen. A killed run goes on from its checkpoint.

Source: see `compressor.gate_training.examples`.

Rule: a step draws one layer and a batch of prompts, and moves that layer's gate by AdamW on the plain
cross-entropy of its two logits. As the decoder is frozen, an example (prompt and layer) is the same whenever
it is drawn: all that will be drawn are made first, one pass a prompt, and the steps that follow are cheap.

What is drawn depends on seed and step number alone, so that a run that was killed ends with the very gates
of one that was not.

Letters: D hidden, W width of a gate.

Limitations:
- Examples stay in memory: 8D bytes for each pair of prompt and layer that is drawn.
- Gates are trained on the original's states; frozen layers of a recipe that also has `shortv` change them.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.contract.gated import GatedMethod, GateTraining
from compressor.decoder import Decoder, decoder_from
from compressor.decoder.gates import Gate, margins
from compressor.errors import GatesError
from compressor.families import LoadedModel
from compressor.gate_training.examples import examples_of
from compressor.plan.edits import identity_plan
from compressor.progress import SILENT, Progress
from compressor.samples.questions import Sample, data_digest
from compressor.schema.values import RunDType
from compressor.training.checkpoint import TrainingTask
from compressor.training.run import TrainingRun


class GateTask(TrainingTask):
    """What decides how trained gates come out.

    Attributes:
        candidates: layers with a gate, ascending.
        width: hidden width W of a gate.
        train: settings.
    """

    error: ClassVar = GatesError
    words: ClassVar[Mapping[str, str]] = {
        "candidates": "other candidates",
        "width": "another gate_width",
        "train": "other settings of train",
    }

    candidates: tuple[int, ...]
    width: int
    train: GateTraining


@dataclass(frozen=True)
class TrainingStep:
    """What one step learns from: a layer and the places of its prompts among the samples."""

    layer: int
    samples: tuple[int, ...]


def steps_of(
    training: GateTraining, candidates: Sequence[int], samples: int
) -> tuple[TrainingStep, ...]:
    """Return all steps of a training, from its settings alone."""
    steps = []
    for number in range(training.steps):
        drawn = random.Random(f"{training.seed}:{number}")  # noqa: S311
        layer = drawn.choice(candidates)
        steps.append(TrainingStep(layer, tuple(drawn.choices(range(samples), k=training.batch))))
    return tuple(steps)


@dataclass(frozen=True)
class TrainedGates:
    """What a training leaves.

    Attributes:
        task: what was trained.
        gates: of every candidate.
        layers: [P] layer of every example that was learned from.
        inputs: [P, 2D] what its gate reads.
        labels: [P] int64, 1: the visual rows may leave.
    """

    task: GateTask
    gates: dict[int, Gate]
    layers: Tensor
    inputs: Tensor
    labels: Tensor


def original_decoder(model: LoadedModel) -> Decoder:
    """Return the original's decoder with logits of all text rows."""
    plan = identity_plan(model.facts, model.digest)
    return decoder_from(plan, model.tensors, logits="all")


def train_gates(
    model: LoadedModel,
    samples: Sequence[Sample],
    method: GatedMethod,
    checkpoint: Path,
    *,
    dtype: RunDType = "float32",
    progress: Progress = SILENT,
) -> TrainedGates:
    """Train the gates of a method on samples with pictures and answers.

    Args:
        model: the original model.
        samples: to learn from.
        method: names candidates, width and settings.
        checkpoint: file that the run grows and goes on from; left behind when it is done.
        dtype: of the model; gates learn in float32, on the CPU.
        progress: shows prompts, then steps.

    Raises:
        DataError: pictures that cannot be read.
        GatesError: the checkpoint belongs to another model, other data or other settings.
    """
    task = GateTask(
        model_digest=model.digest,
        data_digest=data_digest(samples),
        candidates=method.gate_layers(model.facts.decoder.layers),
        width=method.gate_width,
        train=method.train,
        dtype=dtype,
    )
    run = _Run(task, model.facts.decoder.hidden, len(samples), checkpoint)
    try:
        run.look(model, samples, progress)
        run.learn(progress)
    except KeyboardInterrupt:
        run.save()
        raise
    run.save()
    return run.result()


class _Run(TrainingRun):
    """A training of gates under way."""

    task: GateTask

    def __init__(self, task: GateTask, hidden: int, samples: int, path: Path) -> None:
        self.steps = steps_of(task.train, task.candidates, samples)
        pairs = sorted({(place, step.layer) for step in self.steps for place in step.samples})
        self.row = {pair: number for number, pair in enumerate(pairs)}
        self.asked: dict[int, list[int]] = {}
        for place, layer in pairs:
            self.asked.setdefault(place, []).append(layer)
        self.inputs = torch.zeros(len(pairs), 2 * hidden)
        self.labels = torch.zeros(len(pairs), dtype=torch.int64)
        self.layers = torch.tensor([layer for _, layer in pairs])
        self.gates = new_gates(task, hidden)
        self.rows = 0
        weights = {
            f"{layer}.{name}": weight
            for layer, gate in self.gates.items()
            for name, weight in gate.named_parameters()
        }
        optimizer = torch.optim.AdamW(weights.values(), lr=task.train.learning_rate)
        super().__init__(task, path, weights, optimizer)
        self.resume()

    def look(self, model: LoadedModel, samples: Sequence[Sample], progress: Progress) -> None:
        """Make the examples that are not there yet."""
        todo = [p for p in self.asked if self.row[p, self.asked[p][0]] >= self.rows]
        if not todo:
            return
        decoder = original_decoder(model)
        for place in progress.track(todo, "looking at training prompts", len(todo)):
            found = examples_of(model, decoder, samples[place], self.asked[place])
            end = self.rows + len(found.labels)
            self.inputs[self.rows : end] = found.inputs
            self.labels[self.rows : end] = found.labels
            self.rows = end
            self.save_now_and_then()

    def learn(self, progress: Progress) -> None:
        """Take the steps that are left."""
        todo = self.steps[self.step :]
        for step in progress.track(todo, "training gates", len(todo)):
            rows = [self.row[place, step.layer] for place in step.samples]
            with self.one_step():
                logits = self.gates[step.layer](self.inputs[rows])
                F.cross_entropy(logits, self.labels[rows]).backward()

    def result(self) -> TrainedGates:
        """Return the gates and what they learned from."""
        return TrainedGates(self.task, self.gates, self.layers, self.inputs, self.labels)

    def beside(self) -> dict[str, Tensor]:
        """Return the examples that are there."""
        return {"inputs": self.inputs[: self.rows], "labels": self.labels[: self.rows]}

    def take_back(self, beside: Mapping[str, Tensor]) -> None:
        """Take examples of a checkpoint."""
        self.rows = len(beside["labels"])
        self.inputs[: self.rows] = beside["inputs"]
        self.labels[: self.rows] = beside["labels"]


def new_gates(task: GateTask, hidden: int) -> dict[int, Gate]:
    """Return untrained gates: uniform weights of at most 1 / sqrt(inputs), as torch's own linear layers."""
    drawn = torch.Generator().manual_seed(task.train.seed)
    gates = {}
    for layer in task.candidates:
        gate = Gate(hidden, task.width)
        for linear in (gate.w1, gate.w2):
            bound = linear.weight.shape[0] ** -0.5
            nn.init.uniform_(linear.weight, -bound, bound, generator=drawn)
        gates[layer] = gate
    return gates


@torch.no_grad()
def margins_of(gate: Gate, inputs: Tensor) -> Tensor:
    """Return the margins [n] of a gate on inputs [n, 2D]; above 0 it fires."""
    return margins(gate(inputs))
