"""The scores of visual heads, drawn and listed: filled where visual tokens take part."""

from collections.abc import Sequence

from markupsafe import Markup

from compressor.plan.plan import Plan
from export.report.charts.decoder import ROW, TOP, WIDTH, layer_numbers
from export.report.document import Table
from export.report.text.svg import picture, rect, text
from export.report.words.cuts import kept_heads
from export.report.words.exits import drawn_together

Scores = Sequence[Sequence[float]]

LEFT, RIGHT = 28.0, 48.0
SMALLEST = 2.6
"""Side of the smallest square: filled and hollow must still be told apart."""


def head_table(scores: Scores, plan: Plan) -> Table:
    """Return one row a layer: its scores in short, and the heads in which visual tokens take part.

    Args:
        scores: [L][H], of the calibration.
        plan: what was chosen.
    """
    dims = plan.model.decoder
    kept = [kept_heads(layer, dims) for layer in plan.layers]
    every = range(dims.heads)
    columns = {
        "layer": [str(layer.index) for layer in plan.layers],
        "lowest score": [f"{min(row):.3g}" for row in scores],
        "mean": [f"{sum(row) / len(row):.3g}" for row in scores],
        "highest": [f"{max(row):.3g}" for row in scores],
        "heads with visual tokens": [
            "all" if len(heads) == len(every) else drawn_together(heads) or "none" for heads in kept
        ],
    }
    return Table.of_columns("Head scores of every layer", columns)


def head_chart(scores: Scores, samples: int, plan: Plan) -> Markup:
    """Return a square for every head, its area by the score; filled if visual tokens take part in it.

    Args:
        scores: [L][H], means over the samples.
        samples: questions that they are the mean over.
        plan: what was chosen.
    """
    dims = plan.model.decoder
    pitch = min(ROW, (WIDTH - LEFT - RIGHT) / dims.heads)
    most, total = max(map(max, scores)), 0
    parts = [
        *layer_numbers(dims.layers),
        text(LEFT, 12, "how much text looks at the picture", "strong"),
        text(LEFT, 26, f"area: score, largest {most:.2g}", "small"),
        text(WIDTH, 26, "heads kept", "small", "end"),
    ]
    named = range(0, dims.heads, max(1, round(24 / pitch)))
    parts += [text(LEFT + pitch * (i + 0.5), 39, str(i), "small", "middle") for i in named]
    for layer, row in zip(plan.layers, scores, strict=True):
        kept = kept_heads(layer, dims)
        total += len(kept)
        y = TOP + ROW * layer.index
        parts.append(text(WIDTH, y + 11.5, f"{len(kept)} of {dims.heads}", "small", "end"))
        for head, score in enumerate(row):
            share = (score / most) ** 0.5 if most > 0 else 0.0
            side = SMALLEST + (pitch - 2.0 - SMALLEST) * share
            x = LEFT + pitch * (head + 0.5) - side / 2
            fate, class_ = ("kept", "updated") if head in kept else ("pruned", "pruned-head")
            hint = f"layer {layer.index}, head {head}: {score:.3g}, {fate}"
            parts.append(rect(x, y + ROW / 2 - side / 2, side, side, class_, hint))
    words = (
        f"Mean over {samples} questions. Scores are {min(map(min, scores)):.3g} to {most:.3g}. Visual tokens "
        f"take part in {total} of {dims.heads * dims.layers} heads."
    )
    title = "How much text looks at the picture through each head"
    return picture("heads", WIDTH, TOP + ROW * dims.layers + 6, title, words, parts)
