"""Draws a plan: one row a layer, and in it what visual and text tokens do, the work and the KV cache."""

from dataclasses import dataclass

from markupsafe import Markup

from compressor.facts import DecoderDims
from compressor.plan.cost import BYTES, Cost, predict
from compressor.plan.plan import LayerPlan, Plan
from export.report.text.svg import element, line, picture, rect, text
from export.report.words.cuts import (
    cut_sentences,
    kept_heads,
    neurons_kept,
    text_alone_values,
)
from export.report.words.exits import staying
from export.report.words.states import state_of, word_of

WIDTH, TOP, ROW = 360.0, 44.0, 16.0
"""Shared with the contribution chart: beside each other, rows of both stand at the same height."""

BOX_TOP, BOX = 2.0, 12.0
# Left edges and widths of: K and V, attention, MLP of visual rows; the same of text rows; work; KV cache.
VISUAL = ((28.0, 30.0), (60.0, 56.0), (118.0, 46.0))
LANE_END = VISUAL[-1][0] + VISUAL[-1][1]
WORDS = ((174.0, 20.0), (196.0, 36.0), (234.0, 26.0))
# From here on there is no room for the word `tokens` over the text lane.
LONG_COUNT = 1000
WORK, CACHE = (270.0, 42.0), (318.0, 42.0)


@dataclass(frozen=True)
class Lane:
    """Which share of each part of one layer is computed for visual rows, from 0 to 1.

    Attributes:
        kv: their keys and values.
        attention: queries, attention and output projection.
        mlp: the feed-forward part.
        note: the state in one word; empty if visual rows are updated.
        label: what a share does not tell of attention, in one word: a window, or masked; may be empty.
    """

    kv: float
    attention: float
    mlp: float
    note: str = ""
    label: str = ""


def lane(layer: LayerPlan, dims: DecoderDims) -> Lane:
    """Return what visual rows do in a layer; masked heads are computed, so they count in full."""
    if layer.exited:
        return Lane(0, 0, 0, word_of(layer))
    heads = len(kept_heads(layer, dims)) / dims.heads if layer.split else 1.0
    masked = "off" if layer.off else "masked" if layer.masked else ""
    if layer.frozen:
        note = word_of(layer)
        partly = layer.masked and not layer.read_by_no_head
        return Lane(heads, 0, 0, f"{note}, masked" if partly else note)
    window = f"{layer.window}x{layer.window}" if layer.window else ""
    label = masked or ("none" if not heads else window)
    return Lane(heads, heads, neurons_kept(layer, dims) / dims.intermediate, "", label)


def decoder_picture(plan: Plan, dtype: str) -> Markup:
    """Return the drawing of a whole plan.

    Args:
        plan: with its workload, whose costs are the bars.
        dtype: of the KV cache.
    """
    before, after = predict(plan.naive()), predict(plan)
    parts = list(_head(plan))
    for layer, share in zip(plan.layers, staying(plan), strict=True):
        parts += _row(plan, layer, share, before, after, dtype)
    y = TOP + ROW * len(plan.layers) + 12
    parts.append(text(28, y, "answer comes out of the last layer's text tokens", "small"))
    if plan.exit_layer is not None:
        parts += _exit(plan.exit_layer)
    if plan.gates is not None:
        y += 14
        parts += [_diamond(23, y - 3), text(28, y, "gate: visual tokens may leave here", "small")]
        for candidate in plan.gates.candidates:
            parts += _gate(candidate)
    return picture(
        "decoder", WIDTH, y + 6, "What visual and text tokens do in each layer", _words(plan), parts
    )


def _words(plan: Plan) -> str:
    """Return the picture in words."""
    groups: dict[tuple[str, str], list[str]] = {}
    for layer in plan.layers:
        groups.setdefault(state_of(layer, plan), []).append(str(layer.index))
    lines = [
        f"{word} in {len(indices)} of {len(plan.layers)} layers ({', '.join(indices)}): {meaning}"
        for (word, meaning), indices in groups.items()
    ]
    cuts = "".join(f"{words} " for words in cut_sentences(plan))
    everywhere = "Text tokens do everything in every layer."
    if cuts:
        everywhere = "Text tokens use every weight in every layer."
    return f"Visual tokens are {'; '.join(lines)}. {cuts}{_gates(plan)}{everywhere}"


def _gates(plan: Plan) -> str:
    if plan.gates is None:
        return ""
    shares = ", ".join(f"{layer}: {share:.0%}" for layer, share in enumerate(staying(plan)))
    places = ", ".join(map(str, plan.gates.candidates))
    return (
        f"Visual tokens may leave at gates behind layers {places}; share of prompts that have them in each "
        f"layer: {shares}. "
    )


def _head(plan: Plan) -> list[Markup]:
    visual, words, count = VISUAL[0][0], WORDS[0][0], plan.workload.text
    of_text = f"{count:,} text tokens" if count < LONG_COUNT else f"{count:,} text"
    parts = [
        text(0, 12, "layer", "small"),
        text(visual, 12, f"{plan.visual:,} visual tokens", "strong"),
        text(words, 12, of_text, "strong"),
        text(WORK[0], 12, "work", "strong"),
        text(WIDTH, 12, "KV cache", "strong", "end"),
        text(WORK[0], 26, "now / before", "small"),
        rect(WORK[0], 30, WIDTH - WORK[0], 0.7, "outline"),
    ]
    names = ("K V", "attention", "MLP")
    for lanes, shown in ((VISUAL, names), (WORDS, ("K V", "attn", "MLP"))):
        parts += [text(x, 38, name, "small") for (x, _), name in zip(lanes, shown, strict=True)]
    return parts


def _row(
    plan: Plan, layer: LayerPlan, share: float, before: Cost, after: Cost, dtype: str
) -> list[Markup]:
    dims = plan.model.decoder
    y = TOP + ROW * layer.index
    does = lane(layer, dims)
    parts = [text(18, y + 11.5, str(layer.index), "small", "end")]
    drawn = VISUAL[:0] if layer.exited else VISUAL[:1] if layer.frozen else VISUAL
    shares = (does.kv, does.attention, does.mlp)
    for (x, width), part in zip(drawn, shares, strict=False):
        parts += _box(x, y, width, share, "updated", part)
    if does.label:
        parts += _label(does, y)
    if does.note:
        parts += _passing(does.note, y, exited=layer.exited)
    for x, width in WORDS:
        parts += _box(x, y, width, 1.0, "words")
    i = layer.index
    parts += _bar(WORK, y, after.layer_flops[i], before.layer_flops[i], max(before.layer_flops))
    size = BYTES[dtype]
    kept, original = after.layer_kv_values, before.layer_kv_values
    alone = text_alone_values(plan)[i] * size
    parts += _bar(CACHE, y, kept[i] * size, original[i] * size, max(original) * size, alone)
    return parts


def _box(
    x: float, y: float, width: float, share: float, class_: str, part: float = 1.0
) -> list[Markup]:
    """Return a part of a layer, filled from below by the share of prompts that run it.

    Filled from the left by the share of it that is run.
    """
    height = BOX * share
    outline = [rect(x, y + BOX_TOP, width, BOX, "outline")] if share * part < 1 else []
    filled = [rect(x, y + BOX_TOP + BOX - height, width * part, height, class_)] if part else []
    return [*outline, *filled]


def _label(does: Lane, y: float) -> list[Markup]:
    """Return the word on attention's box: in the middle of what is filled, or of the rest."""
    (x, width), wide = VISUAL[1], 5.0 * len(does.label) + 6
    filled = width * does.attention
    inside = filled >= wide + 4
    middle = x + filled / 2 if inside else x + filled + (width - filled) / 2
    gap = [rect(middle - wide / 2, y + 3, wide, BOX - 2, "gap")] if inside else []
    return [*gap, text(middle, y + 11.3, does.label, "small", "middle")]


def _passing(note: str, y: float, *, exited: bool) -> list[Markup]:
    """Return the line of visual tokens past what they do not take part in, with the state on it.

    Frozen ones pass (dashed, from attention on); those that left are nowhere (dotted, the whole lane).
    """
    passes = VISUAL[1][0]
    start, line_class, word_class = (
        (VISUAL[0][0], "gone", "exited-word") if exited else (passes, "pass", "chosen-word")
    )
    middle, wide = (passes + LANE_END) / 2, 6.0 * len(note) + 8
    return [
        line(start, y + 8, LANE_END, y + 8, line_class),
        rect(middle - wide / 2, y + 2, wide, BOX, "gap"),
        text(middle, y + 11.5, note, word_class, "middle"),
    ]


def _exit(layer: int) -> list[Markup]:
    """Return the bar that ends the visual lane above the first layer without visual tokens."""
    y = TOP + ROW * layer
    return [line(VISUAL[0][0], y, LANE_END, y, "exit")]


def _gate(layer: int) -> list[Markup]:
    """Return the mark behind a layer with a gate: a diamond, and a dashed line across the visual lane."""
    y = TOP + ROW * (layer + 1)
    return [line(VISUAL[0][0], y, LANE_END, y, "gate"), _diamond(23, y)]


def _diamond(x: float, y: float) -> Markup:
    points = f"{x - 3.5},{y} {x},{y - 3.5} {x + 3.5},{y} {x},{y + 3.5}"
    return element("polygon", points=points, class_="gate-mark")


def _bar(
    column: tuple[float, float], y: float, now: int, before: int, most: int, alone: int = 0
) -> list[Markup]:
    """Return a bar: now inside before; `alone` of a cache is held in heads without visual tokens."""
    x, width = column
    scale = width / most
    hint = f"{now:,} of {before:,}{f', {alone:,} in heads of text alone' if alone else ''}"
    rest = [rect(x + (now - alone) * scale, y + 5, alone * scale, 6, "text-alone")] if alone else []
    return [
        rect(x, y + 4, (now - alone) * scale, 8, "updated", hint),
        *rest,
        rect(x, y + 4, before * scale, 8, "outline"),
    ]
