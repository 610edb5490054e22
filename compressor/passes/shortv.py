"""ShortV: freeze visual tokens in the layers that hardly need them.

Source: "ShortV: Efficient Multimodal Large Language Models by Freezing Visual Tokens in Ineffective
Layers" (2025), training-free.

Rule: the layer contribution of layer i is KL(p_i || p) at the last prompt token, where p is the original
next-token distribution and p_i the one with layer i's attention and MLP deltas zeroed on visual rows, mean
over samples. Layers are sorted by it, ascending; the lowest are frozen, in one pass, not greedily.
The layers are scored in `compressor.calibration.contribution`; this file holds the choice.

Limitations:
- One pass: the contributions of layers frozen together need not add up.
- The KV cache keeps its length: a frozen layer still computes and reads visual K and V.
- The order comes from the calibration data; a task unlike it may need other layers.
"""

import math
from collections.abc import Callable, Sequence


def ranking(contribution: Sequence[float]) -> tuple[int, ...]:
    """Return layer indices by ascending contribution; of equals the deeper layer comes first.

    Deeper first, because the contribution of dead visual rows is exactly 0 in the last layer.
    """
    return tuple(sorted(range(len(contribution)), key=lambda i: (contribution[i], -i)))


def lowest(
    contribution: Sequence[float], share: float, layers: int | None = None
) -> tuple[int, ...]:
    """Return the layers with the lowest contribution, lowest first.

    Args:
        contribution: of the layers to choose from.
        share: how many, as a share (0..1) of `layers`.
        layers: of the whole decoder; None: there are no others.
    """
    # Half up: round() would go to the even neighbour, so that a share of one half is no monotone rule.
    count = math.floor(share * (layers or len(contribution)) + 0.5)
    return ranking(contribution)[:count]


def for_speedup(
    contribution: Sequence[float], wanted: float, speedup_of: Callable[[tuple[int, ...]], float]
) -> tuple[int, ...] | None:
    """Return the fewest lowest layers whose predicted speed-up reaches `wanted`, None if none does.

    Args:
        contribution: layer contribution [L].
        wanted: prefill speed-up, above 1.
        speedup_of: predicted speed-up of a plan that freezes the given layers.
    """
    order = ranking(contribution)
    for count in range(len(order) + 1):
        if speedup_of(order[:count]) >= wanted:
            return order[:count]
    return None
