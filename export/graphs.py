"""Names and axes of every graph, declared once; export, sample inputs, runtime feeds and checks read them.

Axes: `batch` B, `images` I, `visual` V, `text` T, `past` P, `total` P + V + T; numbers are fixed.
"""

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
        """Return the shape for the given sizes of the named axes."""
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.axes)

    @property
    def numpy(self) -> np.dtype:
        """The numpy dtype of its values."""
        return np.dtype(self.dtype)


class GraphSpec(Facts):
    """One ONNX graph.

    Attributes:
        name: `vision`, `embed`, `decoder` or `baseline_decoder`.
        file: its file in the artifact.
    """

    name: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

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


def decoder_graph(plan: Plan, dtype: DType, logits: str, *, name: str = "decoder") -> GraphSpec:
    """Prefill and decode in one graph."""
    dims = plan.model.decoder
    past, present = [], []
    for layer in plan.layers:
        for part in ("key", "value"):
            cache = ("batch", dims.kv_heads)
            past.append(
                TensorSpec(
                    name=f"past_key_values.{layer.index}.{part}",
                    dtype=dtype,
                    axes=(*cache, "past", dims.head_dim),
                )
            )
            present.append(
                TensorSpec(
                    name=f"present.{layer.index}.{part}",
                    dtype=dtype,
                    axes=(*cache, "total", dims.head_dim),
                )
            )
    rows = 1 if logits == "last" else "text"
    return GraphSpec(
        name=name,
        file=f"{name}.onnx",
        inputs=(
            TensorSpec(name="visual_embeds", dtype=dtype, axes=("batch", "visual", dims.hidden)),
            TensorSpec(name="inputs_embeds", dtype=dtype, axes=("batch", "text", dims.hidden)),
            TensorSpec(name="visual_index", dtype="int64", axes=("batch", "visual")),
            TensorSpec(name="text_index", dtype="int64", axes=("batch", "text")),
            *past,
        ),
        outputs=(
            TensorSpec(name="logits", dtype="float32", axes=("batch", rows, dims.vocab)),
            *present,
        ),
    )
