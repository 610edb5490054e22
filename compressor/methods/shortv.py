"""ShortV: freeze visual tokens in the layers that hardly need them.

Source: "ShortV: Efficient Multimodal Large Language Models by Freezing Visual Tokens in Ineffective
Layers" (2025), training-free.

Rule: the layer contribution of layer i is KL(p_i || p) at the last prompt token, where p is the original
next-token distribution and p_i the one with layer i's attention and MLP deltas zeroed on visual rows, mean
over samples. Layers are sorted by it, ascending; the lowest are frozen, in one pass, not greedily. A share
counts the layers that can be frozen: visual rows are there, and somebody reads what becomes of them.
The layers are scored in `compressor.methods.contribution`; this file holds the choice.

Limitations:
- One pass: the contributions of layers frozen together need not add up.
- The KV cache keeps its length: a frozen layer still computes and reads visual K and V.
- The order comes from the calibration data; a task unlike it may need other layers.
"""

import math
from collections.abc import Callable, Collection, Sequence


def ranking(contribution: Sequence[float], among: Collection[int] | None = None) -> tuple[int, ...]:
    """Return layer indices by ascending contribution; of equals the deeper layer comes first.

    Deeper first, because the contribution of dead visual rows is exactly 0 in the last layer.

    Args:
        contribution: layer contribution [L].
        among: the layers to rank; None: all.
    """
    layers = range(len(contribution)) if among is None else among
    return tuple(sorted(layers, key=lambda i: (contribution[i], -i)))


def rounded(share: float, layers: int) -> int:
    """Return how many layers a share (0..1) of so many is: the nearest number, a half counts up."""
    # Not round(), which goes to the even neighbour; a hair more, so that 0.29 of 50 is 14.5.
    return math.floor(share * layers + 0.5 + 1e-9)


def for_speedup(
    order: Sequence[int], wanted: float, speedup_of: Callable[[tuple[int, ...]], float]
) -> tuple[int, ...] | None:
    """Return the fewest lowest layers whose predicted speed-up reaches `wanted`, None if none does.

    Args:
        order: layers by ascending contribution.
        wanted: prefill speed-up, above 1.
        speedup_of: predicted speed-up of a plan that freezes the given layers.
    """
    for count in range(len(order) + 1):
        if speedup_of(tuple(order[:count])) >= wanted:
            return tuple(order[:count])
    return None
