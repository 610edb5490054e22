"""The plan as data: JSON both ways, refused where it contradicts itself."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from compressor.errors import PlanError
from compressor.plan.dead_rows import read_though_dead
from compressor.plan.edits import freeze, identity_plan, leave
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Gates, Plan, Workload
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
    exit_layer = draw(st.none() | st.integers(1, len(kinds)))
    if exit_layer is not None:
        reason = draw(st.sampled_from(["visual_exit", "dyvte"]))
        kinds[exit_layer:] = [("exited", reason)] * (len(kinds) - exit_layer)
    gates = None
    if kinds[-1][0] != "exited" and len(kinds) > 1 and draw(st.booleans()):
        layers = st.sets(st.integers(0, len(kinds) - 2), min_size=1)
        candidates = tuple(sorted(draw(layers)))
        fired = draw(st.sampled_from([(), tuple(range(len(candidates)))]))
        mode = draw(st.sampled_from(["dynamic", "staged"]))
        gates = Gates(candidates=candidates, mode=mode, width=8, digest="d", fired=fired)
    return Plan(
        model=model,
        model_digest=facts.DIGEST,
        layers=tuple(
            LayerPlan(index=i, visual=visual, reason=reason)
            for i, (visual, reason) in enumerate(kinds)
        ),
        gates=gates,
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
    path = written(tmp_path, plan_format=3)
    (line,) = problems(path)
    assert line == (
        f"{path}: plan_format: written for a newer vtcompress (format 3): upgrade vtcompress; correct it, or "
        "make it anew with `vtcompress plan`"
    )


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


@given(plans())
def test_segments_are_all_layers_cut_at_the_exit_and_behind_gates(plan):
    segments = plan.segments()
    assert [i for segment in segments for i in segment] == list(range(len(plan.layers)))
    ends = [segment.stop for segment in segments[:-1]]
    if plan.gates is not None:
        assert ends == [candidate + 1 for candidate in plan.gates.candidates]
    else:
        assert ends == ([] if plan.exit_layer is None else [plan.exit_layer])
    assert plan.naive().segments() == (range(len(plan.layers)),)


@given(plans(), st.data())
def test_a_prompt_that_left_behind_a_gate_has_visual_rows_up_to_it(plan, data):
    if plan.gates is None:
        return
    layer = data.draw(st.sampled_from([*plan.gates.candidates, None]))
    left = plan.fired_after(layer)
    assert left.gates is None
    assert left.exit_layer == (None if layer is None else layer + 1)
    kept = len(plan.layers) if layer is None else layer + 1
    assert left.layers[:kept] == plan.layers[:kept]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"candidates": (2, 1)}, "not ascending layers"),
        ({"candidates": (1, 1)}, "not ascending layers"),
        ({"candidates": (-1,)}, "not ascending layers"),
        ({"candidates": (0, 1), "fired": (3,)}, "1 counts of exits for 2 candidates"),
    ],
)
def test_gates_that_contradict_themselves_are_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        Gates(**{"mode": "dynamic", "width": 8, "digest": ""} | changes)


def test_exits_that_no_decoder_can_have_are_refused():
    def plan_of(*reasons, gates=None):
        model = facts.facts(facts.dims(layers=len(reasons)))
        layers = tuple(
            LayerPlan(index=i, visual="exited" if reason else "update", reason=reason)
            for i, reason in enumerate(reasons)
        )
        return Plan(model=model, model_digest=facts.DIGEST, layers=layers, gates=gates)

    def behind(layer):
        return Gates(candidates=(layer,), mode="staged", width=8, digest="")

    assert plan_of("", "visual_exit").exit_layer == 1
    for reasons in (("visual_exit", "visual_exit"), ("", "visual_exit", "")):
        with pytest.raises(ValidationError, match="visual rows enter layer 0"):
            plan_of(*reasons)
    with pytest.raises(ValidationError, match="exclude each other"):
        plan_of("", "visual_exit", gates=behind(0))
    with pytest.raises(ValidationError, match="reach beyond layer 0"):
        plan_of("", "", gates=behind(1))


@pytest.mark.parametrize(
    ("visual", "reason"),
    [("update", "shortv"), ("frozen", ""), ("exited", ""), ("exited", "dead")],
)
def test_a_layer_that_contradicts_itself_is_refused(visual, reason):
    with pytest.raises(ValidationError, match="for the reason"):
        LayerPlan(index=0, visual=visual, reason=reason)


EXITED = {"visual": "exited", "reason": "visual_exit"}
FROZEN = {"visual": "frozen", "reason": "dead"}


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        (EXITED | {"groups": (0,)}, "nothing of them can be cut"),
        (EXITED | {"off": True, "masked": True}, "nothing of them can be cut"),
        (EXITED | {"masked": True}, "masked says how heads are cut"),
        (EXITED | {"window_causal": True}, "window_causal goes with window"),
        (FROZEN | {"window": 3}, "no queries and no MLP"),
        (FROZEN | {"neurons": (0,)}, "no queries and no MLP"),
        ({"masked": True}, "masked says how heads are cut"),
        ({"masked": True, "window": 3, "neurons": (0,)}, "masked says how heads are cut"),
        ({"window_causal": True}, "window_causal goes with window"),
        ({"off": True}, "off is a word of the masked semantics"),
        ({"neurons": ()}, "need a neuron at least"),
        ({"groups": (1, 0)}, "groups are not ascending"),
        ({"window": 4}, "its side is odd"),
    ],
)
def test_cuts_that_contradict_themselves_are_refused(cuts, words):
    with pytest.raises(ValidationError, match=words):
        LayerPlan(index=1, **cuts)


def test_plans_of_older_versions_have_another_name_for_the_visual_exit(tmp_path):
    path = tmp_path / "plan.json"
    plan = leave(identity_plan(facts.facts(), facts.DIGEST), 3, "visual_exit")
    plan.save(path)
    older = {'"visual_exit"': '"vtw"', '"plan_format":2': '"plan_format":1'}
    text = path.read_text().replace(": ", ":")
    for today, then in older.items():
        assert today in text
        text = text.replace(today, then)
    path.write_text(text)
    assert Plan.load(path) == plan


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda plan: freeze(plan, [1, 99], "shortv"), "freeze: there is no layer 99; give 0 to 5"),
        (lambda plan: freeze(plan, [-1], "shortv"), "freeze: there is no layer -1; give 0 to 5"),
        (lambda plan: leave(plan, 0, "visual_exit"), "leave: there is no layer 0; give 1 to 6"),
        (lambda plan: leave(plan, 7, "visual_exit"), "leave: there is no layer 7; give 1 to 6"),
    ],
)
def test_an_edit_of_a_layer_that_is_not_there_is_refused(edit, words):
    with pytest.raises(PlanError) as caught:
        edit(facts.plan())
    assert caught.value.problems == (words,)


def test_rows_that_a_layer_reads_are_not_dead():
    plan = freeze(facts.plan(), [1], "dead")
    assert read_though_dead(plan.layers) == (1,)
    assert read_though_dead(leave(facts.plan(), 3, "visual_exit").layers) == ()
    assert read_though_dead(identity_plan(plan.model, "").layers) == ()
