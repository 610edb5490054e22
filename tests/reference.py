"""An independent decoder with every cut: all rows of a conversation at once, dense masks, numpy.

It follows the definitions, not the code under test: what a row may not read is masked before the softmax
(`removed`) or zeroed behind it (`masked`), visual rows without a part in a head get zeros from it. Those that
left run on, and nobody reads them.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.plan.growth import Growth
from compressor.plan.kept import Kept, Running
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
        if layer.grow is not None:
            states, rows = _grown(layer.grow, plan.model.tile_rows, states, rows)
            there = np.ones(len(states), bool)
        runs = there
        if layer.run is not None:
            runs, factor = _run(plan, layer, weights, states, rows, there)
            before, (mlp, update) = states, _factors(layer.run, factor, rows)
            states, read = _layer(plan, layer, weights, states, rows, runs, mlp)
            states = np.where(
                (rows.visual & ~runs)[:, None], before, before + update * (states - before)
            )
        else:
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


def _grown(
    grown: Growth, tokens: int, states: Array, rows: Conversation
) -> tuple[Array, Conversation]:
    """Return states and rows with the visual rows of every image resized, each call at positions of its own.

    A call's first row stands where it did; the others follow it, `tokens` image tokens or not.
    """
    calls = np.zeros(len(states), np.int64) if rows.call is None else rows.call
    old = np.arange(len(states)) if rows.positions is None else rows.positions[:, 0]
    parts = []  # of every run of text, or image: states, whether visual, image, call, positions
    for call in range(calls.max() + 1):
        inside = np.flatnonzero(calls == call)
        text, images = inside[~rows.visual[inside]], inside[rows.visual[inside]]
        blocks = np.split(images, len(images) // grown.of) if len(images) else []
        # In front of the first row of an image that is left there may have been others.
        first = old[text[0]] - tokens * sum(block[0] < text[0] for block in blocks)
        made = [(states[[row]], row, False) for row in text]
        for block in blocks:
            at = np.arange(grown.count) * (grown.of - 1) / (grown.count - 1)
            columns = [np.interp(at, np.arange(grown.of), c) for c in states[block].T]
            made.append((np.stack(columns, axis=1), block[0], True))
        made.sort(key=lambda part: part[1])
        start = first
        for part, row, visual in made:
            parts.append((part, visual, rows.image[row], call, start + np.arange(len(part))))
            start += len(part)
    counts = [len(part) for part, *_ in parts]
    visual, image, call = (np.repeat([p[i] for p in parts], counts) for i in (1, 2, 3))
    found = Conversation(
        embeds=np.concatenate([part for part, *_ in parts]),
        visual=visual,
        image=image,
        cell=np.zeros(len(visual), np.int64),
        positions=np.concatenate([p for *_, p in parts])[:, None],
        call=call,
    )
    return found.embeds, found


def _run(
    plan: Plan,
    layer: LayerPlan,
    weights: dict[str, Array],
    states: Array,
    rows: Conversation,
    there: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], Array]:
    """Return which rows run a layer [S], and the weight that its router gives each [S, 1]."""
    run, name = layer.run, f"layers.{layer.index}"
    assert run is not None
    router = weights[f"{name}.router.weight"]
    if run.by == "gamma_mod":
        normed = _norm(
            states, weights[f"{name}.input_layernorm.weight"], plan.model.decoder.rms_norm_eps
        )
        weight = 1 / (1 + np.exp(normed @ (router[0] - router[1])))
    else:
        weight = states @ router[0]
    calls = np.zeros(len(there), np.int64) if rows.call is None else rows.call
    rivals = calls if run.within == "call" else rows.image
    chosen = ~rows.visual
    for one in np.unique(rivals):
        places = np.flatnonzero((rivals == one) & rows.visual & there)
        best = places[np.argsort(-weight[places], kind="stable")]
        chosen[best[: math.ceil(len(places) * run.count / run.of)]] = True
    return chosen, weight[:, None]


def _factors(
    run: Running, weight: Array, rows: Conversation
) -> tuple[Array | float, Array | float]:
    """Return what multiplies the MLP's update, and the whole layer's, of each row [S, 1]."""
    if run.by == "gamma_mod":
        return weight, 1.0
    return 1.0, np.where(rows.visual[:, None], weight, 1.0)


def _layer(
    plan: Plan,
    layer: LayerPlan,
    weights: dict[str, Array],
    states: Array,
    rows: Conversation,
    there: NDArray[np.bool_],
    factor: Array | float = 1.0,
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
    if layer.run is not None and layer.run.by == "gamma_mod":
        again = np.cumsum(there)[:, None] - 1
        rows = replace(rows, positions=np.repeat(again, 3 if dims.rope_axes else 1, axis=1))
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
    after = after + factor * active
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
