"""The charts of a report, drawn from data by pure functions: values of layers, speed, answers by kind."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from compressor.contract.measure import Measure
from compressor.plan.plan import Plan
from export.report.charts.decoder import ROW, TOP, WIDTH, layer_numbers
from export.report.text.scale import Ruler, decades, nice_ticks
from export.report.text.svg import line, picture, rect, shortened, text
from export.report.words.methods import state
from export.results.bench import Timing, slower
from export.results.loss_report import LossFigures

# Smaller contributions beside larger ones are seen only on a logarithmic scale.
LOG_FROM_RATIO = 20.0
MOST_KINDS = 24
LONGEST_NAME = 44


def contribution_chart(
    contribution: Sequence[float], samples: int, plan: Plan, measure: Measure | None = None
) -> Markup:
    """Return the contribution of every layer as bars, frozen layers striped and exited ones hollow.

    Args:
        contribution: in nats, one a layer.
        samples: questions that it is the mean over.
        plan: what was chosen by it.
        measure: another one of every layer that is drawn likewise; None: the contribution.
    """
    frozen, exited = ([x for x in plan.layers if x.visual == do] for do in ("frozen", "exited"))
    marks = {layer.index: (state(layer)[0], "striped") for layer in frozen}
    marks |= {layer.index: (state(layer)[0], "hollow") for layer in exited}
    layers = ", ".join(str(layer.index) for layer in frozen) or "none"
    words = f"Layers in which visual tokens are not updated: {layers}."
    if exited:
        words += f" Layers without visual tokens: {', '.join(str(x.index) for x in exited)}."
    titles = ("contribution", "How much each layer's visual tokens contribute")
    heading, unit = "change of the answer if left out", "nats"
    if measure is not None:
        titles, heading, unit = (measure.name, measure.words), measure.title, measure.unit
    return _layer_chart(titles, heading, contribution, samples, marks, words, unit=unit)


def exit_chart(
    values: Sequence[float], samples: int, chosen: int | None, allowed: float | None
) -> Markup:
    """Return what an exit before each layer changes, as bars; the chosen exit is striped.

    Args:
        values: KL in nats, by the first layer without visual tokens.
        samples: questions that they are the mean over.
        chosen: the plan's exit; None: it has no fixed one.
        allowed: the KL that the recipe allows; None: it sets no bound.
    """
    words = "" if chosen is None else f"Chosen: layer {chosen} ({values[chosen]:.3g} nats)."
    if allowed is not None:
        words += f" Allowed: {allowed:g} nats."
    titles = ("exit", "How much the answer changes if visual tokens leave before a layer")
    marks = {} if chosen is None else {chosen: ("exit", "striped")}
    heading = "change of the answer if they leave here"
    return _layer_chart(titles, heading, values, samples, marks, words.strip(), allowed)


def _layer_chart(
    titles: tuple[str, str],
    heading: str,
    values: Sequence[float],
    samples: int,
    marks: Mapping[int, tuple[str, str]],
    words: str,
    allowed: float | None = None,
    unit: str = "nats",
) -> Markup:
    """Return a bar a layer; `marks` are, of layers that are not plain, a word and how the bar is filled."""
    scale, bottom = contribution_scale(values), TOP + ROW * len(values)
    axis = "KL in nats" if unit == "nats" else unit
    parts = [
        *layer_numbers(len(values)),
        text(scale.start, 12, heading, "strong"),
        text(scale.start, 26, f"{axis}, logarithmic" if scale.logarithmic else axis, "small"),
        *scale.rules(TOP, bottom, 39),
    ]
    # Below the bars: figures must stay readable.
    if allowed is not None and scale.ticks[0] <= allowed <= scale.ticks[-1]:
        x = scale.place(allowed)
        parts.append(line(x, TOP, x, bottom, "mark"))
        parts.append(text(x, bottom + 11, f"allowed: {allowed:g}", "small", "middle"))
    for layer, value in enumerate(values):
        word, fill = marks.get(layer, ("", "updated"))
        y = TOP + ROW * layer
        width = max(scale.place(value) - scale.start, 1.0) if 0 < value < math.inf else 0.0
        end, hint = scale.start + width, f"layer {layer}: {value:.3g} {unit}"
        stripes = titles[0] if fill == "striped" else ""
        parts.append(rect(scale.start, y + 2, width, 12, fill, hint, stripes))
        parts.append(text(end + 4, y + 11.5, f"{value:.2g}" if value else "0", "small halo"))
        if word:
            kind = "exited-word" if fill == "hollow" else "chosen-word"
            parts.append(text(end + 50, y + 11.5, word, f"{kind} halo"))
    order = sorted(range(len(values)), key=lambda i: values[i], reverse=True)
    most, least = (f"layer {i} ({values[i]:.3g} {unit})" for i in (order[0], order[-1]))
    words = f"Mean over {samples} questions. Largest in {most}, smallest in {least}. {words}"
    return picture(titles[0], WIDTH, bottom + 18, titles[1], words.strip(), parts)


def contribution_scale(values: Sequence[float]) -> Ruler:
    """Return the axis of layer contributions, logarithmic where they differ much."""
    left, width = 28.0, 236.0
    positive = [value for value in values if 0 < value < math.inf]
    if positive and max(positive) > LOG_FROM_RATIO * min(positive):
        low, high = decades(positive)
        step = math.ceil((high - low) / 4)
        low = high - step * math.ceil((high - low) / step)
        return Ruler(left, width, tuple(10.0**e for e in range(low, high + 1, step)), True)
    return Ruler(left, width, nice_ticks(0.0, max(positive, default=1.0), 3))


def speed_chart(predicted: float, timings: Sequence[tuple[str, Timing]]) -> Markup:
    """Return ratios original / compressed as bars: the predicted one, and measured ones with quartiles.

    Args:
        predicted: ratio of the prefill's FLOPs.
        timings: what was measured, under the names people read.
    """
    # A disturbed round must not squeeze everything else: long whiskers leave the drawing.
    highest = 1.2 * max([predicted, 1.0, *(t.ratio for _, t in timings)])
    scale = Ruler(0.0, 304.0, nice_ticks(0.0, highest, 5))
    top, step = 16.0, 34.0
    rows: list[tuple[str, float, Timing | None]]
    rows = [("prefill, predicted from FLOPs", predicted, None)]
    for name, t in timings:
        marks = (("slower", slower(t.ratio)), ("not steady", not t.steady))
        known = ", ".join(word for word, holds in marks if holds)
        rows.append((f"{name}, measured{f': {known}' if known else ''}", t.ratio, t))
    bottom, one = top + step * len(rows), scale.place(1.0)
    parts = [line(one, top - 4, one, bottom, "mark"), text(one, 9, "original", "small", "middle")]
    parts += scale.rules(top, bottom, bottom + 12, " x")
    for number, (name, ratio, timing) in enumerate(rows):
        y, end = top + step * number, scale.place(ratio)
        stripes = "" if timing else "speed"
        parts += [text(0, y + 10, name, "halo"), rect(0, y + 14, end, 13, "updated", "", stripes)]
        if timing is not None:
            quartiles = (timing.ratio_low, timing.ratio_high)
            low, high = (scale.place(min(q, scale.ticks[-1])) for q in quartiles)
            parts.append(line(low, y + 20.5, high, y + 20.5, "whisker"))
            parts += [line(x, y + 17, x, y + 24, "whisker") for x in (low, high)]
            end = max(end, high)
        parts.append(text(end + 5, y + 24.5, f"{ratio:.2f} x", "strong"))
    words = "; ".join(f"{name}: {ratio:.2f} times the original's speed" for name, ratio, _ in rows)
    words += ". Whiskers are the quartiles of the measured ratios."
    title = "Speed beside the original's, predicted and measured"
    return picture("speed", WIDTH, bottom + 18, title, words, parts)


def kinds_chart(kinds: Sequence[LossFigures], what: str = "right answers") -> Markup | None:
    """Return the share of right answers of original and compressed, a pair of bars for each kind.

    None if no kind has right answers to compare with. `what`: what the figures are of, as `ScoreWords.right`.
    """
    shown = [k for k in kinds if k.exact_match is not None and k.exact_match_original is not None]
    if not shown:
        return None
    shown, left_out = shown[:MOST_KINDS], len(shown) - MOST_KINDS
    scale, top, step = Ruler(0.0, 310.0, (0.0, 1.0)), 22.0, 48.0
    legend = ((0, "outline", "original"), (70, "updated", "compressed"))
    parts = [rect(x, 4, 10, 8, fill) for x, fill, _ in legend]
    parts += [text(x + 14, 12, word, "small") for x, _, word in legend]
    words = []
    for number, kind in enumerate(shown):
        y = top + step * number
        before, after = kind.exact_match_original or 0.0, kind.exact_match or 0.0
        parts.append(text(0, y + 10, f"{shortened(kind.kind, LONGEST_NAME)} ({kind.answered})"))
        for value, down, fill, weight in (
            (before, 14, "outline", "small"),
            (after, 28, "updated", "strong"),
        ):
            end = scale.place(value)
            parts.append(rect(0, y + down, end, 11, fill))
            parts.append(text(end + 5, y + down + 9.5, f"{value:.1%}", weight))
        words.append(f"{kind.kind}: {before:.1%} before, {after:.1%} now")
    height = top + step * len(shown)
    if left_out > 0:
        parts.append(text(0, height + 10, f"and {left_out} more kinds in the table", "small"))
        height += 16
    title = f"{what[0].upper()}{what[1:]} by kind of question"
    return picture("kinds", WIDTH, height, title, f"{'; '.join(words)}.", parts)
