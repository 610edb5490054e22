"""A search that may keep some visual rows at a layer, which the end of the prompt chooses, not the answer."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import pytest

import vtcompress
from compressor.compressed import compress, plain
from compressor.decoder.one_prompt import greedy_tokens
from compressor.errors import PlanError
from compressor.families import LoadedModel, load
from compressor.generation.settings import PLAIN
from compressor.plan.cost import predict, predicted_speedup
from compressor.plan.plan import Plan
from compressor.samples.prompts import embed
from compressor.samples.questions import Sample, read_samples
from compressor.samples.scores import Score
from compressor.search.additive import Additive, SingleLosses
from compressor.search.candidates import Choice, PlanSpace, candidates_of
from compressor.search.costs import CostModel, FlopsCost, KvBytesCost
from compressor.search.engine import find
from compressor.search.halves import split
from compressor.search.measuring import Measuring
from compressor.search.results import SearchReport
from tests.conftest import made_once, shared
from tests.models import Variant, make_llava, make_questions
from tests.searched import independent_kl, terms
from tests.test_family_qwen2_vl import maker

ROWS = ("fastv", "visual_exit")
MODELS = ("llava", "qwen")


@pytest.fixture(scope="module")
def samples(pytestconfig: pytest.Config) -> tuple[Sample, ...]:
    folder = made_once(
        shared(pytestconfig) / "made" / "searched", lambda half: make_questions(half, 8)
    )
    return read_samples(folder / "questions.jsonl")


@pytest.fixture(scope="module")
def models(pytestconfig: pytest.Config) -> dict[str, LoadedModel]:
    folder = shared(pytestconfig) / "models"
    vision = {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    qwen = maker("Qwen2VL", vision, num_hidden_layers=5)
    llava = made_once(folder / "llava-of-five", lambda half: make_llava(half, Variant(layers=5)))
    return {
        "llava": load(str(llava)),
        "qwen": load(str(made_once(folder / "qwen-of-five", qwen))),
    }


def space(model: LoadedModel, samples: tuple[Sample, ...], use: tuple[str, ...]) -> PlanSpace:
    one = terms(samples, keep=1.0, use=use)
    workload = Measuring(model, samples, 4).workload
    return candidates_of(model.facts, model.digest, workload, one.searched, one.evidence)


def every(candidates: PlanSpace) -> Iterator[Choice]:
    for keeps in range(len(candidates.keeps) + 1):
        for leaves in candidates.exits_with(keeps):
            inner = len(candidates.open(leaves))
            for own in product(range(len(candidates.modes) + 1), repeat=inner):
                yield Choice(keeps, leaves, (*own, *(0 for _ in range(5 - inner))))


@pytest.mark.parametrize("costs", [FlopsCost(), KvBytesCost()], ids=lambda c: c.unit)
@pytest.mark.parametrize("speed", [1.2, 1.5, 1.9])
def test_the_knapsack_finds_what_loses_least_of_all_plans(
    models: dict[str, LoadedModel], samples: tuple[Sample, ...], costs: CostModel, speed: float
) -> None:
    candidates = space(models["llava"], samples, ("skip", *ROWS))
    losses = SingleLosses(
        modes=(*((0.0, 0.3 + i * 0.17 % 1, 0.2 + i * 0.31 % 1) for i in range(4)), (0.0,)),
        exits={leaves: 0.9 / leaves for leaves in candidates.exits},
        keeps=(0.0, 0.16, 0.4, 0.08, 0.2, 0.02, 0.05),
    )
    additive = Additive(candidates, costs, losses)
    choices = list(every(candidates))
    assert len(choices) == len(set(choices))
    assert {c.keeps for c in choices if c.leaves == 2} == {0, 1, 2}
    fast = []
    for choice in choices:
        plan = candidates.plan(choice)
        assert Plan.model_validate(dict(plan)) == plan
        cost = (
            sum(predict(plan).layer_kv_values) if costs.unit == "KV bytes" else predict(plan).flops
        )
        assert additive.cost(choice) == pytest.approx(cost, rel=1e-12)
        fast += [choice] * (additive.original / cost >= speed)
    assert 0 < len(fast) < len(choices)
    best = additive.best(additive.original / speed)[0]
    assert best.choice in fast
    assert best.loss == pytest.approx(min(map(losses.summed, fast)))


@pytest.mark.parametrize("name", MODELS)
def test_what_is_measured_is_what_the_model_gives_that_is_asked_token_by_token(
    models: dict[str, LoadedModel], samples: tuple[Sample, ...], name: str
) -> None:
    model = models[name]
    measuring = Measuring(model, samples, 4)
    assert any(len(question.answer) > 1 for question in measuring.questions)
    candidates = space(model, samples, ("skip", *ROWS))
    for choice in (
        Choice(2, 0, (0,) * 5),
        Choice(4, 0, (1, 0, 2, 0, 0)),
        Choice(1, 3, (0, 2, 0, 0, 0)),
    ):
        plan = candidates.plan(choice)
        assert plan.keeps()
        found = measuring.figures(candidates, choice, range(len(samples)))
        assert found.kl == pytest.approx(independent_kl(model, plan, samples), rel=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_the_model_although_they_are_forced(
    models: dict[str, LoadedModel], samples: tuple[Sample, ...], name: str
) -> None:
    model = models[name]
    unknown = tuple(replace(sample, answer=None) for sample in samples)
    measuring, original = Measuring(model, unknown, 4), plain(model)
    candidates = space(model, unknown, ROWS)
    for number in (2, 4):
        choice = candidates.nothing._replace(keeps=number)
        small = compress(model, candidates.plan(choice))
        said = [
            [
                m.generate(s.question, s.images, max_new_tokens=4, generation_config=False)
                for s in unknown
            ]
            for m in (small, original)
        ]
        same = sum(one == other for one, other in zip(*said, strict=True))
        assert measuring.figures(candidates, choice, range(len(unknown))).overall.kept == same


def test_an_answer_goes_on_as_the_model_goes_on_whose_rows_the_prompt_alone_chose(
    models: dict[str, LoadedModel], samples: tuple[Sample, ...]
) -> None:
    model, heard = models["qwen"], []
    score = Score("python:mine.own", lambda text, _: heard.append(text) or 0.5, graded=True)
    measuring = Measuring(model, samples, 6, score=score)
    plan = space(model, samples, ROWS).plan(Choice(2, 0, (0,) * 5))
    small = compress(model, plan, logits="all")
    ends, texts = model.facts.eos_token_ids, []
    heard.clear()
    for question in measuring.questions:
        asked = question.answered([])
        given = greedy_tokens(
            small.decoder, small.embedding, embed(small, asked), asked.input_ids, PLAIN, ends
        )
        whole = list(islice(given, 6))
        texts.append(model.processor.decode(whole, skip_special_tokens=True))
        measuring.asking.scored(question, whole[:3], small.decoder)
    assert heard == texts


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("speed", [1.2, 1.45])
def test_the_plan_is_that_of_brute_force_over_all_plans(
    models: dict[str, LoadedModel], samples: tuple[Sample, ...], name: str, speed: float
) -> None:
    model = models[name]
    report, plans = find(model, terms(samples, speedup=speed, use=("fastv",)), None)
    candidates = space(model, samples, ("fastv",))
    choose = tuple(samples[place] for place in split(samples, 0)[0])
    made = [candidates.plan(choice) for choice in every(candidates)]
    fast = [plan for plan in made if predicted_speedup(plan) >= speed]
    assert 1 < len(fast) < len(made)
    best = min(fast, key=lambda plan: independent_kl(model, plan, choose))
    assert plans[report.chosen].layers == best.layers
    assert plans[report.chosen].keeps()
    layer = next(iter(best.keeps()))
    assert "of visual tokens go on" in report.chosen_point.layers[layer]
    assert "go on from here, which alone changes answers by" in report.chosen_point.reasons[layer]
    assert f"of visual tokens at layer {layer}" in report.chosen_point.label
    assert {single.layer for single in report.singles} == {1, 3, 4}


def test_an_exit_is_behind_the_layer_at_which_rows_are_kept(
    models: dict[str, LoadedModel], samples: tuple[Sample, ...]
) -> None:
    candidates = space(models["llava"], samples, ROWS)
    layers = [candidates.kept_at(number) for number in range(7)]
    assert layers == [0, 1, 1, 3, 3, 4, 4]
    assert candidates.exits_with(3) == (0, 4)
    assert candidates.exits_with(5) == (0,)
    with pytest.raises(ValueError, match="no rows to choose among at layer 3: they left at 3"):
        candidates.plan(Choice(3, 3, (0,) * 5))


def test_nothing_is_kept_at_a_layer_where_a_healing_follows(
    models: dict[str, LoadedModel], samples: tuple[Sample, ...]
) -> None:
    asked = replace(terms(samples, speedup=1.2, use=ROWS), trained=True)
    report, plans = find(models["llava"], asked, None)
    assert not any(plan.keeps() for plan in plans.values())
    assert report.not_tried[0].startswith(
        "fastv: it chooses by the end of the prompt, and a healing"
    )
    alone = replace(terms(samples, speedup=1.2, use=("fastv",)), trained=True)
    with pytest.raises(
        PlanError, match=r"nothing is left to choose \(fastv: it chooses by the end"
    ):
        find(models["llava"], alone, None)


def test_a_plan_of_the_front_is_exported_and_its_graphs_are_the_model_that_was_measured(
    llava: Callable[[str], Path], questions: Path, tmp_path: Path
) -> None:
    values = {
        "model.id": str(llava("clip+llama")),
        "calibrate.data": questions,
        "compress.auto.speedup": 1.2,
        "compress.auto.use": ROWS[:1],
        "validate.max_new_tokens": 3,
    }
    recipe = vtcompress.load_recipe("auto").override(values)
    vtcompress.search(recipe, tmp_path / "front")
    chosen = SearchReport.load(tmp_path / "front" / "front.json").chosen_point
    file = tmp_path / "front" / chosen.plan
    manifest = vtcompress.export(recipe, tmp_path / "out", plan=file, bench_rounds=0)
    plan = Plan.load(tmp_path / "out" / "plan.json")
    assert plan.keeps()
    assert plan == Plan.load(file)
    assert manifest.fidelity is not None
    assert not manifest.failures
