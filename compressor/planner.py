"""Turns a recipe's methods and a profile into a plan; refuses what makes no sense, all reasons at once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compressor.calibration.profile import Measure, Profile
from compressor.cost import predicted_speedup
from compressor.dims import ModelFacts
from compressor.errors import GatesError, PlanError
from compressor.gate_file import GateFile
from compressor.head_mask import MaskReader, mask_reader
from compressor.methods import DyVTE, Method, ShortV, VisualExit, Yopo
from compressor.passes import dyvte, shortv, vtw
from compressor.passes.dead_rows import freeze_dead_rows
from compressor.plan import Gates, LayerPlan, Plan, Reason, Workload
from compressor.yopo_notes import notes
from compressor.yopo_planner import cut, measures_for, unfit

QUANTILE = 0.9


def identity_plan(facts: ModelFacts, model_digest: str, workload: Workload | None = None) -> Plan:
    """Return the plan without any method: every row is updated, but for the dead visual rows."""
    layers = tuple(LayerPlan(index=i) for i in range(facts.decoder.layers))
    return Plan(
        model=facts,
        model_digest=model_digest,
        layers=freeze_dead_rows(layers),
        workload=workload or Workload(),
    )


def measures_needed(methods: Sequence[Method]) -> tuple[Measure, ...]:
    """Return what calibration must measure for the methods to choose by."""
    needed: list[Measure] = []
    for method in methods:
        if isinstance(method, ShortV) and method.layers is None:
            needed.append("layer_contribution")
        if isinstance(method, VisualExit) and method.max_kl is not None:
            needed.append("exit_kl")
        if isinstance(method, DyVTE) and method.exit == "baked":
            needed.append("gate_margin")
        if isinstance(method, Yopo):
            needed += measures_for(method)
    return tuple(needed)


def measures_of(methods: Sequence[Method]) -> tuple[Measure, ...]:
    """Return what a calibration for these methods measures: what they need and what reports show of them."""
    kinds: dict[type[Method], Measure] = {
        ShortV: "layer_contribution",
        VisualExit: "exit_kl",
        DyVTE: "gate_margin",
    }
    measures: list[Measure] = []
    for method in methods:
        measures += measures_for(method) if isinstance(method, Yopo) else [kinds[type(method)]]
    return tuple(measures) or ("layer_contribution", "exit_kl")


def gate_candidates(method: DyVTE, layers: int) -> tuple[int, ...]:
    """Return the layers with a gate: those listed, or all but the last of the decoder."""
    return method.candidates or tuple(range(layers - 1))


def gate_file(method: DyVTE, facts: ModelFacts, model_digest: str | None) -> GateFile:
    """Return the gate file of a method, checked against the model; see `GateFile.check`.

    Raises:
        GatesError: none is named, it is missing, or it does not fit the model and the candidates.
    """
    if method.gates is None:
        raise GatesError(
            [
                "dyvte.gates: the recipe names no gates; give --gates FILE, or train them with "
                "`vtcompress train-gates`"
            ]
        )
    file = GateFile.read(method.gates)
    file.check(facts, model_digest, gate_candidates(method, facts.decoder.layers))
    return file


def check_methods(facts: ModelFacts, methods: Sequence[Method]) -> GateFile | None:
    """Refuse methods that no calibration can make possible: before any weights are read.

    Returns:
        The gates that a method names, of whatever model; None: no method has any.

    Raises:
        PlanError: layers that do not exist, or heads, windows and ratios that do not fit; all of them.
        GatesError: as `gate_file`.
    """
    masks = mask_reader(facts.decoder)
    problems = [
        problem
        for number, method in enumerate(methods)
        for problem in _unfit(method, facts, f"compress[{number}].{method.name}", masks)
    ]
    if problems:
        raise PlanError(problems)
    gates = [gate_file(method, facts, None) for method in methods if isinstance(method, DyVTE)]
    return gates[0] if gates else None


def check_layers(layers: int, methods: Sequence[Method]) -> None:
    """Refuse methods that name layers which a decoder of so many layers does not have.

    Raises:
        PlanError: all of them.
    """
    problems = [
        problem
        for number, method in enumerate(methods)
        for problem in _beyond(method, layers, f"compress[{number}].{method.name}")
    ]
    if problems:
        raise PlanError(problems)


def _unfit(method: Method, facts: ModelFacts, where: str, masks: MaskReader) -> list[str]:
    """Return what of a method the model rules out."""
    problems = _beyond(method, facts.decoder.layers, where)
    return problems + unfit(method, facts, where, masks) if isinstance(method, Yopo) else problems


def _beyond(method: Method, layers: int, where: str) -> list[str]:
    """Return the problems of layer numbers that a method gives and the model does not have."""
    last = layers - 1
    if isinstance(method, ShortV):
        return _outside(method.layers or (), layers, f"{where}.layers", 0, last)
    if isinstance(method, DyVTE):
        # Behind the last layer there is nothing to save.
        return _outside(method.candidates or (), layers, f"{where}.candidates", 0, last - 1)
    if isinstance(method, Yopo):
        kept = _outside(method.keep_layers or (), layers, f"{where}.keep_layers", 0, last)
        off = () if method.off_from is None else (method.off_from,)
        return kept + _outside(off, layers, f"{where}.off_from", 1, last)
    given = {"layer": method.layer, "first_layer": method.first_layer}
    return [
        problem
        for key, value in given.items()
        if value is not None
        for problem in _outside((value,), layers, f"{where}.{key}", 1, last)
    ]


def _outside(given: Sequence[int], layers: int, where: str, least: int, most: int) -> list[str]:
    wrong = [i for i in given if not least <= i <= most]
    if not wrong:
        return []
    verb = "is" if len(wrong) == 1 else "are"
    listed = ", ".join(map(str, wrong))
    return [f"{where}: {listed} {verb} outside {least}..{most}; the model has {layers} layers"]


def make_plan(
    facts: ModelFacts,
    model_digest: str,
    methods: Sequence[Method],
    profile: Profile | None = None,
    workload: Workload | None = None,
) -> Plan:
    """Apply the methods in order and mark dead visual rows.

    Args:
        facts: of the model to compress.
        model_digest: sha256 that the plan is bound to.
        methods: the recipe's `compress` section.
        profile: needed by methods that choose by what calibration measures.
        workload: prefill that predictions refer to; by default one image and the profile's median T.

    Raises:
        PlanError: layers that do not exist, a speed-up out of reach, a missing profile; all named.
        GatesError: gates that are missing or do not fit.
    """
    if workload is None:
        text = profile.typical_text_rows() if profile and profile.samples else Workload().text
        workload = Workload(text=text)
    plan = identity_plan(facts, model_digest, workload)
    if profile is not None and profile.layers != facts.decoder.layers:
        raise PlanError(
            [
                f"the profile has {profile.layers} layers, the model {facts.decoder.layers}; calibrate anew"
            ]
        )
    problems: list[str] = []
    masks = mask_reader(facts.decoder)
    for number, method in enumerate(methods):
        where = f"compress[{number}].{method.name}"
        if wrong := _unfit(method, facts, where, masks):
            problems += wrong
            continue
        step = _Step(where, plan, profile, masks)
        try:
            if isinstance(method, ShortV):
                plan = freeze(plan, step.shortv(method), "shortv")
            elif isinstance(method, VisualExit):
                plan = leave(plan, step.visual_exit(method), "vtw")
            elif isinstance(method, DyVTE):
                plan = step.dyvte(method)
            else:
                plan = step.yopo(method)
        except _CannotError as reason:
            problems += reason.args
    if problems:
        raise PlanError(problems)
    return Plan.model_validate({**dict(plan), "notes": notes(plan, methods, masks)})


def freeze(plan: Plan, layers: Sequence[int], reason: Reason) -> Plan:
    """Return the plan with visual rows frozen in those of the layers that have any, dead rows marked.

    Heads stay cut: frozen rows still have keys and values.
    """
    return _changed(plan, lambda layer: layer.index in layers and not layer.exited, reason)


def leave(plan: Plan, layer: int, reason: Reason) -> Plan:
    """Return the plan with visual rows gone from the input of a layer on, dead rows marked."""
    return _changed(plan, lambda entry: entry.index >= layer, reason)


def _changed(plan: Plan, chosen: Callable[[LayerPlan], bool], reason: Reason) -> Plan:
    layers = tuple(layer.turned(reason) if chosen(layer) else layer for layer in plan.layers)
    return plan.model_copy(update={"layers": freeze_dead_rows(layers)})


class _CannotError(Exception):
    """A method that cannot be applied; each argument is a problem of the plan."""


@dataclass(frozen=True)
class _Step:
    """Applies one method to the plan so far.

    Attributes:
        where: the method's place in the recipe.
        plan: what the methods before it made.
        profile: of the calibration.
        masks: reads a head mask.
    """

    where: str
    plan: Plan
    profile: Profile | None
    masks: MaskReader

    def shortv(self, method: ShortV) -> tuple[int, ...]:
        """Return the layers to freeze: a share of all layers, among those that have visual rows."""
        if method.layers is not None:
            return method.layers
        contribution = self._measured("layer_contribution").layer_contribution()
        count = len(self.plan.layers)
        there = self.plan.exit_layer or count
        if method.frozen is not None:
            return shortv.lowest(contribution[:there], method.frozen, count)
        wanted = method.speedup or 1.0

        def speedup_of(layers: Sequence[int]) -> float:
            return predicted_speedup(freeze(self.plan, layers, "shortv"))

        chosen = shortv.for_speedup(contribution[:there], wanted, speedup_of)
        if chosen is None:
            raise self._out_of_reach(
                wanted, f"freezing all {there} layers", speedup_of(range(there))
            )
        return chosen

    def visual_exit(self, method: VisualExit) -> int:
        """Return the first layer without visual rows."""
        if method.layer is not None:
            return method.layer
        layers = len(self.plan.layers)
        if method.max_kl is not None:
            first = method.first_layer or vtw.FIRST_LAYER
            exit_kl = self._measured("exit_kl").exit_kl()
            found = vtw.smallest_within(exit_kl, method.max_kl, first)
            if found is None:
                raise self._no_exit(method.max_kl, exit_kl, first)
            return found
        wanted = method.speedup or 1.0

        def speedup_of(layer: int) -> float:
            return predicted_speedup(leave(self.plan, layer, "vtw"))

        found = vtw.for_speedup(layers, wanted, speedup_of)
        if found is None:
            raise self._out_of_reach(wanted, "leaving before layer 1", speedup_of(1))
        return found

    def yopo(self, method: Yopo) -> Plan:
        """Return the plan with visual tokens doing less."""
        missing = []
        for measure in measures_for(method):
            try:
                self._measured(measure)
            except _CannotError as reason:
                missing.append(str(reason))
        if missing:
            raise _CannotError(*missing)
        plan = self.plan
        if method.off_from is not None and method.semantics == "removed":
            plan = leave(plan, method.off_from, "yopo")
        return cut(plan, method, self._measured, self.masks)

    def dyvte(self, method: DyVTE) -> Plan:
        """Return the plan with gates, or with the fixed exit that they give."""
        file = gate_file(method, self.plan.model, self.plan.model_digest)
        candidates = gate_candidates(method, len(self.plan.layers))
        fired, unfired = self._exits(file, candidates, required=method.exit == "baked")
        if method.exit != "baked":
            gates = Gates(
                candidates=candidates,
                mode=method.exit,
                width=file.width,
                digest=file.digest,
                fired=fired,
                unfired=unfired,
            )
            return Plan.model_validate({**dict(self.plan), "gates": gates})
        quantile = QUANTILE if method.quantile is None else method.quantile
        layer = dyvte.baked_exit(fired, unfired, candidates, quantile)
        if layer is None:
            total = sum(fired) + unfired
            raise _CannotError(
                f"{self.where}.quantile: {quantile:g} is out of reach; gates fire in {sum(fired)} of {total} "
                "calibration prompts: lower the quantile, or use exit: dynamic"
            )
        return leave(self.plan, layer, "dyvte")

    def _exits(
        self, file: GateFile, candidates: tuple[int, ...], *, required: bool
    ) -> tuple[tuple[int, ...], int]:
        """Return how many calibration prompts exit after each candidate, and how many never."""
        if not required and (self.profile is None or "gate_margin" not in self.profile.measures):
            return (), 0
        profile = self._measured("gate_margin")
        if profile.gates_digest != file.digest:
            raise _CannotError(
                f"{self.where}: the profile was measured with other gates; calibrate anew"
            )
        if missing := [c for c in candidates if c not in profile.gate_layers]:
            raise _CannotError(
                f"{self.where}: the profile has no gates of the layers {', '.join(map(str, missing))}; "
                "calibrate anew"
            )
        places = [profile.gate_layers.index(c) for c in candidates]
        exits = [
            dyvte.first_to_fire([sample.gate_margin[p] for p in places], candidates)
            for sample in profile.samples
        ]
        return dyvte.histogram(exits, candidates)

    def _measured(self, measure: Measure) -> Profile:
        """Return the profile if it is complete and holds the measure."""
        profile = self.profile
        if profile is not None and profile.complete and measure in profile.measures:
            return profile
        if profile is None:
            state = "there is no profile"
        elif profile.complete:
            state = f"the profile has no {measure}"
        else:
            state = f"there is a profile of {len(profile.samples)} of {profile.total} samples"
        words: dict[Measure, tuple[str, str]] = {
            "layer_contribution": ("layers by contribution", ", or list the layers"),
            "exit_kl": ("the exit by its KL", ", or give the layer"),
            "gate_margin": ("the exit by where gates fire", ""),
            "head_score": ("heads by score", ", or give a mask"),
            "neuron_activity": ("neurons by activation", ", or take the first ones"),
        }
        by, otherwise = words[measure]
        raise _CannotError(
            f"{self.where}: chooses {by}, but {state}; run `vtcompress calibrate` first{otherwise}"
        )

    def _out_of_reach(self, wanted: float, what: str, most: float) -> _CannotError:
        # Rounded down, so that the figure named is one that can be asked for.
        reached = math.floor(100 * most) / 100
        return _CannotError(
            f"{self.where}.speedup: {wanted:g} is out of reach; {what} gives {reached:.2f} "
            f"on {self.plan.visual} visual and {self.plan.workload.text} text rows"
        )

    def _no_exit(self, bound: float, exit_kl: Sequence[float], first: int) -> _CannotError:
        if first >= len(exit_kl):
            return _CannotError(
                f"{self.where}.first_layer: {first} is outside 1..{len(exit_kl) - 1}; the model has "
                f"{len(exit_kl)} layers"
            )
        best = min(range(first, len(exit_kl)), key=lambda k: exit_kl[k])
        return _CannotError(
            f"{self.where}.max_kl: no layer from {first} on is within {bound:g}; the best is layer {best} "
            f"with a mean KL of {exit_kl[best]:.3g}: allow that much, or do without an exit"
        )
