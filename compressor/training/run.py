"""A training by AdamW that keeps a checkpoint: a run that was killed goes on to the very same weights."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.training.checkpoint import Checkpoint, TrainingTask

SAVE_EVERY_SECONDS = 2.0
# Writing the checkpoint of a large model takes long; it may take this share of the time.
MOST_TIME_SAVING = 0.05
# How names in a checkpoint begin; the others are AdamW's.
WEIGHT, MOMENTS = "weight", ("step", "exp_avg", "exp_avg_sq")


class TrainingRun:
    """A training under way, from nothing or from a checkpoint.

    A kind of training adds what it learns from, and `beside` and `take_back`, where it keeps more.

    Args:
        task: what is trained.
        path: of the checkpoint.
        weights: to be trained, by name.
        optimizer: of these weights.
    """

    def __init__(
        self,
        task: TrainingTask,
        path: Path,
        weights: Mapping[str, nn.Parameter],
        optimizer: torch.optim.AdamW,
    ) -> None:
        self.task, self.path = task, path
        self.weights, self.optimizer = weights, optimizer
        self.step = 0
        # False while a step is half done: an interrupt must not store half a step.
        self._whole = True
        self._saved, self._saving = time.monotonic(), 0.0

    def beside(self) -> dict[str, Tensor]:
        """Return what the checkpoint holds besides weights and moments, by names that begin otherwise."""
        return {}

    def take_back(self, beside: Mapping[str, Tensor]) -> None:
        """Take what `beside` gave from a checkpoint."""

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one.

        Raises:
            ProblemsError: it is of another training, or broken.
        """
        if not self.path.exists():
            return
        found = Checkpoint.read(self.path, self.task)
        self.step = found.step
        state: Any = self.optimizer.state
        beside = {}
        for full_name, value in found.tensors.items():
            key, _, name = full_name.partition(".")
            if key == WEIGHT:
                self.weights[name].data.copy_(value)
            elif key in MOMENTS:
                weight = self.weights[name]
                # The count of steps stays on the CPU.
                state[weight][key] = value if value.dim() == 0 else value.to(weight.device)
            else:
                beside[full_name] = value
        self.take_back(beside)

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Move the weights by the gradients that the body leaves."""
        self._whole = False
        self.optimizer.zero_grad()
        yield
        self.optimizer.step()
        self.step += 1
        self._whole = True
        self.save_now_and_then()

    def save(self) -> None:
        """Write the checkpoint; in the middle of a step the one before stays."""
        if not self._whole:
            return
        tensors = self.beside()
        for name, weight in self.weights.items():
            tensors[f"{WEIGHT}.{name}"] = weight.detach()
            for key, value in self.optimizer.state.get(weight, {}).items():
                tensors[f"{key}.{name}"] = value
        Checkpoint(self.step, tensors).write(self.path, self.task)

    def save_now_and_then(self) -> None:
        """Write it if that was not just done, and takes a small share of the time."""
        started = time.monotonic()
        if started - self._saved > max(SAVE_EVERY_SECONDS, self._saving / MOST_TIME_SAVING):
            self.save()
            self._saved = time.monotonic()
            self._saving = self._saved - started
