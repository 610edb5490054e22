"""How few of a kind's right answers another draw of as many questions may keep.

Source: Clopper and Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case of the
Binomial", 1934: exact, so that it holds for few questions and for shares of 1.
"""

from math import exp, lgamma, log

LEVEL = 0.95
STEPS = 60
"""Halvings: more than a float has digits."""


def lower_bound(count: int, total: int, level: float = LEVEL) -> float:
    """Return the one-sided lower bound of a share of `count` out of `total`, which is 1 or more."""
    if count == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        share = (low + high) / 2
        if _at_least(count, total, share) > 1 - level:
            high = share
        else:
            low = share
    return low


def _at_least(count: int, total: int, share: float) -> float:
    """Return the probability of `count` or more of `total`, each with the probability `share`, in 0..1."""
    yes, no = log(share), log(1 - share)
    ways = lgamma(total + 1)
    return sum(
        exp(ways - lgamma(k + 1) - lgamma(total - k + 1) + k * yes + (total - k) * no)
        for k in range(count, total + 1)
    )
