"""Measures all prompts together, a layer at a time: each layer is read once, however many prompts there are.

What a measure changes in one layer goes through the layers behind it beside the unchanged prompt: layer i
runs the prompt and everything that was changed in front of it. Between two layers all of it lies on disk.
Where that is more than may be used, prompts are measured in portions, each of which reads every layer once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from compressor.calibration.states import KeptTensor, PromptStates
from compressor.contract.choice import Front
from compressor.decoder import Decoder
from compressor.decoder.full_pass import AtLayer, PromptCall, prompt_call
from compressor.decoder.walks.walk import Walk
from compressor.samples.prompts import PromptRows

VISUAL, TEXT = "<visual>", "<text>"
PLACES = "<visual index>", "<text index>"
POSITIONS, DEEPSTACK = "<positions>", "<deepstack>"


class _Opened(NamedTuple):
    """What stands in front of what measures carry in a prompt's file; `fixed` is the same at every layer."""

    call: PromptCall
    visual: Tensor
    text: Tensor
    fixed: tuple[KeptTensor, ...]


class Ended(NamedTuple):
    """What was found of a prompt.

    Attributes:
        visual: V.
        text: T.
        values: of each measure, by name.
    """

    visual: int
    text: int
    values: dict[str, Tensor]


class PromptsByLayer:
    """Prompts on their way through the layers.

    Args:
        decoder: the original's, whose layers are read when they run.
        walks: of the measures, by name.
        states: where prompts lie between two layers.
    """

    def __init__(self, decoder: Decoder, walks: Mapping[str, Walk], states: PromptStates) -> None:
        self._decoder, self._walks, self._states = decoder, walks, states

    @property
    def layers(self) -> int:
        """L."""
        return len(self._decoder.layers)

    def bytes_at_most(self, rows: PromptRows) -> int:
        """Return what a prompt takes on disk at most: its own rows, and those that measures carry."""
        return self._bytes(rows.visual_embeds, rows.text_embeds, len(rows.deepstack))

    def kept_bytes(self, name: str, layer: int) -> int:
        """Return the same of a prompt that is kept in front of a layer."""
        opened = self._opened(self._states.read(name, layer))
        more = sum(owner == DEEPSTACK for owner, _ in opened.fixed)
        return self._bytes(opened.visual, opened.text, more)

    def _bytes(self, visual: Tensor, text: Tensor, deepstack: int) -> int:
        counts = visual.shape[1], text.shape[1]
        carried = sum(walk.rows(self.layers, *counts) for walk in self._walks.values())
        rows = carried + sum(counts) + deepstack * counts[0]
        return rows * text.shape[-1] * text.element_size()

    def begin(self, name: str, rows: PromptRows) -> None:
        """Keep a prompt in front of the first layer."""
        fixed = [KeptTensor(PLACES[0], rows.visual_index), KeptTensor(PLACES[1], rows.text_index)]
        fixed += [] if rows.positions is None else [KeptTensor(POSITIONS, rows.positions)]
        fixed += [KeptTensor(DEEPSTACK, each) for each in rows.deepstack]
        self._states.keep(
            name,
            0,
            [*fixed, KeptTensor(VISUAL, rows.visual_embeds), KeptTensor(TEXT, rows.text_embeds)],
        )

    @torch.inference_mode()
    def run(self, name: str, layer: int) -> None:
        """Have a layer, which is there from prompt to prompt, run a prompt that is kept in front of it."""
        kept = self._states.read(name, layer)
        prompt = self._opened(kept)
        self._states.keep(name, layer + 1, self._behind(layer, prompt, kept))

    @torch.inference_mode()
    def end(self, name: str, fronts: Callable[[], Iterable[Front]]) -> Ended:
        """Return what was found of a prompt that is kept behind the last layer.

        Args:
            name: of the prompt.
            fronts: as `PromptCall` has them.
        """
        kept = self._states.read(name, self.layers)
        prompt = self._opened(kept)
        call = replace(prompt.call, fronts=fronts)
        logits = self._decoder.next_token_logits(prompt.text)[0, -1]
        values = {
            name: self._walks[name].found(call, logits, carried)
            for name, carried in self._carried(kept)
        }
        return Ended(prompt.visual.shape[1], prompt.text.shape[1], values)

    def _opened(self, kept: Iterator[KeptTensor]) -> _Opened:
        """Read what stands in front in a prompt's file."""
        fixed: list[KeptTensor] = []
        for owner, visual in kept:
            if owner == VISUAL:
                break
            fixed.append(KeptTensor(owner, visual))
        text = next(kept).tensor
        of = dict(fixed)
        deepstack = [tensor for owner, tensor in fixed if owner == DEEPSTACK]
        visual_index, text_index = (of[owner] for owner in PLACES)
        call = prompt_call(
            self._decoder, visual, text, visual_index, text_index, of.get(POSITIONS), deepstack
        )
        return _Opened(call, visual, text, tuple(fixed))

    def _behind(
        self, layer: int, prompt: _Opened, kept: Iterator[KeptTensor]
    ) -> Iterator[KeptTensor]:
        """Yield what is kept of a prompt behind a layer."""
        visual, text = prompt.call.through(layer, prompt.visual, prompt.text)
        yield from prompt.fixed
        yield KeptTensor(VISUAL, visual)
        yield KeptTensor(TEXT, text)
        here = AtLayer(prompt.call, layer, prompt.visual, prompt.text, text)
        for name, carried in self._carried(kept):
            for tensor in self._walks[name].behind(here, carried):
                yield KeptTensor(name, tensor)

    def _carried(self, kept: Iterator[KeptTensor]) -> Iterator[tuple[str, Iterator[Tensor]]]:
        """Yield what each measure carries, in the order of the measures; some may carry nothing yet."""
        ahead = next(kept, None)

        def of(name: str) -> Iterator[Tensor]:
            nonlocal ahead
            while ahead is not None and ahead.owner == name:
                tensor = ahead.tensor
                ahead = next(kept, None)
                yield tensor

        for name in self._walks:
            carried = of(name)
            yield name, carried
            for _ in carried:  # what a measure leaves unread is not the next one's
                pass
