"""ShortV: freeze visual tokens in the layers that hardly need them.

Source: "ShortV: Efficient Multimodal Large Language Models by Freezing Visual Tokens in Ineffective
Layers" (2025), training-free.

Rule: the layer contribution of layer i is KL(p_i || p) at the last prompt token, where p is the original
next-token distribution and p_i the one with layer i's attention and MLP deltas zeroed on visual rows, mean
over samples. Layers are sorted by it, ascending; the lowest are frozen, in one pass, not greedily. A share
counts the layers that can be frozen: visual rows are there, and somebody reads what becomes of them.

Limitations:
- One pass: the contributions of layers frozen together need not add up.
- The KV cache keeps its length: a frozen layer still computes and reads visual K and V.
- The order comes from the calibration data; a task unlike it may need other layers.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.contract.measure import Drawing, Measure, Measured, MeasureTable, marked, table_of
from compressor.contract.method import (
    Evidence,
    Method,
    MethodWords,
    NamedLayers,
    Turn,
    gone_words,
    layers_words,
)
from compressor.contract.trials import LayerTrial, Offering
from compressor.facts import ModelFacts
from compressor.plan.cost import predicted_speedup
from compressor.plan.edits import freeze
from compressor.plan.plan import Plan
from compressor.schema.values import AboveOne, ExactlyOne, Frozen, Layers

if TYPE_CHECKING:
    from torch import Tensor


def ranking(contribution: Sequence[float], among: Collection[int] | None = None) -> tuple[int, ...]:
    """Return layer indices by ascending contribution; of equals the deeper layer comes first.

    Deeper first, because the contribution of dead visual rows is exactly 0 in the last layer.

    Args:
        contribution: layer contribution [L].
        among: the layers to rank; None: all.
    """
    layers = range(len(contribution)) if among is None else among
    return tuple(sorted(layers, key=lambda i: (contribution[i], -i)))


def rounded(share: float, layers: int) -> int:
    """Return how many layers a share (0..1) of so many is: the nearest number, a half counts up."""
    # Not round(), which goes to the even neighbour; a hair more, so that 0.29 of 50 is 14.5.
    return math.floor(share * layers + 0.5 + 1e-9)


def layers_for_speedup(
    order: Sequence[int], wanted: float, speedup_of: Callable[[tuple[int, ...]], float]
) -> tuple[int, ...] | None:
    """Return the fewest lowest layers whose predicted speed-up reaches `wanted`, None if none does.

    Args:
        order: layers by ascending contribution.
        wanted: prefill speed-up, above 1.
        speedup_of: predicted speed-up of a plan that freezes the given layers.
    """
    for count in range(len(order) + 1):
        if speedup_of(tuple(order[:count])) >= wanted:
            return tuple(order[:count])
    return None


def contribution_walk() -> Any:
    """Return how layer contributions are measured: the rows of each layer frozen go through those behind it.

    Freezing layer i leaves all up to layer i and the text rows' output of layer i as they were. So only
    layers i + 1 .. L - 1 run again after the full pass: about half the layer passes of L full runs.
    """
    from compressor.decoder.walks.walk import OnePlaceChanged

    def frozen(here: Any) -> "tuple[tuple[Tensor, Tensor]]":
        return ((here.prompt.with_added(here.index, here.visual), here.text_behind),)

    return OnePlaceChanged(frozen)


def layer_contribution(full: Any) -> "Tensor":
    """Return the layer contribution [L] of one prompt, in nats, float64.

    Args:
        full: `compressor.decoder.full_pass.FullPass` of the prompt.
    """
    import torch

    with torch.inference_mode():
        found: Tensor = contribution_walk().of(full)
        return found


def _drawing(measured: Measured, plan: Plan) -> Drawing:
    frozen = [layer.index for layer in plan.layers if layer.reason == ShortV.name]
    labels = ("updated", "frozen")
    words = "layer contribution (KL, nats)"
    return Drawing("decoder layer", words, marked(measured.mean, frozen, labels))


def _table(measured: Measured) -> MeasureTable:
    order = ranking(measured.mean)
    rows = ((i, value, order.index(i) + 1) for i, value in enumerate(measured.mean))
    return table_of("Layer contribution", ("layer", "KL, nats", "rank, lowest first"), rows)


CONTRIBUTION = Measure(
    name="layer_contribution",
    shape=("layers",),
    of=layer_contribution,
    walk=contribution_walk,
    chooses="layers by contribution",
    otherwise=", or list the layers",
    title="layer contribution",
    unit="KL, nats",
    unasked=True,
    draw=_drawing,
    show=_table,
)


class ShortV(ExactlyOne, Method, Offering):
    """ShortV: visual rows pass unchanged through the layers that contribute least.

    Exactly one of the keys is given.

    Attributes:
        frozen: share to freeze of the layers that can be frozen, 0 to 1: those in front of an exit whose
            visual rows somebody reads. Rounded to the nearest number of layers, a half up.
        layers: the layers to freeze, distinct, counted from 0; needs no calibration.
        speedup: predicted speed-up of the prefill to reach by the whole recipe, above 1, against the naive
            original.
    """

    name: ClassVar[str] = "shortv"
    words: ClassVar[MethodWords] = MethodWords(
        label="ShortV",
        paper="ShortV: Efficient Multimodal Large Language Models by Freezing Visual Tokens in Ineffective "
        "Layers, arXiv 2504.00502",
    )
    turn: ClassVar[Turn] = Turn.FREEZE
    measures: ClassVar[tuple[Measure, ...]] = (CONTRIBUTION,)
    other_names: ClassVar[Mapping[str, str]] = {
        "share": "frozen",
        "ratio": "frozen",
        "keep": "frozen",
    }

    frozen: Frozen | None = None
    layers: Layers | None = None
    speedup: AboveOne | None = None

    @classmethod
    def trials(cls, facts: ModelFacts, evidence: Evidence) -> tuple[LayerTrial, ...]:
        """Return the layer frozen."""
        return (LayerTrial("frozen", lambda layer: layer.turned("frozen", cls.name)),)

    def needs(self) -> tuple[Measure, ...]:
        """Return what calibration must measure: nothing where layers are named."""
        return (CONTRIBUTION,) if self.layers is None else ()

    def seeks_speedup(self) -> bool:
        """Whether layers are frozen until the plan is fast enough."""
        return self.speedup is not None

    def layers_named(self, layers: int) -> tuple[NamedLayers, ...]:
        """Return the layers to freeze."""
        remedy = ": give layers of this model, or a share (frozen), which calibration chooses by"
        return (NamedLayers("layers", self.layers or (), remedy=remedy),)

    def apply(self, plan: Plan, evidence: Evidence) -> Plan:
        """Return the plan with layers frozen; a share is one of the layers that can be frozen."""
        return freeze(plan, self._chosen(plan, evidence), self.name)

    def _chosen(self, plan: Plan, evidence: Evidence) -> Sequence[int]:
        if self.layers is not None:
            return self.layers
        contribution = evidence.of(CONTRIBUTION).mean
        able = [layer.index for layer in plan.layers if layer.visual == "update"]
        whole = len(able)
        if evidence.whole_shares:  # dead layers are chosen too, and a share is one of all layers
            able = [layer.index for layer in plan.layers if not layer.exited]
            whole = len(plan.layers)
        order = ranking(contribution, able)
        if self.frozen is not None:
            return order[: rounded(self.frozen, whole)]
        wanted = self.speedup or 1.0

        def speedup_of(layers: Sequence[int]) -> float:
            return predicted_speedup(freeze(plan, layers, self.name))

        chosen = layers_for_speedup(order, wanted, speedup_of)
        if chosen is None:
            every = f"freezing all {len(able)} layers that can be frozen"
            raise evidence.out_of_reach(plan, wanted, every, speedup_of(able))
        return chosen

    def notes(self, plan: Plan, evidence: Evidence) -> list[str]:
        """Return what was rounded, or frozen in vain."""
        found, where = [], evidence.where
        if gone := sorted(i for i in self.layers or () if plan.layers[i].exited):
            found.append(
                f"{where}.layers: visual tokens have left by {layers_words(gone)}: there is nothing to freeze"
            )
        rounds = [] if evidence.whole_shares else self._rounding(plan, where)
        return found + (rounds or self._idle(plan, where))

    def _rounding(self, plan: Plan, where: str) -> list[str]:
        """Return what number of layers a share came to, where it is not a whole one."""
        frozen = [layer.index for layer in plan.layers if layer.reason == self.name]
        able = len(frozen) + sum(layer.visual == "update" for layer in plan.layers)
        share = (self.frozen or 0.0) * able
        if self.frozen is None or abs(share - len(frozen)) < 1e-6:
            return []
        parts = [] if plan.exit_layer is None else [f"in front of layer {plan.exit_layer}"]
        if dead := [layer.index for layer in plan.layers if layer.reason == "dead"]:
            parts.append(f"without {layers_words(dead)}, whose rows are dead")
        return [
            f"{where}.frozen: {self.frozen:g} of the {able} layers that can be frozen "
            f"({', '.join(parts)}) is {share:.4g}, rounded to {len(frozen)}"
        ]

    def _idle(self, plan: Plan, where: str) -> list[str]:
        """Return why no layer is frozen, where none is."""
        if any(layer.reason == self.name for layer in plan.layers):
            return []
        if self.speedup is not None:
            return [f"{where}.speedup: freezes no layer: {self.speedup:g} x is reached without"]
        reasons = []
        if dead := [layer.index for layer in plan.layers if layer.reason == "dead"]:
            if self.layers is not None:
                dead = sorted(set(dead) & set(self.layers))
            if dead:
                reasons.append(
                    f"visual rows of {layers_words(dead)} are frozen in every plan, as nobody reads what "
                    "comes out"
                )
        if self.frozen == 0:
            reasons.insert(0, "the share is 0")
        return [f"{where}: freezes no layer: {'; '.join([*reasons, *gone_words(plan)])}"]

    def why_frozen(self, plan: Plan, samples: int | None) -> str:
        """Return what speaks for the layers: a measurement, or the recipe alone."""
        if self.layers is not None:
            return "named in the recipe, and not measured"
        if all(layer.visual != "update" for layer in plan.layers):
            return "all layers that can be frozen, as the recipe asks for so many"
        prompts = "" if samples is None else f"{samples} "
        return (
            "of the layers that can be frozen those where leaving out the update of visual tokens, in one "
            f"layer alone, changed the prediction of the next token least on {prompts}calibration questions"
        )
