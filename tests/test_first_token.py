"""A search for the first token: what the vision side costs, and the plan that brute force finds with it."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vtcompress
from compressor.errors import PlanError
from compressor.families import LoadedModel, load
from compressor.plan.cost import predict, predicted_speedup
from compressor.plan.plan import Plan
from compressor.plan.vision_cost import tile_flops
from compressor.samples.questions import Sample, read_samples
from compressor.search.candidates import Choice, PlanSpace, candidates_of
from compressor.search.costs import FirstTokenCost, first_token_problems
from compressor.search.engine import find
from compressor.search.halves import split
from tests import facts, test_family_internvl, test_family_llava_next, test_family_smolvlm
from tests.conftest import made_once, shared
from tests.models import Variant, make_llava, make_questions
from tests.searched import WHERE, independent_kl, terms
from vtcompress.stages.searching.finding import SearchRun

MAKERS: dict[str, Callable[[Path], object]] = {
    "llava, two states": lambda folder: make_llava(folder, Variant(feature_layer=[-2, -1])),
    "llava_next": test_family_llava_next.make,
    "internvl": test_family_internvl.make,
    "smolvlm": test_family_smolvlm.make,
}
USE = ("skip", "pool")


def counted(model: LoadedModel, module: torch.nn.Module) -> int:
    """Return the FLOPs of one tile, as torch counts what runs."""
    size = model.facts.image_size
    # Other kernels of attention than this one are not counted.
    plainly = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), plainly:
        module(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops())


@pytest.mark.parametrize("name", MAKERS)
def test_what_a_tile_costs_is_what_torch_counts(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    model = load(str(tmp_path))
    tower = model.facts.tower
    assert tower is not None
    # torch runs layers, too, that nobody reads, and no graph has.
    unread, width = tower.layers - tower.layers_read, tower.width
    rows = model.facts.tile_rows * tower.patches + tower.class_token
    assert tower.work is not None
    layer = 8 * rows * width**2 + 4 * rows**2 * width + 4 * rows * width * tower.work.intermediate
    vision = model.vision
    encoder = vision.front if name == "llava_next" else vision
    assert tile_flops(model.facts) == counted(model, encoder) - unread * layer


@pytest.fixture(scope="module")
def model(pytestconfig: pytest.Config) -> LoadedModel:
    folder = shared(pytestconfig) / "models" / "llava-of-four"
    variant = Variant(layers=4, feature_layer=-1)
    return load(str(made_once(folder, lambda half: make_llava(half, variant))))


@pytest.fixture(scope="module")
def samples(pytestconfig: pytest.Config) -> tuple[Sample, ...]:
    folder = made_once(
        shared(pytestconfig) / "made" / "searched", lambda half: make_questions(half, 8)
    )
    return read_samples(folder / "questions.jsonl")


def choice_flops(plan: Plan) -> int:
    """Return what making means of blocks costs: a product of [K, N] by [N, D]."""
    return 0 if plan.front is None else 2 * plan.front.count * plan.front.of * 64


def test_the_plan_is_that_of_brute_force_and_another_than_the_prefills(
    model: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    speed = 1.25
    keys = {"speedup": speed, "use": USE}
    (report, plans), (other, others) = (
        find(model, terms(samples, target=target, **keys), None)
        for target in ("first_token", "prefill")
    )
    one, chosen = terms(samples, **keys), plans[report.chosen]
    candidates = candidates_of(
        model.facts, model.digest, chosen.workload, one.searched, one.evidence
    )
    vision = counted(model, model.vision)

    def faster(plan: Plan) -> float:
        whole = predict(plan.naive()).flops + vision
        return whole / (predict(plan).flops + vision + choice_flops(plan))

    choose = tuple(samples[place] for place in split(samples, 0)[0])
    made = [candidates.plan(choice) for choice in every(candidates)]
    assert len(made) == 81
    best = min(
        (plan for plan in made if faster(plan) >= speed),
        key=lambda plan: independent_kl(model, plan, choose),
    )
    assert (chosen.layers, chosen.front) == (best.layers, best.front)
    assert report.chosen_point.predicted == pytest.approx(faster(best), rel=1e-12)
    assert report.chosen_point.predicted_prefill == pytest.approx(predicted_speedup(best))
    assert (report.target, report.unit) == ("first_token", "FLOPs up to the first token")
    # What the prefill alone needs for the same speed-up is less.
    quick = others[other.chosen]
    assert faster(quick) < speed <= predicted_speedup(quick)
    assert quick.layers != chosen.layers or quick.front != chosen.front


def every(candidates: PlanSpace) -> list[Choice]:
    modes, numbers = range(len(candidates.modes) + 1), range(len(candidates.keeps) + 1)
    return [Choice(keeps, 0, (*own, 0)) for keeps in numbers for own in product(modes, repeat=3)]


def test_what_is_not_known_is_one_line(model: LoadedModel, questions: Path, tmp_path: Path) -> None:
    bare = facts.facts()
    assert tile_flops(bare) is None
    with pytest.raises(PlanError, match=r"the family \S+ does not tell what its vision side costs"):
        first_token_problems(bare, (), "compress[0].auto.target")
    with pytest.raises(PlanError, match="does not tell what its vision side costs"):
        FirstTokenCost().of(facts.plan())
    values = {
        "model.id": str(model.folder),
        "calibrate.data": questions,
        "compress.auto.target": "first_token",
    }
    recipe = vtcompress.load_recipe("auto").override(values)
    facts.costs(decoder=model.facts.decoder).save(tmp_path / "costs.json")
    with pytest.raises(
        PlanError, match=r"auto\.target: first_token: .*none of the vision side"
    ) as e:
        vtcompress.search(recipe, tmp_path / "front", costs=tmp_path / "costs.json")
    assert len(e.value.problems) == 1
    assert not (tmp_path / "front").exists()


def test_a_choice_of_unknown_cost_is_refused_before_work_begins(
    model: LoadedModel, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.methods.pool.Pooling.choice_flops", lambda *_: None)
    values = {"calibrate.data": questions, "compress.auto.target": "first_token"}
    recipe = vtcompress.load_recipe("auto").override(values)
    with pytest.raises(
        PlanError, match=r"target: first_token: pool does not tell .*never\.methods"
    ):
        SearchRun.of(recipe).check(model.facts)
    assert WHERE in SearchRun.of(recipe).where
