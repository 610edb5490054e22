"""Draws a plan: one row a layer, and in it what visual and text tokens do, the work and the KV cache."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from compressor.facts import DecoderDims
from compressor.plan.cost import BYTES, predict
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan
from export.report.text.svg import element, line, picture, rect, text
from export.report.words.cuts import cut_sentences, kept_heads, neurons_kept, text_alone_values
from export.report.words.exits import staying
from export.report.words.front import front_words, visual_words
from export.report.words.methods import state
from export.report.words.states import state_of

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
    """Which share of each part of one layer is computed for visual rows, all or some, from 0 to 1.

    Attributes:
        attention: queries, attention and output projection.
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
        return Lane(0, 0, 0, state(layer)[0])
    some = 1.0 if layer.run is None else layer.run.count / layer.run.of
    heads = some * (len(kept_heads(layer, dims)) / dims.heads if layer.split else 1.0)
    masked = "off" if layer.off else "masked" if layer.masked else ""
    if layer.frozen:
        partly = layer.masked and not layer.read_by_no_head
        return Lane(heads, 0, 0, f"{state(layer)[0]}{', masked' if partly else ''}")
    window = f"{layer.window}x{layer.window}" if layer.window else ""
    label = masked or ("none" if not heads else window)
    attends = 0.0 if layer.without == "attention" else heads
    fed = some * neurons_kept(layer, dims) / dims.intermediate
    return Lane(heads, attends, fed, "", label)


def layer_numbers(layers: int) -> list[Markup]:
    """Return the column that all drawings of layers begin with: rows of all stand at the same heights."""
    numbers = (text(18, TOP + ROW * i + 11.5, str(i), "small", "end") for i in range(layers))
    return [text(0, 12, "layer", "small"), *numbers]


def decoder_picture(plan: Plan, dtype: str) -> Markup:
    """Return the drawing of a whole plan.

    Args:
        plan: with its workload, whose costs are the bars.
        dtype: of the KV cache.
    """
    before, after, size = predict(plan.naive()), predict(plan), BYTES[dtype]
    alone, bottom = text_alone_values(plan), TOP + ROW * len(plan.layers)
    parts = [*layer_numbers(len(plan.layers)), *_headings(plan)]
    for layer, share in zip(plan.layers, present_share(plan), strict=True):
        i, y = layer.index, TOP + ROW * layer.index
        parts += _visual(layer, plan.model.decoder, share, y)
        parts += [rect(x, y + BOX_TOP, width, BOX, "words") for x, width in WORDS]
        parts += _bar(WORK, y, after.layer_flops[i], before.layer_flops[i], before.layer_flops)
        kept, values = after.layer_kv_values[i] * size, before.layer_kv_values
        original = [value * size for value in values]
        parts += _bar(CACHE, y, kept, original[i], original, alone[i] * size)
    y = bottom + 12
    parts.append(text(28, y, "answer comes out of the last layer's text tokens", "small"))
    if plan.exit_layer is not None:
        parts.append(_across(plan.exit_layer, "exit"))
    parts += [_across(layer, "exit") for layer in (*plan.keeps(), *plan.grows())]
    if plan.gates is not None:
        y += 14
        parts += [_diamond(y - 3), text(28, y, "gate: visual tokens may leave here", "small")]
        for gate in plan.gates.candidates:
            parts += [_across(gate + 1, "gate"), _diamond(TOP + ROW * (gate + 1))]
    title = "What visual and text tokens do in each layer"
    return picture("decoder", WIDTH, y + 6, title, _description(plan), parts)


def present_share(plan: Plan) -> list[float]:
    """Return the share (0..1) of the most visual tokens of a layer that each has, mean over prompts."""
    changed = plan.changed_by_length()
    rows = plan.rows_of_layers(plan.visual) if changed else [1] * len(plan.layers)
    most = max(rows)
    return [there * count / most for there, count in zip(staying(plan), rows, strict=True)]


def _description(plan: Plan) -> str:
    groups: dict[tuple[str, str], list[str]] = {}
    for layer in plan.layers:
        groups.setdefault(state_of(layer, plan), []).append(str(layer.index))
    lines = "; ".join(
        f"{word} in {len(indices)} of {len(plan.layers)} layers ({', '.join(indices)}): {meaning}"
        for (word, meaning), indices in groups.items()
    )
    cuts = cut_sentences(plan)
    sentences = [*front_words(plan), f"Visual tokens are {lines}.", *cuts]
    if plan.gates is not None:
        shares = ", ".join(f"{layer}: {share:.0%}" for layer, share in enumerate(staying(plan)))
        sentences.append(
            f"Visual tokens may leave at gates behind layers {', '.join(map(str, plan.gates.candidates))}; "
            f"share of prompts that have them in each layer: {shares}."
        )
    everything = "use every weight" if cuts else "do everything"
    return " ".join([*sentences, f"Text tokens {everything} in every layer."])


def _headings(plan: Plan) -> list[Markup]:
    visual, count, work = VISUAL[0][0], plan.workload.text, WORK[0]
    of_text = f"{count:,} text tokens" if count < LONG_COUNT else f"{count:,} text"
    # With both numbers there is no room for the word `tokens`.
    of_visual = f"{plan.visual:,} visual tokens"
    if plan.front is not None:
        of_visual = f"{visual_words(plan)} visual"
    names = zip((*VISUAL, *WORDS), ("K V", "attention", "MLP", "K V", "attn", "MLP"), strict=True)
    return [
        text(visual, 12, of_visual, "strong"),
        text(WORDS[0][0], 12, of_text, "strong"),
        text(work, 12, "work", "strong"),
        text(WIDTH, 12, "KV cache", "strong", "end"),
        text(work, 26, "now / before", "small"),
        rect(work, 30, WIDTH - work, 0.7, "outline"),
        *(text(x, 38, name, "small") for (x, _), name in names),
    ]


def _visual(layer: LayerPlan, dims: DecoderDims, share: float, y: float) -> list[Markup]:
    """Return what visual tokens do in a layer, in the share of prompts that still have them.

    Each part's box is filled from below by that share, and from the left by what of the part is run.
    """
    does, parts = lane(layer, dims), []
    drawn = 0 if layer.exited else 1 if layer.frozen else 3
    shares = (does.kv, does.attention, does.mlp)
    for (x, width), part in zip(VISUAL[:drawn], shares[:drawn], strict=True):
        if share * part < 1:
            parts.append(rect(x, y + BOX_TOP, width, BOX, "outline"))
        if part:
            high = BOX * share
            parts.append(rect(x, y + BOX_TOP + BOX - high, width * part, high, "updated"))
    if does.label:
        # In the middle of what is filled of attention's box, or of the rest.
        (x, width), wide = VISUAL[1], 5.0 * len(does.label) + 6
        filled = width * does.attention
        inside = filled >= wide + 4
        middle = x + filled / 2 if inside else x + filled + (width - filled) / 2
        parts += [rect(middle - wide / 2, y + 3, wide, BOX - 2, "gap")] if inside else []
        parts.append(text(middle, y + 11.3, does.label, "small", "middle"))
    if does.note:
        # Frozen ones pass (dashed, from attention on); those that left are nowhere (dotted, the whole lane).
        passes, wide = VISUAL[1][0], 6.0 * len(does.note) + 8
        start, kind, word = (
            (VISUAL[0][0], "gone", "exited-word")
            if layer.exited
            else (passes, "pass", "chosen-word")
        )
        middle = (passes + LANE_END) / 2
        parts += [
            line(start, y + 8, LANE_END, y + 8, kind),
            rect(middle - wide / 2, y + 2, wide, BOX, "gap"),
            text(middle, y + 11.5, does.note, word, "middle"),
        ]
    return parts


def _across(layer: int, kind: str) -> Markup:
    """Return a line across the visual lane above a layer: where visual tokens leave, may leave, or grow."""
    y = TOP + ROW * layer
    return line(VISUAL[0][0], y, LANE_END, y, kind)


def _diamond(y: float) -> Markup:
    return element(
        "polygon", points=f"19.5,{y} 23,{y - 3.5} 26.5,{y} 23,{y + 3.5}", class_="gate-mark"
    )


def _bar(
    column: tuple[float, float],
    y: float,
    now: int,
    before: int,
    all_: Sequence[int],
    alone: int = 0,
) -> list[Markup]:
    """Return a bar: now inside before; `alone` of a cache is held in heads without visual tokens."""
    x, scale = column[0], column[1] / max(all_)
    hint = f"{now:,} of {before:,}{f', {alone:,} in heads of text alone' if alone else ''}"
    shared = (now - alone) * scale
    rest = [rect(x + shared, y + 5, alone * scale, 6, "text-alone")] if alone else []
    now_bar = rect(x, y + 4, shared, 8, "updated", hint)
    return [now_bar, *rest, rect(x, y + 4, before * scale, 8, "outline")]
