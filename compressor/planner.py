"""Turns a recipe's methods and a profile into a plan; refuses what makes no sense, all reasons at once.

The order of the list says nothing: exits come first, then YOPO's cuts, then ShortV, so that a share counts
what the others leave. Recipes of format 1 are applied as they were: in the order of the list.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from compressor.disk.gate_file import GateFile
from compressor.errors import PlanError
from compressor.facts import ModelFacts
from compressor.methods.dyvte.method import gate_candidates, gate_file
from compressor.methods.entries import DyVTE, Method, ShortV, VisualExit, Yopo
from compressor.methods.notes import notes
from compressor.methods.steps import CannotError, Step
from compressor.methods.yopo.head_mask import MaskReader, mask_reader
from compressor.methods.yopo.method import measures_for, unfit
from compressor.plan.cost import predicted_speedup
from compressor.plan.edits import freeze, identity_plan, leave
from compressor.plan.plan import Plan, Workload
from compressor.profile import Measure, Profile
from compressor.recipe import RECIPE_FORMAT, Recipe
from compressor.schema.values import layer_at

__all__ = [
    "check_layers",
    "check_methods",
    "freeze",
    "gate_candidates",
    "gate_file",
    "identity_plan",
    "leave",
    "make_plan",
    "measures_needed",
    "measures_of",
    "plan_recipe",
]

TURNS: Final[tuple[type[Method], ...]] = (VisualExit, DyVTE, Yopo, ShortV)
"""The order in which methods are applied; YOPO's exit (`off_from`) excludes the others' exits."""


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
        wrong = _outside(method.layers or (), layers, f"{where}.layers", 0, last)
        remedy = "give layers of this model, or a share (frozen), which calibration chooses by"
        return [f"{problem}: {remedy}" for problem in wrong]
    if isinstance(method, DyVTE):
        # Behind the last layer there is nothing to save.
        return _outside(method.candidates or (), layers, f"{where}.candidates", 0, last - 1)
    if isinstance(method, Yopo):
        kept = _outside(method.keep_layers or (), layers, f"{where}.keep_layers", 0, last)
        off = () if method.off_from is None else (layer_at(method.off_from, layers),)
        return kept + _outside(off, layers, f"{where}.off_from", 1, last)
    layer = None if method.layer is None else layer_at(method.layer, layers)
    given = {"layer": layer, "first_layer": method.first_layer}
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
    *,
    recipe_format: int = RECIPE_FORMAT,
) -> Plan:
    """Apply the methods in their fixed order and mark dead visual rows.

    Args:
        facts: of the model to compress.
        model_digest: sha256 that the plan is bound to.
        methods: the recipe's `compress` section.
        profile: needed by methods that choose by what calibration measures.
        workload: prefill that predictions refer to; by default one image and the profile's median T,
            without samples an assumed one.
        recipe_format: of the recipe; 1: methods are applied in the order of the list, and ShortV's share is
            one of all layers.

    Raises:
        PlanError: layers that do not exist, a speed-up out of reach, a missing profile; all named.
        GatesError: gates that are missing or do not fit.
    """
    if workload is None:
        if profile is not None and profile.samples:
            workload = Workload(text=profile.typical_text_rows())
        else:
            workload = Workload(assumed=True)
    plan = identity_plan(facts, model_digest, workload)
    if profile is not None and profile.layers != facts.decoder.layers:
        raise PlanError(
            [
                f"the profile has {profile.layers} layers, the model {facts.decoder.layers}; calibrate anew"
            ]
        )
    masks = mask_reader(facts.decoder)
    numbered = [(f"compress[{n}].{method.name}", method) for n, method in enumerate(methods)]
    made = _applied(plan, numbered, profile, masks, recipe_format)
    said = notes(made, methods, masks, profile, recipe_format)
    if recipe_format == 1:
        with suppress(PlanError):  # what is refused today cannot be compared with
            today = _applied(plan, numbered, profile, masks, RECIPE_FORMAT)
            said += _older_format_note(made, today)
    return Plan.model_validate({**dict(made), "notes": said})


def plan_recipe(
    recipe: Recipe, facts: ModelFacts, model_digest: str, profile: Profile | None = None
) -> Plan:
    """Return the plan of a recipe by the rules of its format; see `make_plan`."""
    return make_plan(facts, model_digest, recipe.methods, profile, recipe_format=recipe.vtcompress)


def _applied(
    plan: Plan,
    numbered: Sequence[tuple[str, Method]],
    profile: Profile | None,
    masks: MaskReader,
    recipe_format: int,
) -> Plan:
    """Return the plan with methods applied, each given with its place in the recipe."""
    problems: dict[str, list[str]] = {}
    waiting = list(numbered)
    if recipe_format > 1:
        waiting.sort(key=lambda entry: TURNS.index(type(entry[1])))
    while waiting:
        where, method = waiting.pop(0)
        if wrong := _unfit(method, plan.model, where, masks):
            problems[where] = wrong
            continue
        fit = [(w, m) for w, m in waiting if not _unfit(m, plan.model, w, masks)]
        later = tuple(fit) if recipe_format > 1 else ()
        try:
            plan = Step(where, plan, profile, masks, recipe_format, later).made(method)
        except CannotError as reason:
            problems[where] = list(reason.args)
    if problems:
        raise PlanError([line for where, _ in numbered for line in problems.get(where, ())])
    return plan


def _older_format_note(made: Plan, today: Plan) -> tuple[str, ...]:
    """Return what a recipe of format 1 would give by the rules of today, if that is another plan."""
    if made.layers == today.layers:
        return ()
    return (
        "vtcompress: 1: methods are applied in the order of the list, and shortv.frozen is a share of all "
        f"layers; with `vtcompress: {RECIPE_FORMAT}` (exits first, then yopo, then shortv, and a share of "
        "the layers that can be frozen) another plan is made, with a prefill predicted "
        f"{predicted_speedup(today):.2f} x instead of {predicted_speedup(made):.2f} x",
    )
