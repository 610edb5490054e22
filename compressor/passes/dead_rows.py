"""Dead visual rows: rows whose output nobody reads. Freezing them is exact, so every plan does.

Rule: in the last layer the logits read text rows only, so visual rows need no Q, O and MLP there; their
K and V are read by the text rows and stay. Before a fixed exit at layer K the same holds for layer K - 1.

Limitations: holds while logits are asked of text rows, which the decoder's contract fixes. Where gates
decide on the exit, only the last layer is known beforehand.
"""

from compressor.plan import LayerPlan


def freeze_dead_rows(layers: tuple[LayerPlan, ...]) -> tuple[LayerPlan, ...]:
    """Return the layers with the dead visual rows of the last layer that has any frozen."""
    last = [layer for layer in layers if not layer.exited][-1]
    if last.frozen:
        return layers
    dead = last.turned("dead")
    return (*layers[: last.index], dead, *layers[last.index + 1 :])
