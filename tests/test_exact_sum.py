"""Sums over samples are exact, so that neither order nor shares change a mean."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.contract.exact_sum import exact_mean, exactly_added

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12)


def summed(rows):
    parts = ()
    for row in rows:
        parts = exactly_added(parts, row)
    return parts


@given(ROWS)
def test_the_parts_of_a_sum_have_its_exact_value(rows):
    parts = summed(rows)
    for place in range(2):
        wanted = sum(Fraction(row[place]) for row in rows)
        assert sum(Fraction(part[place]) for part in parts) == wanted


@given(ROWS, st.randoms(), st.integers(1, 4))
def test_neither_order_nor_shares_change_a_mean(rows, drawn, shares):
    mixed = list(rows)
    drawn.shuffle(mixed)
    total = ()
    for share in range(shares):
        for part in summed(mixed[share::shares]):
            total = exactly_added(total, part)
    assert exact_mean(total, len(rows)) == exact_mean(summed(rows), len(rows))


def test_values_of_two_axes_keep_their_shape_and_equal_values_need_one_part():
    rows = (((0.5, 0.25), (1.0, 0.0)),) * 4
    assert summed(rows) == (((2.0, 1.0), (4.0, 0.0)),)
    assert exact_mean(summed(rows), 4) == rows[0]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_value_that_is_infinite_or_none_makes_its_mean_so_and_no_other(value):
    rows = ((0.1, 0.2), (value, 0.3), (0.7, 0.4))
    first, second = exact_mean(summed(rows), 3)
    assert repr(first) == repr(value)
    assert second == pytest.approx(0.3)
