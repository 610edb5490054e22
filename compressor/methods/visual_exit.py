"""VTW: visual tokens leave the decoder at one layer, the same for every prompt.

Source: "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference" (VTW,
2024), training-free.

Rule: p is the original next-token distribution at the last prompt token, p_K the one with visual rows
absent from the input of layer K on, positions kept. K is the smallest layer from a first one on (5) whose
KL(p_K || p), mean over calibration samples, is within a bound. All K are scored in one sweep.

Limitations:
- K depends on the task. With a K from captions or yes-no questions, tasks that read small details, such as
  text in pictures or counts, can collapse: calibrate on the task.
- The mean can hide single prompts that need the image longer.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.contract.measure import Drawing, Measure, Measured, MeasureTable, marked, table_of
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
from compressor.plan.cost import predicted_speedup
from compressor.plan.edits import leave
from compressor.plan.plan import Plan
from compressor.schema.values import (
    AboveOne,
    Count,
    ExactlyOne,
    LayerOrDepth,
    NotNegative,
    layer_at,
)

if TYPE_CHECKING:
    from torch import Tensor

FIRST_LAYER = 5


def smallest_within(exit_kl: Sequence[float], bound: float, first: int) -> int | None:
    """Return the smallest layer from `first` on whose mean KL is within the bound, None if none is.

    Args:
        exit_kl: mean KL [L] by the first layer without visual rows.
        bound: in nats.
        first: smallest layer to consider.
    """
    return next((k for k in range(first, len(exit_kl)) if exit_kl[k] <= bound), None)


def exit_for_speedup(layers: int, wanted: float, speedup_of: Callable[[int], float]) -> int | None:
    """Return the largest exit layer whose predicted speed-up reaches `wanted`, None if none does.

    Args:
        layers: of the decoder.
        wanted: prefill speed-up, above 1.
        speedup_of: predicted speed-up of an exit at a layer.
    """
    return next((k for k in range(layers - 1, 0, -1) if speedup_of(k) >= wanted), None)


def exit_walk() -> Any:
    """Return how the KL of exits is measured: text rows go on alone from the layer of each."""
    from compressor.decoder.walks.walk import VisualGone

    return VisualGone()


def exit_kl(full: Any) -> "Tensor":
    """Return KL(p_K || p) [L] at the last prompt token, in nats, float64, for every K from 0.

    Args:
        full: `compressor.decoder.full_pass.FullPass` of the prompt.
    """
    import torch

    with torch.inference_mode():
        found: Tensor = exit_walk().of(full)
        return found


def _drawing(measured: Measured, plan: Plan) -> Drawing:
    exited = [layer.index for layer in plan.layers if layer.exited]
    labels = ("visual tokens stay", "visual tokens are gone")
    return Drawing(
        "first layer without visual tokens",
        "KL at the last prompt token (nats)",
        marked(measured.mean, exited, labels),
    )


def _table(measured: Measured) -> MeasureTable:
    columns = ("first layer without visual tokens", "KL, nats")
    return table_of("Visual exit", columns, enumerate(measured.mean))


EXIT_KL = Measure(
    name="exit_kl",
    shape=("layers",),
    of=exit_kl,
    walk=exit_walk,
    chooses="the exit by its KL",
    otherwise=", or give the layer",
    title="KL of an exit before the layer",
    unit="nats",
    unasked=True,
    draw=_drawing,
    show=_table,
)


class VisualExit(ExactlyOne, Method, Offering):
    """Visual tokens leave the decoder at the input of one layer, the same for every prompt (VTW).

    Exactly one of `layer`, `max_kl` and `speedup` is given.

    Attributes:
        layer: first layer without visual rows, 1 or more, or as a share of the depth, above 0 and below 1
            (0.5: layer 16 of 32); needs no calibration.
        max_kl: the smallest such layer whose mean KL at the last prompt token is within this, in nats.
        first_layer: smallest layer that the search by `max_kl` may find; None: 5, as published.
        speedup: the largest such layer with which the predicted prefill speed-up of the whole recipe
            reaches this, above 1.
    """

    name: ClassVar[str] = "visual_exit"
    words: ClassVar[MethodWords] = MethodWords(
        label="VTW",
        paper="VTW: Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid "
        "Inference, arXiv 2405.05803",
    )
    turn: ClassVar[Turn] = Turn.EXIT
    measures: ClassVar[tuple[Measure, ...]] = (EXIT_KL,)
    nicknames: ClassVar[tuple[str, ...]] = ("vtw", "exit", "withdrawal")
    other_names: ClassVar[Mapping[str, str]] = {
        "k": "layer",
        "exit_layer": "layer",
        "off_from": "layer",
        "kl": "max_kl",
    }
    beside: ClassVar[Mapping[str, str]] = {"first_layer": "max_kl"}

    layer: LayerOrDepth | None = None
    max_kl: NotNegative | None = None
    first_layer: Count | None = None
    speedup: AboveOne | None = None

    @classmethod
    def trials(cls, facts: ModelFacts, evidence: Evidence) -> tuple[PlanTrial, ...]:
        """Return visual tokens leaving in front of each layer but the first."""
        return tuple(
            PlanTrial(
                "visual tokens leave",
                partial(leave, layer=layer, reason=cls.name),
                layer,
                leaves=True,
            )
            for layer in range(1, facts.decoder.layers)
        )

    @classmethod
    def claims(cls, keys: Mapping[str, Any]) -> tuple[Claim, ...]:
        """Return that it chooses the exit."""
        return (Claim(Trait.EXIT, cls.name),)

    def needs(self) -> tuple[Measure, ...]:
        """Return what calibration must measure: nothing but for a search by KL."""
        return () if self.max_kl is None else (EXIT_KL,)

    def seeks_speedup(self) -> bool:
        """Whether the exit is the one with which the plan is fast enough."""
        return self.speedup is not None

    def bounds(self) -> Mapping[str, float]:
        """Return the largest KL allowed."""
        return {} if self.max_kl is None else {EXIT_KL.name: self.max_kl}

    def layers_named(self, layers: int) -> tuple[NamedLayers, ...]:
        """Return the exit, and where a search begins."""
        exits = () if self.layer is None else (layer_at(self.layer, layers),)
        first = () if self.first_layer is None else (self.first_layer,)
        return NamedLayers("layer", exits, least=1), NamedLayers("first_layer", first, least=1)

    def apply(self, plan: Plan, evidence: Evidence) -> Plan:
        """Return the plan with visual rows gone from a layer on."""
        return leave(plan, self._chosen(plan, evidence), self.name)

    def _chosen(self, plan: Plan, evidence: Evidence) -> int:
        layers, where = len(plan.layers), evidence.where
        if self.layer is not None:
            return layer_at(self.layer, layers)
        if self.max_kl is not None:
            first = self.first_layer or FIRST_LAYER
            scores = evidence.of(EXIT_KL).mean
            found = smallest_within(scores, self.max_kl, first)
            if found is None:
                raise _no_exit(self.max_kl, scores, first, where)
            return found
        wanted = self.speedup or 1.0

        def speedup_of(layer: int) -> float:
            return predicted_speedup(evidence.rest(leave(plan, layer, self.name)))

        found = exit_for_speedup(layers, wanted, speedup_of)
        if found is None:
            raise evidence.out_of_reach(plan, wanted, "leaving before layer 1", speedup_of(1))
        return found


def _no_exit(bound: float, exit_kl: Sequence[float], first: int, where: str) -> CannotError:
    if first >= len(exit_kl):
        return CannotError(
            f"{where}.first_layer: {first} is outside 1..{len(exit_kl) - 1}; the model has "
            f"{len(exit_kl)} layers"
        )
    best = min(range(first, len(exit_kl)), key=lambda k: exit_kl[k])
    return CannotError(
        f"{where}.max_kl: no layer from {first} on is within {bound:g}; the best is layer {best} "
        f"with a mean KL of {exit_kl[best]:.3g}: allow that much, or do without an exit"
    )
