"""Draws a plan: one row a layer, and in it what visual and text tokens do, the work and the KV cache."""

from dataclasses import dataclass

from markupsafe import Markup

from compressor.cost import BYTES, Cost, predict
from compressor.plan import LayerPlan, Plan
from export.svg import line, picture, rect, text

WIDTH, TOP, ROW = 360.0, 44.0, 16.0
"""Shared with the contribution chart: beside each other, rows of both stand at the same height."""

BOX_TOP, BOX = 2.0, 12.0
# Left edges and widths of: K and V, attention, MLP of visual rows; the same of text rows; work; KV cache.
VISUAL = ((28.0, 30.0), (60.0, 56.0), (118.0, 46.0))
WORDS = ((174.0, 20.0), (196.0, 36.0), (234.0, 26.0))
# From here on there is no room for the word `tokens` over the text lane.
LONG_COUNT = 1000
WORK, CACHE = (270.0, 42.0), (318.0, 42.0)


@dataclass(frozen=True)
class Lane:
    """What visual rows do in one layer, as shares of what they do in the original.

    Attributes:
        kv: their keys and values.
        attention: queries, attention and output projection.
        mlp: the feed-forward part.
        note: the state in one word; empty if nothing is left out.
    """

    kv: float
    attention: float
    mlp: float
    note: str = ""


STATES = {
    "": ("updated", "attention and MLP run on visual tokens, as in the original"),
    "shortv": (
        "frozen",
        "visual tokens pass unchanged; text tokens still read their keys and values",
    ),
    "dead": (
        "dead",
        "visual tokens pass unchanged, and nobody reads the result: this loses nothing",
    ),
}
"""For every reason of a plan: the word for its state, and what it means."""


def lane(layer: LayerPlan) -> Lane:
    """Return what visual rows do in a layer."""
    if not layer.frozen:
        return Lane(1, 1, 1)
    return Lane(1, 0, 0, STATES[layer.reason][0])


def decoder_picture(plan: Plan, dtype: str) -> Markup:
    """Return the drawing of a whole plan.

    Args:
        plan: with its workload, whose costs are the bars.
        dtype: of the KV cache.
    """
    before, after = predict(plan.naive()), predict(plan)
    parts = list(_head(plan))
    for layer in plan.layers:
        parts += _row(layer, before, after, dtype)
    y = TOP + ROW * len(plan.layers) + 12
    parts.append(text(28, y, "answer comes out of the last layer's text tokens", "small"))
    return picture(
        "decoder", WIDTH, y + 6, "What visual and text tokens do in each layer", _words(plan), parts
    )


def _words(plan: Plan) -> str:
    """Return the picture in words."""
    groups: dict[str, list[str]] = {}
    for layer in plan.layers:
        groups.setdefault(layer.reason, []).append(str(layer.index))
    lines = [
        f"{STATES[reason][0]} in {len(indices)} of {len(plan.layers)} layers ({', '.join(indices)}): "
        f"{STATES[reason][1]}"
        for reason, indices in groups.items()
    ]
    return f"Visual tokens are {'; '.join(lines)}. Text tokens do everything in every layer."


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


def _row(layer: LayerPlan, before: Cost, after: Cost, dtype: str) -> list[Markup]:
    y = TOP + ROW * layer.index
    does = lane(layer)
    parts = [text(18, y + 11.5, str(layer.index), "small", "end")]
    for (x, width), share in zip(VISUAL, (does.kv, does.attention, does.mlp), strict=True):
        parts += _box(x, y, width, share, "updated")
    if does.note:
        parts += _passing(does, y)
    for x, width in WORDS:
        parts += _box(x, y, width, 1, "words")
    i = layer.index
    parts += _bar(WORK, y, after.layer_flops[i], before.layer_flops[i], max(before.layer_flops))
    size = BYTES[dtype]
    kept, original = after.layer_kv_values, before.layer_kv_values
    parts += _bar(CACHE, y, kept[i] * size, original[i] * size, max(original) * size)
    return parts


def _box(x: float, y: float, width: float, share: float, class_: str) -> list[Markup]:
    """Return a part of a layer, filled from below by its share."""
    if share == 0:
        return []
    height = BOX * share
    full = [rect(x, y + BOX_TOP + BOX - height, width, height, class_)]
    return full if share == 1 else [rect(x, y + BOX_TOP, width, BOX, "outline"), *full]


def _passing(does: Lane, y: float) -> list[Markup]:
    """Return the line of visual tokens past what they do not take part in, with the reason on it."""
    start = next(
        x for (x, _), s in zip(VISUAL[1:], (does.attention, does.mlp), strict=True) if not s
    )
    end = VISUAL[-1][0] + VISUAL[-1][1]
    middle, wide = (start + end) / 2, 6.0 * len(does.note) + 8
    return [
        line(start, y + 8, end, y + 8, "pass" if does.kv else "gone"),
        rect(middle - wide / 2, y + 2, wide, BOX, "gap"),
        text(middle, y + 11.5, does.note, "chosen-word", "middle"),
    ]


def _bar(column: tuple[float, float], y: float, now: int, before: int, most: int) -> list[Markup]:
    x, width = column
    scale = width / most
    return [
        rect(x, y + 4, now * scale, 8, "updated", f"{now:,} of {before:,}"),
        rect(x, y + 4, before * scale, 8, "outline"),
    ]
