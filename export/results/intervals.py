"""95% intervals of shares: how far another draw of as many questions may give other figures.

Closed forms that hold for few samples and for shares of 0 and 1. Sources: Wilson, "Probable Inference, the
Law of Succession, and Statistical Inference", 1927, for a share; Agresti and Min, "Simple Improved Confidence
Intervals for Comparing Matched Proportions", 2005, for the difference of two shares on the same questions;
Bonett and Price, "Confidence Intervals for a Ratio of Binomial Proportions Based on Paired Data", 2006, for
their ratio.

Scores between 0 and 1 go by the same forms, with sums of them for counts: for `lost` how far all that fell
did so together. The square of such a score is at most the score, and that of a change at most the change, so
that they spread at most as much as right and wrong answers with these sums; the same holds for the ratio,
whose terms are convex in both scores and equal at right and wrong. Intervals of graded scores are thus rather
too wide than too narrow, and have a width where all scores are alike, where a bootstrap or a normal one has
none.
"""

from math import sqrt
from statistics import NormalDist

Interval = tuple[float, float]

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def share_interval(count: float, total: float, z: float = Z) -> Interval:
    """Return Wilson's interval of `count` out of `total`, which is above 0; within 0..1."""
    share, spread = count / total, z * z / total
    middle = share + spread / 2
    reach = z * sqrt(share * (1 - share) / total + spread / (4 * total))
    # At the ends it is 0 and 1 but for rounding.
    low = 0.0 if count == 0 else (middle - reach) / (1 + spread)
    high = 1.0 if count == total else (middle + reach) / (1 + spread)
    return low, high


def change_interval(lost: float, won: float, total: int) -> Interval:
    """Return the interval of `(won - lost) / total`, the change of a share on the same samples; in -1..1.

    Agresti and Min's: Wald's with half a sample more in each of the four cells.
    """
    lost_, won_, total_ = lost + 0.5, won + 0.5, total + 2
    middle = (won_ - lost_) / total_
    reach = Z * sqrt(won_ + lost_ - (won_ - lost_) ** 2 / total_) / total_
    return max(middle - reach, -1.0), min(middle + reach, 1.0)


def kept_interval(kept: float, lost: float, won: float) -> Interval:
    """Return the interval of `(kept + won) / (kept + lost)`, the ratio of two shares on the same samples.

    Bonett and Price's: two of Wilson's intervals, drawn in as far as the samples are the same.

    Args:
        kept: right in both models.
        lost: right in the original alone; with `kept` 1 or more.
        won: right in the artifact alone.
    """
    total, before, after = kept + lost + won, kept + lost, kept + won
    share_before, share_after = (before + 1) / (total + 2), (after + 1) / (total + 2)
    both = sqrt((lost + won + 2) / ((before + 1) * (after + 1)))
    apart = sqrt((1 - share_before) / (before + 1)) + sqrt((1 - share_after) / (after + 1))
    z = Z * both / apart
    low_before, high_before = share_interval(before, total, z)
    low_after, high_after = share_interval(after, total, z)
    return low_after / high_before, high_after / low_before
