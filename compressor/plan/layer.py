"""What visual tokens do in one decoder layer, as data."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from compressor.facts import Facts
from compressor.plan.growth import Growth
from compressor.plan.kept import Kept, Running

Natural = Annotated[int, Field(ge=0)]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("a window has a middle, so its side is odd")
    return value


WindowSide = Annotated[int, Field(ge=3), AfterValidator(_odd)]
"""Side of a square of neighbours, odd."""

VisualRows = Literal["update", "frozen", "exited"]
"""`update`: visual rows are computed; `frozen`: they pass through, their K and V are still read;
`exited`: they left the decoder before this layer: no rows, no K and V."""

Operator = Literal["attention", "mlp"]
"""A part of a layer that visual rows may go without; going without both is `frozen`."""

OLDER_REASONS: Mapping[str, str] = {"vtw": "visual_exit"}
"""Names that plans of older versions have for a method."""

Reason = Annotated[str, AfterValidator(lambda name: OLDER_REASONS.get(name, name))]
"""Why visual rows are not updated: the name of a method, or `dead`: nobody reads their output, so freezing
them is exact. Empty where they are updated."""


class LayerPlan(Facts):
    """What visual rows do in one decoder layer; text rows always do everything.

    Attributes:
        index: of the layer.
        visual: whether visual rows are updated, frozen or gone.
        reason: why they are not updated.
        groups: key/value heads, with their query heads, in which visual tokens take part; None: all. In the
            others no row reads visual keys, and visual rows have no query.
        window: side of the square of grid neighbours that a visual row reads among visual rows; None: all
            before it.
        window_causal: visual rows read neighbours before them only.
        neurons: of the MLP that visual rows use, ascending; None: all.
        masked: the semantics of the authors' released code: visual keys of pruned heads stay in the softmax's
            denominator, and visual rows run on to feed it. A compatibility mode; goes with groups or off.
        off: masked only: no row reads visual values in any head of this layer.
        without: the operator that visual rows go without; text rows still read their keys and values.
        keep: which visual rows go on at the input of this layer; the others are gone from it on.
        grow: how many visual rows become how many at the input of this layer.
        run: which of the visual rows that are there run this layer; the others pass by it unchanged, have no
            keys and values in it, and are there again behind it. What else is said of visual rows is said of
            those that run.
    """

    index: int = Field(ge=0)
    visual: VisualRows = "update"
    reason: Reason = ""
    groups: tuple[Natural, ...] | None = None
    window: WindowSide | None = None
    window_causal: bool = False
    neurons: tuple[Natural, ...] | None = None
    masked: bool = False
    off: bool = False
    without: Operator | None = None
    keep: Kept | None = None
    grow: Growth | None = None
    run: Running | None = None

    @model_serializer(mode="wrap")
    def _without_cuts_that_are_not_made(
        self, handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        always = ("index", "visual", "reason")
        return {k: v for k, v in handler(self).items() if k in always or v not in (None, False)}

    def turned(self, visual: Literal["frozen", "exited"], reason: Reason) -> "LayerPlan":
        """Return this layer with visual rows frozen or gone, for a reason.

        Frozen rows still have keys and values: they keep their heads, and lose window and neurons.
        """
        layer = LayerPlan(index=self.index, visual=visual, reason=reason)
        if not layer.frozen:
            return layer
        names = ("groups", "masked", "off", "keep", "grow", "run")
        return layer.model_copy(update={name: getattr(self, name) for name in names})

    def leaving_out(self, operator: Operator, reason: Reason) -> "LayerPlan":
        """Return this layer with visual rows going without an operator, or frozen if they go without both.

        A window goes with the attention it was of, neurons with the MLP.
        """
        if self.without not in (None, operator):
            return self.turned("frozen", reason)
        gone: dict[str, Any] = {"neurons": None}
        if operator == "attention":
            gone = {"window": None, "window_causal": False}
        return self.model_copy(update={"without": operator, **gone})

    @model_validator(mode="after")
    def _state_fits_the_reason(self) -> "LayerPlan":
        updated, dead = self.visual == "update", self.reason == "dead"
        if updated is bool(self.reason) or (dead and self.visual != "frozen"):
            raise ValueError(
                f"layer {self.index} is {self.visual!r} for the reason {self.reason!r}"
            )
        return self

    @model_validator(mode="after")
    def _cuts_make_sense(self) -> "LayerPlan":
        exclusive = (
            (
                self.exited and (self.cuts or self.changes or self.run is not None),
                "visual rows are gone, so nothing of them can be cut",
            ),
            (
                self.frozen and (self.window or self.neurons is not None or self.without),
                "visual rows are frozen: they have no queries and no MLP",
            ),
            (
                self.without and self.masked,
                f"the masked semantics and going without {self.without} exclude each other",
            ),
            (
                (self.without == "attention" and self.window)
                or (self.without == "mlp" and self.neurons is not None),
                f"visual rows go without {self.without}, so nothing of it can be cut",
            ),
            (
                self.off and not self.masked,
                "off is a word of the masked semantics; otherwise it is an exit",
            ),
            (
                self.masked and self.groups is None and not self.off,
                "masked says how heads are cut, and no heads are; groups or off go with it",
            ),
            (self.window_causal and self.window is None, "window_causal goes with window"),
            (self.neurons == (), "visual rows need a neuron at least"),
            (
                self.run is not None and self.tells_rows,
                "windows and the masked semantics must know every visual row of the past, and some alone run",
            ),
        )
        problem = next((words for wrong, words in exclusive if wrong), "")
        for name in ("groups", "neurons"):
            chosen = getattr(self, name)
            if chosen is not None and list(chosen) != sorted(set(chosen)):
                problem = f"{name} are not ascending"
        if problem:
            raise ValueError(f"layer {self.index}: {problem}")
        return self

    @property
    def cuts(self) -> bool:
        """Whether visual rows do less: in fewer heads, among neighbours, of fewer neurons or operators."""
        parts = (self.groups, self.window, self.neurons, self.without)
        return self.off or any(part is not None for part in parts)

    def running(self, visual: int) -> int:
        """Return how many of so many visual rows that are there run the layer, or have keys in it."""
        return visual if self.run is None else self.run.rows(visual)

    @property
    def changes(self) -> tuple[Kept | Growth, ...]:
        """What changes how many visual rows there are, at the input of this layer."""
        return tuple(change for change in (self.keep, self.grow) if change is not None)

    @property
    def split(self) -> bool:
        """Whether heads are stored in two parts: those with visual tokens, and those without."""
        return self.groups is not None and not self.masked

    @property
    def tells_rows(self) -> bool:
        """Whether the layer must know which rows of the past are visual."""
        return self.window is not None or self.masked

    @property
    def in_no_head(self) -> bool:
        """Whether visual tokens are in the layer and in none of its heads: no keys and values of them."""
        return self.split and not self.groups

    @property
    def reads_visual(self) -> bool:
        """Whether any row reads visual keys or values; masked ones are read."""
        return not (self.exited or self.in_no_head)

    @property
    def read_by_no_head(self) -> bool:
        """Whether no head reads what visual tokens have there, though they stay in the softmax: masked."""
        return self.masked and (self.off or self.groups == ())

    @property
    def frozen(self) -> bool:
        """Whether visual rows pass through this layer unchanged."""
        return self.visual == "frozen"

    @property
    def frozen_by_method(self) -> bool:
        """Whether visual rows that somebody would read pass through unchanged."""
        return self.frozen and self.reason != "dead"

    @property
    def exited(self) -> bool:
        """Whether visual rows have left the decoder before this layer."""
        return self.visual == "exited"
