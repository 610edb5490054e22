"""What a compression method is: the one contract that planner, calibration, recipe and reports know.

A method chooses; the plan's vocabulary says what visual rows do. Decoder, costs and graphs read the plan and
never a method. Methods are listed in `compressor.methods`; a module that holds one imports nothing above
`compressor.plan`, and torch only inside functions.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from compressor.contract.choice import FrontRule, LayerScore, RunRule
from compressor.contract.measure import Measure, Measured
from compressor.disk.learned_file import LearnedFile
from compressor.facts import ModelFacts
from compressor.plan.plan import Plan
from compressor.schema.values import RecipeSection, path_keys

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class CannotError(Exception):
    """A method that cannot be applied; each argument is a problem of the plan."""


class Turn(IntEnum):
    """When a method is applied: what leaves first, so that a share counts what is left.

    Rows grow behind a choice in front of the decoder: from how many, it says.
    """

    FRONT = 0
    KEEP = 1
    GROW = 2
    EXIT = 3
    RUN = 4
    CUT = 5
    FREEZE = 6


class Trait(StrEnum):
    """What entries of a recipe do that may exclude each other."""

    FRONT = "chooses which visual tokens enter the decoder"
    GRID = "reads the grid of visual tokens"
    EXIT = "chooses where visual tokens leave"
    LEAVING = "chooses which visual tokens go on at a layer"
    GROWING = "makes more visual tokens at a layer"
    RUNNING = "chooses which visual tokens run a layer"
    PER_PROMPT = "decides for each prompt"
    READS_ROWS = "must know which rows of the past are visual"
    ALONE = "makes the whole plan"


@dataclass(frozen=True)
class Claim:
    """A trait that an entry of a recipe has.

    Attributes:
        trait: what it does.
        key: that makes it do so, as a recipe has it: `visual_exit`, `yopo.off_from`.
        remedy: key and value that would not.
    """

    trait: Trait
    key: str
    remedy: str = ""


@dataclass(frozen=True)
class NamedLayers:
    """Layers that an entry names.

    Attributes:
        key: of the entry.
        layers: counted from 0.
        least: smallest number allowed.
        from_end: how many of the last layers may not be named.
        remedy: ends the problem.
    """

    key: str
    layers: Sequence[int]
    least: int = 0
    from_end: int = 0
    remedy: str = ""

    def problems(self, layers: int, where: str) -> list[str]:
        """Return what a decoder of so many layers does not have."""
        most = layers - 1 - self.from_end
        wrong = [i for i in self.layers if not self.least <= i <= most]
        if not wrong:
            return []
        verb = "is" if len(wrong) == 1 else "are"
        return [
            f"{where}.{self.key}: {', '.join(map(str, wrong))} {verb} outside {self.least}..{most}; "
            f"the model has {layers} layers{self.remedy}"
        ]


@dataclass(frozen=True)
class Files:
    """Reads files that methods name, each once, so that a plan sees one content of it."""

    seen: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def read(self, reader: Callable[..., T], *arguments: Any) -> T:
        """Return what a reader makes of a path and further arguments."""
        key = (reader, *map(repr, arguments))
        if key not in self.seen:
            self.seen[key] = reader(*arguments)
        found: T = self.seen[key]
        return found


def _unchanged(plan: Plan) -> Plan:
    return plan


@dataclass(frozen=True)
class Evidence:
    """What a method is applied by.

    Attributes:
        where: the method's place in the recipe; begins every problem and note.
        files: reads what the method names.
        measured: what calibration found, by measure.
        measures: what the profile has, or will have once it is complete.
        state: what is to be said of a measure that is not there, with `{name}` for it.
        gates_under: `Plan.gates_see` of the decoder whose states gates were asked on; None: no profile.
        whole_shares: recipe format 1: a share is one of all layers, and methods know nothing of each other.
        rest: applies the methods that are still to come and seek no speed-up of their own.
    """

    where: str
    files: Files = field(default_factory=Files)
    measured: Mapping[str, Measured] = field(default_factory=dict)
    measures: tuple[str, ...] = ()
    state: str = "there is no profile"
    gates_under: str | None = None
    whole_shares: bool = False
    rest: Callable[[Plan], Plan] = _unchanged

    def of(self, measure: Measure) -> Measured:
        """Return what calibration found by a measure.

        Raises:
            CannotError: it was not measured, or not on all samples.
        """
        if measure.name in self.measured:
            return self.measured[measure.name]
        raise CannotError(
            f"{self.where}: chooses {measure.chooses}, but {self.state.format(name=measure.name)}; "
            f"run `vtcompress calibrate` first{measure.otherwise}"
        )

    def out_of_reach(self, plan: Plan, wanted: float, what: str, most: float) -> CannotError:
        """Return the problem of a speed-up that is not reached.

        Args:
            plan: that was sped up.
            wanted: speed-up.
            what: gives the most.
            most: speed-up.
        """
        # Rounded down, so that the figure named is one that can be asked for.
        reached = math.floor(100 * most) / 100
        return CannotError(
            f"{self.where}.speedup: {wanted:g} is out of reach; {what} gives {reached:.2f} "
            f"on {plan.visual} visual and {plan.workload.text} text rows"
        )


@dataclass(frozen=True)
class MethodWords:
    """What reports say of a method.

    Attributes:
        label: the method's name in sentences.
        paper: title and number of the paper it comes from.
        exit_key: of the recipe, where one of several makes the exit; in sentences.
        exit_how: sentence part: how an exit of it came about; begins with a comma.
        exit_meaning: the same, for the legend of the decoder's picture.
        front_how: sentence part: which visual tokens it lets into the decoder; begins with a comma.
        run_how: sentence: what becomes of rows in a layer that some visual ones run.
        front_undrawn: why no picture can show which those are, a sentence; empty: each stands for the cell of
            the picture at its place.
    """

    label: str
    paper: str = ""
    exit_key: str = ""
    exit_how: str = ""
    exit_meaning: str = ""
    front_how: str = ""
    run_how: str = ""
    front_undrawn: str = ""


class Method(RecipeSection, ABC):
    """An entry of a recipe's `compress`; its fields are the keys.

    Attributes:
        name: key of the entry, reason in the plan, tag of the model card.
        words: what reports say of it.
        turn: when it is applied.
        measures: all that it may choose by or show.
        nicknames: keys that people write for it; error lines propose the name.
        by_grid: keys that go with no model whose pictures have grids of their own.
        sets: names of what it sets in a `LayerPlan` beside `visual`, `keep`, `grow` and `run`, which name
            their method.
        weights_key: that names a file of trained weights beside the model's; empty: none does.
        package: that brought it, as `name version`; empty: this one.
        baseline: keeps rows, by a key `keep`, without looking at what they hold: what others must beat.
        learns: key that names the file of what `train-parts` trains of it; empty: it learns nothing so.
        learned_prefix: what stands in front of the names of `learned_shapes` in that file.
        learned_rate: learning rate that trains it, as a share of each tensor's size at the start.
    """

    name: ClassVar[str]
    words: ClassVar[MethodWords]
    turn: ClassVar[Turn]
    measures: ClassVar[tuple[Measure, ...]] = ()
    nicknames: ClassVar[tuple[str, ...]] = ()
    by_grid: ClassVar[tuple[str, ...]] = ()
    sets: ClassVar[tuple[str, ...]] = ()
    weights_key: ClassVar[str] = ""
    package: ClassVar[str] = ""
    baseline: ClassVar[bool] = False
    learns: ClassVar[str] = ""
    learned_prefix: ClassVar[str] = ""
    learned_rate: ClassVar[float] = 0.02

    @classmethod
    def claims(cls, keys: Mapping[str, Any]) -> tuple[Claim, ...]:
        """Return the traits of an entry with these keys, as they were written: nothing is checked yet."""
        return ()

    def needs(self) -> tuple[Measure, ...]:
        """Return what calibration must measure for the method to choose by."""
        return ()

    def shows(self) -> tuple[Measure, ...]:
        """Return what a calibration for the method measures: what it needs, and what reports show of it."""
        return self.measures

    def seeks_speedup(self) -> bool:
        """Whether it chooses until the whole plan is fast enough."""
        return False

    def layers_named(self, layers: int) -> tuple[NamedLayers, ...]:
        """Return the layers that the entry names, for a decoder of so many."""
        return ()

    def problems(self, facts: ModelFacts, evidence: Evidence) -> list[str]:
        """Return what of the entry the model rules out, layers that are named aside."""
        return []

    def unfit(self, facts: ModelFacts, where: str) -> list[str]:
        """Return what of the entry the facts of a model alone rule out, whatever files it names."""
        return []

    @abstractmethod
    def apply(self, plan: Plan, evidence: Evidence) -> Plan:
        """Return the plan with the method applied to what others made.

        Raises:
            CannotError: it cannot be; with every reason.
            GatesError: gates that are missing or do not fit.
        """

    def in_plan(self, plan: Plan) -> bool:
        """Whether a plan has something that the method makes."""
        made = any(
            getattr(layer, name) not in (None, False) for layer in plan.layers for name in self.sets
        )
        return made or self.name in plan.methods

    def notes(self, plan: Plan, evidence: Evidence) -> list[str]:
        """Return what the whole plan does not do as asked, rounds, or does in a way nobody would guess."""
        return []

    def asked(self) -> dict[str, Any]:
        """Return what was asked, without what says nothing of the result; files are paths."""
        return self.model_dump(exclude_none=True)

    def paths(self) -> tuple[Path, ...]:
        """Return the files that the entry names."""
        found = []
        for place in path_keys(type(self)):
            value: Any = self
            for key in place:
                value = getattr(value, key, None)
            found += [] if value is None else [value]
        return tuple(found)

    def rows_kept(self, facts: ModelFacts) -> int | None:
        """Return how many visual rows of a tile the decoder gets, unless calibration decides; None: all."""
        return None

    def front_rule(self, facts: ModelFacts) -> FrontRule:
        """Return what chooses the visual rows that the decoder gets; imports torch in its body.

        Args:
            facts: of the model whose tiles they are.

        Raises:
            NotImplementedError: the method does not choose there.
        """
        raise NotImplementedError(f"{self.name} does not choose in front of the decoder")

    def front_weights(self) -> LearnedFile | None:
        """Return the file of weights that its rule in front of the decoder reads; None: it reads none.

        Raises:
            PlanError: it is missing, or no such file.
        """
        return None

    def layer_score(self) -> LayerScore:
        """Return what scores visual rows at the input of a layer; imports torch in its body.

        Raises:
            NotImplementedError: the method does not choose there.
        """
        raise NotImplementedError(f"{self.name} does not choose inside the decoder")

    def run_rule(self) -> RunRule:
        """Return how visual rows that run a layer alone are chosen; imports torch in its body.

        Raises:
            NotImplementedError: the method lets all run.
        """
        raise NotImplementedError(f"{self.name} does not choose which rows run a layer")

    def check_weights(self, facts: ModelFacts, model_digest: str) -> None:
        """Refuse files of trained weights that the entry names, gates aside.

        Raises:
            RoutersError: they are missing, or do not fit the model.
        """

    def learned_shapes(self, facts: ModelFacts) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of all tensors that it may learn, by their names without prefix.

        These names are those of the decoder's weights (`compressor.decoder.weights.source_of`), or of the
        weights that its rule in front of the decoder reads.
        """
        return {}

    def learned_start(
        self, passes: Iterable[Any], shapes: Mapping[str, tuple[int, ...]], seed: int
    ) -> "Mapping[str, Tensor]":
        """Return what a training starts from, float32; imports torch in its body.

        Args:
            passes: `compressor.decoder.full_pass.FullPass` of the original on some prompts, with answers.
            shapes: of the tensors that the plan has, by name.
            seed: of what is drawn.

        Raises:
            NotImplementedError: the method learns nothing.
        """
        raise NotImplementedError(f"{self.name} learns nothing")

    def bounds(self) -> Mapping[str, float]:
        """Return the largest value that the entry allows, by measure."""
        return {}

    def semantics_of_cuts(self) -> Literal["removed", "masked"] | None:
        """Return which semantics its cuts of heads have; None: it cuts none."""
        return None

    def why_frozen(self, plan: Plan, samples: int | None) -> str:
        """Return what speaks for the layers that it froze.

        Args:
            plan: with all methods applied.
            samples: of the calibration; None: there was none.
        """
        return "chosen by the recipe"


def layers_words(indices: Sequence[int]) -> str:
    """Return layers by their numbers: `layer 2`, `layers 2, 5`."""
    return f"layer{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"


def gone_words(plan: Plan) -> list[str]:
    """Return where a plan's visual tokens leave, as one reason or none."""
    left = plan.exit_layer
    return [] if left is None else [f"visual tokens are gone from layer {left} on"]
