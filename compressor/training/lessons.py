"""What a training towards the original reads: prompts with their answers, and what the original says there.

Letters as in `compressor.decoder.layer`; A tokens of an answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compressor.calibration.tensor_shelf import Shelved, TensorShelf
from compressor.compressed import CompressedModel
from compressor.decoder import Decoder
from compressor.families import LoadedModel
from compressor.progress import Progress
from compressor.samples.prompts import EncodedPrompt, PromptRows, embed_to_train, encode_answered
from compressor.samples.questions import Sample

ROOM = 1 << 30
"""Bytes of lessons that stay in memory; what is more lies in a file without a name."""

ASKED_TOGETHER = 16
"""Prompts that the original is asked at a time."""

MOST_NUMBERS = 1 << 20
"""Rows of a call times their width: small prompts share a call, of a large one the memory counts."""


class _Width(NamedTuple):
    """How wide a prompt is.

    Attributes:
        visual: V.
        text: T.
        deepstack: how many tensors of deepstack it has.
        turned: whether positions turn its rows, which are not their places.
    """

    visual: int
    text: int
    deepstack: int
    turned: bool

    @classmethod
    def of(cls, rows: PromptRows) -> "_Width":
        """Return the width of a prompt."""
        visual, text = rows.visual_index.shape[1], rows.text_index.shape[1]
        return cls(visual, text, len(rows.deepstack), rows.positions is not None)

    @property
    def rows(self) -> int:
        """All rows."""
        return self.visual + self.text


@dataclass(frozen=True)
class _Lesson:
    """One prompt with its answer.

    Attributes:
        asked: the prompt's rows, without visual ones, which `visual` holds; or the prompt, of which rows are
            made anew at each call.
        visual: [1, V, D], and those of deepstack, as a shelf keeps them.
        taught: [A, vocab] the original's logits at the answer's tokens, likewise.
        width: decides which others it can share a call with.
    """

    asked: PromptRows | EncodedPrompt
    visual: tuple[Tensor | Shelved, ...]
    taught: Tensor | Shelved
    width: _Width


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
        folder: of what has no room in memory; see `TensorShelf`.
    """

    def __init__(self, small: CompressedModel, folder: Path, *, sees_alike: bool) -> None:
        self.small, self.sees_alike = small, sees_alike
        self._shelf, self._lessons = TensorShelf(ROOM, folder), list[_Lesson]()

    def __len__(self) -> int:
        return len(self._lessons)

    @torch.no_grad()
    def ask(self, model: LoadedModel, original: Decoder, samples: Sequence[Sample]) -> None:
        """Add questions with their answers.

        Args:
            model: the original.
            original: its decoder, with the logits of all text rows.
            samples: with answers.

        Raises:
            DataError: a picture cannot be read, or a prompt does not fit the model.
        """
        encoded = [encode_answered(model.processor, sample, model.facts) for sample in samples]
        seen = [embed_to_train(model, prompt) for prompt, _ in encoded]
        said: dict[int, Tensor] = {}
        for places in sharing_calls([_Width.of(rows) for rows in seen], model.embedding.shape[1]):
            call = together([seen[place] for place in places])
            inputs = (*call[:4], original.empty_past(len(places)), *call[4:])
            said |= dict(zip(places, original(*inputs)[0], strict=True))
        for place, (prompt, answer) in enumerate(encoded):
            end = seen[place].text_index.shape[1]
            taught = self._shelf.put(said[place][end - len(answer) : end])
            rows = seen[place]
            if self.small.vision is not model.vision:
                rows = embed_to_train(self.small, prompt)
            width = _Width.of(rows)
            if self.sees_alike:
                visual = tuple(map(self._shelf.put, (rows.visual_embeds, *rows.deepstack)))
                lesson = _Lesson(rows.without_visual(), visual, taught, width)
            else:
                lesson = _Lesson(prompt, (), taught, width)
            self._lessons.append(lesson)

    def shared(self, places: Sequence[int]) -> Iterator[SharedCall]:
        """Yield calls of some lessons, one of which may be there twice; see `sharing_calls`."""
        lessons = [self._lessons[place] for place in places]
        for group in sharing_calls([one.width for one in lessons], self.small.embedding.shape[1]):
            yield self._call([lessons[place] for place in group])

    def _call(self, lessons: Sequence[_Lesson]) -> SharedCall:
        rows = [self._rows(lesson) for lesson in lessons]
        ends = tuple(one.text_index.shape[1] for one in rows)
        taught = tuple(self._shelf.get(lesson.taught) for lesson in lessons)
        return SharedCall(together(rows), ends, taught)

    def _rows(self, lesson: _Lesson) -> PromptRows:
        if isinstance(lesson.asked, EncodedPrompt):
            return embed_to_train(self.small, lesson.asked)
        visual, *deepstack = map(self._shelf.get, lesson.visual)
        return lesson.asked.with_visual(visual, tuple(deepstack))


def sharing_calls(widths: Sequence[_Width], hidden: int) -> Iterator[list[int]]:
    """Yield the places of prompts that share a call: as wide in visual rows, and small enough together.

    Args:
        widths: of the prompts.
        hidden: D.
    """
    alike: dict[tuple[int, int, bool], list[int]] = {}
    for place, width in enumerate(widths):
        alike.setdefault((width.visual, width.deepstack, width.turned), []).append(place)
    for group in alike.values():
        left = sorted(group, key=lambda place: widths[place].text)
        while left:
            # The last is the longest, to which the others are filled up.
            fitting = (
                count
                for count in range(len(left), 1, -1)
                if count * widths[left[count - 1]].rows * hidden <= MOST_NUMBERS
            )
            count = next(fitting, 1)
            yield left[:count]
            left = left[count:]


def together(prompts: Sequence[PromptRows]) -> tuple[Any, ...]:
    """Return the call of prompts that share one, but for the past, filled up to the longest."""
    longest = max(one.text_index.shape[1] for one in prompts)
    calls = [one.filled_up(longest).call for one in prompts]
    if len(calls) == 1:
        return calls[0]
    *tensors, positions, deepstack = zip(*calls, strict=True)
    return (
        *(torch.cat(parts) for parts in tensors),
        None if positions[0] is None else torch.cat(positions),
        tuple(torch.cat(parts) for parts in zip(*deepstack, strict=True)),
    )


def lessons_of(
    model: LoadedModel,
    original: Decoder,
    small: CompressedModel,
    samples: Sequence[Sample],
    folder: Path,
    progress: Progress,
    *,
    sees_alike: bool,
) -> Lessons:
    """Ask the original all questions of a training; see `Lessons`.

    Args:
        model: the original.
        original: its decoder, with the logits of all text rows.
        small: the compressed model.
        samples: with answers.
        folder: see `Lessons`.
        progress: shows prompts.
        sees_alike: as in `Lessons`.
    """
    found = Lessons(small, folder, sees_alike=sees_alike)
    waiting: list[Sample] = []
    for sample in progress.track(samples, "asking the original", len(samples)):
        waiting.append(sample)
        if len(waiting) == ASKED_TOGETHER:
            found.ask(model, original, waiting)
            waiting = []
    if waiting:
        found.ask(model, original, waiting)
    return found
