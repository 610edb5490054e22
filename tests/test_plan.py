"""The plan as data: JSON both ways, refused where it contradicts itself."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from compressor.errors import PlanError
from compressor.plan import LayerPlan, Plan, Workload
from tests import facts

ON_TMP = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

layer_kinds = st.sampled_from([("update", ""), ("frozen", "shortv"), ("frozen", "dead")])


@st.composite
def plans(draw):
    kinds = draw(st.lists(layer_kinds, min_size=1, max_size=12))
    model = facts.facts(
        facts.dims(layers=len(kinds), rms_norm_eps=draw(st.floats(1e-12, 1e-3))),
        name=draw(st.text(st.characters(codec="utf-8"))),
        visual_tokens=draw(st.integers(1, 5000)),
        eos_token_ids=tuple(draw(st.lists(st.integers(0, 99), max_size=3))),
        dtype=draw(st.sampled_from(["float32", "float16", "bfloat16"])),
    )
    return Plan(
        model=model,
        model_digest=facts.DIGEST,
        layers=tuple(
            LayerPlan(index=i, visual=visual, reason=reason)
            for i, (visual, reason) in enumerate(kinds)
        ),
        workload=Workload(images=draw(st.integers(1, 9)), text=draw(st.integers(1, 999))),
    )


def written(folder, **changes):
    path = folder / "plan.json"
    path.write_text(json.dumps(facts.plan((1,)).model_dump(mode="json") | changes))
    return path


def problems(path):
    with pytest.raises(PlanError) as caught:
        Plan.load(path)
    return caught.value.problems


@ON_TMP
@given(plan=plans())
def test_any_plan_comes_back_equal_from_its_file(tmp_path, plan):
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@given(plans())
def test_frozen_layers_are_those_that_say_so_and_the_naive_plan_has_none(plan):
    expected = [i for i, layer in enumerate(plan.layers) if layer.visual == "frozen"]
    assert list(plan.frozen_layers()) == expected
    naive = plan.naive()
    assert naive.frozen_layers() == ()
    assert [layer.index for layer in naive.layers] == list(range(len(plan.layers)))
    assert (naive.model, naive.workload) == (plan.model, plan.workload)


def test_a_stored_plan_says_in_words_what_visual_rows_do(tmp_path):
    facts.plan((1,), dead=(5,)).save(tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    assert document["layers"][1] == {"index": 1, "visual": "frozen", "reason": "shortv"}
    assert document["layers"][2] == {"index": 2, "visual": "update", "reason": ""}
    assert document["layers"][5] == {"index": 5, "visual": "frozen", "reason": "dead"}


def test_the_visual_rows_of_the_workload_are_whole_images():
    assert facts.plan(images=3, model=facts.facts(visual_tokens=576)).visual == 1728


def test_a_plan_cannot_be_changed_in_place():
    with pytest.raises(ValidationError):
        facts.plan().layers[0].visual = "frozen"


def test_layers_that_are_not_the_models_are_refused(tmp_path):
    layers = [{"index": i} for i in (0, 2, 1, 3, 4, 5)]
    path = written(tmp_path, layers=layers)
    (line,) = problems(path)
    assert "layers are [0, 2, 1, 3, 4, 5]; the model has layers 0..5" in line
    assert line.startswith(f"{path}: plan: ")


@pytest.mark.parametrize("count", [0, 5, 7])
def test_too_few_and_too_many_layers_are_refused(tmp_path, count):
    path = written(tmp_path, layers=[{"index": i} for i in range(count)])
    assert "the model has layers 0..5" in problems(path)[0]


def test_a_plan_of_a_newer_format_is_refused_with_a_remedy(tmp_path):
    path = written(tmp_path, plan_format=2)
    (line,) = problems(path)
    assert line.startswith(f"{path}: plan_format: ")
    assert line.endswith("; make it anew with `vtcompress plan`")


def test_every_broken_field_is_named_at_once(tmp_path):
    layers = [{"index": 0, "visual": "melted"}, {"index": -1}]
    path = written(tmp_path, layers=layers, model_digest=5, speed="high", workload={"text": 0})
    named = {line.removeprefix(f"{path}: ").split(":")[0] for line in problems(path)}
    assert named == {"layers.0.visual", "layers.1.index", "model_digest", "speed", "workload.text"}


@pytest.mark.parametrize("text", ["", "{", "[]", "\0"])
def test_a_file_that_is_no_plan_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    (line,) = problems(path)
    assert line.startswith(f"{path}: plan: ")


def test_a_missing_plan_is_refused(tmp_path):
    assert problems(tmp_path / "p.json") == (f"{tmp_path / 'p.json'}: no such file",)


@pytest.mark.parametrize(("visual", "reason"), [("update", "shortv"), ("frozen", "")])
def test_a_layer_that_contradicts_itself_is_refused(visual, reason):
    with pytest.raises(ValidationError, match="for the reason"):
        LayerPlan(index=0, visual=visual, reason=reason)
