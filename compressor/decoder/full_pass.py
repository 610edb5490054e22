"""One pass of the original over a prompt whose states every measurement starts from."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from compressor.contract.choice import Front
from compressor.decoder import Decoder
from compressor.decoder.model import added_by
from compressor.decoder.places import Call, CallPlaces
from compressor.plan.layer import Operator

if TYPE_CHECKING:
    from compressor.decoder.layer import DecoderLayer


@dataclass(frozen=True, kw_only=True)
class PromptCall:
    """One prompt in the original's decoder, but for its rows: what every layer is given alike.

    Attributes:
        decoder: that runs.
        places: of the rows, with their rotations.
        call: masks and rotations.
        added: to the visual rows behind layers, [1, V, D] each.
        visual_index: [1, V].
        text_index: [1, T].
        fronts: gives what the vision side made of each picture's tiles, anew; nothing where it did not run.
    """

    decoder: Decoder
    places: CallPlaces
    call: Call
    added: Mapping[int, Tensor]
    visual_index: Tensor
    text_index: Tensor
    fronts: Callable[[], Iterable[Front]] = tuple

    def through(
        self, index: int, visual: Tensor, text: Tensor, without: Operator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return visual rows [1, V, D] and text rows [1, T, D] behind a layer, of those in front of it.

        Args:
            index: of the layer.
            visual: rows.
            text: rows.
            without: an operator that visual rows go without.
        """
        layer = cast("DecoderLayer", self.decoder.layers[index])
        past = self.decoder.empty_past(1)[index]
        visual, text, _ = layer(visual, text, self.call, past, without)
        return self.with_added(index, visual), text

    def with_added(self, index: int, visual: Tensor) -> Tensor:
        """Return visual rows [1, V, D] with what is added to them behind a layer."""
        return visual + self.added[index] if index in self.added else visual


@dataclass(frozen=True)
class AtLayer:
    """States of one prompt in front of a layer, whose weights are in memory, and behind it.

    Attributes:
        prompt: what layers are given beside.
        index: of the layer.
        visual: rows [1, V, D] in front of it.
        text: rows [1, T, D] in front of it.
        text_behind: rows [1, T, D] behind it.
    """

    prompt: PromptCall
    index: int
    visual: Tensor
    text: Tensor
    text_behind: Tensor

    @property
    def layer(self) -> "DecoderLayer":
        """The layer."""
        return cast("DecoderLayer", self.prompt.decoder.layers[self.index])


@dataclass(frozen=True, kw_only=True)
class FullPass(PromptCall):
    """States of one prompt in the original's decoder.

    Attributes:
        visual: [L] visual rows [1, V, D] at the input of each layer; what is added is in them.
        text: [L + 1] text rows [1, T, D] at the input of each layer, and behind the last.
        logits: [vocab] at the last prompt token.
    """

    visual: list[Tensor]
    text: list[Tensor]
    logits: Tensor

    def at(self, index: int) -> AtLayer:
        """Return the states at a layer."""
        return AtLayer(self, index, self.visual[index], self.text[index], self.text[index + 1])


def kl_divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Return KL(softmax(logits) || softmax(reference)) in nats over the last axis, in float64."""
    log_p = torch.log_softmax(logits.double(), dim=-1)
    log_q = torch.log_softmax(reference.double(), dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def prompt_call(
    decoder: Decoder,
    visual: Tensor,
    text: Tensor,
    visual_index: Tensor,
    text_index: Tensor,
    positions: Tensor | None = None,
    deepstack: Sequence[Tensor] = (),
) -> PromptCall:
    """Return what the layers are given beside the rows of a prompt; arguments as `full_pass`."""
    places = decoder.rotary.places(visual_index, text_index, text.dtype, positions)
    return PromptCall(
        decoder=decoder,
        places=places,
        call=places.call(text.shape[1]),
        added=added_by(deepstack, decoder.deepstack, visual),
        visual_index=visual_index,
        text_index=text_index,
    )


@torch.inference_mode()
def full_pass(
    decoder: Decoder,
    visual: Tensor,
    text: Tensor,
    visual_index: Tensor,
    text_index: Tensor,
    positions: Tensor | None = None,
    deepstack: Sequence[Tensor] = (),
) -> FullPass:
    """Run a prompt once.

    Args:
        decoder: the original's, nothing frozen that matters to the logits.
        visual: visual embeddings [1, V, D], V >= 1.
        text: text embeddings [1, T, D].
        visual_index: [1, V] places in the prompt.
        text_index: [1, T] places in the prompt.
        positions: [1, V + T, A] rotary positions; see `Decoder.places`.
        deepstack: see `Decoder.forward`.
    """
    prompt = prompt_call(decoder, visual, text, visual_index, text_index, positions, deepstack)
    visual_rows, text_rows = [visual], [text]
    for i in range(len(decoder.layers)):
        visual, text = prompt.through(i, visual, text)
        visual_rows.append(visual)
        text_rows.append(text)
    logits = decoder.next_token_logits(text)[0, -1]
    return FullPass(**vars(prompt), visual=visual_rows[:-1], text=text_rows, logits=logits)


@torch.inference_mode()
def text_tails(full: FullPass, exits: Sequence[int]) -> Tensor:
    """Return the text rows [C, T, D] behind the last layer for exits at C layers.

    Args:
        full: of the prompt.
        exits: first layers without visual rows, ascending.
    """
    tails = full.text[0][:0]  # [tails so far, T, D]
    for index in range(len(full.decoder.layers)):
        tails = tails_behind(full.at(index), tails, opens=index in exits)
    return tails


def tails_behind(here: AtLayer, tails: Tensor, *, opens: bool) -> Tensor:
    """Return the text rows [C, T, D] behind a layer of prompts whose visual rows left in front of it.

    Args:
        here: the layer, on the prompt with all its rows.
        tails: [C, T, D] of those that left at earlier layers.
        opens: whether one more has them leave in front of this layer; it comes last.
    """
    if opens:
        tails = torch.cat([tails, here.text])
    if len(tails):
        count = tails.shape[1]
        alone = here.prompt.places.last(count).call(count).alone
        past = here.prompt.decoder.empty_past(len(tails))[here.index]
        tails, _ = here.layer.text_only(tails, alone, past)
    return tails
