"""What each method is asked for on the bundled model: at three shares, and at given predicted speeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any

from benchmarks.sweep import EXAMPLE
from compressor.contract.method import Method
from compressor.contract.searched import SearchedMethod
from compressor.errors import VtcompressError
from compressor.families import LoadedModel
from compressor.plan.cost import predicted_speedup
from compressor.plan.plan import Plan
from compressor.planner import plan_recipe
from compressor.profile import Profile
from compressor.recipe import Recipe, parse_recipe
from export.report.sweep.beside import APART

Entries = tuple[dict[str, Any], ...]
"""Those of a recipe's `compress`."""

SHARES = (0.75, 0.5, 0.25)
SPEEDS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""Predicted speeds at which every method that reaches them stands, as plans of a search do."""
STEPS = tuple(round(0.02 * step, 2) for step in range(2, 50))
"""Shares that are tried to meet a speed."""
MET = 0.02
"""A speed is met by a point of the three shares that is so near."""


@dataclass(frozen=True)
class Dial:
    """What says how much a method does.

    Attributes:
        asked: entries for a value.
        values: of the table.
        steps: values that are tried to meet a speed.
    """

    asked: Callable[[Any], Entries]
    values: tuple[Any, ...] = SHARES
    steps: tuple[Any, ...] = STEPS


def _key(name: str, key: str) -> Dial:
    return Dial(lambda value: ({name: {key: value}},))


def _fixed(*entries: dict[str, Any]) -> Dial:
    return Dial(lambda _: entries, values=(None,), steps=())


GATES = {"gates": EXAMPLE / "gates.safetensors", "gate_width": 32}
DIALS: Mapping[str, tuple[Dial, ...]] = {
    # Of the layers, operators and depth that visual tokens are worked on, as many stay.
    "shortv": (Dial(lambda share: ({"shortv": {"frozen": round(1 - share, 2)}},)),),
    "skip": (Dial(lambda share: ({"skip": {"share": round(1 - share, 2)}},)),),
    "visual_exit": (_key("visual_exit", "layer"),),
    "yopo": (
        Dial(lambda share: ({"yopo": {"heads": {"keep": share}}},)),
        Dial(
            lambda ratio: ({"yopo": {"mlp_ratio": ratio, "select": "activation"}},),
            values=(2, 4),
            steps=(2, 3, 4, 5, 6, 8, 12, 16, 32),
        ),
    ),
    "dyvte": (_fixed({"dyvte": GATES}),),
    "wico": (_fixed({"wico": {}}),),
    "wico_plus": (
        Dial(lambda share: ({"pool": {"keep": share}}, {"wico_plus": {}})),
        _fixed({"wico": {}}, {"wico_plus": {}}),
    ),
}
"""Of methods without a share of the tokens that they keep, or that come behind another method."""


def dials(method: type[Method]) -> tuple[Dial, ...]:
    """Return what says how much a method does; none: it is left out.

    What methods learn takes minutes to train for each value: these have those of the table alone.
    """
    if method.name in DIALS:
        return DIALS[method.name]
    if "keep" not in method.model_fields or issubclass(method, SearchedMethod):
        return ()
    dial = _key(method.name, "keep")
    return (replace(dial, steps=()) if method.learns else dial,)


def recipe_of(name: str, asked: Entries) -> Recipe:
    """Return the recipe of a point, calibrated on the bundled model's questions."""
    data = {
        "vtcompress": 2,
        "model": {"id": str(EXAMPLE / "model")},
        "calibrate": {"data": EXAMPLE / "calibration.jsonl", "samples": 64},
        "compress": asked,
    }
    return parse_recipe(data, name)


def at_speeds(
    method: type[Method], speeds: Sequence[float], model: LoadedModel, profile: Profile | None
) -> Iterator[Recipe]:
    """Yield for each speed the recipe of a method that is predicted nearest to it.

    Args:
        method: is asked for as much as meets them.
        speeds: predicted, original / plan.
        model: the bundled one.
        profile: of a calibration for all methods; None: those that need one are left out.
    """
    for dial in dials(method):
        there, tried = (
            [
                (plan, recipe)
                for recipe in (recipe_of(method.name, dial.asked(value)) for value in values)
                if (plan := _plan(recipe, model, profile)) is not None
            ]
            for values in (dial.values, dial.steps)
        )
        seen = {plan.work_digest for plan, _ in there}
        for speed in speeds if tried else ():
            if any(_apart(plan, speed) < MET for plan, _ in there):
                continue
            plan, recipe = min(tried, key=lambda one: _apart(one[0], speed))
            if _apart(plan, speed) <= log(1 + APART) and plan.work_digest not in seen:
                seen.add(plan.work_digest)
                yield recipe


def _apart(plan: Plan, speed: float) -> float:
    return abs(log(predicted_speedup(plan) / speed))


def _plan(recipe: Recipe, model: LoadedModel, profile: Profile | None) -> Plan | None:
    """Return the plan of a recipe; None: the method cannot do as much."""
    try:
        return plan_recipe(recipe, model.facts, model.digest, profile)
    except VtcompressError:
        return None
