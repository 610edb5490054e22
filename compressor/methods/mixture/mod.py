"""MoD, after VideoLLM-MoD: a linear router chooses the visual rows of each tile that run a layer.

Source: after "VideoLLM-MoD: Efficient Video-Language Streaming with Mixture-of-Depths Vision Computation"
(2024). Its code is not published, so what is here follows the paper and is this project's own reading of it:
that it gives the authors' numbers is not claimed.

Rule: w = r . h of a visual row h as it enters the layer, r [D]. Of the n visual rows of each tile, of a video
each frame, the k with the largest w run the layer with all text rows, at their own places and positions;
h += w (layer(h) - h). Text rows are what the layer makes of them.

Limitations:
- No routers are published or shipped. `train-parts` trains routers alone, where the authors train the model.
- Pictures with rows of their own have no fixed number of them a tile, so none can be chosen.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from compressor.contract.choice import RunRule
from compressor.contract.method import Evidence, MethodWords, NamedLayers, gone_words, layers_words
from compressor.contract.routed import RoutedMethod
from compressor.plan.plan import Plan
from compressor.schema.values import Layers, PartOf

if TYPE_CHECKING:
    from torch import Tensor


def only_number(numbers: "Tensor") -> "Tensor":
    """Return the one number [..] of a router [.., 1]."""
    return numbers[..., 0]


class Mod(RoutedMethod):
    """MoD: the visual rows of each tile with the largest router weight run a layer, scaled by it.

    Attributes:
        layers: that some visual rows run alone; None: every other one, the first is whole.
    """

    name: ClassVar[str] = "mod"
    words: ClassVar[MethodWords] = MethodWords(
        label="MoD",
        paper="after VideoLLM-MoD: Efficient Video-Language Streaming with Mixture-of-Depths Vision "
        "Computation, arXiv 2408.16730",
        run_how="What the layer adds to those that run is multiplied by the router's weight.",
    )
    by_grid: ClassVar[tuple[str, ...]] = ("keep",)
    outputs: ClassVar[int] = 1
    within: ClassVar[Literal["call", "tile"]] = "tile"

    keep: PartOf = 0.2
    layers: Layers | None = None

    def layers_named(self, layers: int) -> tuple[NamedLayers, ...]:
        """Return the layers that some rows run alone."""
        return (NamedLayers("layers", self.layers or ()),)

    def layers_run(self, plan: Plan, evidence: Evidence) -> Sequence[int]:
        """See `RoutedMethod.layers_run`."""
        return range(1, len(plan.layers), 2) if self.layers is None else self.layers

    def run_rule(self) -> RunRule:
        """Return the router's number, on the whole update."""
        return RunRule(only_number, normed=False, scales="update", renumbered=False)

    def notes(self, plan: Plan, evidence: Evidence) -> list[str]:
        """Return in which layers nothing is left to choose."""
        gone = [i for i in self.layers_run(plan, evidence) if plan.layers[i].exited]
        if not gone:
            return []
        return [f"{evidence.where}: chooses nothing in {layers_words(gone)}: {gone_words(plan)[0]}"]
