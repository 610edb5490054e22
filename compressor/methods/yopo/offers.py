"""What YOPO offers to a search: fewer neurons and fewer heads, layer by layer."""

from collections.abc import Sequence
from functools import partial

from compressor.contract.method import Evidence
from compressor.contract.trials import LayerTrial
from compressor.facts import ModelFacts
from compressor.methods.yopo.measures import HEAD_SCORE, NEURON_ACTIVITY
from compressor.methods.yopo.rule import group_means, most_active, top_share
from compressor.plan.layer import LayerPlan

RATIOS = (2, 4, 8, 16)
"""Visual rows use one in so many neurons."""
KEPT_HEADS = 0.5


def offered(facts: ModelFacts, evidence: Evidence) -> tuple[LayerTrial, ...]:
    """Return the changes of a layer; heads where the model has several key/value heads."""
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
    return tuple(found)


def _narrower(activity: Sequence[Sequence[float]], width: int, layer: LayerPlan) -> LayerPlan:
    neurons = most_active(activity[layer.index], width)
    return layer.model_copy(update={"neurons": neurons})


def _in_fewer_heads(kept: Sequence[tuple[int, ...]], layer: LayerPlan) -> LayerPlan:
    return layer.model_copy(update={"groups": kept[layer.index]})
