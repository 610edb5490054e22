"""FastV: from one layer on, only the visual tokens go on that the question reads most.

Source: "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large
Vision-Language Models" (FastV, 2024), training-free.

Rule: at the input of layer K visual rows are ranked by the attention that the prompt's last row pays them in
layer K - 1, mean over heads; the highest share goes on, the others leave. Places and positions stay.

Limitations:
- The choice reads the question: the cache of a picture cannot serve another one.
- Attention is no measure of use: independent benchmarks found choices at random no worse on several tasks.
- Layers below K run on every row, and their caches keep them all.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.contract.choice import LayerRows, LayerScore
from compressor.contract.method import (
    CannotError,
    Claim,
    Evidence,
    Method,
    MethodWords,
    NamedLayers,
    Trait,
    Turn,
)
from compressor.contract.trials import Offering, PlanTrial
from compressor.facts import ModelFacts
from compressor.plan.edits import keep_at
from compressor.plan.kept import Kept, rows_of_share
from compressor.plan.plan import Plan
from compressor.schema.values import LayerOrDepth, PartOf, layer_at

if TYPE_CHECKING:
    from torch import Tensor

TRIED_LAYERS = (0.25, 0.5, 0.75)
"""Shares of the depth at which a search is offered each of `TRIED_SHARES`."""
TRIED_SHARES = (0.5, 0.25)


def read_most(rows: LayerRows) -> "Tensor":
    """Return what the last row reads of each visual row [B, V], mean over heads."""
    return rows.attention().mean(dim=1)


class FastV(Method, Offering):
    """FastV: from a layer on, the visual rows go on that the last row reads most in the layer before.

    Attributes:
        layer: first layer that the others do not enter, 1 or more, or as a share of the depth; published: 2.
        keep: share of the visual rows that goes on, above 0 and below 1; published: 0.5.
    """

    name: ClassVar[str] = "fastv"
    words: ClassVar[MethodWords] = MethodWords(
        label="FastV",
        paper="FastV: An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for "
        "Large Vision-Language Models, arXiv 2403.06764",
    )
    turn: ClassVar[Turn] = Turn.KEEP
    other_names: ClassVar[Mapping[str, str]] = {"k": "layer", "r": "keep", "ratio": "keep"}

    layer: LayerOrDepth = 2
    keep: PartOf = 0.5

    @classmethod
    def trials(cls, facts: ModelFacts, evidence: Evidence) -> tuple[PlanTrial, ...]:
        """Return a half and a quarter of the visual tokens at each quarter of the depth."""
        found = (cls(layer=layer, keep=keep) for layer, keep in cls._tried(facts.decoder.layers))
        return tuple(
            PlanTrial(
                f"{one.keep:g} of visual tokens",
                partial(one.apply, evidence=evidence),
                int(one.layer),
            )
            for one in found
            if rows_of_share(one.keep, facts.tile_rows) >= 1
        )

    @staticmethod
    def _tried(layers: int) -> Iterator[tuple[int, float]]:
        """Yield layers and shares; of a decoder of few layers fewer."""
        for layer in sorted({layer_at(depth, layers) for depth in TRIED_LAYERS}):
            for keep in TRIED_SHARES if layer < layers else ():
                yield layer, keep

    @classmethod
    def claims(cls, keys: Mapping[str, Any]) -> tuple[Claim, ...]:
        """Return that rows leave inside the decoder, by what the question reads."""
        return (Claim(Trait.LEAVING, cls.name),)

    def layers_named(self, layers: int) -> tuple[NamedLayers, ...]:
        """Return the layer where visual rows leave."""
        return (NamedLayers("layer", (layer_at(self.layer, layers),), least=1),)

    def apply(self, plan: Plan, evidence: Evidence) -> Plan:
        """Return the plan with visual rows leaving at the layer."""
        layer = layer_at(self.layer, len(plan.layers))
        if plan.layers[layer].exited:
            return plan
        of = plan.tile_rows_at(layer)
        count = rows_of_share(self.keep, of)
        if not count:
            raise CannotError(
                f"{evidence.where}.keep: {self.keep:g} of {of} visual tokens is none; give more"
            )
        kept = Kept(count=count, of=of, by=self.name, asked=self.asked())
        return keep_at(plan, layer, kept)

    def layer_score(self) -> LayerScore:
        """Return the attention of the last row."""
        return read_most

    def notes(self, plan: Plan, evidence: Evidence) -> list[str]:
        """Return where nothing leaves, or nothing is read."""
        layer = layer_at(self.layer, len(plan.layers))
        if plan.layers[layer].exited:
            return [
                f"{evidence.where}: visual tokens have left by layer {layer}: none are chosen there"
            ]
        if not plan.layers[layer - 1].reads_visual:
            return [
                f"{evidence.where}.layer: no head reads visual tokens in layer {layer - 1}, so the first "
                "ones go on"
            ]
        return []
