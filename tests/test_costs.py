"""Measured costs: the formula on made-up times, and files that are read, refused and noted."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import vtcompress
from compressor.errors import PlanError
from compressor.facts import ModelFacts
from compressor.plan.cost import BAND_OVERHEAD
from compressor.plan.edits import identity_plan, keep_in_front, leave
from compressor.plan.layer import LayerPlan
from compressor.plan.measured_cost import (
    MeasuredCall,
    MeasuredCosts,
    fitted,
    layer_terms,
    plan_terms,
)
from compressor.plan.plan import Plan
from compressor.schema.sections import ExportSection
from export.checks.costs import measure
from export.checks.costs.here import measured_on
from export.checks.costs.layers import measured_plans
from tests import facts

Vt = Callable[..., tuple[int, str, str]]
UPDATE = LayerPlan(index=0)


def calls_of(model: ModelFacts, costs: MeasuredCosts, text: int = 5) -> list[MeasuredCall]:
    """Return the calls of a microbenchmark on a machine that takes what the costs say."""
    return [
        MeasuredCall(
            graph=name,
            visual=visual,
            text=text,
            seconds=seconds_of(costs, terms := plan_terms(plan, visual)),
            terms=dict(terms),
        )
        for name, plan in measured_plans(model, text).items()
        for visual in (plan.visual, plan.visual // 2, 0)
    ]


def seconds_of(costs: MeasuredCosts, terms: object) -> float:
    """The formula written down once more."""
    assert isinstance(terms, dict)
    return sum(float(costs.rates[name]) * count for name, count in terms.items())


def mixed(model: ModelFacts) -> Plan:
    """Return a plan that says every word that has a form, in combinations that are not measured."""
    layers = (
        UPDATE,
        LayerPlan(index=1, groups=(1,), neurons=(0, 5, 7)),
        LayerPlan(index=2, without="attention", neurons=(1, 2)),
        LayerPlan(index=3, visual="frozen", reason="shortv", groups=(0,)),
        LayerPlan(index=4, without="mlp", groups=(0,)),
        LayerPlan(index=5, visual="frozen", reason="dead"),
    )
    plan = identity_plan(model, facts.DIGEST).model_copy(update={"layers": layers})
    return Plan.model_validate(leave(plan, 5, "visual_exit").model_dump())


def test_a_layer_takes_what_is_counted_by_hand() -> None:
    # As in test_cost: 128 FLOPs of projections, 128 of attention, 144 of the MLP, on 4 rows.
    costs = facts.costs(
        decoder=facts.dims(hidden=2, heads=1, kv_heads=1, head_dim=2, intermediate=3),
        rates={
            "layer": 1.0,
            "row": 10.0,
            "projections": 2.0,
            "attention": 3.0,
            "mlp": 5.0,
            "heads": 7.0,
        },
    )
    assert costs.layer_seconds(UPDATE, 3, 1) == 1 + 40 + 256 + 3 * 128 + 5 * 144
    # In no head: K, V, Q, O and attention on the one text row, 32 and 2 * 2*1*2*1 * 1.
    none = LayerPlan(index=0, groups=())
    assert costs.layer_seconds(none, 3, 1) == 1 + 7 + 40 + 2 * 32 + 3 * 8 + 5 * 144


def test_a_prefill_is_the_sum_of_its_layers_and_of_what_a_call_takes() -> None:
    costs, plan = facts.costs(), mixed(facts.facts())
    visual, text = plan.visual, plan.workload.text
    layers = [costs.layer_seconds(layer, visual, text) for layer in plan.layers]
    assert costs.seconds(plan) == pytest.approx(costs.rates["call"] + sum(layers), rel=1e-12)
    assert costs.seconds_of_layers(plan) == pytest.approx(layers, rel=1e-12)
    assert costs.speedup(plan) == costs.seconds(plan.naive()) / costs.seconds(plan)


def test_rows_that_do_not_enter_take_no_time() -> None:
    costs, plan = facts.costs(), identity_plan(facts.facts(), facts.DIGEST)
    fewer = keep_in_front(plan, 4, "divprune", {})
    of_four = facts.plan(dead=(5,), model=facts.facts(visual_tokens=4))
    assert costs.seconds(fewer) == costs.seconds(of_four) < costs.seconds(plan)


def test_behind_gates_time_is_the_mean_over_the_exits_that_were_seen() -> None:
    costs, plan = facts.costs(), facts.plan(gates=facts.gates())
    asked = costs.rates["projections"] * (4 * 16 * 8 + 4 * 8)
    exits = {1: (6, 1), 3: (3, 2), None: (1, 2)}
    wanted = sum(
        share / 10 * (costs.seconds(plan.fired_after(layer)) + count * asked)
        for layer, (share, count) in exits.items()
    )
    assert costs.seconds(plan) == pytest.approx(wanted, rel=1e-12)


def test_times_that_the_formula_makes_give_its_numbers_again_also_for_plans_that_were_not_timed() -> (
    None
):
    made_up, model = facts.costs(), facts.facts(token_grid=(3, 4))
    found = facts.costs(
        rates=fitted(calls_of(model, made_up)), calls=tuple(calls_of(model, made_up))
    )
    assert found.misfit < 1e-9
    plan = mixed(model)
    assert found.seconds(plan) == pytest.approx(made_up.seconds(plan), rel=1e-6)
    window = LayerPlan(index=0, window=3)
    seconds = [costs.layer_seconds(window, 12, 9, (3, 4)) for costs in (found, made_up)]
    assert seconds[0] == pytest.approx(seconds[1], rel=1e-6)


def test_without_a_grid_bands_take_what_the_planner_takes_them_for() -> None:
    calls = calls_of(facts.facts(), facts.costs())
    assert not any("bands" in call.terms for call in calls)
    rates = fitted(calls)
    assert rates["bands"] == BAND_OVERHEAD * rates["attention"] > 0


def test_no_product_takes_less_than_no_time() -> None:
    """Noise can make it look so: the others then carry what was measured."""
    slow = facts.costs(rates=facts.costs().rates | {"attention": -3e-11, "frozen": -9e-6})
    rates = fitted(calls_of(facts.facts(), slow))
    assert rates.get("attention", 0.0) == 0
    assert rates["frozen"] < 0, "a form may save time"
    assert min(rates[name] for name in ("layer", "call", "mlp")) > 0


def test_terms_name_what_a_layer_is() -> None:
    dims = facts.dims()
    cut = LayerPlan(index=0, without="mlp", groups=(1,))
    assert layer_terms(dims, cut, 12, 4).keys() == {
        "layer", "row", "projections", "attention", "mlp", "without_mlp", "heads",
    }  # fmt: skip
    exited = LayerPlan(index=1, visual="exited", reason="visual_exit")
    assert layer_terms(dims, exited, 12, 4)["row"] == 4


def test_a_file_says_what_was_measured_and_is_refused_for_something_else(tmp_path: Path) -> None:
    file, costs = tmp_path / "costs.json", facts.costs()
    costs.save(file)
    assert MeasuredCosts.load(file) == costs
    assert costs.why_not(facts.facts(), ExportSection()) == ""
    other = facts.facts(facts.dims(hidden=32, heads=8))
    with pytest.raises(PlanError) as caught:
        costs.check_fits(other.model_copy(update={"name": "other"}), ExportSection(), str(file))
    assert str(caught.value) == (
        f"{file}: holds times of owner/little-model, which are not those of other; measure it anew with "
        "`vtcompress costs`"
    )
    small = ExportSection(weights="int4", block=64)
    with pytest.raises(
        PlanError, match="times of float32, and the recipe exports float32 with int4"
    ):
        costs.check_fits(facts.facts(), small, str(file))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "Invalid JSON"),
        ('{"costs_format": 2}', "written for a newer vtcompress (format 2): upgrade vtcompress"),
        ('{"costs_format": 1}', "measured_on: Field required"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_the_remedy(
    tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "costs.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        MeasuredCosts.load(file)
    assert said in str(caught.value)
    assert all(line.endswith("anew with `vtcompress costs`") for line in caught.value.problems)


@pytest.mark.parametrize("rates", [{}, {"call": -1.0}, {"call": float("nan")}, {"call": 0.0}])
def test_rates_that_give_no_times_are_refused(tmp_path: Path, rates: dict[str, float]) -> None:
    file = tmp_path / "costs.json"
    facts.costs().save(file)
    held = json.loads(file.read_text(encoding="utf-8")) | {"rates": rates}
    file.write_text(json.dumps(held), encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        MeasuredCosts.load(file)
    (line,) = caught.value.problems
    assert "the rates give no times for the calls" in line or "rates.call" in line
    assert line.endswith("anew with `vtcompress costs`")


def two_words(model: ModelFacts, text: int) -> dict[str, Plan]:
    plans = measured_plans(model, text)
    return {name: plans[name] for name in ("all rows", "frozen")}


@pytest.fixture
def asked(tiny_model: Path, tmp_path: Path) -> Sequence[object]:
    return ("costs", "--recipe", "identity", "--model", tiny_model, "--output", tmp_path / "c.json")


def test_a_machine_is_measured_once_and_a_plan_then_says_its_time(
    tiny_model: Path,
    tmp_path: Path,
    vt: Vt,
    asked: Sequence[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "measured_plans", two_words)
    code, out, _ = vt(*asked)
    assert code == 0
    assert "off by" in out
    file = tmp_path / "c.json"
    found = MeasuredCosts.load(file)
    whole = found.calls[0].visual
    timed = {(call.graph, call.visual) for call in found.calls}
    assert timed == {
        *(("all rows", rows) for rows in (whole, whole // 2, whole // 4, 0)),
        *(("frozen", rows) for rows in (whole, whole // 2)),
    }
    assert found.measured_on == measured_on(1)

    monkeypatch.delattr(measure, "write_layers")  # nothing is written any more
    code, _, err = vt(*asked)
    assert code == 0
    assert "was measured here before, and is used as it is" in err
    assert vtcompress.inspect(file)["kind"] == "measured costs"

    common = (
        "plan",
        "--recipe",
        "identity",
        "--model",
        tiny_model,
        "--output",
        tmp_path / "p.json",
    )
    code, out, _ = vt("--json", *common, "--costs", file)
    said, plan = json.loads(out)["predicted_time"], Plan.load(tmp_path / "p.json")
    assert code == 0
    assert said["seconds"] == pytest.approx(found.seconds(plan))
    assert said["speedup"] == pytest.approx(said["seconds_original"] / said["seconds"])
    code, out, err = vt(*common, "--costs", file)
    assert f"; {found.measured_on.words})" in out
    assert "note:" not in err

    elsewhere = found.measured_on.model_copy(update={"processor": "abacus"})
    found.model_copy(update={"measured_on": elsewhere}).save(file)
    assert f"note: {file}: times of abacus, " in vt(*common, "--costs", file)[2]

    facts.costs().save(file)
    (tmp_path / "p.json").unlink()
    code, _, err = vt("-q", *common, "--costs", file)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"error: {file}: holds times of owner/little-model")
    assert not (tmp_path / "p.json").exists()


def test_what_is_no_file_of_costs_is_not_written_over(
    tmp_path: Path, vt: Vt, asked: Sequence[object]
) -> None:
    facts.plan([1]).save(tmp_path / "c.json")
    code, _, err = vt(*asked)
    assert code == 1
    assert "holds a plan, so that measured costs does not replace it" in err
