"""WiCo+: in a late layer the few visual tokens of a tile become many again.

Source: "Window Token Concatenation for Efficient Visual Large Language Models" (WiCo, WiCo+, 2025). Trained
with a projector that gives fewer tokens; the step itself has no weights.

Rule: at the input of layer L the n rows of a tile are resized to m, linearly, with aligned ends: row r is at
t = r (n - 1) / (m - 1), (1 - f) of row floor(t) and f of the next, f = t - floor(t). All rows of the call get
new positions, counted from its first; steps of decoding stand behind the prompt as it was. Published: 144
to 576, L = 30 of 32 layers.

Limitations:
- A model that was not trained so loses by it: no checkpoint is published.
- Layers from L on do the work of m rows, and their caches hold these.
- Rows are resized in reading order, not on their grid: between two lines a row is made of both ends.
- The released code does so with prompts of more than 100 rows alone; here every picture grows.
- Where m is not the number of places that a tile takes in the prompt, text behind a picture of the same call
  moves on: then a picture that was looked at once cannot serve other questions, and a later turn, which
  counts these places, stands where it would if nothing had grown.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

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
from compressor.facts import ModelFacts
from compressor.plan.edits import grow_at
from compressor.plan.growth import Growth, why_not_grown
from compressor.plan.plan import Plan
from compressor.schema.values import Count, LayerOrDepth, layer_at

PUBLISHED = 30 / 32


class WicoPlus(Method):
    """WiCo+: at a layer the visual tokens of every tile are resized to more.

    Attributes:
        layer: first layer that has more, 1 or more, or as a share of the depth; published: 30 of 32, which is
            0.9375.
        rows: how many a tile has from there on; None: as many as it has image tokens in the prompt.
    """

    name: ClassVar[str] = "wico_plus"
    words: ClassVar[MethodWords] = MethodWords(
        label="WiCo+",
        paper="WiCo+: Window Token Concatenation for Efficient Visual Large Language Models, "
        "arXiv 2504.04024",
    )
    turn: ClassVar[Turn] = Turn.GROW
    by_grid: ClassVar[tuple[str, ...]] = ("layer",)
    other_names: ClassVar[Mapping[str, str]] = {"at": "layer", "to": "rows", "tokens": "rows"}

    layer: LayerOrDepth = PUBLISHED
    rows: Count | None = None

    @classmethod
    def claims(cls, keys: Mapping[str, Any]) -> tuple[Claim, ...]:
        """Return that rows become more inside the decoder."""
        return (Claim(Trait.GROWING, cls.name),)

    def layers_named(self, layers: int) -> tuple[NamedLayers, ...]:
        """Return the layer where rows grow."""
        return (NamedLayers("layer", (layer_at(self.layer, layers),), least=1),)

    def problems(self, facts: ModelFacts, evidence: Evidence) -> list[str]:
        """Return that pictures have rows of their own, or that rows between two others have no place."""
        layer = layer_at(self.layer, facts.decoder.layers)
        if (reason := why_not_grown(facts, layer)) is not None:
            return [f"{evidence.where}.layer: {reason}; leave {self.name} out"]
        return []

    def apply(self, plan: Plan, evidence: Evidence) -> Plan:
        """Return the plan with visual rows growing at the layer."""
        of, tokens = plan.rows_kept or plan.model.tile_rows, plan.model.tile_rows
        count = self.rows or tokens
        if count <= of:
            raise CannotError(
                f"{evidence.where}.rows: a tile is to have {count} visual tokens from the layer on, and {of} "
                f"of its {tokens} enter the decoder; let fewer in, or give more rows"
            )
        layer = layer_at(self.layer, len(plan.layers))
        return grow_at(plan, layer, Growth(count=count, of=of, by=self.name))

    def notes(self, plan: Plan, evidence: Evidence) -> list[str]:
        """Return that nothing grows, or that a conversation is not what it is in one call."""
        if not plan.grows():
            return [f"{evidence.where}: visual tokens have left by its layer: nothing grows there"]
        if plan.moves_text:
            rows, places = self.rows or plan.model.tile_rows, plan.model.places_of_tile
            return [
                f"{evidence.where}.rows: {rows} are not the {places} image tokens of a tile: text behind a "
                "picture moves on, in its own call alone"
            ]
        return []
