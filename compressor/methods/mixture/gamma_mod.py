"""gamma-MoD: a router chooses the visual rows that run a layer, and scales what its MLP adds.

Source: "gamma-MoD: Exploring Mixture-of-Depth Adaptation for Multimodal Large Language Models" (2024); its
released code for LLaVA-HR.

Rule: p = softmax(R norm(h))[1] of a row h behind the layer's input norm, R [2, D]. The k visual rows of a
call with the largest p run the layer with all text rows, at new positions: how many rows the layer's past
has, and the rank among those that run. h += attention(h); h += p MLP(norm(h)), of text rows too. One R serves
all such layers: those of the released code are equal, and a file may have one for each.

Differs from the authors' inference, which takes every row with p above 0.005, so that sizes depend on data:
- k is fixed;
- text rows always run (theirs may be skipped);
- so does every generated token (theirs is skipped in a layer where p is below 0.5).
Both agree where exactly k visual rows are above 0.005, no text row is below, and p of new tokens is at least
0.5.

Limitations:
- No routers are shipped; a model that was not trained with them answers nonsense. `train-parts` trains
  routers alone, where the authors train the whole model.
- The router scales the MLP of text rows, so its layers cannot be left to text alone by an exit.
- Rows compete within a call: pictures of a later turn with each other, not with earlier ones.
- New positions are one number; a decoder that turns rows by time, row and column gets it on all three.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from compressor.contract.choice import RunRule
from compressor.contract.measure import Measure
from compressor.contract.method import (
    CannotError,
    Evidence,
    MethodWords,
    NamedLayers,
    layers_words,
)
from compressor.contract.routed import RoutedMethod
from compressor.methods.mixture.ranks import ARANK
from compressor.plan.plan import Plan
from compressor.schema.problems import apply_rule
from compressor.schema.values import Layers, PartOf

if TYPE_CHECKING:
    from torch import Tensor


CERTAIN = 4.0
"""Margin of a router's second number at which a training starts: p is 0.98."""


def second_probability(numbers: "Tensor") -> "Tensor":
    """Return the softmax's second number [..] of a router's two [.., 2]."""
    return numbers.softmax(dim=-1)[..., 1]


class GammaMod(RoutedMethod):
    """gamma-MoD: the visual rows of a call with the largest router probability run a layer.

    Attributes:
        dense: layers that every row runs; None: the first three and the last, as published, unless `arank`
            chooses.
        arank: share of the layers that some rows run alone, those whose attention has the lowest rank.
    """

    name: ClassVar[str] = "gamma_mod"
    words: ClassVar[MethodWords] = MethodWords(
        label="gamma-MoD",
        paper="gamma-MoD: Exploring Mixture-of-Depth Adaptation for Multimodal Large Language Models, "
        "arXiv 2410.13859",
        run_how="What the MLP adds there is multiplied by the router's probability, for text tokens too.",
    )
    measures: ClassVar[tuple[Measure, ...]] = (ARANK,)
    outputs: ClassVar[int] = 2
    within: ClassVar[Literal["call", "tile"]] = "call"

    keep: PartOf = 0.5
    dense: Layers | None = None
    arank: PartOf | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _one_way_to_choose(cls, value: Any, handler: Callable[[Any], Self]) -> Self:
        both = isinstance(value, dict) and None not in (value.get("dense"), value.get("arank"))
        problem = "dense and arank are given together; give one of them" if both else None
        result: Self = apply_rule(value, handler, problem)
        return result

    def needs(self) -> tuple[Measure, ...]:
        """Return what calibration must measure: ranks, where they choose."""
        return () if self.arank is None else (ARANK,)

    def shows(self) -> tuple[Measure, ...]:
        """Return what a calibration measures: no more, as ranks take long."""
        return self.needs()

    def layers_named(self, layers: int) -> tuple[NamedLayers, ...]:
        """Return the dense layers."""
        return (NamedLayers("dense", self.dense or ()),)

    def layers_run(self, plan: Plan, evidence: Evidence) -> Sequence[int]:
        """See `RoutedMethod.layers_run`."""
        count = len(plan.layers)
        if self.arank is not None:
            ranks = evidence.of(ARANK).mean
            order = sorted(range(count), key=lambda layer: (ranks[layer], -layer))
            found = sorted(order[: max(1, round(self.arank * count))])
        else:
            dense = {0, 1, 2, count - 1} if self.dense is None else {*self.dense}
            found = [layer for layer in range(count) if layer not in dense]
        if not found:
            raise CannotError(f"{evidence.where}.dense: all {count} layers are dense; name fewer")
        if gone := [layer for layer in found if plan.layers[layer].exited]:
            raise CannotError(
                f"{evidence.where}: visual tokens have left by {layers_words(gone)}, where routers scale "
                "what becomes of text tokens too: name these dense, or leave the exit out"
            )
        return found

    def all_weighed_one(self, direction: "Tensor") -> "Tensor":
        """See `RoutedMethod.all_weighed_one`."""
        import torch

        return torch.stack([-direction, direction]) * (CERTAIN / 2)

    def run_rule(self) -> RunRule:
        """Return the router's probability, on the MLP, at new positions."""
        return RunRule(second_probability, normed=True, scales="mlp", renumbered=True)
