"""Plans drawn at random beside sums of what their changes lose alone: single losses are the search's own."""

from pathlib import Path

import pytest

from benchmarks.additivity import FASTEST, SLOWEST, Drawn, by_range, draws, losses_of
from compressor.families import load
from compressor.plan.plan import Workload
from compressor.samples.questions import read_samples
from compressor.search.additive import Additive
from compressor.search.candidates import candidates_of
from compressor.search.costs import FlopsCost
from compressor.search.engine import find
from compressor.search.results import SearchReport
from tests.conftest import made_once, shared
from tests.models import Variant, make_llava
from tests.searched import terms


@pytest.fixture(scope="module")
def found(questions: Path, pytestconfig: pytest.Config) -> tuple[SearchReport, Additive]:
    """Return a search's report, and sums of the single losses that stand in it."""
    folder = shared(pytestconfig) / "models" / "llava-of-five"
    made_once(folder, lambda half: make_llava(half, Variant(layers=5)))
    model, samples = load(str(folder)), read_samples(questions)
    one = terms(samples, speedup=1.1, use=("skip", "shortv", "visual_exit", "random"))
    report, _ = find(model, one, None)
    workload = Workload(text=report.text)
    space = candidates_of(model.facts, model.digest, workload, one.searched, one.evidence)
    return report, Additive(space, FlopsCost(), losses_of(report, space))


def test_sums_of_a_report_are_those_of_its_search(found: tuple[SearchReport, Additive]) -> None:
    report, additive = found
    made = [point for point in report.front if not point.swaps]
    assert made
    for point in made:
        within = additive.best(additive.original / point.predicted)
        assert any(
            p.loss == pytest.approx(point.summed_kl, rel=1e-9)
            and p.cost == pytest.approx(additive.original / point.predicted)
            for p in within
        )


def test_plans_are_drawn_over_the_whole_range_and_alike_for_a_seed(
    found: tuple[SearchReport, Additive],
) -> None:
    _, additive = found
    plans = draws(additive, 20, seed=3)
    assert plans == draws(additive, 20, seed=3) != draws(additive, 20, seed=4)
    assert len(set(plans)) == len(plans)
    speeds = [additive.speedup(plan) for plan in plans]
    assert speeds == sorted(speeds)
    assert all(SLOWEST <= speed < FASTEST for speed in speeds)
    middle = (SLOWEST * min(FASTEST, max(speeds))) ** 0.5
    assert any(speed < middle for speed in speeds)
    assert any(speed > middle for speed in speeds)
    assert any(plan.leaves for plan in plans)
    assert any(plan.keeps for plan in plans)


def test_ratios_are_told_by_powers_of_ten_of_the_sums() -> None:
    made = [
        Drawn(2.0, 0.002, 0.004),
        Drawn(2.0, 0.005, 0.005),
        Drawn(3.0, 0.5, 0.25),
        Drawn(1.0, 0, 0),
    ]
    assert list(by_range(made)) == [
        "| 0.001 to 0.01 | 2 | 1.00 | 2.00 | 2.00 |",
        "| 0.1 to 1 | 1 | 0.50 | 0.50 | 0.50 |",
    ]
