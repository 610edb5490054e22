"""Tiny plans with YOPO's cuts, their weights, and a conversation to run on them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.decoder import Decoder, decoder_from
from compressor.decoder.weights import source_of
from compressor.facts import ModelFacts
from compressor.methods import layer_scores, run_rules
from compressor.plan.growth import Growth
from compressor.plan.kept import Kept, Running
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan
from tests.facts import dims, facts
from tests.reference import Conversation

TOLERANCE = 1e-4
LAYERS, HIDDEN, NEURONS, GRID = 4, 32, 24, (3, 4)
IMAGE = GRID[0] * GRID[1]
# In GRID a window of 3 reads every visual token of its image; in these it leaves most of them out.
WIDE_GRID, REAL_GRID = (8, 6), (24, 24)
EVERY_OTHER, FIRST = tuple(range(0, NEURONS, 2)), tuple(range(NEURONS // 2))


def model(kv_heads: int, grid: tuple[int, int] = GRID, **changes: Any) -> ModelFacts:
    shape = dims(
        layers=LAYERS,
        hidden=HIDDEN,
        heads=4,
        kv_heads=kv_heads,
        head_dim=8,
        intermediate=NEURONS,
        vocab=40,
        **changes,
    )
    return facts(shape, visual_tokens=grid[0] * grid[1], token_grid=grid)


def cut(index: int, **parts: Any) -> LayerPlan:
    return LayerPlan(index=index, **parts)


def frozen(index: int, **parts: Any) -> LayerPlan:
    return LayerPlan(index=index, visual="frozen", reason="shortv", **parts)


def dead(index: int, **parts: Any) -> LayerPlan:
    return LayerPlan(index=index, visual="frozen", reason="dead", **parts)


def gone(index: int) -> LayerPlan:
    return LayerPlan(index=index, visual="exited", reason="visual_exit")


CUTS: dict[str, Sequence[LayerPlan]] = {
    "heads": [cut(0, groups=(1,)), cut(1, groups=()), cut(2, groups=(0,)), dead(3, groups=(0,))],
    "no visual head at all": [cut(i, groups=()) for i in range(LAYERS)],
    "neurons": [cut(0, neurons=EVERY_OTHER), cut(1, neurons=FIRST), cut(2, neurons=(5,)), dead(3)],
    "window": [cut(0, window=3), cut(1, window=3, window_causal=True), cut(2, window=3), dead(3)],
    "window behind a plain layer": [
        cut(0),
        cut(1, window=3),
        cut(2, window=3, window_causal=True, groups=(0,)),
        dead(3),
    ],
    "window behind a frozen layer": [frozen(0), cut(1, window=3, neurons=FIRST), cut(2), dead(3)],
    "window and heads": [
        cut(0, window=3, groups=(1,)),
        cut(1, window=3, groups=()),
        cut(2),
        dead(3),
    ],
    "everything, frozen, then exit": [
        cut(0, window=3, groups=(1,), neurons=FIRST),
        frozen(1, groups=(0,)),
        gone(2),
        gone(3),
    ],
    "masked": [
        cut(0, window=3, groups=(1,), neurons=FIRST, masked=True),
        cut(1, masked=True, groups=()),
        cut(2, masked=True, off=True),
        dead(3, masked=True, off=True, groups=(0,)),
    ],
    "masked, causal window": [
        cut(0, window=3, window_causal=True, masked=True, groups=(0,)),
        frozen(1, masked=True, groups=(1,)),
        cut(2),
        dead(3),
    ],
    "head norms: heads and neurons": [
        cut(0, groups=(1,), neurons=EVERY_OTHER),
        cut(1, groups=(), neurons=FIRST),
        cut(2),
        dead(3, groups=(0,)),
    ],
    "head norms: everything, frozen, then exit": [
        cut(0, window=3, groups=(1,), neurons=FIRST),
        frozen(1),
        gone(2),
        gone(3),
    ],
    "head norms: masked": [
        cut(0, window=3, groups=(1,), masked=True),
        frozen(1, masked=True, groups=(1,)),
        cut(2),
        dead(3, masked=True, off=True),
    ],
}
KEPT = [Kept(count=count, of=of, by="fastv") for count, of in ((7, IMAGE), (4, 7))]
CUTS |= {
    "goes without": [
        cut(0, without="attention"),
        cut(1, without="mlp", groups=(0,)),
        cut(2, without="attention", neurons=FIRST, groups=(1,)),
        dead(3),
    ],
    "leaving": [cut(0), cut(1, keep=KEPT[0]), cut(2, without="attention"), dead(3)],
    "leaving twice, heads, frozen": [
        cut(0, groups=(1,)),
        frozen(1, keep=KEPT[0]),
        cut(2, keep=KEPT[1], groups=(0,), neurons=FIRST),
        dead(3),
    ],
    "leaving, then exit": [cut(0), cut(1, keep=KEPT[0]), dead(2), gone(3)],
}
GROWN = "growing"
"""Begins the names of those in which the rows of an image become so many times as many, and a row more."""
CUTS |= {
    GROWN: [cut(0), cut(1), cut(2), dead(3)],
    f"{GROWN}, heads, neurons, without": [
        cut(0, groups=(1,)),
        cut(1, groups=(0,), neurons=FIRST),
        cut(2, without="attention"),
        dead(3, groups=(1,)),
    ],
    f"{GROWN}, frozen, then exit": [cut(0), frozen(1), dead(2), gone(3)],
}
GAMMA = Running(count=5, of=IMAGE, by="gamma_mod", outputs=2)
MOD = Running(count=4, of=IMAGE, by="mod", within="tile")
CUTS |= {
    "some run, scaled": [cut(0), cut(1, run=MOD), cut(2, run=MOD), dead(3, run=MOD)],
    "some run, heads, operators, frozen": [
        cut(0, run=MOD, groups=(1,), neurons=FIRST),
        frozen(1, run=MOD),
        cut(2, run=MOD.model_copy(update={"count": 9}), without="attention"),
        dead(3),
    ],
    "some run anew": [cut(0), cut(1, run=GAMMA), cut(2, run=GAMMA), dead(3)],
    "some run anew, heads, operators, frozen": [
        cut(0, run=GAMMA, groups=(1,), neurons=EVERY_OTHER),
        frozen(1, run=GAMMA, groups=(0,)),
        cut(2, run=GAMMA.model_copy(update={"count": 8}), without="mlp"),
        dead(3, run=GAMMA),
    ],
    "some run, then leaving": [cut(0, run=GAMMA), cut(1), cut(2, keep=KEPT[0]), dead(3)],
}
ANEW = tuple(
    name for name, layers in CUTS.items() if any(x.run and x.run.by == "gamma_mod" for x in layers)
)
"""Cuts in which routers scale what becomes of text as well."""

# What the decoders of some of them are like.
OPTIONS: dict[str, dict[str, Any]] = {"head norms": {"qk_norm": True}}
CASES = [(name, kv_heads) for name in CUTS for kv_heads in (2, 4)]


def _on(layer: LayerPlan, grid: tuple[int, int]) -> LayerPlan:
    """Return a layer in which the same share goes on of the rows of another grid."""
    times = grid[0] * grid[1] // IMAGE
    if layer.keep is None:
        return layer
    more = {"count": layer.keep.count * times, "of": layer.keep.of * times}
    return layer.model_copy(update={"keep": layer.keep.model_copy(update=more)})


def plan_of(name: str, kv_heads: int, grid: tuple[int, int] = GRID, **changes: Any) -> Plan:
    facts = model(kv_heads, grid, **OPTIONS.get(name.split(":", maxsplit=1)[0], {}), **changes)
    layers = [_of_tile(_on(layer, grid), facts.tile_rows) for layer in CUTS[name]]
    if name.startswith(GROWN):
        grown = Growth(count=2 * facts.tile_rows + 1, of=facts.tile_rows, by="wico_plus")
        layers[1] = layers[1].model_copy(update={"grow": grown})
    return Plan(model=facts, model_digest="0" * 64, layers=tuple(layers))


def _of_tile(layer: LayerPlan, rows: int) -> LayerPlan:
    """Return a layer that the same share of rows runs of a tile with another number."""
    if layer.run is None:
        return layer
    run = {"count": layer.run.count * rows // layer.run.of, "of": rows}
    return layer.model_copy(update={"run": layer.run.model_copy(update=run)})


def tensors_of(plan: Plan) -> dict[str, torch.Tensor]:
    """Random weights of the original, and of the plan's routers."""
    routers = {n: t for n, t in drawn(plan).items() if "router" in n} if plan.runs() else {}
    return drawn(plan.naive()) | routers


def drawn(plan: Plan) -> dict[str, torch.Tensor]:
    """Random weights of a plan's decoder, large enough for what a method does to show."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        decoder = Decoder(plan, scores=layer_scores(plan), runs=run_rules(plan))
        shapes = {name: p.shape for name, p in decoder.named_parameters()}
    tensors = {}
    for name, shape in sorted(shapes.items()):
        source, transposed = source_of(name)
        tensor = torch.randn(*shape, generator=generator) * 0.3
        tensors[source] = tensor.T.contiguous() if transposed else tensor
    return tensors


def decoder_of(plan: Plan, tensors: dict[str, torch.Tensor], logits: str = "all") -> Decoder:
    """Return a plan's decoder, with what chooses among its visual rows."""
    return decoder_from(
        plan, tensors, logits=logits, scores=layer_scores(plan), runs=run_rules(plan)
    )


# One text row, the images, the other text rows; a later turn brings another image.
CALLS = ((2, 6), (0, 3), (1, 4), (0, 1))


def conversation(
    seed: int = 1, grid: tuple[int, int] = GRID
) -> tuple[Conversation, list[list[torch.Tensor]]]:
    """Return all rows for the reference, and the same rows call by call, a batch of one."""
    generator = torch.Generator().manual_seed(seed)
    size = grid[0] * grid[1]
    embeds, visual, image, calls = [], [], [], []
    numbers = np.repeat(np.arange(len(CALLS)), [count * size + text for count, text in CALLS])
    images = start = 0
    for count, text in CALLS:
        rows = count * size + text
        call = torch.randn(1, rows, HIDDEN, generator=generator)
        is_visual = torch.zeros(rows, dtype=torch.bool)
        is_visual[1 : 1 + count * size] = True
        places = torch.arange(start, start + rows)[None]
        calls.append(
            [call[:, is_visual], call[:, ~is_visual], places[:, is_visual], places[:, ~is_visual]]
        )
        owner = torch.zeros(rows, dtype=torch.int64)
        owner[is_visual] = images + torch.arange(count * size) // size
        embeds.append(call[0])
        visual.append(is_visual)
        image.append(owner)
        images, start = images + count, start + rows
    is_visual = torch.cat(visual).numpy()
    cell = np.zeros(len(is_visual), np.int64)
    cell[is_visual] = np.arange(is_visual.sum()) % size
    rows = Conversation(
        torch.cat(embeds).double().numpy(), is_visual, torch.cat(image).numpy(), cell, call=numbers
    )
    return rows, calls


def batch_of_two(
    grid: tuple[int, int] = GRID,
) -> tuple[tuple[Conversation, Conversation], list[list[torch.Tensor]]]:
    """Return two conversations of other embeddings in the same places, and both as one batch call by call."""
    (one, calls), (other, more) = (conversation(seed, grid) for seed in (1, 2))
    pairs = zip(calls, more, strict=True)
    return (one, other), [[torch.cat(both) for both in zip(a, b, strict=True)] for a, b in pairs]


def logits_of(decoder: Decoder, calls: Sequence[list[torch.Tensor]]) -> NDArray[Any]:
    """Return the logits [B, text rows, vocab] that a decoder gives in calls behind each other."""
    past, found = decoder.empty_past(calls[0][0].shape[0]), []
    with torch.inference_mode():
        for call in calls:
            logits, past = decoder(*call, past)
            found.append(logits.numpy())
    return np.concatenate(found, axis=1)
