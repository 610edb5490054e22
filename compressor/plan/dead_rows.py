"""Dead visual rows: rows whose output nobody reads. Freezing them is exact, so every plan does.

Rule: what a layer makes of visual rows is read by later layers in whose heads visual tokens take part, and
by nothing else: the logits are of text rows. Where no such layer follows, visual rows need no Q, O and MLP;
their K and V are read by the text rows and stay. So rows are dead in the last layer, in layer K - 1 before a
fixed exit at layer K, and in front of last layers that have no visual head.

Limitations: holds while logits are asked of text rows, which the decoder's contract fixes. Where gates
decide on the exit, what they make dead is not known beforehand.
"""

from collections.abc import Sequence

from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan


def freeze_dead_rows(layers: tuple[LayerPlan, ...]) -> tuple[LayerPlan, ...]:
    """Return the layers with dead visual rows frozen where they were updated."""
    marked: list[LayerPlan] = []
    read_later = False
    for layer in reversed(layers):
        dead = layer.visual == "update" and not read_later
        marked.append(layer.turned("frozen", "dead") if dead else layer)
        read_later = read_later or layer.reads_visual
    return tuple(reversed(marked))


def read_though_dead(layers: Sequence[LayerPlan]) -> tuple[int, ...]:
    """Return the layers that are called dead although a later one reads what their visual rows become."""
    read = [layer.index for layer in layers if layer.reads_visual]
    last = read[-1] if read else -1
    return tuple(layer.index for layer in layers if layer.reason == "dead" and layer.index < last)


def deepstack_layers(plan: Plan) -> tuple[int, ...]:
    """Return the layers behind which further visual rows are added that somebody reads."""
    last = max((layer.index for layer in plan.layers if layer.reads_visual), default=0)
    return tuple(range(min(plan.model.decoder.deepstack, last)))
