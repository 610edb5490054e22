"""The checkpoint of a gate training: safetensors, whole or not there, bound to what is being trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from compressor.contract.gated import GateTraining
from compressor.disk.files import write_bytes
from compressor.disk.gate_file import stable_header
from compressor.disk.model_digest import same_model
from compressor.errors import GatesError
from compressor.facts import Facts
from compressor.schema.values import RunDType

FORMAT = "1"


class GateTask(Facts):
    """What decides how trained gates come out.

    Attributes:
        model_digest: of the original model.
        data_digest: of the samples.
        candidates: layers with a gate, ascending.
        width: hidden width W of a gate.
        train: settings.
        dtype: in which the original runs.
    """

    model_digest: str
    data_digest: str
    candidates: tuple[int, ...]
    width: int
    train: GateTraining
    dtype: RunDType = "float32"

    def differences(self, other: "GateTask") -> list[str]:
        """Return in words what differs in the other."""
        words = {
            "model_digest": "another model",
            "data_digest": "other data",
            "candidates": "other candidates",
            "width": "another gate_width",
            "train": "other settings of train",
            "dtype": "another dtype",
        }
        same = {"model_digest": same_model(other.model_digest, self.model_digest)}
        return [
            text
            for key, text in words.items()
            if not same.get(key, getattr(self, key) == getattr(other, key))
        ]


@dataclass(frozen=True)
class Checkpoint:
    """A training under way.

    Attributes:
        step: steps that are done.
        tensors: examples made so far, weights and AdamW's moments.
    """

    step: int
    tensors: Mapping[str, Tensor]

    def write(self, path: Path, task: GateTask) -> None:
        """Write the checkpoint, atomically.

        Raises:
            VtcompressError: the folder is not writable, or the disk is full.
        """
        from safetensors.torch import save

        metadata = {"checkpoint": FORMAT, "step": str(self.step), "task": task.model_dump_json()}
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        write_bytes(path, stable_header(save(tensors, metadata)))

    @classmethod
    def read(cls, path: Path, task: GateTask) -> "Checkpoint":
        """Read a checkpoint of the same training.

        Raises:
            GatesError: it is of another one, or broken.
        """
        from safetensors import SafetensorError, safe_open

        remedy = f"remove {path.name} to start anew"
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # Through JSON text: the settings are strict about types, which JSON has fewer of.
            found = GateTask.model_validate_json(metadata["task"])
            step = int(metadata["step"])
        except (SafetensorError, OSError, KeyError, ValueError, ValidationError):
            raise GatesError(
                [f"{path}: broken, or of another version of vtcompress; {remedy}"]
            ) from None
        if differences := task.differences(found):
            raise GatesError(
                [f"{path}: left by a training on {' and '.join(differences)}; {remedy}"]
            )
        return cls(step, tensors)
