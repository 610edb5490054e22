"""Measures samples of a model whose layers lie elsewhere, in portions whose states fit on the disk."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from compressor.calibration.by_layer import Ended, PromptsByLayer
from compressor.calibration.resume import Task
from compressor.calibration.states import PromptStates
from compressor.contract.choice import Front
from compressor.decoder import Decoder
from compressor.decoder.walks.walk import Walk
from compressor.disk.paths import working_stem
from compressor.errors import VtcompressError
from compressor.families import LoadedModel
from compressor.progress import Progress
from compressor.samples.prompts import EncodedPrompt, embed, encode, fronts_of
from compressor.samples.questions import Sample
from compressor.version import __version__

ENDING = ".states"
"""Of the folder beside a profile in which states lie meanwhile."""

SHARE_OF_FREE_DISK = 0.5
"""That states may take."""


def states_beside(path: Path, task: Task, device: torch.device) -> PromptStates:
    """Return the states of a task's samples while they are measured for the profile at a path, on a device.

    Raises:
        VtcompressError: what lies where they would is not the tool's.
    """
    told = {
        "version": __version__,
        "torch": str(torch.__version__),
        "model": task.model_digest,
        "dtype": task.dtype,
        "measures": task.measures,
        "gates": [task.gates_digest, *task.gate_layers],
    }
    folder = path.with_name(working_stem(path.name) + ENDING)
    return PromptStates(folder, json.dumps(told), device)


def free_bytes(folder: Path) -> int:
    """Return what is free on the disk of a folder that may not be there yet."""
    return shutil.disk_usage(folder.parent).free


class Portions:
    """Samples on their way through the layers.

    Args:
        model: the original.
        decoder: of it, whose layers are read when they run.
        walks: of the measures, by name.
        samples: to measure, each with its digest.
        states: of the task.
        progress: shows portions, and every step of a sample with the time left.
        disk_bytes: that states may take; None: half of what is free, what they take already included. One
            sample is measured in any case, where the disk holds it.
    """

    def __init__(
        self,
        model: LoadedModel,
        decoder: Decoder,
        walks: Mapping[str, Walk],
        samples: Sequence[tuple[str, Sample]],
        states: PromptStates,
        progress: Progress,
        disk_bytes: int | None = None,
    ) -> None:
        self._model, self._states = model, states
        self._prompts = PromptsByLayer(decoder, walks, states)
        self._progress, self._disk = progress, disk_bytes
        self._samples = [sample for _, sample in samples]
        digests = [digest for digest, _ in samples]
        # The same question twice is measured twice.
        self._names = [f"{d}-{digests[:n].count(d)}" for n, d in enumerate(digests)]
        self._ended: list[Ended] = []

    def measured(self) -> Iterator[list[Ended]]:
        """Yield what is found of each portion, in the order of the samples; then its states are removed.

        Raises:
            DataError: a picture cannot be read.
            ModelError: weights cannot be read any more.
            VtcompressError: the disk cannot hold the states of one sample.
        """
        steps = len(self._samples) * (self._prompts.layers + 2)
        for _ in self._progress.track(self._steps(), "calibrating layer by layer, steps", steps):
            if self._ended:
                yield self._ended
                self._ended = []

    def _steps(self) -> Iterator[None]:
        """Do one step of one sample after another: begin it, have a layer run it, end it."""
        first = 0
        while first < len(self._samples):
            portion = range(first, first)
            for begun in self._begun(first):
                portion = begun
                yield
            layer_of = self._states.layers()
            for layer in range(self._prompts.layers):
                for name in (self._names[number] for number in portion):
                    if layer_of[name] == layer:
                        self._prompts.run(name, layer)
                        layer_of[name] += 1
                    yield
            ended = []
            for number in portion:
                ended.append(self._end(number))
                yield from [None] * (number < portion[-1])
            self._ended = ended
            yield
            self._states.forget(self._names[number] for number in portion)
            first = portion.stop

    def _begun(self, first: int) -> Iterator[range]:
        """Begin as many samples as have room; yield behind each which there are by now."""
        kept, room, taken = self._states.layers(), self._room(), 0
        # A portion was whole when the run before was killed, if layers had run it.
        whole = any(kept.get(name) for name in self._names[first:])
        portion = range(first, first)
        for number in range(first, len(self._samples)):
            name = self._names[number]
            if name in kept:
                needed = self._prompts.kept_bytes(name, kept[name])
            elif whole and portion:
                break
            else:
                rows = embed(self._model, self._encoded(number))
                needed = self._prompts.bytes_at_most(rows)
                if portion and taken + needed > room:
                    break
                self._check_fits(number, needed)
                self._prompts.begin(name, rows)
            taken += needed
            portion = range(first, number + 1)
            yield portion
        self._progress.say(
            f"states of questions {first + 1} to {portion.stop} of {len(self._samples)} take up to "
            f"{taken / 1e9:,.3g} GB of disk; each layer is read once for them"
        )

    def _room(self) -> float:
        if self._disk is not None:
            return self._disk
        taken = sum(path.stat().st_size for path in self._states.folder.glob("*"))
        return SHARE_OF_FREE_DISK * (free_bytes(self._states.folder) + taken)

    def _check_fits(self, number: int, needed: int) -> None:
        free = free_bytes(self._states.folder)
        if needed > free:
            raise VtcompressError(
                f"{self._samples[number].place}: states of this question take up to {needed / 1e9:,.1f} GB "
                f"of disk, {free / 1e9:,.1f} GB are free at {self._states.folder.parent}: make room, or put "
                "`output` on another disk"
            )

    def _end(self, number: int) -> Ended:
        @torch.inference_mode()
        def fronts() -> tuple[Front, ...]:
            return fronts_of(self._model, self._encoded(number))

        return self._prompts.end(self._names[number], fronts)

    def _encoded(self, number: int) -> EncodedPrompt:
        return encode(self._model.processor, self._samples[number], self._model.facts)
