"""The methods, one a file or folder: the paper's rule as plain functions, and what is said of it.

A new method is a file here and a place in `BUILT_IN`, or a package of its own whose entry point of the group
`vtcompress.methods` names the class. See `compressor.contract.method` for what it must say.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import ValidationError, create_model

from compressor.contract.choice import LayerScore, RunRule
from compressor.contract.gated import GatedMethod
from compressor.contract.measure import Measure
from compressor.contract.method import Method, MethodWords, Trait, Turn
from compressor.entry_points import taken
from compressor.errors import PlanError
from compressor.facts import ModelFacts
from compressor.methods.auto import Auto
from compressor.methods.cls_knee import ClsKnee
from compressor.methods.divprune import DivPrune
from compressor.methods.dyvte import DyVTE
from compressor.methods.fastv import FastV
from compressor.methods.gprune import GPrune
from compressor.methods.mixture.gamma_mod import GammaMod
from compressor.methods.mixture.mod import Mod
from compressor.methods.pool import Pooling
from compressor.methods.random_choice import RandomChoice
from compressor.methods.shortv import ShortV
from compressor.methods.skip import Skip
from compressor.methods.visionzip import VisionZip
from compressor.methods.visual_exit import VisualExit
from compressor.methods.wico import WiCo
from compressor.methods.wico_plus import WicoPlus
from compressor.methods.yopo.method import Yopo
from compressor.plan.kept import Kept
from compressor.plan.layer import OLDER_REASONS
from compressor.plan.plan import Plan
from compressor.schema.problems import error_lines
from compressor.schema.values import ExactlyOne

GROUP: Final = "vtcompress.methods"
BUILT_IN: Final[tuple[type[Method], ...]] = (
    ShortV,
    VisualExit,
    DyVTE,
    Yopo,
    FastV,
    GammaMod,
    Mod,
    Skip,
    GPrune,
    DivPrune,
    VisionZip,
    ClsKnee,
    WiCo,
    RandomChoice,
    Pooling,
    WicoPlus,
    Auto,
)


_FOUND: dict[str, type[Method]] = {method.name: method for method in BUILT_IN}


NO_NAMES: Final = ("dead", "gates", *OLDER_REASONS)
"""What stands in plans beside the names of methods, or as one of them."""


def _take(method: Any, package: str, version: str) -> str:
    """Keep a method of another package; return why it cannot be used."""
    if problem := _incomplete(method) or _taken_names(method):
        return problem
    method.package = f"{package} {version}"
    _FOUND[method.name] = method
    return ""


def _incomplete(method: Any) -> str:
    """Return what of a method is missing or cannot be, so that it would fail somewhere later."""
    if not (isinstance(method, type) and issubclass(method, Method)):
        return "is no method"
    told = {"name": str, "words": MethodWords, "turn": Turn}
    lacks = [key for key, kind in told.items() if not isinstance(getattr(method, key, None), kind)]
    if lacks := lacks + sorted(method.__abstractmethods__):
        return f"does not define {', '.join(lacks)}"
    if not re.fullmatch("[a-z][a-z0-9_]*", method.name):
        return (
            f"has the name {method.name!r}; a name is of a-z, 0-9 and _, and begins with a letter"
        )
    if method.name in NO_NAMES or hasattr(_Entry, method.name):
        return f"has the name {method.name}, which means something else in plans or recipes"
    return ""


def _taken_names(method: type[Method]) -> str:
    """Return which name of a method, or of what it measures, another one has."""
    for other in _FOUND.values():
        whose = f"there already (package {other.package})" if other.package else "there already"
        if method.name == other.name:
            return f"has the name {method.name} of a method that is {whose}"
        for mine in method.measures:
            if any(mine.name == measure.name and mine != measure for measure in other.measures):
                return f"has a measure of the name {mine.name}, as the method {other.name} that is {whose}"
    return ""


class _Entry(ExactlyOne):
    """One entry of `compress`: a method under its name."""

    key_word: ClassVar[str] = "method"
    elsewhere: ClassVar[str] = "one that a package brings is known where that is installed"
    other_names: ClassVar[Mapping[str, str]] = {}

    @property
    def method(self) -> Method:
        """The one method of this entry."""
        found: Method = next(m for name in METHOD_NAMES if (m := getattr(self, name)) is not None)
        return found


UNUSABLE: Final = tuple(taken(GROUP, "method", _take))
"""Problems of installed methods that cannot be used; every recipe is refused with them."""

METHODS: Final = tuple(_FOUND.values())
"""Every method that a recipe may list, in the order in which errors and reports name them."""

METHOD_NAMES: Final = tuple(method.name for method in METHODS)
"""Their names, which are keys under `compress` and reasons in a plan."""

GATED: Final = tuple(method for method in METHODS if issubclass(method, GatedMethod))
"""Those whose exits gates decide on; the first stands for gates that no recipe names."""

CUTTERS: Final = tuple(method.name for method in METHODS if method.turn is Turn.CUT)
"""Names of those that cut heads, window or neurons."""

MEASURES: Final[Mapping[str, Measure]] = {
    measure.name: measure for method in METHODS for measure in method.measures
}
"""All that calibration can measure, by the key in profiles."""


_Entry.other_names = {nickname: method.name for method in METHODS for nickname in method.nicknames}
if TYPE_CHECKING:
    CompressEntry = _Entry
else:
    CompressEntry = create_model(
        "CompressEntry",
        __base__=_Entry,
        __doc__=_Entry.__doc__,
        **{method.name: (method | None, None) for method in METHODS},
    )


def gated(methods: Iterable[Method]) -> GatedMethod | None:
    """Return the one whose exits gates decide on, if there is one."""
    return next((method for method in methods if isinstance(method, GatedMethod)), None)


def method_of(name: str) -> type[Method] | None:
    """Return the method that a reason in a plan names; None: it is not installed, or no method's name."""
    return next((method for method in METHODS if method.name == name), None)


def chooser(kept: Kept) -> Method:
    """Return the method whose rule chooses among visual rows, as it was asked.

    Raises:
        PlanError: the method is not installed, or does not take what it was asked.
    """
    found = method_of(kept.by)
    if found is None:
        raise PlanError(
            [
                f"visual rows are kept by {kept.by!r}, a method that is not installed: install its package"
            ]
        )
    try:
        return found.model_validate(dict(kept.asked))
    except ValidationError as error:
        lines = error_lines(error, found, f"visual rows are kept by {kept.by}")
        raise PlanError(lines) from None


def front_chooser(front: Kept, facts: ModelFacts) -> Method:
    """Return the method that chooses in front of the decoder; see `chooser`.

    Raises:
        PlanError: also where it does not choose there, or keeps another number of this model's rows, or none.
    """
    found = chooser(front)
    if type(found).front_rule is Method.front_rule:
        raise PlanError(
            [f"front: {front.by} does not choose which visual rows enter; name a method that does"]
        )
    if problems := found.unfit(facts, front.by):
        raise PlanError(f"front: {problem}" for problem in problems)
    count = found.rows_kept(facts)
    if count not in (None, front.count):
        raise PlanError(
            [
                f"front: keeps {front.count} visual rows, and {front.by} as it was asked keeps {count}"
            ]
        )
    return found


def rows_kept_by(methods: Iterable[Method], facts: ModelFacts) -> int | None:
    """Return how many visual rows of a tile the decoder gets, as far as it is known; None: all."""
    found = (method.rows_kept(facts) for method in methods)
    return next((count for count in found if count is not None), None)


def layer_choosers(plan: Plan) -> Mapping[int, Method]:
    """Return the methods that choose at the inputs of layers, for each layer where visual rows leave.

    Raises:
        PlanError: as `chooser`, and where a method does not choose there.
    """
    found = {layer: chooser(kept) for layer, kept in plan.keeps().items()}
    for layer, method in found.items():
        if type(method).layer_score is Method.layer_score:
            raise PlanError(
                [
                    f"layer {layer}: keep: {method.name} does not choose which visual rows go on at a layer; "
                    "name a method that does"
                ]
            )
    return found


def layer_scores(plan: Plan) -> Mapping[int, LayerScore]:
    """Return by what visual rows go on at the inputs of layers, for each layer where some leave.

    Raises:
        PlanError: as `layer_choosers`.
    """
    return {layer: method.layer_score() for layer, method in layer_choosers(plan).items()}


def check_choosers(plan: Plan) -> None:
    """Refuse a plan whose choices among visual rows nobody can make as they were asked.

    Raises:
        PlanError: as `front_chooser` and `layer_choosers`.
    """
    if plan.front is not None:
        front_chooser(plan.front, plan.model)
    layer_choosers(plan)


def run_rules(plan: Plan) -> Mapping[int, RunRule]:
    """Return how the visual rows are chosen that run layers alone, for each such layer.

    Raises:
        PlanError: as `chooser`.
    """
    return {layer: chooser(run).run_rule() for layer, run in plan.runs().items()}


def owner_of_measure(measure: str) -> str:
    """Return which method a measure is of, with the package that brought it."""
    owner = next(method for method in METHODS if measure in {m.name for m in method.measures})
    return f"the method {owner.name}" + (
        f" of the package {owner.package}" if owner.package else ""
    )


def label_of_cuts(methods: Iterable[Method] = ()) -> str:
    """Return how sentences call the method that cuts heads, window or neurons.

    Args:
        methods: of the recipe; without any that cuts, the first that can.
    """
    kinds: list[type[Method]] = [*(type(method) for method in methods), *METHODS]
    return next(method.words.label for method in kinds if method.turn is Turn.CUT)


def label_of_gates() -> str:
    """Return the same for the method whose exits gates decide on."""
    return GATED[0].words.label


ONE_OF: Final = {
    Trait.FRONT: "choose which visual tokens enter the decoder",
    Trait.EXIT: "choose where visual tokens leave",
    Trait.RUNNING: "choose which visual tokens run a layer",
}
"""What one entry of a recipe alone may do, in the plural."""


def methods_clash(entries: object) -> str | None:
    """Return what is wrong with a list of entries as a whole, None if nothing is."""
    if not isinstance(entries, tuple):
        return None
    counts = Counter(name for entry in entries if isinstance(entry, dict) for name in entry)
    claims = [
        claim
        for method in METHODS
        if counts[method.name]
        for claim in method.claims(_keys_of(entries, method.name))
    ]
    if (alone := [c.key for c in claims if c.trait is Trait.ALONE]) and len(entries) > 1:
        others = [name for name in METHOD_NAMES if counts[name] and name not in alone]
        return (
            f"{alone[0]} stands alone: it {Trait.ALONE}; leave {' and '.join(others or alone)} out"
        )
    for trait, what in ONE_OF.items():
        keys = [claim.key for claim in claims if claim.trait is trait]
        if len(keys) > 1:
            all_of = f"{', '.join(keys[:-1])} and {keys[-1]} {'both' if len(keys) == 2 else 'all'}"
            return f"{all_of} {what}; give one of them"
    front, grid = (
        [claim.key for claim in claims if claim.trait is trait]
        for trait in (Trait.FRONT, Trait.GRID)
    )
    if front and grid:
        without = f"{front[0]}, behind which some of it is gone"
        return f"{grid[0]} cannot go with {without}: it {Trait.GRID}; leave one of them out"
    rows, leaving, running, growing = (
        [claim.key for claim in claims if claim.trait is trait]
        for trait in (Trait.READS_ROWS, Trait.LEAVING, Trait.RUNNING, Trait.GROWING)
    )
    for some, others, reason in (
        (rows, leaving, "rows that leave take their neighbours with them"),
        (rows, running, "rows that pass a layer by have nothing there that others could read"),
        (growing, rows, "it tells tokens by the prompt, which has none of those that are new"),
        (growing, leaving, "of those that go on, each tile has another number"),
        (
            growing,
            running,
            "it counts on the number of tokens of a tile, which changes at the layer",
        ),
    ):
        if some and others:
            both = f"{' and '.join(some)} cannot go with {' and '.join(others)}"
            return f"{both}: {reason}; leave one of them out"
    for claim in claims:
        if (others := rows + leaving + running + growing) and claim.trait is Trait.PER_PROMPT:
            rest = (
                f"gates that decide for each prompt; take {claim.remedy}, or leave one of them out"
            )
            return f"{' and '.join(others)} cannot go with {rest}"
    twice = ", ".join(name for name in METHOD_NAMES if counts[name] > 1)
    return f"more than one entry for: {twice}; a method may appear once" if twice else None


def _keys_of(entries: tuple[Any, ...], name: str) -> Mapping[str, Any]:
    """Return what an entry of a method says, as it was written."""
    found = [entry.get(name) for entry in entries if isinstance(entry, dict)]
    return next((keys for keys in found if isinstance(keys, dict)), {})


OLDER_FORMAT: Final = (
    "methods are applied in the order of the list, and shortv.frozen is a share of all layers",
    "exits first, then yopo, then shortv, and a share of the layers that can be frozen",
)
"""How recipes of format 1 are planned, and those of today."""
