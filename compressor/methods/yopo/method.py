"""YOPO as a method of a recipe; see `rule` of this folder."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from compressor.contract.measure import Measure
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
from compressor.contract.trials import LayerTrial, Offering
from compressor.facts import ModelFacts
from compressor.methods.yopo.cut import cut, unfit
from compressor.methods.yopo.keys import YopoKeys
from compressor.methods.yopo.measures import HEAD_SCORE, NEURON_ACTIVITY
from compressor.methods.yopo.notes import yopo_notes
from compressor.methods.yopo.offers import offered
from compressor.plan.edits import leave
from compressor.plan.plan import Plan
from compressor.schema.values import layer_at


class Yopo(YopoKeys, Method, Offering):
    """YOPO: four cuts of the work on visual tokens; see `YopoKeys`."""

    name: ClassVar[str] = "yopo"
    words: ClassVar[MethodWords] = MethodWords(
        label="YOPO",
        paper="YOPO: Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See, arXiv "
        "2410.06169",
        exit_key="off_from",
        exit_meaning=" (YOPO's off_from, semantics removed)",
    )
    turn: ClassVar[Turn] = Turn.CUT
    sets: ClassVar[tuple[str, ...]] = ("groups", "window", "neurons", "masked")
    measures: ClassVar[tuple[Measure, ...]] = (HEAD_SCORE, NEURON_ACTIVITY)
    nicknames: ClassVar[tuple[str, ...]] = ("heads",)
    by_grid: ClassVar[tuple[str, ...]] = ("window",)

    @classmethod
    def tried_by(cls) -> tuple[Measure, ...]:
        """Return both of its measures."""
        return cls.measures

    @classmethod
    def trials(cls, facts: ModelFacts, evidence: Evidence) -> tuple[LayerTrial, ...]:
        """Return fewer neurons, the most active ones, and fewer heads, those of the highest scores."""
        return offered(facts, evidence)

    @classmethod
    def claims(cls, keys: Mapping[str, Any]) -> tuple[Claim, ...]:
        """Return whether it chooses the exit, and what needs to know which rows are visual."""
        found = []
        if keys.get("off_from") is not None:
            found.append(Claim(Trait.EXIT, f"{cls.name}.off_from"))
        if keys.get("window") is not None:
            found.append(Claim(Trait.READS_ROWS, f"{cls.name}.window"))
            found.append(Claim(Trait.GRID, f"{cls.name}.window"))
        if keys.get("semantics") == "masked":
            found.append(Claim(Trait.READS_ROWS, f"{cls.name}.semantics: masked"))
        return tuple(found)

    def needs(self) -> tuple[Measure, ...]:
        """Return what calibration must measure: scores without a mask, activations where asked for."""
        scored = self.heads is not None and self.heads.mask is None
        return (HEAD_SCORE,) * scored + (NEURON_ACTIVITY,) * (self.select == "activation")

    def shows(self) -> tuple[Measure, ...]:
        """Return what a calibration measures: what it needs."""
        return self.needs()

    def asked(self) -> dict[str, Any]:
        """Return what was asked; two switches that stand where the paper has them say nothing."""
        usual = {"causal": False, "select": "first"}
        given = self.model_dump(exclude_none=True)
        return {key: value for key, value in given.items() if usual.get(key) != value}

    def semantics_of_cuts(self) -> Literal["removed", "masked"] | None:
        """Return its semantics."""
        return self.semantics

    def layers_named(self, layers: int) -> tuple[NamedLayers, ...]:
        """Return the layers that keep all heads, and the exit."""
        off = () if self.off_from is None else (layer_at(self.off_from, layers),)
        kept = NamedLayers("keep_layers", self.keep_layers or ())
        return kept, NamedLayers("off_from", off, least=1)

    def problems(self, facts: ModelFacts, evidence: Evidence) -> list[str]:
        """Return what of mask, window and ratio does not fit the model."""
        return unfit(self, facts, evidence)

    def apply(self, plan: Plan, evidence: Evidence) -> Plan:
        """Return the plan with visual tokens doing less."""
        missing: list[str] = []
        for measure in self.needs():
            try:
                evidence.of(measure)
            except CannotError as reason:
                missing += reason.args
        if missing:
            raise CannotError(*missing)
        if self.off_from is not None and self.semantics == "removed":
            plan = leave(plan, layer_at(self.off_from, len(plan.layers)), self.name)
        return cut(plan, self, evidence)

    def notes(self, plan: Plan, evidence: Evidence) -> list[str]:
        """Return what is not done as asked, or has nothing to cut."""
        return yopo_notes(plan, self, evidence)
