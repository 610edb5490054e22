"""The charts of a report, drawn from data by pure functions: contribution, speed, answers by kind."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from compressor.contract.measure import Measure
from compressor.plan.plan import Plan
from export.report.charts.decoder import ROW, TOP, WIDTH
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

    Rows stand at the same heights as in `decoder_picture`.

    Args:
        contribution: in nats, one a layer.
        samples: questions that it is the mean over.
        plan: what was chosen by it.
        measure: another one of every layer that is drawn likewise; None: the contribution.
    """
    marks = {p.index: p for p in plan.layers if p.frozen or p.exited}
    rows = [
        Bar(
            value,
            "" if i not in marks else state(marks[i])[0],
            "updated" if i not in marks else "striped" if marks[i].frozen else "hollow",
        )
        for i, value in enumerate(contribution)
    ]
    key, title, unit = "contribution", "How much each layer's visual tokens contribute", "nats"
    heading = "change of the answer if left out"
    if measure is not None:
        key, title, unit, heading = measure.name, measure.words, measure.unit, measure.title
    frozen = ", ".join(str(layer.index) for layer in plan.layers if layer.frozen)
    exited = ", ".join(str(layer.index) for layer in plan.layers if layer.exited)
    words = (
        f"{_extremes(contribution, samples, unit)} Layers in which visual tokens are not updated: "
        f"{frozen or 'none'}.{f' Layers without visual tokens: {exited}.' if exited else ''}"
    )
    return _layer_chart(key, title, heading, rows, words, unit=unit)


def exit_chart(
    values: Sequence[float], samples: int, chosen: int | None, allowed: float | None
) -> Markup:
    """Return what an exit before each layer changes, as bars; the chosen exit is striped.

    Rows stand at the same heights as in `decoder_picture`.

    Args:
        values: KL in nats, by the first layer without visual tokens.
        samples: questions that they are the mean over.
        chosen: the plan's exit; None: it has no fixed one.
        allowed: the KL that the recipe allows; None: it sets no bound.
    """
    rows = [
        Bar(value, "exit", "striped") if layer == chosen else Bar(value)
        for layer, value in enumerate(values)
    ]
    words = _extremes(values, samples, "nats")
    if chosen is not None:
        words += f" Chosen: layer {chosen} ({values[chosen]:.3g} nats)."
    if allowed is not None:
        words += f" Allowed: {allowed:g} nats."
    title = "How much the answer changes if visual tokens leave before a layer"
    heading = "change of the answer if they leave here"
    return _layer_chart("exit", title, heading, rows, words, allowed)


@dataclass(frozen=True)
class Bar:
    """One layer's value, a word on it, and how the bar is filled."""

    value: float
    word: str = ""
    fill: Literal["updated", "striped", "hollow"] = "updated"


def _layer_chart(
    key: str,
    title: str,
    heading: str,
    rows: Sequence[Bar],
    words: str,
    mark: float | None = None,
    unit: str = "nats",
) -> Markup:
    scale = contribution_scale([row.value for row in rows])
    bottom = TOP + ROW * len(rows)
    axis = "KL in nats" if unit == "nats" else unit
    parts = [
        text(0, 12, "layer", "small"),
        text(scale.start, 12, heading, "strong"),
        text(scale.start, 26, f"{axis}, logarithmic" if scale.logarithmic else axis, "small"),
    ]
    parts += scale.rules(TOP, bottom, 39)
    # Below the bars: figures must stay readable.
    if mark is not None and scale.ticks[0] <= mark <= scale.ticks[-1]:
        x = scale.place(mark)
        parts += [
            line(x, TOP, x, bottom, "mark"),
            text(x, bottom + 11, f"allowed: {mark:g}", "small", "middle"),
        ]
    for layer, row in enumerate(rows):
        parts += _layer_bar(key, layer, row, scale, unit)
    return picture(key, WIDTH, bottom + 18, title, words, parts)


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


def _layer_bar(key: str, layer: int, row: Bar, scale: Ruler, unit: str) -> list[Markup]:
    y, value = TOP + ROW * layer, row.value
    width = max(scale.place(value) - scale.start, 1.0) if 0 < value < math.inf else 0.0
    hint = f"layer {layer}: {value:.3g} {unit}"
    bar = rect(scale.start, y + 2, width, 12, row.fill, hint, key if row.fill == "striped" else "")
    figure = f"{value:.2g}" if value else "0"
    parts = [
        text(18, y + 11.5, str(layer), "small", "end"),
        bar,
        text(scale.start + width + 4, y + 11.5, figure, "small halo"),
    ]
    if row.word:
        class_ = "exited-word" if row.fill == "hollow" else "chosen-word"
        parts.append(text(scale.start + width + 50, y + 11.5, row.word, f"{class_} halo"))
    return parts


def _extremes(values: Sequence[float], samples: int, unit: str) -> str:
    order = sorted(range(len(values)), key=lambda i: values[i], reverse=True)
    return (
        f"Mean over {samples} questions. Largest in layer {order[0]} ({values[order[0]]:.3g} {unit}), "
        f"smallest in layer {order[-1]} ({values[order[-1]]:.3g} {unit})."
    )


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
    rows += [(f"{name}, measured{_marks(t)}", t.ratio, t) for name, t in timings]
    bottom = top + step * len(rows)
    one = scale.place(1.0)
    parts = [line(one, top - 4, one, bottom, "mark"), text(one, 9, "original", "small", "middle")]
    parts += scale.rules(top, bottom, bottom + 12, " x")
    for number, (name, ratio, timing) in enumerate(rows):
        y = top + step * number
        width = scale.place(ratio)
        bar = rect(0, y + 14, width, 13, "updated", stripes="" if timing else "speed")
        parts += [text(0, y + 10, name, "halo"), bar]
        end = width
        if timing is not None:
            low, high = (
                min(scale.place(q), scale.place(scale.ticks[-1]))
                for q in (timing.ratio_low, timing.ratio_high)
            )
            parts += [line(low, y + 20.5, high, y + 20.5, "whisker")]
            parts += [line(x, y + 17, x, y + 24, "whisker") for x in (low, high)]
            end = max(width, high)
        parts.append(text(end + 5, y + 24.5, f"{ratio:.2f} x", "strong"))
    words = "; ".join(f"{name}: {ratio:.2f} times the original's speed" for name, ratio, _ in rows)
    return picture(
        "speed",
        WIDTH,
        bottom + 18,
        "Speed beside the original's, predicted and measured",
        f"{words}. Whiskers are the quartiles of the measured ratios.",
        parts,
    )


def _marks(timing: Timing) -> str:
    """Return what must be known of a measured ratio."""
    marks = (("slower", slower(timing.ratio)), ("not steady", not timing.steady))
    found = ", ".join(word for word, holds in marks if holds)
    return f": {found}" if found else ""


def kinds_chart(kinds: Sequence[LossFigures]) -> Markup | None:
    """Return the share of right answers of original and compressed, a pair of bars for each kind.

    None if no kind has right answers to compare with.
    """
    shown = [k for k in kinds if k.exact_match is not None and k.exact_match_original is not None]
    if not shown:
        return None
    shown, left_out = shown[:MOST_KINDS], len(shown) - MOST_KINDS
    scale = Ruler(0.0, 310.0, (0.0, 1.0))
    top, step = 22.0, 48.0
    parts = [
        rect(0, 4, 10, 8, "outline"),
        text(14, 12, "original", "small"),
        rect(70, 4, 10, 8, "updated"),
        text(84, 12, "compressed", "small"),
    ]
    words = []
    for number, kind in enumerate(shown):
        y = top + step * number
        before, after = kind.exact_match_original or 0.0, kind.exact_match or 0.0
        name = f"{shortened(kind.kind, LONGEST_NAME)} ({kind.answered})"
        parts += [
            text(0, y + 10, name),
            rect(0, y + 14, scale.place(before), 11, "outline"),
            text(scale.place(before) + 5, y + 23.5, f"{before:.1%}", "small"),
            rect(0, y + 28, scale.place(after), 11, "updated"),
            text(scale.place(after) + 5, y + 37.5, f"{after:.1%}", "strong"),
        ]
        words.append(f"{kind.kind}: {before:.1%} before, {after:.1%} now")
    height = top + step * len(shown)
    if left_out > 0:
        parts.append(text(0, height + 10, f"and {left_out} more kinds in the table", "small"))
        height += 16
    title = "Right answers by kind of question"
    return picture("kinds", WIDTH, height, title, f"{'; '.join(words)}.", parts)
