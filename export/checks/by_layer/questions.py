"""One model on all questions at once, a layer at a time: what compression loses where no model fits.

Each layer's weights are read once and run all questions, whose states lie in a file between two layers. Right
answers are forced behind each prompt, as calls on its past, so that they see what greedy decoding would see;
what that tells of the greedy answer: `export.checks.by_layer.forced`.

Letters: V visual rows, T text rows, D hidden, R answers, A tokens of one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.compressed import CompressedModel
from compressor.decoder.by_layer import ByLayer, OneCall
from compressor.decoder.weights import source_of
from compressor.disk.array_file import ArrayFile, Slot
from compressor.progress import Progress
from compressor.samples.prompts import PromptRows, answer_ids, embed, encode
from compressor.samples.questions import Sample
from export.checks.by_layer.forced import ForcedAnswer, answers_right


class Heard(NamedTuple):
    """What a model makes of one question.

    Attributes:
        logits: where those [vocab] at the last prompt token lie, float32.
        right: whether its greedy answer is a right one; None: none is known, or nothing tells.
    """

    logits: Slot
    right: bool | None


@dataclass(frozen=True)
class _Call:
    """A call between two layers: where its states lie, and what else a layer is given.

    Attributes:
        visual: states [1, V, D].
        text: states [1, T, D].
        deepstack: see `Decoder.forward`.
        visual_index: [1, V].
        text_index: [1, T].
        positions: [1, V + T, axes]; None: the places.
    """

    visual: Slot
    text: Slot
    deepstack: tuple[Slot, ...]
    visual_index: Tensor
    text_index: Tensor
    positions: Tensor | None


@dataclass(frozen=True)
class _Question:
    """A question on its way through the layers: its prompt, its right answers, and calls that force them."""

    sample: Sample
    prompt: _Call
    answers: tuple[tuple[int, ...], ...]
    calls: tuple[_Call | None, ...]


class AllQuestions:
    """Asks one model all questions.

    Args:
        small: the model; its layers may be stand-ins, and its embedding.
        layers: that run.
        longest: tokens at which an answer is cut.
        states: a file that does not exist yet, for states.
        logits: for logits at prompts' ends.
    """

    def __init__(
        self,
        small: CompressedModel,
        layers: ByLayer,
        longest: int,
        states: Path,
        logits: ArrayFile,
    ) -> None:
        self._small, self._layers, self._longest = small, layers, longest
        self._path, self._states, self._logits = states, ArrayFile(states), logits

    def ask(self, samples: Sequence[Sample], progress: Progress, name: str) -> list[Heard]:
        """Run all questions; the file of their states is gone then.

        Args:
            samples: the questions.
            progress: shows the prompts, then layers times questions.
            name: of the model, for progress.

        Raises:
            DataError: a picture cannot be read, or a prompt does not fit the model.
            ModelError: weights cannot be read any more.
        """
        try:
            asked = [*progress.track(self._begun(samples), f"prompts, {name}", len(samples))]
            count = len(samples) * (len(self._small.plan.layers) + 1)
            steps = progress.track(self._steps(asked), f"layers, {name}", count)
            return [found for found in steps if found is not None]
        finally:
            self._path.unlink(missing_ok=True)

    @torch.inference_mode()
    def _begun(self, samples: Sequence[Sample]) -> Iterator[_Question]:
        reader = self._with_embedding()
        ends, processor = reader.facts.eos_token_ids, reader.processor
        for sample in samples:
            rows = embed(reader, encode(processor, sample, reader.facts))
            told = (
                answer_ids(processor, replace(sample, answer=answer, others=()), ends)
                for answer in sample.answers
            )
            answers = tuple(dict.fromkeys(ids[: self._longest] for ids in told))
            calls = tuple(self._forcing(rows, ids, reader.embedding) for ids in answers)
            yield _Question(sample, self._kept(rows), answers, calls)

    def _with_embedding(self) -> CompressedModel:
        stored = self._small.stored.get(source_of("tied_head")[0])
        if stored is None:
            return self._small
        return replace(self._small, embedding=stored.read().to(self._small.embedding.dtype))

    def _kept(self, rows: PromptRows) -> _Call:
        visual, text, *more = (
            self._states.add(part.numpy())
            for part in (rows.visual_embeds, rows.text_embeds, *rows.deepstack)
        )
        return _Call(visual, text, tuple(more), rows.visual_index, rows.text_index, rows.positions)

    def _forcing(self, rows: PromptRows, ids: Sequence[int], table: Tensor) -> _Call | None:
        """Return the call that runs all tokens of an answer but the last; None: it has one alone."""
        if len(ids) < 2:
            return None
        places = rows.layout.behind(0, len(ids) - 1)
        text = F.embedding(torch.tensor(ids[:-1])[None], table)
        return self._kept(
            PromptRows(
                rows.layout,
                text[:, :0],
                text,
                torch.from_numpy(places.visual_index)[None],
                torch.from_numpy(places.text_index)[None],
                None if places.positions is None else torch.from_numpy(places.positions)[None],
                tuple(text[:, :0] for _ in rows.deepstack),
            )
        )

    def _steps(self, asked: Sequence[_Question]) -> Iterator[Heard | None]:
        """Run layer after layer, and yield after each question; at last what was heard."""
        for layer in range(len(self._small.plan.layers)):
            yield from self._through(layer, asked)
        yield from self._heard(asked)

    def _through(self, layer: int, asked: Sequence[_Question]) -> Iterator[None]:
        with self._layers.weights(layer):
            for one in asked:
                prompt = self._ran(layer, one.prompt)
                for call in filter(None, one.calls):
                    self._ran(layer, call, prompt)
                yield

    def _ran(self, layer: int, call: _Call, behind: OneCall | None = None) -> OneCall:
        visual, text, *more = map(self._read, (call.visual, call.text, *call.deepstack))
        inputs = (visual, text, call.visual_index, call.text_index)
        entered = self._layers.begin(inputs, call.positions, more, behind)
        self._layers.run(layer, [entered], behind)
        self._states.write(call.visual, entered.visual.numpy())
        self._states.write(call.text, entered.text.numpy())
        return entered

    def _heard(self, asked: Sequence[_Question]) -> Iterator[Heard]:
        with self._layers.weights(None):
            for one in asked:
                forced = [self._read(call.text)[0] for call in filter(None, one.calls)]
                rows = torch.cat([self._read(one.prompt.text)[0, -1:], *forced])
                logits = self._layers.logits_of(rows)
                yield Heard(self._logits.add(logits[0].numpy()), self._right(one, logits))

    def _right(self, one: _Question, logits: Tensor) -> bool | None:
        """Return whether the greedy answer is right, by logits at the prompt's end and those of its calls."""
        if not one.answers:
            return None
        first, *rest = logits.argmax(dim=-1).tolist()
        left = iter(rest)
        forced = [ForcedAnswer(ids, (first, *(next(left) for _ in ids[1:]))) for ids in one.answers]
        return answers_right(
            forced,
            one.sample.answers,
            self._small.facts.eos_token_ids,
            self._longest,
            lambda ids: str(self._small.processor.decode(ids, skip_special_tokens=True)),
        )

    def _read(self, slot: Slot) -> Tensor:
        return torch.from_numpy(self._states.read(slot))
