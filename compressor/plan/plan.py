"""The plan: what visual tokens do in each layer. Pure data, JSON both ways, made without torch."""

import hashlib
import json
from collections.abc import Sequence, Set
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from compressor.disk.files import read_json, write_text
from compressor.disk.mistaken import mistaken
from compressor.disk.model_digest import difference, same_model
from compressor.errors import ArtifactError, PlanError
from compressor.facts import Facts, ModelFacts, Positive
from compressor.plan.growth import Growth, why_not_grown
from compressor.plan.kept import Kept, Running
from compressor.plan.layer import LayerPlan, Natural
from compressor.plan.some_run import run_lengths, runs_of, why_not

PlanFormat = Annotated[Literal[2], BeforeValidator(lambda number: 2 if number == 1 else number)]
"""Format 1 differs in the older names of reasons alone, which are read, so a plan of it is one of today."""

GateMode = Literal["dynamic", "staged"]
"""`dynamic`: one graph that narrows the visual rows to none; `staged`: the decoder cut at the gates."""


class Cache(Facts):
    """Keys and values of some heads of a layer.

    Attributes:
        layer: whose they are.
        part: `` for heads in which visual tokens take part, `text_` for the others of a split layer.
        groups: how many key/value heads.
        length: name of its length: `past`, `past_12` behind a gate, `past_runs_3` where some visual rows run
            alone, `past_text` for text rows alone.
    """

    layer: int
    part: Literal["", "text_"]
    groups: int
    length: str


TEXT_PAST = "past_text"


def length_names(caches: Sequence[Cache], *, tells_rows: bool) -> tuple[str, ...]:
    """Return the distinct names of caches' lengths, in order of appearance.

    Args:
        caches: of a decoder or a part of it.
        tells_rows: which rows of the past are visual is kept beside them; that has the length `past`.
    """
    told = ("past",) if tells_rows else ()
    return tuple(dict.fromkeys((*(cache.length for cache in caches), *told)))


class Gates(Facts):
    """Gates: the visual rows leave after the first layer whose gate fires; decided in prefill.

    Attributes:
        candidates: layers that have a gate, ascending; the last layer has none.
        mode: how they are deployed.
        width: hidden width of a gate.
        digest: sha256 over the gates' weights.
        fired: calibration prompts whose first gate to fire is that of each candidate; empty: not measured.
        unfired: calibration prompts in which no gate fires.
    """

    candidates: tuple[int, ...] = Field(min_length=1)
    mode: GateMode
    width: Positive
    digest: str
    fired: tuple[Natural, ...] = ()
    unfired: Natural = 0

    @model_validator(mode="after")
    def _consistent(self) -> "Gates":
        if list(self.candidates) != sorted(set(self.candidates)) or self.candidates[0] < 0:
            raise ValueError(f"candidates {self.candidates} are not ascending layers")
        if self.fired and len(self.fired) != len(self.candidates):
            raise ValueError(
                f"{len(self.fired)} counts of exits for {len(self.candidates)} candidates"
            )
        return self


class Workload(Facts):
    """The prefill that costs are predicted for.

    Attributes:
        images: of the prompt.
        text: T of the prompt.
        assumed: T stands for prompts that nobody measured.
    """

    images: Positive = 1
    text: Positive = 64
    assumed: bool = False

    @property
    def assumed_words(self) -> str:
        """What stands behind the number of text rows."""
        return " (assumed: no calibration measured prompts)" if self.assumed else ""


class MadeBy(Facts):
    """What a plan was made by, as long as it is as it was made.

    Attributes:
        methods: what a recipe asked of each of its methods, in words.
        profile: digest of the calibration that they chose by; empty: there was none.
        decision: digest of what they decided; a plan that was changed has another.
    """

    methods: tuple[str, ...]
    profile: str = ""
    decision: str


class Plan(Facts):
    """A complete, replayable description of a compression.

    Attributes:
        plan_format: version of this file's format.
        model: the model the plan was made for.
        model_digest: sha256 over its configuration and weights.
        layers: one entry per decoder layer, in order.
        gates: that decide on an exit for each prompt; None: all prompts do the same.
        front: which visual rows of a tile the decoder gets; None: all.
        notes: for people: what of a recipe makes no sense together, or is not done as asked.
        workload: the prefill that predicted figures refer to.
        made_by: of a plan made by a recipe; read `makers`, which knows whether it still is.
    """

    plan_format: PlanFormat = 2
    model: ModelFacts
    model_digest: str
    layers: tuple[LayerPlan, ...]
    gates: Gates | None = None
    front: Kept | None = None
    notes: tuple[str, ...] = ()
    workload: Workload = Workload()
    made_by: MadeBy | None = None

    @model_serializer(mode="wrap")
    def _without_a_choice_that_is_not_made(
        self, handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if k != "front" or v is not None}

    @model_validator(mode="after")
    def _layers_match_the_model(self) -> "Plan":
        indices = [layer.index for layer in self.layers]
        if indices != list(range(self.model.decoder.layers)):
            raise ValueError(
                f"layers are {indices}; the model has layers 0..{self.model.decoder.layers - 1}"
            )
        self._check_cuts()
        self._check_front()
        exited = [layer.exited for layer in self.layers]
        if exited != sorted(exited) or exited[0]:
            raise ValueError("visual rows enter layer 0, and layers after an exit are exited too")
        if self.gates is not None:
            if self.tells_rows:
                raise ValueError("gates exclude windows and the masked semantics")
            if exited[-1]:
                raise ValueError("gates and a fixed exit exclude each other")
            if self.keeps():
                raise ValueError("gates exclude visual rows that leave at a layer")
            if self.grows():
                raise ValueError("gates exclude visual rows that grow at a layer")
            if self.runs():
                raise ValueError("gates exclude layers that some visual rows run alone")
            if self.gates.candidates[-1] >= len(self.layers) - 1:
                last = len(self.layers) - 2
                raise ValueError(f"candidates {self.gates.candidates} reach beyond layer {last}")
        return self

    @model_validator(mode="after")
    def _choices_make_sense(self) -> "Plan":
        keeps = self.keeps()
        if 0 in keeps:
            raise ValueError(
                "visual rows leave at the inputs of layers from 1 on, or in front: `front`"
            )
        if keeps and self.tells_rows:
            raise ValueError(
                "visual rows that leave at a layer exclude windows and the masked semantics"
            )
        for layer, grown in self.grows().items():
            self._check_grown(layer, grown)
        if problem := why_not(self.layers, self.model, self.rows_kept or self.model.tile_rows):
            raise ValueError(problem)
        for layer, kept in keeps.items():
            if kept.of != (there := self.tile_rows_at(layer)):
                raise ValueError(
                    f"layer {layer}: keep: chooses among {kept.of} visual rows; of a tile {there} get there"
                )
        return self

    def _check_cuts(self) -> None:
        """Refuse cuts of what the model does not have.

        Raises:
            ValueError: heads or neurons that do not exist, a window without a grid or larger than it.
        """
        dims, grid = self.model.decoder, self.model.token_grid
        for layer in self.layers:
            beyond = {
                "key/value heads": (layer.groups or (), dims.kv_heads),
                "neurons": (layer.neurons or (), dims.intermediate),
            }
            for what, (chosen, count) in beyond.items():
                if chosen and chosen[-1] >= count:
                    raise ValueError(
                        f"layer {layer.index}: {what} up to {chosen[-1]}; there are {count}"
                    )
            if layer.window is not None and (grid is None or layer.window > min(grid)):
                raise ValueError(
                    f"layer {layer.index}: a window of {layer.window} does not fit the token grid {grid}"
                )

    def _check_front(self) -> None:
        """Refuse a choice in front of the decoder that the model's pictures or a window rule out.

        Raises:
            ValueError: tiles have another number of rows, or a layer has a window.
        """
        if self.model.tile_places not in (None, self.rows_kept):
            raise ValueError(
                f"front: {self.rows_kept} rows of a tile have {self.model.tile_places} places"
            )
        if self.front is None:
            return
        if self.front.of != self.model.tile_rows:
            raise ValueError(
                f"front: chooses among {self.front.of} visual rows; a tile has {self.model.tile_rows}"
            )
        if windows := [layer.index for layer in self.layers if layer.window is not None]:
            raise ValueError(
                f"layer {windows[0]}: a window reads the grid of all visual rows; front: keeps some alone"
            )

    def _check_grown(self, layer: int, grown: Growth) -> None:
        """Refuse rows that grow where the model or other choices rule it out.

        Raises:
            ValueError: it is not known how many rows of each tile there are, or where new ones stand.
        """
        place, there = f"layer {layer}: grow", self.rows_kept or self.model.tile_rows
        if not layer or [*self.grows()] != [layer]:
            raise ValueError(f"{place}: visual rows grow once, at the input of a layer from 1 on")
        if (reason := why_not_grown(self.model, layer)) is not None:
            raise ValueError(f"{place}: {reason}")
        if grown.of != there:
            raise ValueError(f"{place}: is made for {grown.of} rows of a tile; {there} enter")
        rows, most = grown.count * self.model.most_tiles, self.model.decoder.max_positions
        if rows >= most:
            raise ValueError(
                f"{place}: a picture would have {rows} visual tokens, and the model has {most} positions"
            )
        if self.keeps():
            raise ValueError(
                f"{place}: rows that leave at a layer leave different numbers of each tile"
            )
        if self.runs():
            raise ValueError(f"{place}: layers that some rows run count on the rows of a tile")
        if self.tells_rows:
            raise ValueError(
                f"{place}: windows and the masked semantics number visual rows by the prompt"
            )

    @property
    def visual(self) -> int:
        """V of the workload: the visual rows that enter the decoder."""
        if self.front is None:
            return self.image_tokens
        return self.workload.images * self.model.rows_entering(self.front.count)

    @property
    def rows_kept(self) -> int | None:
        """K of the N visual rows of a tile, or of as many of any grid, that enter the decoder; None: all."""
        return None if self.front is None else self.front.count

    def tile_rows_at(self, layer: int) -> int:
        """Return how many visual rows of a tile come to the input of a layer from 1 on."""
        return self.rows_of_layers(self.rows_kept or self.model.tile_rows)[layer - 1]

    @property
    def image_tokens(self) -> int:
        """Those of the workload's prompt; of pictures that give more or fewer, of the largest made up."""
        return self.workload.images * self.model.largest_rows

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods that layers give as a reason, or that choose among rows or add some."""
        choices = [self.front, *(c for layer in self.layers for c in (*layer.changes, layer.run))]
        choosers = [choice.by for choice in choices if choice is not None]
        reasons = dict.fromkeys([*choosers, *(layer.reason for layer in self.layers)])
        return tuple(name for name in reasons if name not in ("", "dead"))

    @property
    def makers(self) -> MadeBy | None:
        """What the plan was made by; None: by hand, changed since, or by an older version."""
        made = self.made_by
        return made if made is not None and made.decision == self._decision() else None

    @property
    def changed(self) -> bool:
        """Whether it was made by a recipe and is another plan by now."""
        return self.made_by is not None and self.makers is None

    def signed(self, methods: Sequence[str], profile: str) -> "Plan":
        """Return the plan with what it was made by; see `MadeBy`."""
        made = MadeBy(methods=tuple(methods), profile=profile, decision=self._decision())
        return self.model_copy(update={"made_by": made})

    @property
    def work_digest(self) -> str:
        """Sha256 over what is done to visual rows, whatever the model is called and whoever chose it."""
        done = self.model_dump_json(include={"layers", "gates", "front"})
        return hashlib.sha256(done.encode()).hexdigest()

    def _decision(self) -> str:
        """Digest of what is done to which model."""
        decided = self.model_dump_json(include={"model_digest", "layers", "gates", "front"})
        return hashlib.sha256(decided.encode()).hexdigest()

    def frozen_layers(self) -> tuple[int, ...]:
        """Indices of the layers that visual rows pass through unchanged."""
        return tuple(layer.index for layer in self.layers if layer.frozen)

    @property
    def exit_layer(self) -> int | None:
        """First layer without visual rows; None if they stay, or gates decide."""
        return next((layer.index for layer in self.layers if layer.exited), None)

    def keeps(self) -> dict[int, Kept]:
        """Return which visual rows go on at the inputs of layers, by layer."""
        return {layer.index: layer.keep for layer in self.layers if layer.keep is not None}

    def grows(self) -> dict[int, Growth]:
        """Return how many visual rows become how many at the inputs of layers, by layer."""
        return {layer.index: layer.grow for layer in self.layers if layer.grow is not None}

    @property
    def moves_text(self) -> bool:
        """Whether rows that grow move the text behind them on: they are not as many as a tile's places."""
        return any(grown.count != self.model.places_of_tile for grown in self.grows().values())

    def runs(self) -> dict[int, Running]:
        """Return which visual rows run layers that not all run, by layer."""
        return runs_of(self.layers)

    def rows_of_layers(self, visual: int) -> tuple[int, ...]:
        """Return how many visual rows each layer has, of so many that enter the decoder; gates aside."""
        found = []
        for layer in self.layers:
            for change in layer.changes:
                visual = change.rows(visual)
            found.append(0 if layer.exited else visual)
        return tuple(found)

    def changed_by_length(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Return (k, n) of each time that k of n visual rows went on, or n became k, in front of caches.

        By the name of their length; those that hold all visual rows, or none, are left out.
        """
        found: dict[str, tuple[tuple[int, int], ...]] = {}
        so_far: tuple[tuple[int, int], ...] = ()
        names = run_lengths(self.layers, self.segments())
        for layer in self.layers:
            if layer.changes:
                so_far += tuple((change.count, change.of) for change in layer.changes)
                found[f"past_{layer.index}"] = so_far
            if layer.run is not None:
                found[names[layer.index]] = (*so_far, (layer.run.count, layer.run.of))
        return found

    def segments(self) -> tuple[range, ...]:
        """Runs of layers that the same rows enter: cut at an exit, a gate, where rows leave or grow."""
        cuts = sorted({*self.keeps(), *self.grows(), *filter(None, [self.exit_layer])})
        if self.gates is not None:
            cuts = [candidate + 1 for candidate in self.gates.candidates]
        return tuple(range(a, b) for a, b in pairwise([0, *cuts, len(self.layers)]))

    def caches(self) -> tuple[Cache, ...]:
        """Every pair of cached tensors, in the order in which the decoder takes them."""
        lengths = {
            layer: f"past_{segment.start}" if segment.start else "past"
            for segment in self.segments()
            for layer in segment
        } | run_lengths(self.layers, self.segments())
        everything = self.model.decoder.kv_heads
        found = []
        for layer in self.layers:
            i, own = layer.index, TEXT_PAST if layer.exited else lengths[layer.index]
            seen = len(layer.groups or ()) if layer.split else everything
            if seen:
                found.append(Cache(layer=i, part="", groups=seen, length=own))
            if seen < everything:
                rest = everything - seen
                found.append(Cache(layer=i, part="text_", groups=rest, length=TEXT_PAST))
        return tuple(found)

    @property
    def tells_rows(self) -> bool:
        """Whether the decoder keeps, beside the caches, which of their rows are visual."""
        return any(layer.tells_rows for layer in self.layers)

    def gates_see(self) -> str:
        """Digest of what changes the states that gates read; empty: they are the original's.

        Dead rows change nothing, and behind an exit no gate is asked.
        """
        cut = [x for x in self.layers if x.cuts or x.frozen_by_method or x.run is not None]
        seen = [layer.model_dump(mode="json") for layer in cut]
        if self.front is not None:
            seen.append(self.front.model_dump(mode="json"))
        text = json.dumps(seen, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest() if seen else ""

    def naive(self) -> "Plan":
        """The original's own work: every row in every layer, dead rows included."""
        layers = tuple(LayerPlan(index=layer.index) for layer in self.layers)
        model = self.model.model_copy(update={"tile_places": None})
        return self.model_copy(
            update={"model": model, "layers": layers, "gates": None, "front": None}
        )

    def fired_after(self, layer: int | None) -> "Plan":
        """What a plan with gates does with a prompt whose first gate to fire is behind `layer`.

        None: no gate fires. Visual rows of that very layer ran already: they are not dead.
        """
        layers = tuple(
            entry.turned("exited", "gates") if layer is not None and entry.index > layer else entry
            for entry in self.layers
        )
        return self.model_copy(update={"layers": layers, "gates": None})

    def save(self, path: Path) -> None:
        """Write the plan as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    def check_belongs(
        self,
        model: str,
        model_digest: str,
        *,
        what: str = "the plan",
        remedy: str = "make it anew with `vtcompress plan`",
    ) -> None:
        """Refuse to be used for another model.

        Args:
            model: hub id or folder name of the model at hand.
            model_digest: of that model.
            what: starts the problem.
            remedy: ends it.

        Raises:
            ArtifactError: the plan was made for another model.
        """
        if not same_model(self.model_digest, model_digest):
            differs = difference(self.model_digest, model_digest)
            raise ArtifactError(
                [f"{what} was made for {self.model.name}, not for {model} ({differs}); {remedy}"]
            )

    def check_gates(self, digest: str | None) -> None:
        """Refuse to be used with other gates, where it has any.

        Args:
            digest: sha256 of the file of the gates at hand; None: there are none.

        Raises:
            ArtifactError: the plan was made with other gates.
        """
        if self.gates is not None:
            _check_made_with("gates", {self.gates.digest}, digest, "give these gates")

    def check_routers(self, digest: str | None) -> None:
        """Refuse to be used with other routers, where layers have some.

        Args:
            digest: sha256 of the file of the routers at hand; None: there are none.

        Raises:
            ArtifactError: the plan was made with other routers.
        """
        made = {run.weights for run in self.runs().values()}
        _check_made_with("routers", made, digest, "give these routers")

    def check_front_weights(self, digest: str) -> None:
        """Refuse to be used with other weights of a choice in front of the decoder, where that reads any.

        Args:
            digest: sha256 of the file at hand; empty: there is none.

        Raises:
            ArtifactError: the plan was made with another file.
        """
        if self.front is not None:
            what, remedy = f"weights of {self.front.by}", "name that file in the recipe"
            _check_made_with(what, {self.front.weights}, digest, remedy)

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read a plan.

        Raises:
            PlanError: the file is missing, no JSON, of a newer format or inconsistent.
        """
        if (problem := mistaken(path, "plan")) is not None:
            raise PlanError([problem])
        return read_json(
            path, cls, PlanError, "plan", "correct it, or make it anew with `vtcompress plan`"
        )


def _check_made_with(what: str, made: Set[str], digest: str | None, remedy: str) -> None:
    """Refuse weights of another digest than those that a plan was made with.

    Raises:
        ArtifactError: they are others, or none.
    """
    if not made - {digest}:
        return
    wanted = " and ".join(sorted(one[:12] or "none" for one in made))
    found = f"digest {digest[:12]}" if digest else "none"
    raise ArtifactError(
        [
            f"the plan was made with {what} of digest {wanted}, given: {found}; {remedy}, or make the plan "
            "anew with `vtcompress plan`"
        ]
    )
