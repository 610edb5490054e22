"""Layers whose weights lie elsewhere until one is asked for, and here until another is.

Elsewhere is a file, or the memory of another device. A decoder with such layers computes what it does with
all weights here, to the bit: each weight is read in the layout and dtype that it has there, and sent to where
its stand-in is. Here are one layer's weights at a time, embedding and head.

Limitations:
    - Each pass over the layers reads all of them anew; `compressor.calibration.by_layer` makes one for all
      prompts.
    - A layer that is kept while another is asked for has no numbers left: its results are NaN.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compressor.decoder.model import Decoder
from compressor.decoder.quantization import quantized_as
from compressor.decoder.weights import StoredWeight, stored_weights

if TYPE_CHECKING:
    from compressor.families.stand_ins import AbsentTensor


def read_into(
    module: nn.Module, weights: Mapping[str, StoredWeight], stored: "Mapping[str, AbsentTensor]"
) -> dict[str, Tensor]:
    """Put numbers that lie elsewhere in the place of a module's stand-ins, and return these by name.

    Args:
        module: that has the parameters.
        weights: what is known of each, by its name in the module; of whole numbers what they stand for is
            put.
        stored: where they lie, by their source; each is read once.

    Raises:
        ModelError: they cannot be read any more.
    """
    absent = {name: weight for name, weight in weights.items() if weight.source in stored}
    stand_ins = {name: module.get_parameter(name).data for name in absent}
    with torch.inference_mode(False):  # such tensors cannot take a parameter's place
        for source in {weight.source for weight in absent.values()}:
            read = stored[source].read()
            for name, weight in absent.items():
                if weight.source == source:
                    module.get_parameter(name).data = _numbers(weight, read).to(stand_ins[name])
    return stand_ins


def put_back(module: nn.Module, stand_ins: Mapping[str, Tensor]) -> None:
    """Put stand-ins, by the names of their parameters, in the place of what was read."""
    for name, stand_in in stand_ins.items():
        module.get_parameter(name).data = stand_in


def _numbers(weight: StoredWeight, tensor: Tensor) -> Tensor:
    part = weight.of(tensor)
    return part if weight.whole is None else quantized_as(part, weight.whole).dequantized()


class LayersElsewhere(nn.ModuleList):
    """A decoder's layers, the weights of one of them here.

    Args:
        layers: whose weights have stand-ins.
        weights: what is known of each parameter, by its name in the decoder.
        stored: where they lie, by their source.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        weights: Mapping[str, StoredWeight],
        stored: "Mapping[str, AbsentTensor]",
    ) -> None:
        super().__init__(layers)
        self._weights, self._stored = weights, stored
        self._held: int | None = None
        self._stand_ins: dict[str, Tensor] = {}

    def __getitem__(self, index: int) -> nn.Module:  # type: ignore[override] # no slices
        """Return a layer, with its weights; those of the one before are let go."""
        place = range(len(self))[index]
        layer = super().__getitem__(place)
        if place != self._held:
            self._let_go()
            start = f"layers.{place}."
            own = {
                n.removeprefix(start): w for n, w in self._weights.items() if n.startswith(start)
            }
            self._stand_ins = read_into(layer, own, self._stored)
            self._held = place
        return layer

    def __iter__(self) -> Iterator[nn.Module]:
        """Yield the layers, each with its weights until the next is asked for."""
        return (self[index] for index in range(len(self)))

    def _let_go(self) -> None:
        if self._held is not None:
            put_back(super().__getitem__(self._held), self._stand_ins)
            self._held = None


def read_layers_when_run(decoder: Decoder, stored: "Mapping[str, AbsentTensor]") -> None:
    """Have a decoder read each layer when it runs, if weights of its layers lie elsewhere.

    Args:
        decoder: with stand-ins for the weights of layers alone.
        stored: where they lie, by their source; empty: all are here, and nothing changes.
    """
    if stored:
        decoder.layers = LayersElsewhere(decoder.layers, stored_weights(decoder), stored)
