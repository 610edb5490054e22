"""An entry of a recipe that says what a plan must keep, and leaves the plan to a search."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar

from compressor.contract.method import CannotError, Evidence, Method
from compressor.plan.plan import Plan
from compressor.schema.problems import allowed, rule
from compressor.schema.values import (
    AboveOne,
    ExactlyOne,
    Layers,
    NotNegative,
    Quantile,
    RecipeSection,
    SearchTarget,
    each_once,
)

Names = Annotated[tuple[str, ...], rule(each_once)]

Floor = Annotated[
    dict[str, Quantile], allowed("a mapping of kinds of questions to shares above 0, up to 1")
]

FOUND_BY_SEARCH = (
    "is found by a search; run `vtcompress search` and give its chosen.json as the plan, or "
    "`vtcompress export`, which searches first"
)


class Never(RecipeSection):
    """What a search leaves alone.

    Attributes:
        layers: in which visual tokens keep all they do, and in front of which they do not leave.
        methods: whose words of the plan are not used.
    """

    layers: Layers | None = None
    methods: Names | None = None


class SearchedMethod(ExactlyOne, Method):
    """What the fastest plan must keep. Exactly one of `keep`, `speedup` and `max_kl` is given.

    Attributes:
        keep: share of the original's right answers that is kept, above 0, up to 1; the fastest such plan.
        speedup: how many times less of the target's work is done, above 1; the plan that loses least.
        max_kl: KL(original || plan) over answer tokens that is allowed, in nats; the fastest such plan.
        target: what is to get smaller; see `SearchTarget`.
        use: methods whose words of the plan may be used; without it, all that offer some.
        never: what is left alone.
        floor: share of the original's right answers that must be kept of questions of a kind, by kind.
    """

    goals: ClassVar[tuple[str, ...]] = ("keep", "speedup", "max_kl")
    with_any: ClassVar[tuple[str, ...]] = ("target", "use", "never", "floor")

    keep: Quantile | None = None
    speedup: AboveOne | None = None
    max_kl: NotNegative | None = None
    target: SearchTarget = "prefill"
    use: Names | None = None
    never: Never | None = None
    floor: Floor | None = None

    @property
    def goal(self) -> tuple[str, float]:
        """Which of the three is asked for, and how much."""
        return next((key, value) for key in self.goals if (value := getattr(self, key)) is not None)

    @property
    def goal_words(self) -> str:
        """What is asked for, as the recipe has it."""
        key, value = self.goal
        return f"{key}: {value:g}"

    @property
    def asked_words(self) -> str:
        """The goal with its floor."""
        floor = ", ".join(f"{kind}: {least:g}" for kind, least in (self.floor or {}).items())
        return f"{self.goal_words} with floor: {floor}" if floor else self.goal_words

    def asked(self) -> dict[str, Any]:
        """Return what was asked; the usual target says nothing."""
        given = self.model_dump(exclude_none=True)
        return {key: value for key, value in given.items() if (key, value) != ("target", "prefill")}

    def why_frozen(self, plan: Plan, samples: int | None) -> str:  # noqa: ARG002 - it saw other figures
        """Return what speaks for the layers: the search."""
        return "chosen by a search, by what each change saves and what it changes of the answers"

    @abstractmethod
    def apply(self, plan: Plan, evidence: Evidence) -> Plan:
        """Refuse: no rule gives the plan.

        Raises:
            CannotError: always, with the remedy.
        """
        raise CannotError(f"{evidence.where}: the plan {FOUND_BY_SEARCH}")
