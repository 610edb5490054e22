"""Dead visual rows: rows whose output nobody reads. Freezing them is exact, so every plan does.

Rule: in the last layer the logits read text rows only, so visual rows need no Q, O and MLP there; their
K and V are read by the text rows and stay.

Limitations: holds while logits are asked of text rows, which the decoder's contract fixes.
"""

from compressor.plan import LayerPlan


def freeze_dead_rows(layers: tuple[LayerPlan, ...]) -> tuple[LayerPlan, ...]:
    """Return the layers with the dead visual rows of the last layer frozen."""
    *before, last = layers
    if last.frozen:
        return layers
    return (*before, LayerPlan(index=last.index, visual="frozen", reason="dead"))
