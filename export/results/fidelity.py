"""What export fidelity found, beside its limits."""

from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from compressor.facts import Facts
from export.results.verdict import Check


class FidelityLimits(Facts):
    """What every compared output must satisfy."""

    max_abs: float
    max_relative: float
    min_cosine: float


class Difference(Facts):
    """Two recordings of one output compared.

    Attributes:
        call: e.g. `2 images, T=9: decode step 3`.
        max_abs: largest absolute difference.
        max_relative: the same, divided by the reference's largest absolute value.
        cosine: least cosine similarity over the rows.
    """

    call: str
    max_abs: float
    max_relative: float
    cosine: float


class FidelityReport(Check):
    """The outcome: the worst of each measure, and every failure in words; its limits are always set.

    Attributes:
        layers: of a check by layer, what each layer differs by itself, on equal inputs; last comes what is
            behind the layers. Of a check of whole graphs nothing.
    """

    calls: int
    limits: FidelityLimits
    worst_abs: Difference
    worst_relative: Difference
    worst_cosine: Difference
    layers: tuple[Difference, ...] = ()

    @property
    def worst_layer(self) -> Difference | None:
        """Of a check by layer, the layer that differs most by itself."""
        return max(self.layers, key=lambda found: found.max_relative, default=None)

    @model_serializer(mode="wrap")
    def _without_layers_not_parted(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if k != "layers" or v}
