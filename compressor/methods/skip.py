"""Skip: visual tokens go without the attention or the MLP of layers that need it least.

Source: this project's own; operators instead of whole layers in the manner of ShortV (arXiv 2504.00502).

Rule: the contribution of an operator is KL(p_o || p) at the last prompt token, p the original next-token
distribution and p_o the one with that operator alone left out on visual rows, mean over samples. The lowest
are left out, in one pass, not greedily. Both of a layer are a frozen layer.

Limitations:
- One pass: the contributions of operators left out together need not add up.
- The KV cache keeps its length: text rows read the keys and values of visual rows all the same.
- An operator counts as one, whatever it costs: with few visual tokens an MLP is worth more than attention.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, get_args

from pydantic import model_validator

from compressor.contract.measure import (
    Drawing,
    Measure,
    Measured,
    MeasureTable,
    marked_points,
    table_of,
)
from compressor.contract.method import Evidence, Method, MethodWords, NamedLayers, Turn
from compressor.contract.trials import LayerTrial, Offering
from compressor.facts import ModelFacts
from compressor.methods.shortv import layers_for_speedup, rounded
from compressor.plan.cost import predicted_speedup
from compressor.plan.edits import leave_out
from compressor.plan.layer import LayerPlan, Operator
from compressor.plan.plan import Plan
from compressor.schema.problems import apply_rule
from compressor.schema.values import AboveOne, ExactlyOne, Layers, RecipeSection, Share

if TYPE_CHECKING:
    from torch import Tensor

OPERATORS: Final[tuple[Operator, ...]] = get_args(Operator)
Place = tuple[int, int]
"""A layer, and which of `OPERATORS`."""


def operator_walk() -> Any:
    """Return how contributions of operators are measured.

    Leaving out an operator changes visual rows alone in its layer, so only later layers run again.
    """
    from compressor.decoder.walks.walk import OnePlaceChanged

    def without(here: Any) -> "Iterator[tuple[Tensor, Tensor]]":
        for operator in OPERATORS:
            yield here.prompt.through(here.index, here.visual, here.text, operator)

    return OnePlaceChanged(without, len(OPERATORS))


def operator_kl(full: Any) -> "Tensor":
    """Return the contribution of each operator [L, 2] for one prompt, in nats, float64.

    Args:
        full: `compressor.decoder.full_pass.FullPass` of the prompt.
    """
    import torch

    with torch.inference_mode():
        found: Tensor = operator_walk().of(full)
        return found


def _left_out(plan: Plan, place: Place) -> bool:
    layer, operator = plan.layers[place[0]], OPERATORS[place[1]]
    return layer.without == operator or layer.reason == Skip.name


def _leaving_out(operator: Operator, layer: LayerPlan) -> LayerPlan:
    return layer.leaving_out(operator, Skip.name)


def _drawing(measured: Measured, plan: Plan) -> Drawing:
    dots = [
        ((i, value), _left_out(plan, (i, number)))
        for i, row in enumerate(measured.mean)
        for number, value in enumerate(row)
    ]
    series = marked_points(dots, ("runs", "left out"))
    return Drawing("decoder layer", "KL without one operator (nats)", series, "dots")


def _table(measured: Measured) -> MeasureTable:
    rows = ((i, *row) for i, row in enumerate(measured.mean))
    return table_of(
        "Contribution of operators", ("layer", *(f"{o}, nats" for o in OPERATORS)), rows
    )


OPERATOR_KL = Measure(
    name="operator_kl",
    shape=("layers", "operators"),
    of=operator_kl,
    walk=operator_walk,
    chooses="operators by contribution",
    otherwise=", or name them",
    title="contribution of operators",
    unit="KL, nats",
    draw=_drawing,
    show=_table,
)


class NamedOperators(RecipeSection):
    """Operators by name: of one kind, or of both.

    Attributes:
        attention: layers whose attention visual rows go without.
        mlp: likewise.
    """

    attention: Layers | None = None
    mlp: Layers | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _some_are_named(cls, value: Any, handler: Callable[[Any], Self]) -> Self:
        none = isinstance(value, dict) and all(layers is None for layers in value.values())
        problem = "nothing is given; give layers of attention, of mlp, or of both" if none else None
        result: Self = apply_rule(value, handler, problem)
        return result

    @property
    def places(self) -> tuple[Place, ...]:
        """Which operators, attention's first."""
        return tuple(
            (layer, number)
            for number, operator in enumerate(OPERATORS)
            for layer in getattr(self, operator) or ()
        )


class Skip(ExactlyOne, Method, Offering):
    """Visual rows go without attention or MLP of some layers; text rows read their keys and values there.

    Exactly one of the keys is given.

    Attributes:
        operators: which, by layer; needs no calibration.
        share: of the operators of layers that update visual rows, 0 to 1; those that contribute least.
        speedup: predicted speed-up of the prefill to reach by the whole recipe, above 1.
    """

    name: ClassVar[str] = "skip"
    words: ClassVar[MethodWords] = MethodWords(label="Skip")
    turn: ClassVar[Turn] = Turn.FREEZE
    measures: ClassVar[tuple[Measure, ...]] = (OPERATOR_KL,)
    sets: ClassVar[tuple[str, ...]] = ("without",)
    other_names: ClassVar[Mapping[str, str]] = {"layers": "operators", "ratio": "share"}

    operators: NamedOperators | None = None
    share: Share | None = None
    speedup: AboveOne | None = None

    @classmethod
    def trials(cls, facts: ModelFacts, evidence: Evidence) -> tuple[LayerTrial, ...]:
        """Return the layer without each of its operators."""
        return tuple(
            LayerTrial(f"no {operator}", partial(_leaving_out, operator)) for operator in OPERATORS
        )

    def needs(self) -> tuple[Measure, ...]:
        """Return what calibration must measure: nothing where operators are named."""
        return (OPERATOR_KL,) if self.operators is None else ()

    def seeks_speedup(self) -> bool:
        """Whether operators are left out until the plan is fast enough."""
        return self.speedup is not None

    def layers_named(self, layers: int) -> tuple[NamedLayers, ...]:
        """Return the layers of the operators."""
        named = [] if self.operators is None else self.operators.places
        return tuple(
            NamedLayers(f"operators.{o}", [layer for layer, n in named if n == number])
            for number, o in enumerate(OPERATORS)
        )

    def apply(self, plan: Plan, evidence: Evidence) -> Plan:
        """Return the plan with operators left out."""
        return self._without(plan, self._chosen(plan, evidence))

    def _without(self, plan: Plan, places: Sequence[Place]) -> Plan:
        by_layer: dict[int, list[Operator]] = {}
        for layer, number in sorted(places):
            by_layer.setdefault(layer, []).append(OPERATORS[number])
        return leave_out(plan, by_layer, self.name)

    def _chosen(self, plan: Plan, evidence: Evidence) -> Sequence[Place]:
        if self.operators is not None:
            return self.operators.places
        kl = evidence.of(OPERATOR_KL).mean
        able = [
            (layer.index, number)
            for layer in plan.layers
            if layer.visual == "update"
            for number in range(len(OPERATORS))
        ]
        order = sorted(able, key=lambda place: (kl[place[0]][place[1]], -place[0]))
        if self.share is not None:
            return order[: rounded(self.share, len(able))]
        wanted = self.speedup or 1.0

        def speedup_of(count: Sequence[int]) -> float:
            return predicted_speedup(self._without(plan, order[: len(count)]))

        count = layers_for_speedup(range(len(order)), wanted, speedup_of)
        if count is None:
            every = f"leaving out all {len(able)} operators"
            raise evidence.out_of_reach(plan, wanted, every, speedup_of(range(len(order))))
        return order[: len(count)]

    def notes(self, plan: Plan, evidence: Evidence) -> list[str]:
        """Return that nothing is left out."""
        places = [(i, n) for i in range(len(plan.layers)) for n in range(len(OPERATORS))]
        if any(_left_out(plan, place) for place in places):
            return []
        return [
            f"{evidence.where}: leaves out no operator: no layer that it is asked for updates visual rows"
        ]

    def why_frozen(self, plan: Plan, samples: int | None) -> str:
        """Return what speaks for layers that go without both operators."""
        if self.operators is not None:
            return "named in the recipe, and not measured"
        return (
            "both operators are among those whose loss, one alone, changed the prediction of the next token "
            f"least on {'' if samples is None else f'{samples} '}calibration questions"
        )
