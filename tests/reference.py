"""An independent decoder with every cut: all rows of a conversation at once, dense masks, numpy.

It follows the definitions, not the code under test: what a row may not read is masked before the softmax
(`removed`) or zeroed behind it (`masked`), visual rows without a part in a head get zeros from it. Those that
left run on, and nobody reads them.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.plan.kept import Kept
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Conversation:
    """All rows in the order of their places.

    Attributes:
        embeds: [S, D].
        visual: [S] bool.
        image: [S] number of the image a visual row belongs to.
        cell: [S] place of a visual row inside its image.
        positions: [S, A] what turns the rotations; None: the places.
        deepstack: [K, S, D] what is added behind the first layers; zeros in text rows.
        call: [S] number of the call a row belongs to; None: all ran in one.
    """

    embeds: Array
    visual: NDArray[np.bool_]
    image: NDArray[np.int64]
    cell: NDArray[np.int64]
    positions: NDArray[np.int64] | None = None
    deepstack: Array | None = None
    call: NDArray[np.int64] | None = None


def text_logits(plan: Plan, tensors: dict[str, torch.Tensor], rows: Conversation) -> Array:
    """Return the logits [T, vocab] of all text rows."""
    weights = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    states, there = rows.embeds, np.ones(len(rows.embeds), bool)
    read = np.zeros((len(there), len(there)))
    for layer in plan.layers:
        if layer.keep is not None:
            there = _read_most(layer.keep, read, there, rows)
        states, read = _layer(plan, layer, weights, states, rows, there)
        if rows.deepstack is not None and layer.index < len(rows.deepstack):
            states = states + rows.deepstack[layer.index]
    states = _norm(states, weights["norm.weight"], plan.model.decoder.rms_norm_eps)
    return (states @ weights["lm_head.weight"].T)[~rows.visual]


def _read_most(
    kept: Kept, read: Array, there: NDArray[np.bool_], rows: Conversation
) -> NDArray[np.bool_]:
    """Return which rows go on: of each call's visual ones those that its last row reads most."""
    there = there.copy()
    calls = np.zeros(len(there), np.int64) if rows.call is None else rows.call
    for call in range(calls.max() + 1):
        places = np.flatnonzero((calls == call) & rows.visual & there)
        last = np.flatnonzero(calls == call)[-1]
        order = places[np.argsort(-read[last, places], kind="stable")]
        there[order[math.ceil(len(places) * kept.count / kept.of) :]] = False
    return there


def _layer(
    plan: Plan,
    layer: LayerPlan,
    weights: dict[str, Array],
    states: Array,
    rows: Conversation,
    there: NDArray[np.bool_],
) -> tuple[Array, Array]:
    """Return the states [S, D], and what rows read of rows [S, S], mean over heads."""
    dims = plan.model.decoder

    def part(name: str) -> Array:
        return weights[f"layers.{layer.index}.{name}.weight"]

    def linear(name: str, rows: Array) -> Array:
        product: Array = rows @ part(name).T
        return product + weights.get(f"layers.{layer.index}.{name}.bias", np.float64(0.0))

    normed = _norm(states, part("input_layernorm"), dims.rms_norm_eps)
    count, size, group = len(states), dims.head_dim, dims.heads // dims.kv_heads
    query, key = (
        linear(f"self_attn.{name}_proj", normed).reshape(count, heads, size)
        for name, heads in (("q", dims.heads), ("k", dims.kv_heads))
    )
    if dims.qk_norm:
        query, key = (
            _norm(
                part,
                weights[f"layers.{layer.index}.self_attn.{name}_norm.weight"],
                dims.rms_norm_eps,
            )
            for name, part in (("q", query), ("k", key))
        )
    query, key = (_rotated(part, plan, rows) for part in (query, key))
    value = linear("self_attn.v_proj", normed).reshape(count, dims.kv_heads, size)
    mixed = np.zeros((count, dims.heads, size))
    visual, read = rows.visual, np.zeros((count, count))
    for head in range(dims.heads):
        kept = layer.groups is None or head // group in layer.groups
        may_read = _visible(plan, layer, rows) & there[None]
        if not layer.masked and (layer.exited or not kept):
            may_read = may_read & ~visual[None]
        scores = query[:, head] @ key[:, head // group].T / np.sqrt(size)
        scores = np.where(may_read, scores, -np.inf)
        # A visual row in a pruned head may read nothing; its output is thrown away below.
        scores[~may_read.any(axis=1)] = 0.0
        share = np.exp(scores - scores.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        if layer.masked and (layer.off or not kept):
            share[:, visual] = 0.0
        read += share / dims.heads
        mixed[:, head] = share @ value[:, head // group]
        if not kept:
            mixed[visual, head] = 0.0
    attended = linear("self_attn.o_proj", mixed.reshape(count, -1))
    attended[visual] *= layer.without != "attention"
    after = states + attended
    normed = _norm(after, part("post_attention_layernorm"), dims.rms_norm_eps)
    gate, up = linear("mlp.gate_proj", normed), linear("mlp.up_proj", normed)
    active = gate / (1 + np.exp(-gate)) * up
    if layer.neurons is not None:
        others = [i for i in range(dims.intermediate) if i not in layer.neurons]
        active[np.ix_(visual, others)] = 0.0
    active = linear("mlp.down_proj", active)
    active[visual] *= layer.without != "mlp"
    after = after + active
    stay = visual & (layer.visual != "update")
    return np.where(stay[:, None], states, after), read


def _visible(plan: Plan, layer: LayerPlan, rows: Conversation) -> NDArray[np.bool_]:
    """Return [S, S]: who may read whom before any head is cut."""
    count = len(rows.embeds)
    visible = np.tril(np.ones((count, count), bool))
    if layer.window is None or plan.model.token_grid is None:
        return visible
    columns, half = plan.model.token_grid[1], layer.window // 2
    row, column = rows.cell // columns, rows.cell % columns
    near = np.abs(row[:, None] - row) <= half
    near &= np.abs(column[:, None] - column) <= half
    near &= rows.image[:, None] == rows.image
    if layer.window_causal:
        near &= visible
    both = rows.visual[:, None] & rows.visual
    return np.where(both, near, visible)


def _norm(states: Array, weight: Array, eps: float) -> Array:
    scale: Array = np.sqrt((states**2).mean(axis=-1, keepdims=True) + eps)
    return states / scale * weight


def _rotated(heads: Array, plan: Plan, rows: Conversation) -> Array:
    """Rotate [S, heads, d] by the rows' positions."""
    dims = plan.model.decoder
    turned = np.arange(len(heads))[:, None] if rows.positions is None else rows.positions
    if dims.rope_axes is not None:
        turned = np.stack([turned[:, axis] for axis in dims.rope_axes], axis=1)
    angle = turned * np.array(dims.rope_inv_freq)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
