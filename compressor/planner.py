"""Turns a recipe's methods and a profile into a plan; refuses what makes no sense, all reasons at once."""

import math
from collections.abc import Sequence

from compressor.calibration.profile import Profile
from compressor.cost import predicted_speedup
from compressor.dims import ModelFacts
from compressor.errors import PlanError
from compressor.passes import shortv
from compressor.passes.dead_rows import freeze_dead_rows
from compressor.plan import LayerPlan, Plan, Reason, Workload
from compressor.recipe import Method, ShortV


def identity_plan(facts: ModelFacts, model_digest: str, workload: Workload | None = None) -> Plan:
    """Return the plan without any method: every row is updated, but for the dead visual rows."""
    layers = tuple(LayerPlan(index=i) for i in range(facts.decoder.layers))
    return Plan(
        model=facts,
        model_digest=model_digest,
        layers=freeze_dead_rows(layers),
        workload=workload or Workload(),
    )


def needs_profile(methods: Sequence[Method]) -> bool:
    """Whether any method chooses layers by what calibration measures."""
    return any(isinstance(method, ShortV) and method.layers is None for method in methods)


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
        profile: needed by methods that choose layers by contribution.
        workload: prefill that predictions refer to; by default one image and the profile's median T.

    Raises:
        PlanError: layers that do not exist, a speed-up out of reach, a missing profile; all named.
    """
    if workload is None:
        text = profile.typical_text_rows() if profile and profile.samples else Workload().text
        workload = Workload(text=text)
    plan = identity_plan(facts, model_digest, workload)
    problems: list[str] = []
    if profile is not None and profile.layers != facts.decoder.layers:
        raise PlanError(
            [
                f"the profile has {profile.layers} layers, the model {facts.decoder.layers}; calibrate anew"
            ]
        )
    for number, method in enumerate(methods):
        where = f"compress[{number}].{method.name}"
        frozen, found = _shortv_layers(method, plan, profile, where)
        problems += found
        plan = freeze(plan, frozen, "shortv")
    if problems:
        raise PlanError(problems)
    return plan


def freeze(plan: Plan, layers: Sequence[int], reason: Reason) -> Plan:
    """Return the plan with visual rows frozen in the given layers, dead rows marked."""
    chosen = tuple(
        LayerPlan.because(layer.index, reason)
        if layer.index in layers and not layer.exited
        else layer
        for layer in plan.layers
    )
    return plan.model_copy(update={"layers": freeze_dead_rows(chosen)})


def _shortv_layers(
    method: ShortV, plan: Plan, profile: Profile | None, where: str
) -> tuple[tuple[int, ...], list[str]]:
    count = len(plan.layers)
    if method.layers is not None:
        wrong = [i for i in method.layers if i >= count]
        if wrong:
            listed = ", ".join(map(str, wrong))
            verb = "is" if len(wrong) == 1 else "are"
            return (), [
                f"{where}.layers: {listed} {verb} outside 0..{count - 1}; the model has {count} layers"
            ]
        return method.layers, []
    if profile is None or not profile.complete:
        state = (
            "no profile"
            if profile is None
            else f"a profile of {len(profile.samples)} of {profile.total} samples"
        )
        return (), [
            f"{where}: chooses layers by contribution, but there is {state}; run `vtcompress calibrate` "
            "first, or list the layers"
        ]
    contribution = profile.layer_contribution()
    if method.frozen is not None:
        return shortv.lowest(contribution, method.frozen), []
    wanted = method.speedup or 1.0
    chosen = shortv.for_speedup(
        contribution, wanted, lambda layers: predicted_speedup(freeze(plan, layers, "shortv"))
    )
    if chosen is None:
        # Rounded down, so that the figure named is one that can be asked for.
        most = math.floor(100 * predicted_speedup(freeze(plan, range(count), "shortv"))) / 100
        return (), [
            f"{where}.speedup: {wanted:g} is out of reach; freezing all {count} layers gives {most:.2f} "
            f"on {plan.visual} visual and {plan.workload.text} text rows"
        ]
    return chosen, []
