"""The charts of a report, drawn from data by pure functions: contribution, speed, answers by kind."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from compressor.calibration.profile import Profile
from compressor.plan import LayerPlan, Plan
from export.bench import Timing
from export.decoder_picture import ROW, STATES, TOP, WIDTH
from export.parity.loss import LossFigures
from export.svg import decades, line, nice_ticks, picture, rect, shortened, striped, text

# Smaller contributions beside larger ones are seen only on a logarithmic scale.
LOG_FROM_RATIO = 20.0
MOST_KINDS = 24
LONGEST_NAME = 44


@dataclass(frozen=True)
class Scale:
    """Values along a horizontal axis.

    Attributes:
        left: place of the axis' low end.
        width: of the axis.
        ticks: values that are marked, the first at the low end and the last at the high end.
        logarithmic: whether equal steps are equal ratios.
    """

    left: float
    width: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Return where a value stands."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.left + self.width * (value - low) / (high - low)


def contribution_chart(profile: Profile, plan: Plan) -> Markup:
    """Return the contribution of every layer as bars, frozen layers striped and exited ones hollow.

    Rows stand at the same heights as in `decoder_picture`.
    """
    values = profile.layer_contribution()
    scale = contribution_scale(values)
    bottom = TOP + ROW * len(values)
    unit = "KL in nats, logarithmic" if scale.logarithmic else "KL in nats"
    parts = [
        text(0, 12, "layer", "small"),
        text(scale.left, 12, "change of the answer if left out", "strong"),
        text(scale.left, 26, unit, "small"),
    ]
    for value in scale.ticks:
        x = scale.place(value)
        parts += [line(x, TOP, x, bottom, "rule"), text(x, 39, f"{value:g}", "small", "middle")]
    for layer, value in zip(plan.layers, values, strict=True):
        parts += _contribution_row(layer, value, scale)
    return picture(
        "contribution",
        WIDTH,
        bottom + 18,
        "How much each layer's visual tokens contribute",
        _contribution_words(profile, plan),
        parts,
    )


def contribution_scale(values: Sequence[float]) -> Scale:
    """Return the axis of layer contributions, logarithmic where they differ much."""
    left, width = 28.0, 236.0
    positive = [value for value in values if 0 < value < math.inf]
    if positive and max(positive) > LOG_FROM_RATIO * min(positive):
        low, high = decades(positive)
        step = math.ceil((high - low) / 4)
        low = high - step * math.ceil((high - low) / step)
        return Scale(left, width, tuple(10.0**e for e in range(low, high + 1, step)), True)
    return Scale(left, width, nice_ticks(0.0, max(positive, default=1.0), 3))


def _contribution_row(layer: LayerPlan, value: float, scale: Scale) -> list[Markup]:
    y = TOP + ROW * layer.index
    width = max(scale.place(value) - scale.left, 1.0) if 0 < value < math.inf else 0.0
    hint = f"layer {layer.index}: {value:.3g} nats"
    bar = rect(scale.left, y + 2, width, 12, "updated", hint)
    if layer.frozen:
        bar = striped("contribution", scale.left, y + 2, width, 12, hint)
    elif layer.exited:
        bar = rect(scale.left, y + 2, width, 12, "hollow", hint)
    figure = f"{value:.2g}" if value else "0"
    parts = [
        text(18, y + 11.5, str(layer.index), "small", "end"),
        bar,
        text(scale.left + width + 4, y + 11.5, figure, "small"),
    ]
    if layer.frozen or layer.exited:
        word, class_ = STATES[layer.reason][0], "chosen-word" if layer.frozen else "exited-word"
        parts.append(text(scale.left + width + 50, y + 11.5, word, class_))
    return parts


def _contribution_words(profile: Profile, plan: Plan) -> str:
    values = profile.layer_contribution()
    order = sorted(range(len(values)), key=lambda i: values[i], reverse=True)
    frozen = ", ".join(str(layer.index) for layer in plan.layers if layer.frozen)
    exited = ", ".join(str(layer.index) for layer in plan.layers if layer.exited)
    return (
        f"Mean over {len(profile.samples)} questions. Largest in layer {order[0]} "
        f"({values[order[0]]:.3g} nats), smallest in layer {order[-1]} ({values[order[-1]]:.3g} nats). "
        f"Layers in which visual tokens are not updated: {frozen or 'none'}."
        f"{f' Layers without visual tokens: {exited}.' if exited else ''}"
    )


def speed_chart(predicted: float, timings: Sequence[tuple[str, Timing]]) -> Markup:
    """Return speed-ups as bars from 1 x on: the predicted one, and measured ones with their quartiles.

    Args:
        predicted: ratio of the prefill's FLOPs.
        timings: what was measured, under the names people read.
    """
    # A disturbed round must not squeeze everything else: long whiskers leave the drawing.
    highest = 1.2 * max([predicted, 1.0, *(t.ratio for _, t in timings)])
    scale = Scale(0.0, 304.0, nice_ticks(0.0, highest, 5))
    top, step = 16.0, 34.0
    rows: list[tuple[str, float, Timing | None]]
    rows = [("prefill, predicted from FLOPs", predicted, None)]
    rows += [(f"{name}, measured", t.ratio, t) for name, t in timings]
    bottom = top + step * len(rows)
    one = scale.place(1.0)
    parts = [line(one, top - 4, one, bottom, "mark"), text(one, 9, "original", "small", "middle")]
    for value in scale.ticks:
        x = scale.place(value)
        parts += [
            line(x, top, x, bottom, "rule"),
            text(x, bottom + 12, f"{value:g} x", "small", "middle" if value else "start"),
        ]
    for number, (name, ratio, timing) in enumerate(rows):
        y = top + step * number
        width = scale.place(ratio)
        bar = rect(0, y + 14, width, 13, "updated")
        if timing is None:
            bar = striped("speed", 0, y + 14, width, 13)
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
    words = "; ".join(f"{name}: {ratio:.2f} times" for name, ratio, _ in rows)
    return picture(
        "speed",
        WIDTH,
        bottom + 18,
        "Speed-up against the original, predicted and measured",
        f"{words}. Whiskers are the quartiles of the measured ratios.",
        parts,
    )


def kinds_chart(kinds: Sequence[LossFigures]) -> Markup | None:
    """Return the share of right answers of original and compressed, a pair of bars for each kind.

    None if no kind has right answers to compare with.
    """
    shown = [k for k in kinds if k.exact_match is not None and k.exact_match_original is not None]
    if not shown:
        return None
    shown, left_out = shown[:MOST_KINDS], len(shown) - MOST_KINDS
    scale = Scale(0.0, 310.0, (0.0, 1.0))
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
