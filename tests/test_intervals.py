"""Intervals beside shares: published values, and how often they hold the truth, over all outcomes."""

import math

import pytest

from export.results.intervals import change_interval, kept_interval, share_interval


@pytest.mark.parametrize(
    ("count", "total", "wanted"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_the_interval_of_a_share_is_the_published_one(count, total, wanted):
    assert share_interval(count, total) == pytest.approx(wanted, abs=5e-5)
    low, high = share_interval(total - count, total)
    assert (1 - high, 1 - low) == pytest.approx(wanted, abs=5e-5)


def outcomes(total, shares):
    """Yield counts (kept, lost, won) with their probability, by the multinomial."""
    kept_share, lost_share, won_share = shares
    rest_share = 1 - sum(shares)
    for kept in range(total + 1):
        for lost in range(total + 1 - kept):
            for won in range(total + 1 - kept - lost):
                rest = total - kept - lost - won
                ways = math.comb(total, kept) * math.comb(total - kept, lost)
                ways *= math.comb(total - kept - lost, won)
                yield (
                    (kept, lost, won),
                    ways * kept_share**kept * lost_share**lost * won_share**won * rest_share**rest,
                )


@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.05), (0.5, 0.2, 0.2), (0.85, 0.1, 0.02)])
def test_paired_intervals_hold_the_truth_in_95_of_100_draws(shares):
    kept_share, lost_share, won_share = shares
    change, ratio = won_share - lost_share, (kept_share + won_share) / (kept_share + lost_share)
    total = 40
    held_change = held_ratio = 0.0
    for (kept, lost, won), probability in outcomes(total, shares):
        low, high = change_interval(lost, won, total)
        held_change += probability * (low <= change <= high)
        if kept + lost:
            low, high = kept_interval(kept, lost, won)
            held_ratio += probability * (low <= ratio <= high)
    assert 0.94 <= held_change <= 0.99
    assert 0.94 <= held_ratio <= 0.99


def test_intervals_hold_what_was_found_and_stay_within_what_is_possible():
    for kept, lost, won in ((20, 0, 0), (0, 20, 0), (0, 1, 0), (18, 2, 3), (1, 0, 0)):
        total = kept + lost + won
        low, high = kept_interval(kept, lost, won)
        assert 0 <= low <= (kept + won) / (kept + lost) <= high < math.inf
        low, high = change_interval(lost, won, total)
        assert -1 <= low <= high <= 1
