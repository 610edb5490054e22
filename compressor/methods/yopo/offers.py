"""What YOPO offers to a search, layer by layer: fewer neurons, fewer heads, and a window where it pays."""

from collections.abc import Sequence
from functools import partial

from compressor.contract.method import Evidence
from compressor.contract.trials import LayerTrial
from compressor.facts import ModelFacts
from compressor.methods.yopo.cut import automatic_window, unfit_window
from compressor.methods.yopo.measures import HEAD_SCORE, NEURON_ACTIVITY
from compressor.methods.yopo.rule import AUTO_WINDOW, group_means, most_active, top_share
from compressor.plan.cost import BAND_OVERHEAD, layer_work
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan

RATIOS = (2, 4, 8, 16)
"""Visual rows use one in so many neurons."""
KEPT_HEADS = 0.5
LEAST_SAVED = 0.03
"""Share of a layer's predicted time that a window must save: less is not worth what it costs in answers."""


def offered(facts: ModelFacts, evidence: Evidence) -> tuple[LayerTrial, ...]:
    """Return the changes of a layer; heads where there are several key/value heads, a window on a grid."""
    dims, activity = facts.decoder, evidence.of(NEURON_ACTIVITY).mean
    found = [
        LayerTrial(f"1/{ratio} of the neurons", partial(_narrower, activity, width))
        for ratio in RATIOS
        if (width := dims.intermediate // ratio) >= 1
    ]
    if dims.kv_heads > 1:
        scores = group_means(evidence.of(HEAD_SCORE).mean, dims.kv_heads)
        kept = tuple(top_share([row], KEPT_HEADS, (0,))[0] for row in scores)
        words = f"{len(kept[0])} of {dims.kv_heads} key/value heads"
        found.append(LayerTrial(words, partial(_in_fewer_heads, kept)))
    if not unfit_window(AUTO_WINDOW, facts, evidence.where):
        words = f"a window of {AUTO_WINDOW} x {AUTO_WINDOW}"
        found.append(LayerTrial(words, _in_a_window, reads_grid=True, pays=_window_pays))
    return tuple(found)


def _in_a_window(layer: LayerPlan) -> LayerPlan:
    return layer.model_copy(update={"window": AUTO_WINDOW})


def _window_pays(plan: Plan) -> bool:
    """Whether a window saves enough of a layer's time, of which bands take longer than their FLOPs say."""
    side = automatic_window(plan)
    if side is None:
        return False
    full, bands = (
        layer_work(
            plan.model.decoder,
            LayerPlan(index=0, window=window),
            plan.visual,
            plan.workload.text,
            plan.model.token_grid,
        )
        for window in (None, side)
    )
    saved = full.attention - BAND_OVERHEAD * bands.attention
    return saved >= LEAST_SAVED * sum(full)


def _narrower(activity: Sequence[Sequence[float]], width: int, layer: LayerPlan) -> LayerPlan:
    neurons = most_active(activity[layer.index], width)
    return layer.model_copy(update={"neurons": neurons})


def _in_fewer_heads(kept: Sequence[tuple[int, ...]], layer: LayerPlan) -> LayerPlan:
    return layer.model_copy(update={"groups": kept[layer.index]})
