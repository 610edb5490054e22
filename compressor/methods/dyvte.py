"""DyVTE: gates look at the prompt's text states and decide after which layer visual tokens leave.

Source: "Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the Empirical
Findings" (DyVTE, 2024); see `compressor.decoder.gates`. Gates are trained, everything else stays as it is.

Rule: after each layer with a gate, in order, the gate is asked; the first that fires sends the visual rows
away for good. Calibration asks every gate on the full model's states, which are those that the gate would
see, because nothing has left before the first that fires. This file counts these exits, and picks a fixed
one for the `baked` form.

Limitations:
- A gate decides from text states alone; it cannot know that a later question needs the picture.
- The baked form loses what makes the method dynamic: prompts that would stay longer exit all the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator

from compressor.contract.gated import GatedMethod
from compressor.contract.measure import Drawing, Measure, Measured, MeasureTable, Series, table_of
from compressor.contract.method import (
    CannotError,
    Claim,
    Evidence,
    MethodWords,
    NamedLayers,
    Trait,
    Turn,
)
from compressor.disk.gate_file import GateFile
from compressor.plan.edits import leave
from compressor.plan.gate_exits import first_to_fire, histogram
from compressor.plan.plan import Gates, Plan
from compressor.schema.problems import apply_rule

if TYPE_CHECKING:
    from torch import Tensor

QUANTILE = 0.9


def baked_exit(
    fired: Sequence[int], unfired: int, candidates: Sequence[int], quantile: float
) -> int | None:
    """Return the first layer without visual rows by which a share of the prompts has exited.

    Args:
        fired: prompts that exit after each candidate.
        unfired: prompts that never do.
        candidates: layers with a gate, ascending.
        quantile: the share, above 0, up to 1.

    Returns:
        The layer behind the first candidate that reaches the share; None if too few prompts exit at all.
    """
    wanted = quantile * (sum(fired) + unfired)
    gone = 0
    for count, layer in zip(fired, candidates, strict=True):
        gone += count
        # A hair less, so that 0.9 of 10 is 9 whatever the rounding of the product.
        if gone >= wanted - 1e-9:
            return layer + 1
    return None


def gate_walk() -> Any:
    """Return how margins of gates are measured: on the text rows behind their layers."""
    import torch

    from compressor.decoder.gates import gate_input, gate_selection, margins
    from compressor.decoder.walks.walk import OnceALayer

    def margin(here: Any) -> "Tensor | None":
        gates, name = here.prompt.decoder.gates, str(here.index)
        if name not in gates:
            return None
        text, prompt = here.text_behind, here.prompt
        selection = gate_selection(prompt.visual_index, prompt.text_index, text.dtype)
        return margins(gates[name](gate_input(selection, text)))

    return OnceALayer(margin, torch.cat)


def gate_margins(full: Any) -> "Tensor":
    """Return the margin of each of the decoder's gates, in the order of their layers; above 0 it fires.

    Args:
        full: `compressor.decoder.full_pass.FullPass` of the prompt.
    """
    import torch

    with torch.inference_mode():
        found: Tensor = gate_walk().of(full)
        return found


def _counts(measured: Measured) -> tuple[tuple[int | str, int], ...]:
    exits = [first_to_fire(margins, measured.gate_layers) for margins in measured.samples]
    fired, unfired = histogram(exits, measured.gate_layers)
    return (*zip(measured.gate_layers, fired, strict=True), ("never", unfired))


def _drawing(measured: Measured, _: Plan) -> Drawing:
    points = tuple((str(place), float(count)) for place, count in _counts(measured))
    return Drawing("layer whose gate fires first", "prompts", (Series("", points),))


def _table(measured: Measured) -> MeasureTable:
    return table_of("Gates", ("fires first after layer", "prompts"), _counts(measured))


GATE_MARGIN = Measure(
    name="gate_margin",
    shape=("gates",),
    of=gate_margins,
    walk=gate_walk,
    chooses="the exit by where gates fire",
    title="margin of gates",
    draw=_drawing,
    show=_table,
)


class DyVTE(GatedMethod):
    """DyVTE: a gate behind a layer looks at the prompt's text states and lets visual tokens leave."""

    name: ClassVar[str] = "dyvte"
    words: ClassVar[MethodWords] = MethodWords(
        label="DyVTE",
        paper="DyVTE: Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the "
        "Empirical Findings, arXiv 2411.19628",
        exit_how=(
            ", at an exit that gates chose on calibration prompts and that is now the same for all"
        ),
        exit_meaning=", from a layer on that gates chose in calibration",
    )
    turn: ClassVar[Turn] = Turn.EXIT
    measures: ClassVar[tuple[Measure, ...]] = (GATE_MARGIN,)
    nicknames: ClassVar[tuple[str, ...]] = ("gates",)

    @model_validator(mode="wrap")
    @classmethod
    def _quantile_is_used(cls, value: Any, handler: Callable[[Any], Self]) -> Self:
        idle = isinstance(value, dict) and value.get("quantile") is not None
        idle = idle and value.get("exit", "dynamic") != "baked"
        problem = "quantile goes with exit: baked; leave it out" if idle else None
        result: Self = apply_rule(value, handler, problem)
        return result

    @classmethod
    def claims(cls, keys: Mapping[str, Any]) -> tuple[Claim, ...]:
        """Return that it chooses the exit, and for each prompt unless that is baked."""
        chooses = Claim(Trait.EXIT, cls.name)
        if keys.get("exit") == "baked":
            return (chooses,)
        return chooses, Claim(Trait.PER_PROMPT, cls.name, remedy=f"{cls.name}.exit: baked")

    def needs(self) -> tuple[Measure, ...]:
        """Return what calibration must measure: nothing but for a baked exit."""
        return (GATE_MARGIN,) if self.exit == "baked" else ()

    def asked(self) -> dict[str, Any]:
        """Return what was asked, without what only the training of gates reads."""
        return self.model_dump(exclude_none=True, exclude={"gate_width", "train"})

    def layers_named(self, layers: int) -> tuple[NamedLayers, ...]:
        """Return the layers with a gate; behind the last layer there is nothing to save."""
        return (NamedLayers("candidates", self.candidates or (), from_end=1),)

    def apply(self, plan: Plan, evidence: Evidence) -> Plan:
        """Return the plan with gates, or with the fixed exit that they give."""
        file = self.gate_file(plan.model, plan.model_digest)
        candidates = self.gate_layers(len(plan.layers))
        fired, unfired = self._exits(file, candidates, evidence)
        if self.exit != "baked":
            gates = Gates(
                candidates=candidates,
                mode=self.exit,
                width=file.width,
                digest=file.digest,
                fired=fired,
                unfired=unfired,
            )
            return Plan.model_validate({**dict(plan), "gates": gates})
        quantile = QUANTILE if self.quantile is None else self.quantile
        layer = baked_exit(fired, unfired, candidates, quantile)
        if layer is None:
            total = sum(fired) + unfired
            raise CannotError(
                f"{evidence.where}.quantile: {quantile:g} is out of reach; gates fire in {sum(fired)} of "
                f"{total} calibration prompts: lower the quantile, or use exit: dynamic"
            )
        return leave(plan, layer, self.name)

    def _exits(
        self, file: GateFile, candidates: tuple[int, ...], evidence: Evidence
    ) -> tuple[tuple[int, ...], int]:
        """Return how many calibration prompts exit after each candidate, and how many never."""
        if self.exit != "baked" and GATE_MARGIN.name not in evidence.measures:
            return (), 0
        found = evidence.of(GATE_MARGIN)
        if found.gates_digest != file.digest:
            raise CannotError(
                f"{evidence.where}: the profile was measured with other gates; calibrate anew"
            )
        if missing := [c for c in candidates if c not in found.gate_layers]:
            raise CannotError(
                f"{evidence.where}: the profile has no gates of the layers "
                f"{', '.join(map(str, missing))}; calibrate anew"
            )
        places = [found.gate_layers.index(c) for c in candidates]
        exits = [
            first_to_fire([margins[p] for p in places], candidates) for margins in found.samples
        ]
        return histogram(exits, candidates)

    def notes(self, plan: Plan, evidence: Evidence) -> list[str]:
        """Return that gates were asked on other states than those that the compressed decoder gives them."""
        counted = self.exit == "baked" or (plan.gates is not None and bool(plan.gates.fired))
        under = evidence.gates_under
        if not counted or under is None or under == plan.gates_see():
            return []
        seen = "states behind other cuts" if under else "the original's states"
        what, remedy = "the exit rests", ""
        if self.exit != "baked":
            what = "predicted exits and costs rest"
            remedy = "; calibrate or export with this recipe to count them anew"
        return [
            f"{evidence.where}: {what} on gates that were asked on {seen}, not on those that the other "
            f"methods of this recipe leave, on which they may fire elsewhere{remedy}"
        ]
