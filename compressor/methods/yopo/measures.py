"""What YOPO chooses by, and how it is shown: scores of heads, and activity of MLP neurons. Source: `rule`.

How they are measured stands in `heads` and `neurons` of this folder.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compressor.contract.measure import (
    Drawing,
    Measure,
    Measured,
    MeasureTable,
    Series,
    marked_points,
    table_of,
)
from compressor.plan.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor


def _head_score(full: Any) -> "Tensor":
    from compressor.methods.yopo.heads import head_score

    return head_score(full)


def _neuron_activity(full: Any) -> "Tensor":
    from compressor.methods.yopo.neurons import neuron_activity

    return neuron_activity(full)


def _head_walk() -> Any:
    from compressor.methods.yopo.heads import head_walk

    return head_walk()


def _neuron_walk() -> Any:
    from compressor.methods.yopo.neurons import neuron_walk

    return neuron_walk()


def _draw_heads(measured: Measured, plan: Plan) -> Drawing:
    """Draw one dot a query head, those in which visual tokens take part apart from the others."""
    group = plan.model.decoder.heads // plan.model.decoder.kv_heads
    dots = [
        (
            (layer.index, score),
            layer.exited or not (layer.groups is None or head // group in layer.groups),
        )
        for layer, row in zip(plan.layers, measured.mean, strict=True)
        for head, score in enumerate(row)
    ]
    series = marked_points(dots, ("kept", "without visual tokens"))
    return Drawing("decoder layer", "head score (visual / text attention)", series, "dots")


def _show_heads(measured: Measured) -> MeasureTable:
    rows = (
        (i, *(f"{value:.3g}" for value in (min(row), sum(row) / len(row), max(row))))
        for i, row in enumerate(measured.mean)
    )
    return table_of("Visual heads", ("layer", "lowest score", "mean", "highest"), rows)


def _draw_neurons(measured: Measured, plan: Plan) -> Drawing:
    """Draw one bar a layer in which visual tokens run the MLP, and a cross where they do not."""
    running = [layer for layer in plan.layers if not (layer.frozen or layer.exited)]
    others = [layer.index for layer in plan.layers if layer.frozen or layer.exited]
    shares = tuple((x.index, _share(measured.mean[x.index], x.neurons)) for x in running)
    # A gap alone would look like a share of 0.
    crosses = tuple((i, 0.0) for i in others)
    series = (
        Series("visual tokens run the MLP", shares),
        Series("no visual tokens in the MLP", crosses, chosen=True, mark="cross"),
    )
    return Drawing(
        "decoder layer", "share of activation in kept neurons", series, "bars", share=True
    )


def _share(activity: Sequence[float], neurons: Sequence[int] | None) -> float:
    """Return what share of all activation the given neurons have; None: all of them."""
    kept = activity if neurons is None else [activity[n] for n in neurons]
    return sum(kept) / (sum(activity) or 1.0)


def _show_neurons(measured: Measured) -> MeasureTable:
    """Return how the activity was measured, and how unevenly it is spread."""
    rows = measured.mean
    shares = [sum(sorted(row)[len(row) // 2 :]) / sum(row) for row in rows if sum(row) > 0]
    words = (
        f"Neuron activity: mean magnitude of what enters the MLP's last projection, over visual rows and "
        f"{measured.count} samples, for {len(rows[0]):,} neurons in each of {len(rows)} layers."
    )
    if shares:
        spread = f"{min(shares):.0%} to {max(shares):.0%}"
        words += f" The more active half of a layer's neurons carries {spread} of it."
    return MeasureTable(words)


HEAD_SCORE = Measure(
    name="head_score",
    shape=("layers", "heads"),
    of=_head_score,
    walk=_head_walk,
    chooses="heads by score",
    otherwise=", or give a mask",
    title="head score",
    unit="visual / text attention",
    infinite=True,
    draw=_draw_heads,
    show=_show_heads,
)

NEURON_ACTIVITY = Measure(
    name="neuron_activity",
    shape=("layers", "neurons"),
    of=_neuron_activity,
    walk=_neuron_walk,
    chooses="neurons by activation",
    otherwise=", or take the first ones",
    title="neuron activity",
    unit="mean magnitude",
    kept="mean",
    draw=_draw_neurons,
    show=_show_neurons,
)
