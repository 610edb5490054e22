"""The search: its sums against every plan, its plan against brute force, a stop and a go, its end."""

import time
from dataclasses import replace
from itertools import product

import pytest

from compressor.errors import DataError, PlanError
from compressor.families import LoadedModel, load
from compressor.plan.cost import predicted_speedup
from compressor.samples.questions import Sample, read_samples
from compressor.search import engine
from compressor.search.additive import Additive, SingleLosses
from compressor.search.bounds import lower_bound
from compressor.search.candidates import Choice, PlanSpace, candidates_of
from compressor.search.costs import FlopsCost
from compressor.search.engine import find
from compressor.search.findings import SearchFindings, SearchTask
from compressor.search.halves import split
from compressor.search.measuring import Measuring, exit_key, keeps_key, mode_key
from compressor.search.results import HalfFigures, KeptAnswers, SearchReport
from compressor.search.search import Search
from tests.conftest import made_once, shared
from tests.models import Variant, make_llava, make_questions
from tests.searched import WHERE, evidence_of, independent_kl, terms
from tests.test_family_qwen2_vl import maker

SKIP = ("skip",)
"""Offers two modes: with everything, three; the last of five layers is dead, so there are 81 plans."""


@pytest.fixture(scope="module")
def samples(pytestconfig: pytest.Config) -> tuple[Sample, ...]:
    folder = made_once(
        shared(pytestconfig) / "made" / "searched", lambda half: make_questions(half, 8)
    )
    return read_samples(folder / "questions.jsonl")


@pytest.fixture(scope="module")
def llava_of_five(pytestconfig: pytest.Config) -> LoadedModel:
    folder = shared(pytestconfig) / "models" / "llava-of-five"
    return load(str(made_once(folder, lambda half: make_llava(half, Variant(layers=5)))))


@pytest.fixture(scope="module")
def qwen_of_five(pytestconfig: pytest.Config) -> LoadedModel:
    vision = {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    make = maker("Qwen2VL", vision, num_hidden_layers=5)
    return load(str(made_once(shared(pytestconfig) / "models" / "qwen-of-five", make)))


def every(candidates: PlanSpace) -> list[Choice]:
    numbers = range(len(candidates.modes) + 1)
    return [Choice(0, 0, (*modes, 0)) for modes in product(numbers, repeat=candidates.layers - 1)]


def additive_of(model: LoadedModel, samples: tuple[Sample, ...], **keys: object) -> Additive:
    """Return sums whose single losses are drawn, of a model with five layers."""
    one = terms(samples, keep=1.0, use=SKIP, **keys)
    workload = Measuring(model, samples, 4).workload
    candidates = candidates_of(model.facts, model.digest, workload, one.searched, one.evidence)
    losses = SingleLosses(
        modes=(*((0.0, 0.3 + i * 0.17 % 1, 0.2 + i * 0.31 % 1) for i in range(4)), (0.0,)),
        exits={},
        keeps=(0.0,),
    )
    return Additive(candidates, FlopsCost(), losses)


@pytest.mark.parametrize("speed", [1.2, 1.3, 1.4, 1.6, 1.75])
def test_the_knapsack_finds_what_loses_least_of_all_81_plans(llava_of_five, samples, speed):
    additive = additive_of(llava_of_five, samples)
    plans = [(c, additive.candidates.plan(c)) for c in every(additive.candidates)]
    assert len(plans) == 81
    fast = [choice for choice, plan in plans if predicted_speedup(plan) >= speed]
    assert 0 < len(fast) < 81
    best = min(fast, key=lambda c: sum(additive.losses.modes[i][m] for i, m in enumerate(c.modes)))
    found = additive.best(additive.original / speed)
    assert [proposal.choice for proposal in found] == [best]


def test_costs_of_sums_are_those_of_plans(llava_of_five, samples, tmp_path):
    evidence = evidence_of(llava_of_five, samples, tmp_path / "profile.json")
    searched = terms(samples, keep=1.0).searched
    workload = Measuring(llava_of_five, samples, 4).workload
    candidates = candidates_of(
        llava_of_five.facts, llava_of_five.digest, workload, searched, evidence
    )
    assert {change.method for change in candidates.modes} == {"shortv", "skip", "yopo"}
    row = (0.0,) * (len(candidates.modes) + 1)
    keeps = range(len(candidates.keeps) + 1)
    losses = SingleLosses((row,) * 5, dict.fromkeys(candidates.exits, 0.0), (0.0,) * len(keeps))
    additive = Additive(candidates, FlopsCost(), losses)
    last = len(candidates.modes)
    for choice in (
        Choice(0, 0, (1, 2, 0, 3, 0)),
        Choice(0, 4, (last, 4, 1, 0, 0)),
        *(
            Choice(n, leaves, (1, last, 2, 0, 0))
            for n in keeps
            for leaves in candidates.exits_with(n)
        ),
    ):
        plan = candidates.plan(choice)
        assert additive.speedup(choice) == pytest.approx(predicted_speedup(plan), rel=1e-12)


@pytest.mark.parametrize("which", ["llava_of_five", "qwen_of_five"])
@pytest.mark.parametrize("speed", [1.2, 1.6])
def test_the_plan_is_that_of_brute_force_over_all_plans(
    which: str, speed: float, samples: tuple[Sample, ...], request: pytest.FixtureRequest
) -> None:
    model: LoadedModel = request.getfixturevalue(which)
    report, plans = find(model, terms(samples, speedup=speed, use=SKIP), None)
    one = terms(samples, speedup=speed, use=SKIP)
    workload = plans[report.chosen].workload
    candidates = candidates_of(model.facts, model.digest, workload, one.searched, one.evidence)
    choose = tuple(samples[place] for place in split(samples, 0)[0])
    fast = [
        plan
        for choice in every(candidates)
        if predicted_speedup(plan := candidates.plan(choice)) >= speed
    ]
    best = min(fast, key=lambda plan: independent_kl(model, plan, choose))
    assert plans[report.chosen].layers == best.layers
    assert report.chosen_point.chosen_on.kl == pytest.approx(
        independent_kl(model, best, choose), rel=1e-3
    )


def test_a_single_change_is_the_plan_with_that_change_alone(llava_of_five, samples, tmp_path):
    evidence = evidence_of(llava_of_five, samples, tmp_path / "profile.json")
    measuring = Measuring(llava_of_five, samples, 4)
    searched = terms(samples, keep=1.0).searched
    candidates = candidates_of(
        llava_of_five.facts, llava_of_five.digest, measuring.workload, searched, evidence
    )
    places = range(len(samples))
    sums: dict[str, float] = {}
    for batch in measuring.batches_of_singles(places):
        for name, value in measuring.singles(candidates, batch):
            sums[name] = sums.get(name, 0.0) + value
    at_layers = candidates.kept_at_layers
    assert len(sums) == 4 * len(candidates.modes) + 4 + len(at_layers)
    assert len(at_layers) == 6
    wanted = {
        mode_key(i, m): candidates.nothing.with_mode(i, m)
        for i in (0, 3)
        for m in range(1, len(candidates.modes) + 1)
    } | {exit_key(2): candidates.nothing._replace(leaves=2)}
    wanted |= {keeps_key(n): candidates.nothing._replace(keeps=n) for n in at_layers}
    for name, choice in wanted.items():
        whole = independent_kl(llava_of_five, candidates.plan(choice), samples)
        assert sums[name] / len(samples) == pytest.approx(whole, rel=1e-3, abs=1e-7), name


def test_an_answer_is_right_where_greedy_decoding_gives_it(llava_of_five, samples):
    from compressor.compressed import compress, plain

    unknown = tuple(replace(sample, answer=None) for sample in samples)
    measuring = Measuring(llava_of_five, unknown, 4)
    assert all(question.own and question.before == 1.0 for question in measuring.questions)
    searched = terms(unknown, keep=1.0, use=SKIP).searched
    candidates = candidates_of(
        llava_of_five.facts,
        llava_of_five.digest,
        measuring.workload,
        searched,
        terms(unknown, keep=1.0).evidence,
    )
    original = plain(llava_of_five)
    seen = set()
    for choice in every(candidates)[::9]:
        small = compress(llava_of_five, candidates.plan(choice))
        same = [
            small.generate(s.question, s.images, max_new_tokens=4, generation_config=False)
            == original.generate(s.question, s.images, max_new_tokens=4, generation_config=False)
            for s in unknown
        ]
        figures = measuring.figures(candidates, choice, range(len(unknown)))
        assert figures.overall.kept == sum(same)
        assert figures.overall.original == len(unknown)
        seen |= set(same)
    assert seen == {True, False}


def without_times(report: SearchReport) -> SearchReport:
    return report.model_copy(update={"seconds": 0.0})


def test_the_same_seed_gives_the_same_plan_and_a_stopped_search_goes_on_to_it(
    llava_of_five, samples, tmp_path, monkeypatch
):
    asked = terms(samples, max_kl=0.05, use=SKIP)
    whole, plans = find(llava_of_five, asked, None)
    again, same = find(llava_of_five, asked, None)
    assert (without_times(again), same) == (without_times(whole), plans)
    path = tmp_path / "findings.json"
    measured: list[tuple[Choice, tuple[int, ...]]] = []
    real, after = Measuring.figures, 5

    def counted(self: Measuring, candidates: PlanSpace, choice: Choice, places: tuple[int, ...]):
        if len(measured) == after:
            raise KeyboardInterrupt
        measured.append((choice, places))
        return real(self, candidates, choice, places)

    monkeypatch.setattr(Measuring, "figures", counted)
    monkeypatch.setattr("compressor.search.findings.SAVE_EVERY_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        find(llava_of_five, asked, path)
    monkeypatch.setattr(
        engine.Measuring, "singles", lambda *_: pytest.fail("single changes are measured again")
    )
    before, after = list(measured), 10_000
    resumed, others = find(llava_of_five, asked, path)
    assert (without_times(resumed), others) == (without_times(whole), plans)
    assert not set(measured[len(before) :]) & set(before[:-1])


def test_another_seed_splits_otherwise_and_pictures_stay_in_one_half(samples):
    twice = tuple(replace(s, images=samples[i // 2].images) for i, s in enumerate(samples))
    halves = [split(twice, seed) for seed in range(4)]
    assert len(set(halves)) > 1
    for choose, judge in halves:
        assert sorted((*choose, *judge)) == list(range(len(samples)))
        assert not {twice[i].images for i in choose} & {twice[i].images for i in judge}
        assert len(choose) == len(judge)
    with pytest.raises(DataError, match="share one picture"):
        split(tuple(replace(s, images=samples[0].images) for s in samples), 0)


class Slow:
    """Measures every plan alike, in a fiftieth of a second."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, choice: Choice, half: str) -> HalfFigures:  # noqa: ARG002
        self.count += 1
        time.sleep(0.02)
        kept = KeptAnswers(kind="all", questions=9, original=9, kept=9, won=0)
        return HalfFigures(kl=1 / self.count, overall=kept, kinds=(kept,))


def test_a_budget_is_kept_within_a_tenth_and_what_was_not_tried_is_said(llava_of_five, samples):
    task = SearchTask(model_digest="m", data_digest="d", seed=0, allowed="", tokens=4)
    search = Search(
        additive_of(llava_of_five, samples),
        Slow(),
        terms(samples, speedup=1.3).searched,
        WHERE,
        SearchFindings(None, task),
        budget=0.5,
    )
    began = time.monotonic()
    outcome = search.run()
    assert 0.3 < time.monotonic() - began < 0.55
    assert any("there was no time" in words for words in outcome.not_tried)


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"keep": 0.9}, DataError, r"auto\.keep: the original answers none of the 4 questions"),
        ({"speedup": 9.0}, PlanError, r"auto\.speedup: 9 is out of reach; all together gives 1\."),
        ({"max_kl": 0.0}, PlanError, r"max_kl: 0 is not reached by any of \d+ plans: the best has"),
        (
            {"floor": {"z": 0.9}},
            PlanError,
            r"floor\.z: no question of the search is of this kind \(the \d+ that were drawn have: x, y\)",
        ),
        ({"use": ("skipp",)}, PlanError, r"use: 'skipp' is no method .*did you mean 'skip'"),
        ({"use": ("dyvte",)}, PlanError, r"use: 'dyvte' is no method that a search can use"),
        ({"use": ("visionzip",)}, PlanError, r"'visionzip' is no method .*known: (?!.*visionzip)"),
        ({"never": {"layers": (7,)}}, PlanError, r"never\.layers: 7 is outside 0\.\.4"),
        ({"never": {"methods": ("skip",)}}, PlanError, "no method is left that may be used"),
        (
            {"budget": 1e-4},
            PlanError,
            "budget: 0.0001 s are too few: one pass over the 8 questions",
        ),
    ],
)
def test_what_cannot_be_searched_is_one_line(llava_of_five, samples, keys, error, said):
    goal = {} if {"keep", "max_kl", "speedup"} & set(keys) else {"speedup": 1.2}
    with pytest.raises(error, match=said) as caught:
        find(llava_of_five, terms(samples, **({"use": SKIP} | goal | keys)), None)
    assert len(caught.value.problems) == 1


def test_no_answers_and_no_own_answers_are_refused(llava_of_five, samples, monkeypatch):
    end = llava_of_five.facts.eos_token_ids[0]
    monkeypatch.setattr("compressor.search.asking.forced.greedy_tokens", lambda *_: iter([end]))
    unknown = tuple(replace(sample, answer=None) for sample in samples)
    with pytest.raises(DataError, match="no question has an answer, and the original gives none"):
        find(llava_of_five, terms(unknown, keep=0.9, use=SKIP), None)


def test_layers_and_methods_that_are_never_touched_are_not(llava_of_five, samples):
    never = {"layers": (1,), "methods": ("skip",)}
    report, plans = find(
        llava_of_five,
        terms(samples, speedup=1.3, use=("shortv", "skip", "visual_exit"), never=never),
        None,
    )
    for name, plan in plans.items():
        assert not plan.layers[1].cuts, name
        assert plan.layers[1].reason in ("", "dead"), name
        assert not any(layer.without for layer in plan.layers), name
    assert report.chosen_point.reasons[1] == "kept whole, as the recipe asks"


@pytest.mark.parametrize(
    ("count", "total", "wanted"), [(0, 5, 0.0), (9, 10, 0.6058), (32, 32, 0.05 ** (1 / 32))]
)
def test_the_bound_is_clopper_and_pearsons(count: int, total: int, wanted: float) -> None:
    assert lower_bound(count, total) == pytest.approx(wanted, abs=5e-5)
