"""Turns a recipe's methods and a profile into a plan; refuses what makes no sense, all reasons at once.

The order of the list says nothing: methods have turns, exits first, so that a share counts what the others
leave. Recipes of format 1 are applied as they were: in the order of the list.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from pydantic import ValidationError

from compressor.contract.asked import method_words
from compressor.contract.measure import Measure
from compressor.contract.method import CannotError, Evidence, Files, Method, Turn
from compressor.disk.gate_file import GateFile
from compressor.errors import PlanError
from compressor.facts import ModelFacts
from compressor.methods import MEASURES, OLDER_FORMAT, gated
from compressor.plan.cost import predicted_speedup
from compressor.plan.edits import identity_plan
from compressor.plan.plan import Plan, Workload
from compressor.profile import Profile
from compressor.recipe import RECIPE_FORMAT, Recipe


def measures_needed(methods: Sequence[Method]) -> tuple[str, ...]:
    """Return what calibration must measure for the methods to choose by."""
    return _names([measure for method in methods for measure in method.needs()])


def measures_of(methods: Sequence[Method]) -> tuple[str, ...]:
    """Return what a calibration for these methods measures: what they need and what reports show of them."""
    shown = _names([measure for method in methods for measure in method.shows()])
    return shown or _names([measure for measure in MEASURES.values() if measure.unasked])


def _names(measures: Sequence[Measure]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(measure.name for measure in measures))


def check_methods(facts: ModelFacts, methods: Sequence[Method]) -> GateFile | None:
    """Refuse methods that no calibration can make possible: before any weights are read.

    Returns:
        The gates that a method names, of whatever model; None: no method has any.

    Raises:
        PlanError: layers that do not exist, or heads, windows and ratios that do not fit; all of them.
        GatesError: as `GatedMethod.gate_file`.
    """
    steps = _steps(methods)
    if problems := [line for step in steps for line in step.unfit(facts)]:
        raise PlanError(problems)
    # How many rows a choice leaves to the next is told by the model alone.
    choices = [s for s in steps if s.method.turn <= Turn.KEEP and not s.method.needs()]
    _applied(identity_plan(facts, ""), choices, in_turn=True)
    method = gated(methods)
    return None if method is None else method.gate_file(facts, None)


def check_layers(layers: int, methods: Sequence[Method]) -> None:
    """Refuse methods that name layers which a decoder of so many layers does not have.

    Raises:
        PlanError: all of them.
    """
    if problems := [line for step in _steps(methods) for line in step.beyond(layers)]:
        raise PlanError(problems)


@dataclass(frozen=True)
class _Step:
    """A method with what it is applied by."""

    method: Method
    evidence: Evidence

    def beyond(self, layers: int) -> list[str]:
        """Return the problems of layer numbers that a method gives and the model does not have."""
        return [
            problem
            for named in self.method.layers_named(layers)
            for problem in named.problems(layers, self.evidence.where)
        ]

    def unfit(self, facts: ModelFacts) -> list[str]:
        """Return what of a method the model rules out."""
        wrong = self.beyond(facts.decoder.layers)
        return wrong + self.method.problems(facts, self.evidence)

    def applied(self, plan: Plan, later: Sequence["_Step"] = ()) -> Plan:
        """Return the plan with the method applied.

        Args:
            plan: what others made.
            later: steps that are still to come; a speed-up is that of them all.

        Raises:
            CannotError: it cannot be.
        """

        def rest(made: Plan) -> Plan:
            for step in later:
                # What cannot be applied is said when its own turn comes.
                with suppress(CannotError):
                    made = made if step.method.seeks_speedup() else step.applied(made)
            return made

        made: object = self.method.apply(plan, replace(self.evidence, rest=rest))
        if not isinstance(made, Plan):
            raise CannotError(
                f"{self.evidence.where}: the method{self.source} gave no plan, but {made!r:.60}"
            )
        if strange := set(made.methods) - set(plan.methods) - {self.method.name}:
            names = " and ".join(sorted(strange))
            raise CannotError(
                f"{self.evidence.where}: the method{self.source} gave layers the reason {names}; the reason "
                "is its own name"
            )
        return made

    @property
    def source(self) -> str:
        """The package of a method that another one brought, in brackets."""
        return f" (package {self.method.package})" if self.method.package else ""


def _steps(
    methods: Sequence[Method], profile: Profile | None = None, recipe_format: int = RECIPE_FORMAT
) -> list[_Step]:
    """Return the methods in the order of the list, each with its place in the recipe."""
    evidence = Evidence("", files=Files(), whole_shares=recipe_format == 1)
    if profile is not None:
        state = "the profile has no {name}"
        if not profile.complete:
            state = f"there is a profile of {len(profile.samples)} of {profile.total} samples"
        evidence = replace(
            evidence,
            measured=profile.measured() if profile.complete else {},
            measures=profile.measures,
            state=state,
            gates_under=profile.gates_under,
        )
    return [
        _Step(method, replace(evidence, where=f"compress[{number}].{method.name}"))
        for number, method in enumerate(methods)
    ]


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
        recipe_format: of the recipe; 1: methods are applied in the order of the list, and a share is one of
            all layers.

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
    steps = _steps(methods, profile, recipe_format)
    made = _applied(plan, steps, in_turn=recipe_format > 1)
    # Cuts last: their notes say what the others left them.
    cuts_last = sorted(steps, key=lambda step: step.method.turn is Turn.CUT)
    said = [note for step in cuts_last for note in step.method.notes(made, step.evidence)]
    untouched = all(layer.visual != "update" for layer in made.layers)
    if methods and untouched and not made.model.decoder.deepstack:
        said.append(
            "compress: no layer updates visual rows: whatever the picture is, text tokens read it as the "
            "projector gave it, in front of the first layer"
        )
    if recipe_format == 1:
        with suppress(PlanError):  # what is refused today cannot be compared with
            new = [replace(s, evidence=replace(s.evidence, whole_shares=False)) for s in steps]
            today = _applied(plan, new, in_turn=True)
            said += _older_format_note(made, today)
    try:
        return Plan.model_validate({**dict(made), "notes": tuple(said)})
    except ValidationError as error:
        named = ", ".join(f"{s.evidence.where}{s.source}" for s in steps)
        why = (item["msg"].removeprefix("Value error, ") for item in error.errors())
        raise PlanError(f"{named}: what was made is no plan: {line}" for line in why) from None


def plan_recipe(
    recipe: Recipe, facts: ModelFacts, model_digest: str, profile: Profile | None = None
) -> Plan:
    """Return the plan of a recipe by the rules of its format, which says that it is; see `make_plan`."""
    made = make_plan(facts, model_digest, recipe.methods, profile, recipe_format=recipe.vtcompress)
    asked = [method_words(method) for method in recipe.methods]
    return made.signed(asked, "" if profile is None else profile.digest)


def _applied(plan: Plan, steps: Sequence[_Step], *, in_turn: bool) -> Plan:
    """Return the plan with methods applied: each in its turn, or in the order of the list."""
    problems: dict[str, list[str]] = {}
    waiting = sorted(steps, key=lambda step: step.method.turn) if in_turn else list(steps)
    while waiting:
        step = waiting.pop(0)
        if wrong := step.unfit(plan.model):
            problems[step.evidence.where] = wrong
            continue
        later = [other for other in waiting if not other.unfit(plan.model)] if in_turn else []
        try:
            plan = step.applied(plan, later)
        except CannotError as reason:
            problems[step.evidence.where] = list(reason.args)
    if problems:
        raise PlanError([line for s in steps for line in problems.get(s.evidence.where, ())])
    return plan


def _older_format_note(made: Plan, today: Plan) -> list[str]:
    """Return what a recipe of format 1 would give by the rules of today, if that is another plan."""
    if made.layers == today.layers:
        return []
    then, now = OLDER_FORMAT
    return [
        f"vtcompress: 1: {then}; with `vtcompress: {RECIPE_FORMAT}` ({now}) another plan is made, with a "
        f"prefill predicted {predicted_speedup(today):.2f} x instead of {predicted_speedup(made):.2f} x"
    ]
