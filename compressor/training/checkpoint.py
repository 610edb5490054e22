"""The checkpoint of a training: safetensors, whole or not there, bound to what is being trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from pydantic import ValidationError
from torch import Tensor

from compressor.contract.learned import PartTraining
from compressor.disk.files import write_bytes
from compressor.disk.gate_file import stable_header
from compressor.disk.model_digest import same_model
from compressor.errors import PlanError, ProblemsError
from compressor.facts import Facts
from compressor.schema.values import RunDType

FORMAT = "1"


class TrainingTask(Facts):
    """What decides how trained weights come out; a kind of training adds what it has besides.

    Attributes:
        error: raised where a checkpoint is of another task.
        words: what another value of a field is called in that error.
        model_digest: of the original model.
        data_digest: of the samples.
        dtype: in which the original runs.
    """

    error: ClassVar[type[ProblemsError]]
    words: ClassVar[Mapping[str, str]]

    model_digest: str
    data_digest: str
    dtype: RunDType = "float32"

    def differences(self, other: Self) -> list[str]:
        """Return in words what differs in the other."""
        common = {
            "model_digest": "another model",
            "data_digest": "other data",
            "dtype": "another dtype",
        }
        same = {"model_digest": same_model(other.model_digest, self.model_digest)}
        return [
            text
            for key, text in {**common, **self.words}.items()
            if not same.get(key, getattr(self, key) == getattr(other, key))
        ]


class DistilTask(TrainingTask):
    """What decides how weights come out that are trained towards the original.

    Attributes:
        plan: digest of what the compressed model does.
        train: settings, with a learning rate.
        timed: whether the clock says how many steps there are, and not the settings.
    """

    error: ClassVar = PlanError
    words: ClassVar[Mapping[str, str]] = {
        "train": "other settings",
        "timed": "minutes in place of steps, or the other way round",
    }

    plan: str
    train: PartTraining
    timed: bool = False


class PartTask(DistilTask):
    """The same of a method's parts.

    Attributes:
        method: whose they are.
    """

    words: ClassVar[Mapping[str, str]] = {
        **DistilTask.words,
        "method": "another method",
        "plan": "another recipe",
    }

    method: str


@dataclass(frozen=True)
class Checkpoint:
    """A training under way.

    Attributes:
        step: steps that are done.
        tensors: weights and AdamW's moments, and what a kind of training keeps besides.
    """

    step: int
    tensors: Mapping[str, Tensor]

    def write(self, path: Path, task: TrainingTask) -> None:
        """Write the checkpoint, atomically.

        Raises:
            VtcompressError: the folder is not writable, or the disk is full.
        """
        from safetensors.torch import save

        metadata = {"checkpoint": FORMAT, "step": str(self.step), "task": task.model_dump_json()}
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        write_bytes(path, stable_header(save(tensors, metadata)))

    @classmethod
    def read(cls, path: Path, task: TrainingTask) -> "Checkpoint":
        """Read a checkpoint of the same training.

        Raises:
            ProblemsError: the task's `error`: it is of another one, or broken.
        """
        from safetensors import SafetensorError, safe_open

        remedy = f"remove {path.name} to start anew"
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # Through JSON text: the settings are strict about types, which JSON has fewer of.
            found = type(task).model_validate_json(metadata["task"])
            step = int(metadata["step"])
        except (SafetensorError, OSError, KeyError, ValueError, ValidationError):
            raise task.error(
                [f"{path}: broken, or of another version of vtcompress; {remedy}"]
            ) from None
        if differences := task.differences(found):
            raise task.error(
                [f"{path}: left by a training on {' and '.join(differences)}; {remedy}"]
            )
        return cls(step, tensors)
