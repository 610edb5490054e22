"""All plans that a search may choose among: what visual rows do in each layer, and where they become fewer.

They become fewer once by a choice, in front of the decoder or at a layer, and once by an exit behind that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from compressor.contract.measure import Measure
from compressor.contract.method import CannotError, Evidence, Method, NamedLayers
from compressor.contract.searched import SearchedMethod
from compressor.contract.trials import LayerTrial, Offering, PlanTrial
from compressor.errors import PlanError
from compressor.facts import ModelFacts
from compressor.methods import METHODS
from compressor.plan.dead_rows import freeze_dead_rows
from compressor.plan.edits import identity_plan
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan, Workload
from compressor.schema.problems import nearest

EVERYTHING = "everything"
"""What visual tokens do in a layer that nothing is changed in."""

WHY_NOT_TRAINED = (
    "it chooses by the end of the prompt, and a healing follows, which goes on to the answer"
)


class Choice(NamedTuple):
    """One plan, by what was chosen for each of its parts.

    Attributes:
        keeps: number of the choice among visual rows, in front of the decoder or at a layer; 0: all go on.
        leaves: first layer without visual rows; 0: they stay.
        modes: [L] number of each layer's mode; 0: everything, which layers have too that are dead or behind
            an exit.
    """

    keeps: int
    leaves: int
    modes: tuple[int, ...]

    def with_mode(self, layer: int, mode: int) -> "Choice":
        """Return the choice with another mode of a layer."""
        return self._replace(modes=(*self.modes[:layer], mode, *self.modes[layer + 1 :]))


@dataclass(frozen=True)
class Change:
    """A trial with the method that offers it."""

    method: str
    trial: LayerTrial | PlanTrial

    @property
    def words(self) -> str:
        """What it does."""
        return self.trial.words


@dataclass(frozen=True)
class PlanSpace:
    """What a search chooses among.

    Attributes:
        facts: of the model.
        digest: that plans are bound to.
        workload: prefill that costs are predicted for.
        modes: of a layer, everything aside; mode i of a `Choice` is entry i - 1.
        exits: visual tokens leaving, by the first layer without them.
        keeps: choices among visual rows, in front of the decoder or at a layer; number i of a `Choice` is
            entry i - 1.
        whole: layers in which visual tokens keep all they do.
        left_out: what is not among all this, and why, a sentence each.
    """

    facts: ModelFacts
    digest: str
    workload: Workload
    modes: tuple[Change, ...]
    exits: Mapping[int, Change]
    keeps: tuple[Change, ...]
    whole: frozenset[int] = frozenset()
    left_out: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        """L."""
        return self.facts.decoder.layers

    @property
    def nothing(self) -> Choice:
        """The original."""
        return Choice(0, 0, (0,) * self.layers)

    def open(self, leaves: int = 0) -> tuple[int, ...]:
        """Return the layers that have modes to choose among; in front of an exit rows are dead."""
        return tuple(i for i in range((leaves or self.layers) - 1) if i not in self.whole)

    def kept_at(self, keeps: int) -> int:
        """Return the first layer that only the rows of a choice enter; 0: the decoder, or all go on."""
        return _of_plan(self.keeps[keeps - 1]).layer if keeps else 0

    @property
    def kept_at_layers(self) -> tuple[int, ...]:
        """Numbers of the choices among visual rows that are made at a layer."""
        return tuple(n for n in range(1, len(self.keeps) + 1) if self.kept_at(n))

    def exits_with(self, keeps: int) -> tuple[int, ...]:
        """Return the exits that go with a choice among rows, which are behind it; first 0, no exit."""
        return (0, *(leaves for leaves in self.exits if leaves > self.kept_at(keeps)))

    def modes_with(self, keeps: int) -> tuple[int, ...]:
        """Return the modes of layers that go with a choice among rows; first 0, everything."""
        numbers = enumerate(self.modes, start=1)
        return (0, *(n for n, change in numbers if not (keeps and _of_layer(change).reads_grid)))

    def everywhere(self, mode: int, *, keeps: int = 0, leaves: int = 0) -> Choice:
        """Return the choice of one mode in all layers that are open."""
        open_layers = self.open(leaves)
        modes = tuple(mode if i in open_layers else 0 for i in range(self.layers))
        return Choice(keeps, leaves, modes)

    def plan(self, choice: Choice) -> Plan:
        """Return the plan of a choice.

        Raises:
            ValueError: visual rows leave at or in front of the layer at which it chooses among them, or a
                mode reads the grid of all of them.
        """
        if choice.leaves not in self.exits_with(choice.keeps):
            layer = self.kept_at(choice.keeps)
            raise ValueError(
                f"no rows to choose among at layer {layer}: they left at {choice.leaves}"
            )
        if wrong := {*choice.modes} - {*self.modes_with(choice.keeps)}:
            words = self.modes[min(wrong) - 1].words
            raise ValueError(f"{words} reads all visual rows, and some are left out")
        plan = identity_plan(self.facts, self.digest, self.workload)
        if choice.keeps:
            plan = _of_plan(self.keeps[choice.keeps - 1]).change(plan)
        if choice.leaves:
            plan = _of_plan(self.exits[choice.leaves]).change(plan)
        layers = [
            self._in_layer(layer, self.modes[mode - 1]) if mode else layer
            for layer, mode in zip(plan.layers, choice.modes, strict=True)
        ]
        return plan.model_copy(update={"layers": freeze_dead_rows(tuple(layers))})

    def words(self, choice: Choice) -> tuple[str, ...]:
        """Return what each layer does, in a few words."""
        found = []
        for i, mode in enumerate(choice.modes):
            if choice.leaves and i >= choice.leaves:
                found.append("no visual tokens")
            elif i == (choice.leaves or self.layers) - 1:
                found.append("frozen, as nobody reads what comes out")
            else:
                found.append(self.modes[mode - 1].words if mode else EVERYTHING)
        if layer := self.kept_at(choice.keeps):
            found[layer] = f"{self.keeps[choice.keeps - 1].words} go on; {found[layer]}"
        return tuple(found)

    @staticmethod
    def _in_layer(layer: LayerPlan, change: Change) -> LayerPlan:
        return _of_layer(change).change(layer) if layer.visual == "update" else layer


def _of_layer(change: Change) -> LayerTrial:
    if not isinstance(change.trial, LayerTrial):
        raise TypeError(f"{change.words} is a change of a plan")
    return change.trial


def _of_plan(change: Change) -> PlanTrial:
    if not isinstance(change.trial, PlanTrial):
        raise TypeError(f"{change.words} is a change of a layer")
    return change.trial


def offering(searched: SearchedMethod, where: str) -> tuple[type[Method], ...]:
    """Return the methods whose words a search may use.

    Raises:
        PlanError: methods are named that are not there, or offer nothing; or none is left.
    """
    offers = {m.name: m for m in METHODS if issubclass(m, Offering) and m.offers()}
    never = (searched.never and searched.never.methods) or ()
    problems = [
        f"{where}.{key}: {name!r} is no method that a search can use{nearest(name, offers)} "
        f"(known: {', '.join(offers)})"
        for key, names in (("use", searched.use or ()), ("never.methods", never))
        for name in names
        if name not in offers
    ]
    found = tuple(m for n, m in offers.items() if n in (searched.use or offers) and n not in never)
    if not (problems or found):
        problems = [
            f"{where}: no method is left that may be used; allow one of: {', '.join(offers)}"
        ]
    if problems:
        raise PlanError(problems)
    return found


def measures_for(methods: Iterable[type[Method]]) -> tuple[Measure, ...]:
    """Return what calibration must measure for what methods offer."""
    found = [m for method in methods if issubclass(method, Offering) for m in method.tried_by()]
    return tuple({measure.name: measure for measure in found}.values())


def candidate_problems(searched: SearchedMethod, facts: ModelFacts, where: str) -> None:
    """Refuse layers to leave alone that a model does not have.

    Raises:
        PlanError: names them.
    """
    never = (searched.never and searched.never.layers) or ()
    named = NamedLayers("never.layers", never, remedy=": give layers of this model")
    if problems := named.problems(facts.decoder.layers, where):
        raise PlanError(problems)


def candidates_of(
    facts: ModelFacts,
    digest: str,
    workload: Workload,
    searched: SearchedMethod,
    evidence: Evidence,
    *,
    trained: bool = False,
) -> PlanSpace:
    """Return what a search chooses among on a model.

    Args:
        facts: of the model.
        digest: of it.
        workload: that costs are predicted for.
        searched: the recipe's entry.
        evidence: what calibration measured; its place begins every problem.
        trained: the plan is trained afterwards, with answers behind the prompts whose end a choice at a layer
            reads: there is none.

    Raises:
        PlanError: the entry names what is not there, or nothing is left to choose.
    """
    candidate_problems(searched, facts, evidence.where)
    never = (searched.never and searched.never.layers) or ()
    original = identity_plan(facts, digest, workload)
    modes: list[Change] = []
    keeps: list[Change] = []
    exits: dict[int, Change] = {}
    left_out: dict[str, None] = {}
    for method in offering(searched, evidence.where):
        if not issubclass(method, Offering):
            continue
        try:
            trials = method.trials(facts, evidence)
        except CannotError as reason:
            raise PlanError(map(str, reason.args)) from None
        for trial in trials:
            change = Change(method.name, trial)
            if isinstance(trial, LayerTrial):
                modes += [change] * trial.pays(original)
            elif trial.leaves and trial.layer > max(never, default=-1):
                exits.setdefault(trial.layer, change)
            elif not trial.leaves and trial.layer and trained:
                left_out[f"{method.name}: {WHY_NOT_TRAINED}"] = None
            elif not trial.leaves:
                keeps.append(change)
    found = PlanSpace(
        facts,
        digest,
        workload,
        tuple(modes),
        exits,
        tuple(keeps),
        frozenset(never),
        tuple(left_out),
    )
    if not (modes and found.open()) and not exits and not keeps:
        why = f" ({'; '.join(left_out)})" if left_out else ""
        raise PlanError([f"{evidence.where}: nothing is left to choose{why}; use or never less"])
    return found


def label_of(candidates: PlanSpace, choice: Choice) -> str:
    """Return what a plan does in a few words: how many layers do what."""
    counts: dict[str, int] = {}
    for layer in candidates.open(choice.leaves):
        if mode := choice.modes[layer]:
            words = candidates.modes[mode - 1].words
            counts[words] = counts.get(words, 0) + 1
    parts = []
    if choice.keeps:
        layer = candidates.kept_at(choice.keeps)
        place = f"at layer {layer}" if layer else "in front"
        parts = [f"{candidates.keeps[choice.keeps - 1].words} {place}"]
    parts += [f"{words} in {n} layer{'s' * (n > 1)}" for words, n in counts.items()]
    parts += [f"exit at layer {choice.leaves}"] if choice.leaves else []
    return ", ".join(parts) or "nothing changed"
