"""Names and axes of every graph, declared once; export, sample inputs, runtime feeds and checks read them.

Axes: `batch` B, `images` I (tiles, where pictures are cut), `height` and `width` in pixels and `rows` of
pictures that have sizes or rows of their own, `chosen` of these rows, `visual` V, `text` T, `past` P, `total`
P plus the rows of this call; numbers are fixed. Caches have other lengths where they hold text alone
(`past_text`, `total_text`) and behind a gate (`past_12`, `total_12` from layer 12 on). `asked` is min(V, 1).

Caches of fixed size have the rows of their buffer instead, as many in the present as in the past: `room`,
`room_text`, `room_12`. How many of them are filled is an input for each name of a length: `past_length`,
`past_text_length` [B].

A plan with gates is of batch 1. `staged`, it has a decoder graph for each run of layers up to a gate; the
caller passes states on, and no visual rows once `gate_logits` of a stage say so.
"""

from collections.abc import Collection, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from compressor.facts import POSITION_AXES, Facts, ModelFacts, Positive
from compressor.plan.dead_rows import deepstack_layers
from compressor.plan.kept import Kept
from compressor.plan.plan import Cache, Plan, length_names
from compressor.plan.some_run import RUNS_PAST
from export.graphs.limits import Limits

DType = Literal["float32", "float16", "bfloat16", "int64", "bool"]
Axis = str | int


class TensorSpec(Facts):
    """One input or output.

    Attributes:
        name: of it.
        dtype: of its values.
        axes: names or sizes.
        filled: of a fixed cache, the name of its length: how many of its rows count; else empty.
        rows: of a fixed cache, the most that its buffer may ever have; else 0.
    """

    name: str
    dtype: DType
    axes: tuple[Axis, ...]
    filled: str = ""
    rows: int = Field(default=0, ge=0)

    @model_serializer(mode="wrap")
    def _without_what_it_has_not(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if k not in ("filled", "rows") or v}

    @model_validator(mode="after")
    def _fixed_caches_have_a_most(self) -> "TensorSpec":
        if bool(self.filled) != bool(self.rows):
            raise ValueError("a cache of fixed size needs both `filled` and `rows`; export it anew")
        return self

    def shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """Return the shape for the given sizes of the named axes.

        An axis of later layers, such as `past_12`, has the size of `past` unless it is given.
        """
        return tuple(
            axis if isinstance(axis, int) else sizes[axis if axis in sizes else axis.split("_")[0]]
            for axis in self.axes
        )

    @property
    def numpy(self) -> np.dtype:
        """The numpy dtype of its values."""
        if self.dtype == "bfloat16":  # numpy has none of its own
            import ml_dtypes

            found: np.dtype = np.dtype(ml_dtypes.bfloat16)
            return found
        return np.dtype(self.dtype)


class GraphSpec(Facts):
    """One ONNX graph.

    Attributes:
        name: `vision`, `embed`, `decoder`, `decoder_stage_0`.., `baseline_decoder` or `baseline_vision`.
        file: its file in the artifact.
        visual_multiple: what V is a multiple of: a tile's rows where these are laid out on a grid, compete
            with each other, or all grow; else 1.
        pixel_multiple: what `height` and `width` of pictures are multiples of.
        gated: gates of the prompt decide on its exit; None, as in older artifacts: it is not told.
        kept: of caches by the name of their length, (k, n) for each time that k of n visual rows went on in
            front of them, or n became k, which is more; of those in which all or none are, nothing. Of a
            vision graph, likewise, by its output's name, where the k rows of every n that it gives are no
            number.
        moves_text: text rows behind pictures of the same call move on where visual rows become more.
    """

    name: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    visual_multiple: Positive = 1
    pixel_multiple: Positive = 1
    gated: bool | None = None
    kept: dict[str, tuple[tuple[Positive, Positive], ...]] = Field(default_factory=dict)
    moves_text: bool = False

    @model_serializer(mode="wrap")
    def _without_choices_not_made(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if k not in ("kept", "moves_text") or v}

    @property
    def reads_question(self) -> bool:
        """Whether what becomes of visual rows depends on rows behind them."""
        choices = (
            pair
            for name, pairs in self.kept.items()
            if not name.startswith(RUNS_PAST)
            for pair in pairs
        )
        return self.reads_gates or any(count <= of for count, of in choices)

    @property
    def batch(self) -> int | None:
        """Prompts of every call, if the graph is for a fixed number of them."""
        size = self.inputs[0].axes[0]
        return size if isinstance(size, int) else None

    @property
    def reads_gates(self) -> bool:
        """Whether it is a part of a decoder with gates."""
        # Until graphs told it, those with gates were the only ones of a fixed batch.
        return self.batch == 1 if self.gated is None else self.gated

    @property
    def rows_kept(self) -> int | None:
        """Of a vision graph that chooses: visual rows that it gives of a tile's; None: it gives all."""
        if self.outputs[-1].name != KEPT:
            return None
        return self.kept[KEPT][0][0] if KEPT in self.kept else int(self.outputs[-1].axes[1])

    @property
    def narrows(self) -> bool:
        """Whether gates inside it compute how many visual rows go on."""
        return self.name == "decoder" and self.reads_gates

    @property
    def fixed(self) -> bool:
        """Whether it writes into caches of fixed size."""
        return any(tensor.filled for tensor in self.inputs)

    @property
    def cached(self) -> tuple[TensorSpec, ...]:
        """Those of a decoder's inputs that an earlier call returned."""
        pairs = f"{PAST}."
        return tuple(t for t in self.inputs if t.name.startswith(pairs) or t.name == PAST_VISUAL)

    @property
    def lengths(self) -> tuple[str, ...]:
        """Names of the lengths of its fixed caches, in the order of the inputs that tell them."""
        told = (t.name for t in self.inputs if t.name.endswith(LENGTH))
        return tuple(name.removesuffix(LENGTH) for name in told)

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "GraphSpec":
        names = [t.name for t in (*self.inputs, *self.outputs)]
        if len(set(names)) != len(names):
            raise ValueError("a name is used twice")
        return self


def vision_graph(
    facts: ModelFacts, dtype: DType, front: Kept | None = None, name: str = "vision"
) -> GraphSpec:
    """Pixels of tiles [I, 3, H, W] to visual embeddings [I, N, D]; H, W and N have names if they differ.

    Behind them, likewise, what the decoder's inputs of the same names take. Where rows of tiles are arranged,
    it also takes of which each visual row is made, and gives [V, D]. One that chooses then takes one grid's
    cells and the row that ends lines, and gives those that stay and that row.

    Args:
        facts: of the model.
        dtype: of weights and activations.
        front: K of the N rows go on: all are [I, K, D], and last comes which ones, `kept` [I, K], or one
            axis less. K has a name where N differs.
        name: of the graph.
    """
    size: tuple[Axis, Axis] = facts.largest_picture
    rows: tuple[Axis, ...] = ("images", facts.tile_rows)
    if facts.sizes_differ:
        size, rows = SIDES, ("images", "rows")
    arranged: list[TensorSpec] = []
    if facts.arrangement is not None:
        rows, taps = ("rows",), facts.arrangement.taps
        axes = (*rows, taps) if taps > 1 else rows
        kinds: tuple[DType, ...] = ("int64", dtype) if taps > 1 else ("int64",)
        arranged = [
            TensorSpec(name=name, dtype=kind, axes=axes)
            for name, kind in zip(ARRANGED, kinds, strict=False)
        ]
    chosen: list[TensorSpec] = []
    told: dict[str, tuple[tuple[int, int], ...]] = {}
    if front is not None:
        rows = (*rows[:-1], "chosen" if facts.grids_differ else front.count)
        chosen = [TensorSpec(name=KEPT, dtype="int64", axes=rows)]
        told = {KEPT: ((front.count, front.of),)} if facts.grids_differ else {}
    return GraphSpec(
        name=name,
        file=f"{name}.onnx",
        inputs=(
            TensorSpec(name="pixel_values", dtype=dtype, axes=("images", 3, *size)),
            *arranged,
        ),
        outputs=(
            *(
                TensorSpec(name=output, dtype=dtype, axes=(*rows, facts.decoder.hidden))
                for output in (
                    "image_features",
                    *(f"{DEEPSTACK}{i}" for i in range(facts.decoder.deepstack)),
                )
            ),
            *chosen,
        ),
        pixel_multiple=facts.cell or 1,
        kept=told,
    )


def embed_graph(facts: ModelFacts, dtype: DType) -> GraphSpec:
    """Token ids [B, T] to text embeddings [B, T, D]."""
    return GraphSpec(
        name="embed",
        file="embed.onnx",
        inputs=(TensorSpec(name="input_ids", dtype="int64", axes=("batch", "text")),),
        outputs=(
            TensorSpec(
                name="inputs_embeds", dtype=dtype, axes=("batch", "text", facts.decoder.hidden)
            ),
        ),
    )


def decoder_graphs(
    plan: Plan, dtype: DType, logits: str, limits: Limits | None = None
) -> tuple[GraphSpec, ...]:
    """Return the graphs that run the plan's decoder one after another: a single one, or its stages.

    Args:
        plan: of the decoder.
        dtype: of weights and activations.
        logits: as in `Decoder`.
        limits: with them caches are of fixed size; None: they grow.
    """
    if plan.gates is None or plan.gates.mode == "dynamic":
        return (decoder_graph(plan, dtype, logits, limits=limits),)
    last = len(plan.segments()) - 1
    return tuple(
        _decoder(plan, dtype, logits, f"{STAGE}{number}", (segment,), limits, ends=number == last)
        for number, segment in enumerate(plan.segments())
    )


def decoder_graph(
    plan: Plan,
    dtype: DType,
    logits: str,
    *,
    name: str = "decoder",
    limits: Limits | None = None,
) -> GraphSpec:
    """Prefill and decode in one graph; see `decoder_graphs`."""
    return _decoder(plan, dtype, logits, name, plan.segments(), limits, ends=True)


def caches_of(inputs: Sequence[TensorSpec]) -> tuple[Cache, ...]:
    """Return the pairs of keys and values among a decoder graph's inputs, in their order."""
    found = []
    for spec in inputs:
        prefix, *place = spec.name.split(".")
        if prefix == PAST and place[-1].endswith("key"):
            part: Literal["", "text_"] = "text_" if place[-1] == "text_key" else ""
            _, groups, axis, _ = spec.axes
            length = spec.filled or str(axis)
            found.append(Cache(layer=int(place[0]), part=part, groups=int(groups), length=length))
    return tuple(found)


def room_of(length: str) -> str:
    """Return the axis of fixed caches whose length has this name: `room_text` of `past_text`."""
    return length.replace("past", ROOM, 1)


def length_of(room: str) -> str:
    """Return the name of the length of fixed caches with this axis: `past_text` of `room_text`."""
    return room.replace(ROOM, "past", 1)


# A vision graph's inputs that say of which rows of tiles visual rows are made, and of how much of each.
ARRANGED = ("row_index", "row_weight")
# A vision graph's last output where it chooses: which of its tile's places each row has.
KEPT = "kept"
# The original's decoder, and its vision graph where the compressed model's gives fewer rows.
BASELINE, BASELINE_VISION = "baseline_decoder", "baseline_vision"
# Axes of pictures that have sizes of their own, in pixels.
SIDES = ("height", "width")
# The one file that all graphs' tensors lie in.
WEIGHTS_FILE = "weights.bin"
STAGE = "decoder_stage_"
# A decoder graph's inputs before its caches: two kinds of rows, and their places.
ROWS = ("visual_embeds", "inputs_embeds", "visual_index", "text_index")
# Behind them: the rows' rotary positions, where these are not their places.
POSITIONS = ("visual_positions", "text_positions")
# Start of the names of inputs that are added to the visual rows behind a layer, whose index ends them.
DEEPSTACK = "deepstack."
# Start of the names of keys and values in the past.
PAST = "past_key_values"
# Which rows of the past are visual; kept beside the caches where the plan asks.
PAST_VISUAL = "past_visual"
# Start of the names of axes that are rows of fixed caches, filled or not.
ROOM = "room"
# End of the names of inputs that tell how many rows of fixed caches are filled.
LENGTH = "_length"


def vision_for(decoder: str, names: Collection[str]) -> str:
    """Return which of an artifact's graphs gives the visual rows of `decoder`, or of the original's."""
    return BASELINE_VISION if decoder == BASELINE and BASELINE_VISION in names else "vision"


def in_order(graphs: Sequence[GraphSpec], decoder: str) -> tuple[GraphSpec, ...]:
    """Return the graphs that run a decoder, `decoder` or `baseline_decoder`: one, or its stages in order."""
    found = [g for g in graphs if g.name == decoder]
    if not found and decoder == "decoder":
        found = [g for g in graphs if g.name.startswith(STAGE)]
        found.sort(key=lambda g: int(g.name.removeprefix(STAGE)))
    return tuple(found)


def _decoder(
    plan: Plan,
    dtype: DType,
    logits: str,
    name: str,
    segments: tuple[range, ...],
    limits: Limits | None,
    *,
    ends: bool,
) -> GraphSpec:
    dims = plan.model.decoder
    batch: Axis = "batch" if plan.gates is None else 1
    layers = {layer for segment in segments for layer in segment}
    caches, changed = [c for c in plan.caches() if c.layer in layers], plan.changed_by_length()

    def cached(names: tuple[str, str], dtype: DType, length: str, *more: int) -> list[TensorSpec]:
        """Return what is given and what comes back; `more` are sizes in front of and behind the rows."""
        axes = [length, length.replace("past", "total", 1)]
        told: dict[str, Any] = {}
        if limits is not None:
            axes = [room_of(length)] * 2
            told = {"filled": length, "rows": limits.cached_rows(length, changed)}
        return [
            TensorSpec(name=n, dtype=dtype, axes=(batch, *more[:1], a, *more[1:]), **t)
            for n, a, t in zip(names, axes, (told, {}), strict=True)
        ]

    pairs = [
        cached(
            (f"{PAST}.{c.layer}.{c.part}{part}", f"present.{c.layer}.{c.part}{part}"),
            dtype,
            c.length,
            c.groups,
            dims.head_dim,
        )
        for c, part in product(caches, ("key", "value"))
    ]
    if plan.tells_rows:
        pairs.append(cached((PAST_VISUAL, "present_visual"), "bool", "past"))
    past, present = ([pair[side] for pair in pairs] for side in (0, 1))
    if limits is not None:
        past += [
            TensorSpec(name=f"{name}{LENGTH}", dtype="int64", axes=(batch,))
            for name in length_names(caches, tells_rows=plan.tells_rows)
        ]
    found: tuple[TensorSpec, ...]
    visual, text = (batch, "visual", dims.hidden), (batch, "text", dims.hidden)
    rows = [
        TensorSpec(name=name, dtype=kind, axes=axes)
        for name, kind, axes in zip(
            ROWS,
            (dtype, dtype, "int64", "int64"),
            (visual, text, visual[:2], text[:2]),
            strict=True,
        )
    ]
    positions = [
        TensorSpec(name=name, dtype="int64", axes=(*axes[:2], POSITION_AXES))
        for name, axes in zip(POSITIONS, (visual, text), strict=True)
        if dims.rope_axes is not None
    ]
    deepstack = [
        TensorSpec(name=f"{DEEPSTACK}{i}", dtype=dtype, axes=visual)
        for i in deepstack_layers(plan)
        if i in layers
    ]
    if ends:
        asked = 1 if logits == "last" else "text"
        found = (TensorSpec(name="logits", dtype="float32", axes=(batch, asked, dims.vocab)),)
    else:
        found = (
            TensorSpec(name="visual_states", dtype=dtype, axes=visual),
            TensorSpec(name="text_states", dtype=dtype, axes=text),
            TensorSpec(name="gate_logits", dtype=dtype, axes=("asked", 2)),
        )
    return GraphSpec(
        name=name,
        file=f"{name}.onnx",
        inputs=(*rows, *past, *positions, *deepstack),
        outputs=(*found, *present),
        visual_multiple=_multiple(plan),
        gated=plan.gates is not None,
        kept=changed,
        moves_text=plan.moves_text,
    )


def _multiple(plan: Plan) -> int:
    """Return what a decoder's V is a multiple of; see `GraphSpec`."""
    if any(layer.window is not None for layer in plan.layers):
        return plan.model.grid_cells
    of_tiles = [run.of for run in plan.runs().values() if run.within == "tile"]
    of_tiles += [grown.of for grown in plan.grows().values()]
    return of_tiles[0] if of_tiles else 1
