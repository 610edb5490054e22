"""What a calibration keeps of its prompts between two layers, in files: a killed run goes on from them.

One file holds a prompt at one layer. That of the next layer is whole before the one before it goes, so that a
run that is killed at any time leaves each prompt at one layer.

Limitations:
    - Files are not forced to the disk: after a power cut remove the folder, or start anew.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from compressor.disk.files import TEMPORARY, write_text
from compressor.disk.paths import why_unwritten
from compressor.errors import VtcompressError

TASK_FILE = "task.json"
"""Tells whose the states are; the folder is the tool's own by it."""


class KeptTensor(NamedTuple):
    """A tensor that is kept, and whose it is: a measure's, or the prompt's own, a word in angle brackets."""

    owner: str
    tensor: Tensor


class PromptStates:
    """Files of prompts between two layers.

    Args:
        folder: of the files; made when something is kept.
        task: what the states belong to; those of another are removed.
        device: where tensors are that are read.

    Raises:
        VtcompressError: at `folder` lies something that is not the tool's.
    """

    def __init__(self, folder: Path, task: str, device: torch.device) -> None:
        self.folder, self._task, self._device = folder, task, device
        if not folder.exists():
            return
        mark = folder / TASK_FILE
        if not mark.is_file():
            raise VtcompressError(
                f"{folder}: is where states lie while layers are read one by one, and holds something else: "
                "move it away, or choose another `output`"
            )
        if mark.read_text(encoding="utf-8") != task:
            self.remove()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def layers(self) -> dict[str, int]:
        """Return the layer in front of which each prompt is kept, by the prompt's name."""
        found: dict[str, int] = {}
        for path in self.folder.glob("*.*"):
            prompt, _, layer = path.name.rpartition(".")
            if layer.isdigit():  # else it is the task's, or was being written
                # Two: the run was killed between the next layer's file and the removal of this one's.
                found[prompt] = max(int(layer), found.get(prompt, 0))
        return found

    def forget(self, prompts: Iterable[str]) -> None:
        """Remove what is kept of prompts."""
        gone = {*prompts}
        for path in self.folder.glob("*.*"):
            if path.name.rpartition(".")[0] in gone:
                path.unlink()

    def keep(self, prompt: str, layer: int, kept: Iterable[KeptTensor]) -> None:
        """Write a prompt in front of a layer; what it was in front of the layer before goes.

        Args:
            prompt: its name, without a dot.
            layer: its index; that behind the last is the number of layers.
            kept: tensors, each written before the next is asked for.

        Raises:
            VtcompressError: the disk is full.
        """
        path = self._path(prompt, layer)
        temporary = path.with_name(path.name + TEMPORARY)
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                write_text(self.folder / TASK_FILE, self._task)
            with temporary.open("wb") as file:
                for owner, tensor in kept:
                    head = {"owner": owner, "dtype": _word(tensor.dtype), "shape": [*tensor.shape]}
                    file.write(json.dumps(head).encode() + b"\n")
                    here = tensor.cpu().contiguous().reshape(-1)
                    file.write(here.view(torch.uint8).numpy().data)
            temporary.replace(path)
        except OSError as failure:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise VtcompressError(
                f"{self.folder}: cannot write: {why_unwritten(failure)}"
            ) from None
        self._path(prompt, layer - 1).unlink(missing_ok=True)

    def read(self, prompt: str, layer: int) -> Iterator[KeptTensor]:
        """Yield what is kept of a prompt in front of a layer; one tensor is in memory at a time."""
        with self._path(prompt, layer).open("rb") as file:
            while line := file.readline():
                head = json.loads(line)
                tensor = torch.empty(head["shape"], dtype=getattr(torch, head["dtype"]))
                into = tensor.view(-1).view(torch.uint8).numpy().data
                if file.readinto(into) != len(into):
                    raise VtcompressError(
                        f"{file.name}: is cut off; remove {self.folder} and run again"
                    )
                yield KeptTensor(head["owner"], tensor.to(self._device))

    def _path(self, prompt: str, layer: int) -> Path:
        return self.folder / f"{prompt}.{layer}"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
