"""Names and axes of every graph, declared once; export, sample inputs, runtime feeds and checks read them.

Axes: `batch` B, `images` I, `visual` V, `text` T, `past` P, `total` P plus the rows of this call; numbers
are fixed. Layers behind an exit or a gate have caches of another length: `past_12`, `total_12` from layer 12
on. `asked` is min(V, 1).

A plan with gates is of batch 1. `staged`, it has a decoder graph for each run of layers up to a gate; the
caller passes states on, and no visual rows once `gate_logits` of a stage say so.
"""

from collections.abc import Sequence
from itertools import product
from typing import Literal

import numpy as np
from pydantic import model_validator

from compressor.dims import Facts, ModelFacts
from compressor.plan import Plan

DType = Literal["float32", "float16", "int64"]
Axis = str | int


class TensorSpec(Facts):
    """One input or output."""

    name: str
    dtype: DType
    axes: tuple[Axis, ...]

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
        return np.dtype(self.dtype)


class GraphSpec(Facts):
    """One ONNX graph.

    Attributes:
        name: `vision`, `embed`, `decoder`, `decoder_stage_0`.. or `baseline_decoder`.
        file: its file in the artifact.
    """

    name: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def narrows(self) -> bool:
        """Whether gates inside it compute how many visual rows go on."""
        return self.name == "decoder" and self.inputs[0].axes[0] == 1

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "GraphSpec":
        names = [t.name for t in (*self.inputs, *self.outputs)]
        if len(set(names)) != len(names):
            raise ValueError("a name is used twice")
        return self


def vision_graph(facts: ModelFacts, dtype: DType) -> GraphSpec:
    """Pixels [I, 3, S, S] to visual embeddings [I, N, D]."""
    size = facts.image_size
    return GraphSpec(
        name="vision",
        file="vision.onnx",
        inputs=(TensorSpec(name="pixel_values", dtype=dtype, axes=("images", 3, size, size)),),
        outputs=(
            TensorSpec(
                name="image_features",
                dtype=dtype,
                axes=("images", facts.visual_tokens, facts.decoder.hidden),
            ),
        ),
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


def decoder_graphs(plan: Plan, dtype: DType, logits: str) -> tuple[GraphSpec, ...]:
    """Return the graphs that run the plan's decoder one after another: a single one, or its stages."""
    if plan.gates is None or plan.gates.mode == "dynamic":
        return (decoder_graph(plan, dtype, logits),)
    last = len(plan.segments()) - 1
    return tuple(
        _decoder(plan, dtype, logits, f"{STAGE}{number}", (segment,), ends=number == last)
        for number, segment in enumerate(plan.segments())
    )


def decoder_graph(plan: Plan, dtype: DType, logits: str, *, name: str = "decoder") -> GraphSpec:
    """Prefill and decode in one graph."""
    return _decoder(plan, dtype, logits, name, plan.segments(), ends=True)


STAGE = "decoder_stage_"
# A decoder graph's inputs before its caches: two kinds of rows, and their places.
ROWS = 4


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
    *,
    ends: bool,
) -> GraphSpec:
    dims = plan.model.decoder
    batch: Axis = "batch" if plan.gates is None else 1
    past: list[TensorSpec] = []
    present: list[TensorSpec] = []
    for segment in segments:
        later = f"_{segment.start}" if segment.start else ""
        for layer, part in product(segment, ("key", "value")):
            for tensors, prefix, length in (
                (past, "past_key_values", "past"),
                (present, "present", "total"),
            ):
                axes = (batch, dims.kv_heads, length + later, dims.head_dim)
                tensors.append(TensorSpec(name=f"{prefix}.{layer}.{part}", dtype=dtype, axes=axes))
    found: tuple[TensorSpec, ...]
    visual, text = (batch, "visual", dims.hidden), (batch, "text", dims.hidden)
    if ends:
        rows = 1 if logits == "last" else "text"
        found = (TensorSpec(name="logits", dtype="float32", axes=(batch, rows, dims.vocab)),)
    else:
        found = (
            TensorSpec(name="visual_states", dtype=dtype, axes=visual),
            TensorSpec(name="text_states", dtype=dtype, axes=text),
            TensorSpec(name="gate_logits", dtype=dtype, axes=("asked", 2)),
        )
    return GraphSpec(
        name=name,
        file=f"{name}.onnx",
        inputs=(
            TensorSpec(name="visual_embeds", dtype=dtype, axes=visual),
            TensorSpec(name="inputs_embeds", dtype=dtype, axes=text),
            TensorSpec(name="visual_index", dtype="int64", axes=(batch, "visual")),
            TensorSpec(name="text_index", dtype="int64", axes=(batch, "text")),
            *past,
        ),
        outputs=(*found, *present),
    )
