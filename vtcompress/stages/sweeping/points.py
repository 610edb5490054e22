"""The points of a sweep: recipes and values become recipes, one a point, with baselines beside them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, product
from typing import Any

from compressor.contract.asked import asked_of, method_words
from compressor.contract.method import Evidence, Method
from compressor.errors import RecipeError, VtcompressError
from compressor.facts import ModelFacts
from compressor.methods import METHODS
from compressor.plan.kept import Kept
from compressor.plan.plan import Plan
from compressor.planner import check_methods, plan_recipe
from compressor.profile import Profile
from compressor.recipe import Recipe, parse_recipe
from compressor.schema.problems import show
from vtcompress.stages.calibrate import wants_calibration
from vtcompress.stages.inputs import require_recipe

Over = Mapping[str, Sequence[Any]]
"""Values to sweep over, by dotted key."""

METHOD_KEY = re.compile(r"compress(?:\[\d+\])?\.(\w+)\.?")
"""How the dotted key of a method begins."""

LONGEST_NAME = 60
"""Letters of the name of a point's files."""


@dataclass(frozen=True)
class Point:
    """One plan of a sweep, before it is made or with it.

    Attributes:
        label: its methods, and the values that the sweep gives them.
        series: the same without the value that changes fastest.
        recipe: of this point alone.
        over: the values that the sweep gives, by dotted key.
        baseline: whether it stands beside others to be beaten.
        searched: whether a search made its plan, which stays as it is.
        name: of its files; empty: not named yet.
        plan: None: made when calibration is there.
    """

    label: str
    series: str
    recipe: Recipe
    over: Mapping[str, Any] = field(default_factory=dict)
    baseline: bool = False
    searched: bool = False
    name: str = ""
    plan: Plan | None = None

    @property
    def asked(self) -> tuple[str, ...]:
        """What its recipe asks of the methods, by which points are told apart."""
        healed = [f"healed by {self.recipe.heal.file}"] if self.recipe.heal.file else []
        return tuple(sorted([*map(method_words, self.recipe.methods), *healed]))


def points_of(
    recipes: Sequence[Recipe], over: Over, searched: Sequence[Point] = ()
) -> tuple[Point, ...]:
    """Return a sweep's points without baselines: of each recipe the product of the values that concern it.

    A key of a method concerns the recipes that have the method.

    Args:
        recipes: at least one, or searched points.
        over: values by dotted keys of `compress`.
        searched: points whose plans are made already; they come first.

    Raises:
        RecipeError: keys that do not exist, values that are not allowed, points that are one, recipes of
            several models or data; all of them.
        TypeError: what is given is no recipe.
    """
    for recipe in recipes:
        require_recipe(recipe)
    every = [*(point.recipe for point in searched[:1]), *recipes]
    if not every:
        raise RecipeError(["recipes: there is none to sweep; give one"])
    problems = [*_unlike(every), *_unusable(over)]
    if problems:
        raise RecipeError(problems)
    concerned = {key: [r for r in recipes if concerns(key, r)] for key in over}
    points: list[Point] = []
    for recipe in recipes:
        keys = [key for key in over if recipe in concerned[key]]
        for values in product(*(over[key] for key in keys)):
            given = dict(zip(keys, values, strict=True))
            try:
                changed = recipe.override(given, source="over")
            except RecipeError as error:
                problems += error.problems
                continue
            points.append(_point(changed, given))
    for key in (key for key in over if not concerned[key]):
        try:  # says what is wrong with it
            every[0].override({key: next(iter(over[key]), None)}, source="over")
        except RecipeError as error:
            problems += error.problems
    if problems := [*dict.fromkeys(problems)] or _twice(points):
        raise RecipeError(problems)
    return (*searched, *points)


def concerns(key: str, recipe: Recipe) -> bool:
    """Whether a dotted key is of a method that a recipe has, or of none."""
    found = METHOD_KEY.match(key)
    return found is None or found[1] in {method.name for method in recipe.methods}


def _unusable(over: Over) -> Iterator[str]:
    for key, values in over.items():
        if isinstance(values, str | Mapping) or not isinstance(values, Sequence):
            yield f"over: {key}: {show(values)} is no list of values; give one or more"
        elif not values:
            yield f"over: {key}: gives no value; give one or more, such as 0.75, 0.5"
        if not re.match(r"compress[.\[]", key) and not _is_method(key):
            yield (
                f"over: {key}: is no key of compress: a sweep has one model, one calibration and one "
                "original; set it for all points instead"
            )


def _is_method(key: str) -> bool:
    return key.split(".", maxsplit=1)[0] in {method.name for method in METHODS}


def _unlike(recipes: Sequence[Recipe]) -> Iterator[str]:
    """Yield in what recipes differ that must be one for all points."""
    for asked in filter(None, (recipe.heal.trained_in_the_run for recipe in recipes)):
        yield (
            f"{asked}: a sweep trains nothing, as each of its points has a plan of its own: heal them with "
            "`vtcompress heal` and give heal.file, or leave it out"
        )
    first = _common(recipes[0])
    for number, recipe in enumerate(recipes[1:], start=2):
        for key, value in _common(recipe).items():
            if value != first[key]:
                yield (
                    f"recipes: {key} is {show(first[key])} in one and {show(value)} in number {number}: a "
                    "sweep has one model, one calibration and one original; set it for all of them"
                )


def _common(recipe: Recipe) -> dict[str, Any]:
    sections = {
        "model": recipe.model.model_dump(),
        "calibrate": recipe.calibrate.model_dump(),
        "image": recipe.image.model_dump(),
        "validate": recipe.validation.model_dump(
            include={"data", "samples", "seed", "max_new_tokens", "score"}
        ),
        "export": {"dtype": recipe.export.dtype, "image_size": recipe.export.image_size},
    }
    return {f"{name}.{key}": v for name, section in sections.items() for key, v in section.items()}


def _point(recipe: Recipe, given: Mapping[str, Any], *, baseline: bool = False) -> Point:
    names = " + ".join(method.name for method in recipe.methods) or "no method"
    names += " healed" if recipe.heal.file is not None else ""
    words = [f"{METHOD_KEY.sub('', key)} {_shown(value)}" for key, value in given.items()]
    series = ", ".join([" ".join([names, *words[:-1][:1]]), *words[:-1][1:]])
    label = ", ".join([" ".join([names, *words[:1]]), *words[1:]])
    return Point(label, series, recipe, given, baseline)


def _shown(value: Any) -> str:
    words = f"{value:g}" if isinstance(value, float) else str(value)
    return words if len(words) <= LONGEST_NAME // 2 else f"{words[: LONGEST_NAME // 2 - 1]}…"


def _twice(points: Sequence[Point]) -> list[str]:
    seen: dict[tuple[str, ...], Point] = {}
    problems = []
    for point in points:
        if (other := seen.setdefault(point.asked, point)) is not point:
            same = other.label if other.label == point.label else f"{other.label} and {point.label}"
            problems.append(f"over: {same}: the same point twice; give each once")
    return problems


def one_gated(points: Sequence[Point], layers: int) -> Recipe | None:
    """Return a recipe with gates, if there is one.

    Raises:
        RecipeError: recipes have different ones, which no one calibration can ask.
    """
    gated = [point.recipe for point in points if point.recipe.gated is not None]
    kinds = {
        str((method.gates, method.gate_layers(layers)))
        for recipe in gated
        if (method := recipe.gated) is not None
    }
    if len(kinds) > 1:
        raise RecipeError(
            [
                "recipes: they have different gates or gates behind different layers, and a sweep has one "
                "calibration; sweep them one after the other"
            ]
        )
    return gated[0] if gated else None


def named(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return points with labels and names of files that differ, also where letters are of one case.

    Where labels are alike, the keys tell them apart that are not the same in all of their recipes.
    """
    alike: dict[str, list[Point]] = {}
    for point in points:
        alike.setdefault(point.label, []).append(point)
    found: list[Point] = []
    names: set[str] = set()
    for point in points:
        told = point if len(alike[point.label]) == 1 else _told_apart(point, alike[point.label])
        start = re.sub(r"[^a-z0-9.]+", "-", told.label.lower()).strip("-.")[:LONGEST_NAME]
        name = next(n for i in count(1) if (n := start if i == 1 else f"{start}-{i}") not in names)
        names.add(name)
        found.append(replace(told, name=name))
    return tuple(found)


def _told_apart(point: Point, others: Sequence[Point]) -> Point:
    """Return a point with what distinguishes it from others in its label, the keys alone in its series."""
    asked, every = _asked_keys(point), [_asked_keys(other) for other in others]
    differ = {key: v for key, v in asked.items() if any(other.get(key) != v for other in every)}
    words = ", ".join(f"{key} {_shown(value)}" for key, value in differ.items())
    label, series = f"{point.label} {words}".strip(), f"{point.series} {', '.join(differ)}".strip()
    return replace(point, label=label, series=series)


def _asked_keys(point: Point) -> dict[str, Any]:
    """Return what is asked of a point's methods, by keys inside of them."""
    found: dict[str, Any] = {}

    def put(above: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                put(f"{above}{key}.", value)
            else:
                found[f"{above}{key}"] = value

    for method in point.recipe.methods:
        put("", asked_of(method))
    return found


def with_plans(
    points: Sequence[Point], facts: ModelFacts, digest: str, profile: Profile | None
) -> tuple[Point, ...]:
    """Return points with plans, as far as these can be made: without a profile not those that measure.

    Raises:
        PlanError: methods that do not fit the model, or cannot do what is asked; of all points.
        GatesError: gates that are missing or do not fit.
    """
    found, problems = [], []
    for point in points:
        if point.searched:
            found.append(point)
            continue
        try:
            gates = check_methods(facts, point.recipe.methods)
            if profile is None and wants_calibration(point.recipe):
                found.append(point)  # what is measured may decide, or is counted
                continue
            # Before the digest is taken, gates are taken for this model's.
            of = digest or (gates and gates.model_digest) or ""
            plan = plan_recipe(point.recipe, facts, of, profile)
            point.recipe.healed_file(digest, plan.work_digest)
            found.append(replace(point, plan=plan))
        except VtcompressError as error:
            problems += [f"{point.label}: {line}" for line in str(error).splitlines()]
    if problems:
        raise RecipeError(dict.fromkeys(problems))
    return tuple(found)


def baselines_of(points: Sequence[Point], facts: ModelFacts) -> tuple[Point, ...]:
    """Return what stands beside points whose plans keep some visual rows: as many, chosen without looking.

    The entry that chooses rows is replaced, in front of the decoder also where rows leave at a layer; the
    others stay. Points that are there already, and baselines that do not go with the model, are left out; a
    search's plans have none, as no entry of theirs chooses rows.

    Args:
        points: with plans, as far as they are made.
        facts: of the model.
    """
    seen = {point.asked for point in points}
    found = []
    for baseline in (method for method in METHODS if method.baseline):
        for point in points:
            if point.searched or point.plan is None or (kept := _choice(point.plan)) is None:
                continue
            if kept.by in {method.name for method in METHODS if method.baseline}:
                continue
            made = _with_baseline(point, baseline, kept, facts)
            problems = [
                line
                for method in made.recipe.methods
                for line in method.problems(facts, Evidence(where=made.label))
            ]
            if not problems and made.asked not in seen:
                seen.add(made.asked)
                found.append(made)
    return tuple(found)


def _choice(plan: Plan) -> Kept | None:
    return plan.front or next(iter(plan.keeps().values()), None)


def _with_baseline(point: Point, baseline: type[Method], kept: Kept, facts: ModelFacts) -> Point:
    data = point.recipe.model_dump(by_alias=True)
    entries = [entry for entry in data["compress"] if kept.by not in entry]
    share = _share(baseline, kept, facts)
    data["compress"] = (*entries, {baseline.name: {"keep": share}})
    data["heal"] = {"file": None}  # which would be another plan's
    recipe = parse_recipe(data, baseline.name)
    return _point(recipe, {f"compress.{baseline.name}.keep": share}, baseline=True)


def _share(baseline: type[Method], kept: Kept, facts: ModelFacts) -> float:
    """Return the roundest share that makes so many rows, as near as the baseline comes."""
    exact = kept.count / kept.of
    for digits in range(2, 17):
        share = round(exact, digits)
        if share > 0 and baseline.model_validate({"keep": share}).rows_kept(facts) == kept.count:
            return share
    return exact
