"""A search that may let visual tokens read their neighbours alone, on a grid that is large enough for it."""

from collections.abc import Callable
from pathlib import Path

import pytest

import vtcompress
from compressor.contract.method import Evidence
from compressor.families import LoadedModel, load
from compressor.plan.cost import predict
from compressor.plan.plan import Plan
from compressor.samples.questions import Sample, read_samples
from compressor.search.additive import Additive, SingleLosses
from compressor.search.candidates import Choice, PlanSpace, candidates_of
from compressor.search.costs import FlopsCost
from compressor.search.measuring import Measuring, mode_key
from compressor.search.results import SearchReport
from tests.conftest import made_once, shared
from tests.models import Variant, make_llava, make_questions
from tests.searched import evidence_of, independent_kl, terms

USE = ("yopo", "fastv", "random", "visual_exit")
WINDOW = "a window of 5 x 5"
SIDE = 18
"""Of the grid of visual tokens, in tokens: a window pays from 16 on."""


@pytest.fixture(scope="module")
def samples(pytestconfig: pytest.Config) -> tuple[Sample, ...]:
    folder = made_once(
        shared(pytestconfig) / "made" / "few-searched", lambda half: make_questions(half, 4)
    )
    return read_samples(folder / "questions.jsonl")


@pytest.fixture(scope="module")
def folder(pytestconfig: pytest.Config) -> Path:
    variant = Variant(side=8 * SIDE)
    return made_once(
        shared(pytestconfig) / "models" / "llava-of-a-large-grid",
        lambda half: make_llava(half, variant),
    )


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(str(folder))


@pytest.fixture(scope="module")
def evidence(
    model: LoadedModel, samples: tuple[Sample, ...], tmp_path_factory: pytest.TempPathFactory
) -> Evidence:
    return evidence_of(model, samples[:1], tmp_path_factory.mktemp("evidence") / "profile.json")


@pytest.fixture(scope="module")
def measuring(model: LoadedModel, samples: tuple[Sample, ...]) -> Measuring:
    return Measuring(model, samples, 4)


@pytest.fixture(scope="module")
def space(
    model: LoadedModel, samples: tuple[Sample, ...], evidence: Evidence, measuring: Measuring
) -> PlanSpace:
    searched = terms(samples, keep=1.0, use=USE).searched
    return candidates_of(model.facts, model.digest, measuring.workload, searched, evidence)


def window_of(space: PlanSpace) -> int:
    (mode,) = (n for n, change in enumerate(space.modes, 1) if change.words == WINDOW)
    return mode


def test_a_window_is_offered_where_it_pays_alone(
    llava: Callable[[str], Path], space: PlanSpace, samples: tuple[Sample, ...], evidence: Evidence
) -> None:
    assert window_of(space)
    small = load(str(llava("clip+llama")))
    searched = terms(samples, keep=1.0, use=USE).searched
    of_small = candidates_of(small.facts, small.digest, space.workload, searched, evidence)
    assert small.facts.token_grid is not None
    assert not any("window" in change.words for change in of_small.modes)
    # Of a wide decoder attention is a small part of the work.
    wide = space.facts.decoder.model_copy(update={"hidden": 4096})
    facts = space.facts.model_copy(update={"decoder": wide})
    of_wide = candidates_of(facts, space.digest, space.workload, searched, evidence)
    assert not any("window" in change.words for change in of_wide.modes)
    none = space.facts.model_copy(update={"token_grid": None})
    of_none = candidates_of(none, space.digest, space.workload, searched, evidence)
    assert not any("window" in change.words for change in of_none.modes)


def test_it_goes_with_no_choice_among_the_rows_that_it_reads(space: PlanSpace) -> None:
    window = window_of(space)
    assert {space.kept_at(number) for number in range(1, len(space.keeps) + 1)} == {0, 1, 2, 3}
    for keeps in range(1, len(space.keeps) + 1):
        assert window not in space.modes_with(keeps)
        with pytest.raises(ValueError, match="a window of 5 x 5 reads all visual rows"):
            space.plan(Choice(keeps, 0, (window, 0, 0, 0)))
    row = (0.0, *(0.1 + 0.01 * mode for mode in range(len(space.modes))))
    # A window costs nothing in answers here, so that every plan would have it that may.
    free = (*row[:window], 0.0, *row[window + 1 :])
    losses = SingleLosses(
        modes=(free, free, free, (0.0,)),
        exits=dict.fromkeys(space.exits, 0.3),
        keeps=(0.0, *(0.01 for _ in space.keeps)),
    )
    additive = Additive(space, FlopsCost(), losses)
    seen = set()
    for speed in (1.1, 1.5, 2.0, 3.0):
        for proposal in additive.best(additive.original / speed):
            plan = space.plan(proposal.choice)
            assert Plan.model_validate(dict(plan)) == plan
            assert proposal.cost == pytest.approx(predict(plan).flops, rel=1e-12)
            near = additive.neighbours(proposal.choice, additive.original)
            for other in (proposal.choice, *(one.choice for one in near[:20])):
                assert not (other.keeps and window in other.modes)
            seen.add((bool(proposal.choice.keeps), window in proposal.choice.modes))
    assert seen >= {(False, True), (True, False)}


def test_what_is_measured_is_what_the_plan_computes(
    model: LoadedModel, measuring: Measuring, samples: tuple[Sample, ...], space: PlanSpace
) -> None:
    window, sums = window_of(space), dict[str, float]()
    for batch in measuring.batches_of_singles(range(len(samples))):
        for name, value in measuring.singles(space, batch):
            sums[name] = sums.get(name, 0.0) + value
    for layer in (0, 2):
        choice = space.nothing.with_mode(layer, window)
        plan = space.plan(choice)
        assert plan.layers[layer].window == 5
        whole = independent_kl(model, plan, samples)
        assert whole > 0
        found = sums[mode_key(layer, window)] / len(samples)
        assert found == pytest.approx(whole, rel=1e-3)
    mixed = Choice(0, 3, (window, 1, 0, 0))
    joint = measuring.mean_loss(space, mixed, range(len(samples)))
    assert joint == pytest.approx(independent_kl(model, space.plan(mixed), samples), rel=1e-3)


def test_a_plan_with_a_window_is_found_and_exported(
    folder: Path, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    values = {
        "model.id": str(folder),
        "calibrate.data": samples[0].images[0].parent / "questions.jsonl",
        "compress.auto.speedup": 1.15,
        "compress.auto.use": ("yopo",),
        "validate.max_new_tokens": 2,
    }
    recipe = vtcompress.load_recipe("auto").override(values)
    vtcompress.search(recipe, tmp_path / "front")
    report = SearchReport.load(tmp_path / "front" / "front.json")
    assert WINDOW in {single.change for single in report.singles}
    files = [tmp_path / "front" / point.plan for point in report.points]
    windowed = [f for f in files if any(layer.window for layer in Plan.load(f).layers)]
    assert windowed
    manifest = vtcompress.export(recipe, tmp_path / "out", plan=windowed[0], bench_rounds=0)
    assert manifest.fidelity is not None
    assert not manifest.failures
