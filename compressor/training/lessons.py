"""What a training towards the original reads: prompts with their answers, and what the original says there.

Letters as in `compressor.decoder.layer`; A tokens of an answer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from compressor.compressed import CompressedModel
from compressor.decoder import Decoder
from compressor.families import LoadedModel
from compressor.progress import Progress
from compressor.samples.prompts import EncodedPrompt, PromptRows, embed_to_train, encode_answered
from compressor.samples.questions import Sample

ROOM = 1 << 30
"""Bytes of lessons that stay in memory; what is more lies in a file without a name."""

MOST_NUMBERS = 1 << 20
"""Rows of a call times their width: small prompts share a call, of a large one the memory counts."""


class _Slot(NamedTuple):
    """Where a tensor lies in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Shelf:
    """Tensors that are kept as they are, in memory up to `ROOM` bytes, then in a file.

    Args:
        file: takes what has no room.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._held = file, 0

    def put(self, tensor: Tensor) -> Tensor | _Slot:
        """Keep a tensor; `get` gives it for what is returned."""
        if self._held + tensor.nbytes <= ROOM:
            self._held += tensor.nbytes
            return tensor.clone()
        plain = tensor.detach().cpu().contiguous()
        slot = _Slot(self._file.seek(0, 2), tuple(plain.shape), plain.dtype)
        self._file.write(plain.flatten().view(torch.uint8).numpy().tobytes())
        self._file.flush()
        return slot

    def get(self, kept: Tensor | _Slot, device: torch.device) -> Tensor:
        """Return what was put."""
        if isinstance(kept, Tensor):
            return kept
        count = kept.dtype.itemsize * int(np.prod(kept.shape))
        if not count:
            return torch.empty(kept.shape, dtype=kept.dtype, device=device)
        # Copied: what is mapped counts as memory, and a call reads it all at once.
        found: Any = np.array(np.memmap(self._file, np.uint8, "r", kept.offset, (count,)))
        return torch.from_numpy(found).view(kept.dtype).reshape(kept.shape).to(device)


@dataclass(frozen=True)
class _Lesson:
    """One prompt with its answer.

    Attributes:
        asked: the prompt's rows, without visual ones, which `visual` holds; or the prompt, of which rows are
            made anew at each call.
        visual: [1, V, D], and those of deepstack, as a shelf keeps them.
        taught: [A, vocab] the original's logits at the answer's tokens, likewise.
        width: V, T and how many tensors of deepstack there are.
        turned: whether positions turn rows, which are not their places.
    """

    asked: PromptRows | EncodedPrompt
    visual: tuple[Tensor | _Slot, ...]
    taught: Tensor | _Slot
    width: tuple[int, int, int]
    turned: bool


class SharedCall(NamedTuple):
    """Prompts of one call.

    Attributes:
        call: what a decoder takes, but for the past.
        ends: behind which text row each prompt ends; rows behind it fill the call up.
        taught: [A, vocab] of each.
    """

    call: tuple[Any, ...]
    ends: tuple[int, ...]
    taught: tuple[Tensor, ...]

    def said(self, logits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the original's logits [A, vocab] of each prompt, and those of a call [B, T, vocab] there."""
        for place, (end, taught) in enumerate(zip(self.ends, self.taught, strict=True)):
            yield taught, logits[place, end - len(taught) : end]


class Lessons:
    """Prompts with their answers, and what the original says; asked once, and kept.

    Args:
        small: the compressed model, whose rows are made of the prompts.
        sees_alike: whether its vision side stays as it is, so that rows are made once.
        file: see `Shelf`.
    """

    def __init__(self, small: CompressedModel, file: BinaryIO, *, sees_alike: bool) -> None:
        self.small, self.sees_alike = small, sees_alike
        self._shelf, self._lessons = Shelf(file), list[_Lesson]()

    def __len__(self) -> int:
        return len(self._lessons)

    @torch.no_grad()
    def ask(self, model: LoadedModel, original: Decoder, sample: Sample) -> None:
        """Add a question with its answer.

        Args:
            model: the original.
            original: its decoder, with the logits of all text rows.
            sample: with an answer.

        Raises:
            DataError: a picture cannot be read, or the prompt does not fit the model.
        """
        prompt, answer = encode_answered(model.processor, sample, model.facts)
        seen = embed_to_train(model, prompt)
        logits, _ = original(*seen.call[:4], original.empty_past(1), *seen.call[4:])
        taught = self._shelf.put(logits[0, -len(answer) :])
        rows = seen
        if self.small.vision is not model.vision:
            rows = embed_to_train(self.small, prompt)
        width = (rows.visual_index.shape[1], rows.text_index.shape[1], len(rows.deepstack))
        turned = rows.positions is not None
        if not self.sees_alike:
            self._lessons.append(_Lesson(prompt, (), taught, width, turned))
            return
        visual = tuple(map(self._shelf.put, (rows.visual_embeds, *rows.deepstack)))
        self._lessons.append(_Lesson(rows.without_visual(), visual, taught, width, turned))

    def batches(self, places: Sequence[int]) -> Iterator[SharedCall]:
        """Yield calls of some lessons, those that can share a call together, in an order that they decide."""
        alike: dict[tuple[int, int, bool], list[int]] = {}
        for place in places:
            lesson = self._lessons[place]
            alike.setdefault((lesson.width[0], lesson.width[2], lesson.turned), []).append(place)
        for (visual, *_), group in alike.items():
            left = sorted(group, key=lambda place: self._lessons[place].width[1])
            while left:
                count = self._how_many(visual, left)
                yield self._batch(left[:count])
                left = left[count:]

    def _how_many(self, visual: int, places: Sequence[int]) -> int:
        """Return how many of the first of some lessons, ascending by text rows, share a call."""
        hidden = self.small.embedding.shape[1]
        for count in range(len(places), 1, -1):
            rows = visual + self._lessons[places[count - 1]].width[1]
            if count * rows * hidden <= MOST_NUMBERS:
                return count
        return 1

    def _batch(self, places: Sequence[int]) -> SharedCall:
        device = self.small.embedding.device
        lessons = [self._lessons[place] for place in places]
        rows = [self._rows(lesson, device) for lesson in lessons]
        ends = tuple(one.text_index.shape[1] for one in rows)
        filled = [one.filled_up(max(ends)) for one in rows]
        call = filled[0].call if len(filled) == 1 else _joined([one.call for one in filled])
        taught = tuple(self._shelf.get(lesson.taught, device) for lesson in lessons)
        return SharedCall(call, ends, taught)

    def _rows(self, lesson: _Lesson, device: torch.device) -> PromptRows:
        if isinstance(lesson.asked, EncodedPrompt):
            return embed_to_train(self.small, lesson.asked)
        visual, *deepstack = (self._shelf.get(one, device) for one in lesson.visual)
        return lesson.asked.with_visual(visual, tuple(deepstack))


def _joined(calls: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    *tensors, positions, deepstack = zip(*calls, strict=True)
    return (
        *(torch.cat(parts) for parts in tensors),
        None if positions[0] is None else torch.cat(positions),
        tuple(torch.cat(parts) for parts in zip(*deepstack, strict=True)),
    )


@contextmanager
def lessons_of(
    model: LoadedModel,
    original: Decoder,
    small: CompressedModel,
    samples: Sequence[Sample],
    folder: Path,
    progress: Progress,
    *,
    sees_alike: bool,
) -> Iterator[Lessons]:
    """Ask the original all questions of a training; see `Lessons`.

    Args:
        model: the original.
        original: its decoder, with the logits of all text rows.
        small: the compressed model.
        samples: with answers.
        folder: in which a file lies that has no name, and is gone with the process, if there is no room.
        progress: shows prompts.
        sees_alike: as in `Lessons`.
    """
    with TemporaryFile(dir=folder) as file:
        found = Lessons(small, file, sees_alike=sees_alike)
        for sample in progress.track(samples, "asking the original", len(samples)):
            found.ask(model, original, sample)
        yield found
