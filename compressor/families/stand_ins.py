"""Tensors of no memory in place of weights that lie elsewhere, and are read one at a time when they are used.

A stand-in has a weight's shape and dtype and is a single number, seen from every place: NaN, so that whatever
is computed from one can be told.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.families.checkpoint import AGAIN, finite
from compressor.families.guard import reading

MOST_NUMBERS = 1024
"""Of weights that are in memory all the same: torch's exporter compares and joins constants of this size."""


class AbsentTensor(ABC):
    """A tensor that lies elsewhere than a model's other tensors."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where it lies, for errors."""

    @abstractmethod
    def read(self) -> Tensor:
        """Return the tensor, wherever it lies.

        Raises:
            ModelError: it cannot be read any more.
        """


@dataclass(frozen=True)
class HeldTensor(AbsentTensor):
    """A tensor in the memory of another device.

    Attributes:
        name: of the tensor, in the model.
        tensor: there.
    """

    name: str
    tensor: Tensor

    @property
    def place(self) -> str:
        """Its name and device."""
        return f"{self.name} on {self.tensor.device}"

    def read(self) -> Tensor:
        """Return the tensor where it lies."""
        return self.tensor


@dataclass(frozen=True)
class StoredTensor(AbsentTensor):
    """A tensor in a weight file, whose values are read when they are asked for.

    Attributes:
        path: the file.
        name: in it.
        shape: of the tensor.
    """

    path: Path
    name: str
    shape: tuple[int, ...]

    @property
    def place(self) -> str:
        """File and name."""
        return f"{self.path}: {self.name}"

    def read(self) -> Tensor:
        """Return the tensor, in the dtype of its file.

        Raises:
            ModelError: the file cannot be read any more, or holds values that are no numbers.
        """
        from safetensors import safe_open

        # Opened anew for each: pages that were read stay with the process as long as a file is open.
        with (
            reading(self.path.parent, self.path.name),
            safe_open(self.path, framework="pt") as stored,
        ):
            tensor: Tensor = stored.get_tensor(self.name)
        if tensor.numel() and not finite(tensor):
            raise ModelError(
                [
                    f"{self.path}: NaN or infinite values in {self.name}; such a model answers nothing: "
                    f"{AGAIN}, or take an earlier checkpoint of the training"
                ]
            )
        return tensor


def is_large(shape: tuple[int, ...]) -> bool:
    """Return whether a weight of a shape may have a stand-in."""
    return len(shape) > 1 and math.prod(shape) > MOST_NUMBERS


def stand_in(
    shape: tuple[int, ...], dtype: torch.dtype, device: str | torch.device = "cpu"
) -> Tensor:
    """Return a tensor of one number; each has memory of its own, which tells it from others."""
    return torch.full((1,) * len(shape), torch.nan, dtype=dtype, device=device).expand(shape)


def is_stand_in(tensor: Tensor) -> bool:
    """Return whether a tensor is a stand-in, or a part of one."""
    if not tensor.numel() or any(tensor.stride()) or not tensor.is_floating_point():
        return False
    return bool(tensor[(0,) * tensor.ndim].isnan())


def with_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another dtype; a stand-in stays one."""
    if is_stand_in(tensor):
        return stand_in(tuple(tensor.shape), dtype, tensor.device)
    return tensor.to(dtype)


def set_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    """Change the dtype of a module's weights in place; stand-ins stay stand-ins."""
    for parameter in module.parameters():
        parameter.data = with_dtype(parameter.data, dtype)
    module.to(dtype)
