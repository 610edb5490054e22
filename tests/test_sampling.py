"""Next tokens: the distribution that is drawn from, and the draws, against formulas written another way."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import DataError
from export.runtime.sampling import AnswerOptions, drawn_tokens, greedy, nucleus

ROWS = st.lists(st.floats(-20, 20), min_size=1, max_size=12)


def by_hand(logits: list[float], temperature: float, top_p: float) -> list[float]:
    """Python's own floats and sorting: add the most likely until they reach top_p."""
    top = max(logits)
    weights = [math.exp((x - top) / temperature) for x in logits]
    total = math.fsum(weights)
    chances = [w / total for w in weights]
    kept: list[int] = []
    for place in sorted(range(len(chances)), key=lambda i: (-chances[i], i)):
        kept.append(place)
        if math.fsum(chances[i] for i in kept) >= top_p:
            break
    mass = math.fsum(chances[i] for i in kept)
    return [chances[i] / mass if i in kept else 0.0 for i in range(len(chances))]


@given(ROWS, st.floats(0.05, 5), st.sampled_from([0.1, 0.37, 0.5, 0.83, 0.95, 1.0]))
def test_the_distribution_is_the_smallest_likely_set_renormalised(row, temperature, top_p):
    found = nucleus(np.array([row], np.float32), temperature, top_p)[0]
    wanted = by_hand([float(np.float32(x)) for x in row], temperature, top_p)
    differing = np.abs(found - wanted).max()
    # A sum that meets top_p to the last bit may be rounded to either side.
    edge = any(
        abs(s - top_p) < 1e-9 for s in np.cumsum(sorted(by_hand(row, temperature, 1.0))[::-1])
    )
    assert differing < 1e-9 or edge


def test_the_distribution_equals_that_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(0, 3, (5, 40)).astype(np.float32)
    scores = TemperatureLogitsWarper(0.7)(None, torch.from_numpy(logits))
    wanted = TopPLogitsWarper(0.8)(None, scores).softmax(-1).numpy()
    assert np.abs(nucleus(logits, 0.7, 0.8) - wanted).max() < 1e-6
    assert 1 < (wanted[0] > 0).sum() < 40


def test_large_logits_and_tiny_temperatures_do_not_overflow():
    found = nucleus(np.array([[3e4, -3e4, 2e4]], np.float32), 1e-3, 0.9)
    assert found.tolist() == [[1.0, 0.0, 0.0]]


def test_draws_have_the_frequencies_of_the_distribution_and_never_its_zeros():
    rng = np.random.default_rng(1)
    chances = np.array([[0.5, 0.0, 0.3, 0.2]]).repeat(20_000, axis=0)
    counts = np.bincount(drawn_tokens(chances, rng), minlength=4) / 20_000
    assert counts[1] == 0
    assert np.abs(counts - [0.5, 0.0, 0.3, 0.2]).max() < 0.02


def test_every_row_of_a_batch_is_drawn_by_itself():
    chances = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert drawn_tokens(chances, np.random.default_rng(0)).tolist() == [1, 2, 0]


def test_temperature_0_is_greedy_and_draws_nothing():
    logits = np.array([[0.0, 5.0, 5.0], [2.0, 1.0, 0.0]])
    assert AnswerOptions().picker() is greedy
    assert greedy(logits).tolist() == [1, 0]


def test_equal_seeds_give_equal_draws_and_other_seeds_others():
    logits = np.zeros((1, 50), np.float32)

    def drawn(seed: int) -> list[int]:
        pick = AnswerOptions(temperature=1.0, seed=seed).picker()
        return [int(pick(logits)[0]) for _ in range(20)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"seed": -1}, "seed"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(options, key):
    with pytest.raises(DataError, match=f"^{key}: "):
        AnswerOptions(**options)


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(DataError) as caught:
        AnswerOptions(temperature=-1, top_p=2, seed=-3)
    assert len(caught.value.problems) == 3
