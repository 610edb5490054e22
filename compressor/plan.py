"""The plan: what visual tokens do in each layer. Pure data, JSON both ways, made without torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from compressor.dims import Facts, ModelFacts, Positive
from compressor.errors import PlanError
from compressor.files import read_text, write_text

VisualRows = Literal["update", "frozen"]
"""`update`: visual rows are computed; `frozen`: they pass through, their K and V are still read."""

Reason = Literal["", "shortv", "dead"]
"""Why visual rows are not updated; `dead`: nobody reads their output, so freezing them is exact."""


class LayerPlan(Facts):
    """What visual rows do in one decoder layer; text rows always do everything."""

    index: int = Field(ge=0)
    visual: VisualRows = "update"
    reason: Reason = ""

    @model_validator(mode="after")
    def _frozen_for_a_reason(self) -> "LayerPlan":
        if self.frozen == (self.reason == ""):
            raise ValueError(
                f"layer {self.index} is {self.visual!r} for the reason {self.reason!r}"
            )
        return self

    @property
    def frozen(self) -> bool:
        """Whether visual rows pass through this layer unchanged."""
        return self.visual == "frozen"


class Workload(Facts):
    """The prefill that costs are predicted for."""

    images: Positive = 1
    text: Positive = 64


class Plan(Facts):
    """A complete, replayable description of a compression.

    Attributes:
        plan_format: version of this file's format.
        model: the model the plan was made for.
        model_digest: sha256 over its configuration and weights.
        layers: one entry per decoder layer, in order.
        workload: the prefill that predicted figures refer to.
    """

    plan_format: Literal[1] = 1
    model: ModelFacts
    model_digest: str
    layers: tuple[LayerPlan, ...]
    workload: Workload = Workload()

    @model_validator(mode="after")
    def _layers_match_the_model(self) -> "Plan":
        indices = [layer.index for layer in self.layers]
        if indices != list(range(self.model.decoder.layers)):
            raise ValueError(
                f"layers are {indices}; the model has layers 0..{self.model.decoder.layers - 1}"
            )
        return self

    @property
    def visual(self) -> int:
        """V of the workload."""
        return self.workload.images * self.model.visual_tokens

    def frozen_layers(self) -> tuple[int, ...]:
        """Indices of the layers that visual rows pass through unchanged."""
        return tuple(layer.index for layer in self.layers if layer.frozen)

    def naive(self) -> "Plan":
        """The original's own work: every row in every layer, dead rows included."""
        layers = tuple(LayerPlan(index=layer.index) for layer in self.layers)
        return self.model_copy(update={"layers": layers})

    def save(self, path: Path) -> None:
        """Write the plan as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read a plan.

        Raises:
            PlanError: the file is missing, no JSON, of a newer format or inconsistent.
        """
        try:
            return cls.model_validate_json(read_text(path, PlanError))
        except ValidationError as error:
            raise PlanError(
                f"{path}: {'.'.join(map(str, e['loc'])) or 'plan'}: {e['msg']}; "
                "make it anew with `vtcompress plan`"
                for e in error.errors()
            ) from None
