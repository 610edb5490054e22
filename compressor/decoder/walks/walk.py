"""How a measure goes through the layers with a prompt, so that each layer is there once, for all of it.

A walk holds nothing itself. What it needs of a prompt between two layers it hands on, tensor by tensor, so
that whoever drives it keeps them where there is room, in memory or in a file, and goes on from them later.

Letters: L layers, V visual rows, T text rows, D hidden, C changed prompts.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from compressor.decoder.full_pass import (
    AtLayer,
    FullPass,
    PromptCall,
    kl_divergence,
    tails_behind,
    text_tails,
)

Rows = tuple[Tensor, Tensor]
"""Visual rows [1, V, D] and text rows [1, T, D]."""


class Walk(Protocol):
    """A measure's way through the layers; the values are those of `of`, to the bit."""

    def of(self, full: FullPass) -> Tensor:
        """Return the values of a prompt whose states at all layers are in memory."""
        ...

    def behind(self, here: AtLayer, carried: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield what is carried on behind a layer.

        Args:
            here: the layer and the prompt's states there.
            carried: what was carried to it; each is read once, in order, and not before it is used.
        """
        ...

    def found(self, prompt: PromptCall, logits: Tensor, carried: Iterator[Tensor]) -> Tensor:
        """Return the values.

        Args:
            prompt: whose layers all ran.
            logits: [vocab] at its last token.
            carried: what was carried behind the last layer.
        """
        ...

    def rows(self, layers: int, visual: int, text: int) -> int:
        """Return how many rows [D] are carried behind the last layer, of a prompt of so many rows."""
        ...


class OnceALayer:
    """Something of every layer by itself: nothing is changed.

    Args:
        value: of one layer; None: it has none.
        together: makes the values of those of the layers.
    """

    def __init__(
        self,
        value: Callable[[AtLayer], Tensor | None],
        together: Callable[[list[Tensor]], Tensor] = torch.stack,
    ) -> None:
        self._value, self._together = value, together

    def of(self, full: FullPass) -> Tensor:
        """Return the values of a prompt."""
        found = (self._value(full.at(i)) for i in range(len(full.decoder.layers)))
        return self._together([value for value in found if value is not None])

    def behind(self, here: AtLayer, carried: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the values so far, and that of this layer."""
        yield from carried
        value = self._value(here)
        if value is not None:
            yield value

    def found(self, prompt: PromptCall, logits: Tensor, carried: Iterator[Tensor]) -> Tensor:  # noqa: ARG002
        """Return the values."""
        return self._together([*carried])

    def rows(self, layers: int, visual: int, text: int) -> int:  # noqa: ARG002
        """Return that no rows are carried."""
        return 0


class OnePlaceChanged:
    """KL of the prompt with one place changed, for every place of every layer: all layers behind it run anew.

    Args:
        changed: rows behind a layer, of each place in it that is changed by itself.
        places: of a layer.
    """

    def __init__(self, changed: Callable[[AtLayer], Iterable[Rows]], places: int = 1) -> None:
        self._changed, self._places = changed, places

    def of(self, full: FullPass) -> Tensor:
        """Return the KL [L] of a prompt, [L, places] where there are several; one is run at a time."""
        layers = len(full.decoder.layers)

        def logits() -> Iterator[Tensor]:
            for index in range(layers):
                for visual, text in self._changed(full.at(index)):
                    for behind in range(index + 1, layers):
                        visual, text = full.through(behind, visual, text)  # noqa: PLW2901
                    yield full.decoder.next_token_logits(text)[0, -1]

        return self._kl(logits(), full.logits)

    def behind(self, here: AtLayer, carried: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the rows of what was changed at earlier layers, and at this one."""
        for visual, text in zip(carried, carried, strict=True):
            yield from here.prompt.through(here.index, visual, text)
        for rows in self._changed(here):
            yield from rows

    def found(self, prompt: PromptCall, logits: Tensor, carried: Iterator[Tensor]) -> Tensor:
        """Return the KL."""
        ends = zip(carried, carried, strict=True)
        return self._kl((prompt.decoder.next_token_logits(t)[0, -1] for _, t in ends), logits)

    def rows(self, layers: int, visual: int, text: int) -> int:
        """Return the rows of all changed prompts."""
        return layers * self._places * (visual + text)

    def _kl(self, logits: Iterator[Tensor], reference: Tensor) -> Tensor:
        found = kl_divergence(torch.stack([*logits]), reference)
        return found if self._places == 1 else found.unflatten(0, (-1, self._places))


class VisualGone:
    """KL of the prompt whose visual rows left in front of a layer, for every layer, [L]."""

    def of(self, full: FullPass) -> Tensor:
        """Return the KL of a prompt."""
        return self._kl(full, full.logits, text_tails(full, range(len(full.decoder.layers))))

    def behind(self, here: AtLayer, carried: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the text rows [C, T, D] of those that left so far."""
        yield tails_behind(here, next(carried, here.text[:0]), opens=True)

    def found(self, prompt: PromptCall, logits: Tensor, carried: Iterator[Tensor]) -> Tensor:
        """Return the KL."""
        return self._kl(prompt, logits, next(carried))

    def rows(self, layers: int, visual: int, text: int) -> int:  # noqa: ARG002
        """Return the text rows of all."""
        return layers * text

    def _kl(self, prompt: PromptCall, logits: Tensor, tails: Tensor) -> Tensor:
        return kl_divergence(prompt.decoder.next_token_logits(tails)[:, -1], logits)


class BeforeLayers:
    """Something of the prompt that no layer changes.

    Args:
        value: of the prompt.
    """

    def __init__(self, value: Callable[[PromptCall], Tensor]) -> None:
        self._value = value

    def of(self, full: FullPass) -> Tensor:
        """Return the values of a prompt."""
        return self._value(full)

    def behind(self, here: AtLayer, carried: Iterator[Tensor]) -> Iterator[Tensor]:  # noqa: ARG002
        """Yield nothing."""
        return iter(())

    def found(self, prompt: PromptCall, logits: Tensor, carried: Iterator[Tensor]) -> Tensor:  # noqa: ARG002
        """Return the values."""
        return self._value(prompt)

    def rows(self, layers: int, visual: int, text: int) -> int:  # noqa: ARG002
        """Return that no rows are carried."""
        return 0
