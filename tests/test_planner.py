"""The planner: dead rows in every plan, ShortV by share, list and speed-up, refusals all at once."""

import math
from itertools import permutations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compressor.errors import PlanError
from compressor.methods.shortv import ShortV, layers_for_speedup, ranking, rounded
from compressor.methods.visual_exit import VisualExit
from compressor.methods.yopo.keys import HeadKeys
from compressor.methods.yopo.method import Yopo
from compressor.plan.dead_rows import freeze_dead_rows
from compressor.plan.edits import freeze, identity_plan, leave
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Workload
from compressor.planner import make_plan, measures_needed
from compressor.profile import SampleScore
from tests import facts

CONTRIBUTION = (0.9, 0.1, 0.5, 0.02, 0.3, 0.0)


def work(plan):
    """Multiply-adds of a plan's prefill, counted matrix by matrix; the second implementation."""
    d, v, t = plan.model.decoder, plan.visual, plan.workload.text
    total = d.hidden * d.vocab
    for layer in plan.layers:
        everything = t if layer.visual == "exited" else v + t
        busy = t if layer.visual == "frozen" else everything
        for rows, width_in, width_out in (
            (busy, d.hidden, d.heads * d.head_dim),  # Q
            (everything, d.hidden, d.kv_heads * d.head_dim),  # K
            (everything, d.hidden, d.kv_heads * d.head_dim),  # V
            (busy, d.heads * d.head_dim, d.hidden),  # O
            (busy, d.hidden, d.intermediate),  # gate
            (busy, d.hidden, d.intermediate),  # up
            (busy, d.intermediate, d.hidden),  # down
            (busy, d.heads * d.head_dim, everything),  # QK^T
            (busy, d.heads * d.head_dim, everything),  # PV
        ):
            total += rows * width_in * width_out
    return total


def planned(*methods, contribution=CONTRIBUTION, model=None, **options):
    model = model or facts.facts(facts.dims(layers=len(contribution)))
    profile = facts.profile([contribution])
    return make_plan(model, facts.DIGEST, methods, profile, **options)


def problems(*methods, profile, **options):
    with pytest.raises(PlanError) as caught:
        make_plan(facts.facts(), facts.DIGEST, methods, profile, **options)
    return caught.value.problems


def what(plan):
    return [(layer.visual, layer.reason) for layer in plan.layers]


UPDATE, FROZEN, DEAD = ("update", ""), ("frozen", "shortv"), ("frozen", "dead")


def test_the_identity_plan_freezes_the_dead_rows_of_the_last_layer_and_nothing_else():
    assert what(identity_plan(facts.facts(), facts.DIGEST)) == [UPDATE] * 5 + [DEAD]
    assert what(make_plan(facts.facts(), facts.DIGEST, [])) == [UPDATE] * 5 + [DEAD]


def test_a_model_of_one_layer_has_only_dead_visual_rows():
    model = facts.facts(facts.dims(layers=1))
    assert what(identity_plan(model, facts.DIGEST)) == [DEAD]


def test_a_plan_keeps_the_model_and_its_digest():
    plan = planned(ShortV(frozen=0.5))
    assert plan.model_digest == facts.DIGEST
    assert plan.model == facts.facts()


@pytest.mark.parametrize(
    ("share", "frozen"),
    [
        (0.0, []),
        (0.2, [3]),
        (0.34, [1, 3]),
        (0.5, [1, 3, 4]),
        (0.8, [1, 2, 3, 4]),
        (1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_a_share_freezes_those_that_contribute_least_of_the_layers_that_can_be_frozen(
    share, frozen
):
    plan = planned(ShortV(frozen=share))
    # Layer 5 contributes least of all: nobody reads what its visual rows become, so every plan freezes it.
    assert what(plan) == [FROZEN if i in frozen else UPDATE for i in range(5)] + [DEAD]


def test_a_share_that_falls_between_two_counts_is_rounded_half_up():
    shares = (0.09, 0.1, 0.3, 0.5, 0.7, 0.9)
    assert [rounded(share, 5) for share in shares] == [0, 1, 2, 3, 4, 5]
    # 0.29 * 50 is a hair below 14.5 in floating point.
    assert (rounded(0.29, 50), rounded(0.0, 7), rounded(1.0, 7)) == (15, 0, 7)


def test_where_a_share_falls_between_two_counts_the_plan_says_so():
    assert planned(ShortV(frozen=0.7), contribution=range(8)).notes == (
        "compress[0].shortv.frozen: 0.7 of the 7 layers that can be frozen (without layer 7, whose rows are "
        "dead) is 4.9, rounded to 5",
    )
    assert planned(ShortV(frozen=0.4)).notes == ()
    assert planned(ShortV(frozen=0.5), VisualExit(layer=4)).notes == (
        "compress[0].shortv.frozen: 0.5 of the 3 layers that can be frozen (in front of layer 4, without "
        "layer 3, whose rows are dead) is 1.5, rounded to 2",
    )


def test_the_last_layer_keeps_its_dead_rows_where_shortv_does_not_choose_it():
    plan = planned(ShortV(frozen=0.5), contribution=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5))
    assert what(plan) == [FROZEN] * 3 + [UPDATE] * 2 + [DEAD]


def test_listed_layers_are_frozen_without_a_profile():
    plan = make_plan(facts.facts(), facts.DIGEST, [ShortV(layers=(4, 0))])
    assert what(plan) == [FROZEN, UPDATE, UPDATE, UPDATE, FROZEN, DEAD]


def test_of_equal_contributions_the_deeper_layer_is_frozen_first():
    assert ranking([0.5, 0.0, 0.0, 0.5, 0.0]) == (4, 2, 1, 3, 0)


@pytest.mark.parametrize("speedup", [1.01, 1.2, 1.5, 2.0, 3.0])
def test_a_speedup_freezes_the_fewest_lowest_layers_that_reach_it(speedup):
    plan = planned(ShortV(speedup=speedup), workload=Workload(text=3))
    order = sorted(range(5), key=lambda i: CONTRIBUTION[i])
    naive = work(plan.naive())
    for count in range(7):
        candidate = facts.plan(order[:count], text=3, dead=(5,))
        if naive / work(candidate) >= speedup:
            break
    assert plan.layers == candidate.layers


def test_a_speedup_that_dead_rows_alone_reach_freezes_nothing_more():
    plan = planned(ShortV(speedup=1.01), contribution=(0.0, 1.0))
    assert what(plan) == [UPDATE, DEAD]


def test_no_layer_at_all_may_reach_the_speedup_but_all_together():
    order = ranking([3.0, 1.0, 2.0])
    assert layers_for_speedup(order, 2.0, len) == (1, 2)
    assert layers_for_speedup(order, 3.0, len) == (1, 2, 0)
    assert layers_for_speedup(order, 3.5, len) is None


def test_several_methods_add_up():
    plan = planned(ShortV(layers=(0,)), ShortV(frozen=0.34))
    # A share counts the layers that are left to be frozen, 1 to 4: 1.36 of them is 1.
    assert what(plan) == [FROZEN, UPDATE, UPDATE, FROZEN, UPDATE, DEAD]


def test_the_workload_is_the_profiles_median_and_can_be_overridden():
    model, methods = facts.facts(), [ShortV(frozen=0.5)]
    profile = facts.profile([CONTRIBUTION] * 3, text=(90, 7, 11))
    assert make_plan(model, facts.DIGEST, methods, profile).workload == Workload(images=1, text=11)
    wanted = Workload(images=2, text=5)
    assert make_plan(model, facts.DIGEST, methods, profile, wanted).workload == wanted
    assert make_plan(model, facts.DIGEST, []).workload == Workload(text=64, assumed=True)
    words = " (assumed: no calibration measured prompts)"
    assert make_plan(model, facts.DIGEST, []).workload.assumed_words == words
    assert make_plan(model, facts.DIGEST, methods, profile).workload.assumed_words == ""


THIS_MODEL = "give layers of this model, or a share (frozen), which calibration chooses by"


def test_layers_outside_the_model_are_refused_and_all_are_named():
    assert problems(ShortV(layers=(2, 6, 40)), profile=None) == (
        f"compress[0].shortv.layers: 6, 40 are outside 0..5; the model has 6 layers: {THIS_MODEL}",
    )
    assert problems(ShortV(layers=(6,)), profile=None) == (
        f"compress[0].shortv.layers: 6 is outside 0..5; the model has 6 layers: {THIS_MODEL}",
    )


def test_a_speedup_out_of_reach_names_the_most_that_is_reachable():
    most = work(facts.plan(text=10)) / work(facts.plan(range(5), dead=(5,), text=10))
    down = math.floor(100 * most) / 100  # what is named can be asked for
    assert f"{most:.2f}" != f"{down:.2f}"
    (line,) = problems(ShortV(speedup=50.0), profile=facts.profile([CONTRIBUTION]))
    assert line == (
        "compress[0].shortv.speedup: 50 is out of reach; freezing all 5 layers that can be frozen "
        f"gives {down:.2f} on 12 visual and 10 text rows"
    )
    assert planned(ShortV(speedup=down))


@pytest.mark.parametrize("method", [ShortV(frozen=0.5), ShortV(speedup=1.5)])
def test_a_choice_by_contribution_needs_a_profile_and_a_whole_one(method):
    assert problems(method, profile=None) == (
        "compress[0].shortv: chooses layers by contribution, but there is no profile; run "
        "`vtcompress calibrate` first, or list the layers",
    )
    partial = facts.profile([CONTRIBUTION] * 2, total=5)
    assert problems(method, profile=partial) == (
        "compress[0].shortv: chooses layers by contribution, but there is a profile of 2 of 5 "
        "samples; run `vtcompress calibrate` first, or list the layers",
    )


def test_the_reasons_of_all_methods_are_given_at_once():
    lines = problems(
        ShortV(layers=(9,)),
        ShortV(layers=(0,)),
        ShortV(frozen=0.5),
        ShortV(layers=(7, 8)),
        profile=None,
    )
    assert [line.split(":")[0] for line in lines] == [
        "compress[0].shortv.layers",
        "compress[2].shortv",
        "compress[3].shortv.layers",
    ]


def test_a_profile_of_another_depth_is_refused():
    assert problems(ShortV(frozen=0.5), profile=facts.profile([[0.1] * 4])) == (
        "the profile has 4 layers, the model 6; calibrate anew",
    )


def test_a_profile_is_needed_unless_every_method_lists_its_layers():
    assert measures_needed([]) == ()
    assert measures_needed([ShortV(layers=(1,))]) == ()
    chosen = ("layer_contribution",)
    assert measures_needed([ShortV(layers=(1,)), ShortV(frozen=0.5)]) == chosen
    assert measures_needed([ShortV(speedup=1.5)]) == chosen


def test_marking_dead_rows_twice_changes_nothing():
    layers = tuple(LayerPlan(index=i) for i in range(3))
    once = freeze_dead_rows(layers)
    assert freeze_dead_rows(once) == once != layers


@st.composite
def models(draw):
    kv_heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    decoder = facts.dims(
        layers=draw(st.integers(1, 10)),
        hidden=draw(st.integers(1, 300)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 20)),
        intermediate=draw(st.integers(1, 700)),
        vocab=draw(st.integers(1, 2000)),
    )
    return facts.facts(decoder, visual_tokens=draw(st.integers(1, 800)))


@st.composite
def models_with_contribution(draw):
    model = draw(models())
    layers = model.decoder.layers
    values = st.sampled_from([0.0, 1e-6, 0.5, 3.0]) | st.floats(0, 10)
    return model, draw(st.lists(values, min_size=layers, max_size=layers))


@settings(deadline=None)
@given(models_with_contribution(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_freezes_a_superset(case, one, other):
    model, contribution = case
    few, many = (
        set(planned(ShortV(frozen=s), contribution=contribution, model=model).frozen_layers())
        for s in sorted((one, other))
    )
    assert few <= many
    assert model.decoder.layers - 1 in few
    able = model.decoder.layers - 1
    chosen = planned(ShortV(frozen=one), contribution=contribution, model=model).layers
    frozen = sum(layer.reason == "shortv" for layer in chosen)
    assert abs(frozen - one * able) <= 0.5 + 1e-9


@settings(deadline=None)
@given(models(), st.data())
def test_an_earlier_exit_never_costs_more_and_the_largest_that_is_fast_enough_is_found(model, data):
    layers = model.decoder.layers
    if layers < 2:
        return
    before = identity_plan(model, facts.DIGEST, Workload(text=data.draw(st.integers(1, 99))))
    costs = [work(leave(before, layer, "visual_exit")) for layer in range(1, layers)]
    assert costs == sorted(costs)
    assert costs[-1] <= work(before)
    wanted = data.draw(st.floats(1.001, 4))
    fast = [k for k, cost in enumerate(costs, 1) if work(before.naive()) / cost >= wanted]
    method = VisualExit(speedup=wanted)
    if not fast:
        with pytest.raises(PlanError, match="out of reach"):
            make_plan(model, facts.DIGEST, [method], workload=before.workload)
        return
    plan = make_plan(model, facts.DIGEST, [method], workload=before.workload)
    assert plan.exit_layer == max(fast)


ROWS = [[0.9, 0.2, 0.7, 0.1], [0.3, 0.8, 0.6, 0.5], [0.4, 0.1, 0.2, 0.9]] * 2
BOTH = facts.profile([CONTRIBUTION]).model_copy(
    update={
        "measures": ("layer_contribution", "exit_kl", "head_score"),
        "samples": (
            SampleScore(
                visual=12,
                text=10,
                layer_contribution=CONTRIBUTION,
                exit_kl=(2.0, 1.0, 0.5, 0.25, 0.1, 0.0),
                head_score=tuple(map(tuple, ROWS)),
            ),
        ),
    }
)
HEADS = HeadKeys(keep=0.5)


@pytest.mark.parametrize(
    "methods",
    [
        (ShortV(frozen=0.5), VisualExit(layer=4)),
        (ShortV(frozen=0.5), VisualExit(max_kl=0.3, first_layer=1)),
        (ShortV(frozen=0.5), VisualExit(speedup=1.8)),
        (ShortV(layers=(1, 2)), VisualExit(speedup=1.8)),
        (ShortV(speedup=1.8), VisualExit(layer=4)),
        (ShortV(frozen=0.5), Yopo(heads=HEADS, keep_layers=(), mlp_ratio=2)),
        (ShortV(speedup=1.8), Yopo(heads=HEADS, keep_layers=(), mlp_ratio=2)),
        (ShortV(frozen=0.5), Yopo(heads=HEADS, keep_layers=(), off_from=3)),
        (VisualExit(layer=4), Yopo(heads=HEADS, keep_layers=(), window=3)),
        (VisualExit(speedup=1.8), Yopo(heads=HEADS, keep_layers=(), mlp_ratio=2)),
        (ShortV(frozen=0.5), VisualExit(layer=5), Yopo(heads=HEADS, keep_layers=(0,), mlp_ratio=2)),
    ],
)
def test_the_order_of_the_list_decides_nothing(methods):
    model = facts.facts(token_grid=(3, 4))

    def plan_of(order):
        return make_plan(model, facts.DIGEST, order, BOTH)

    first = plan_of(methods)
    assert any(layer.reason not in ("", "dead") or layer.cuts for layer in first.layers)
    for order in permutations(methods):
        assert plan_of(order).layers == first.layers


def test_shortv_chooses_among_the_layers_that_others_leave_to_be_frozen():
    plan = planned(ShortV(frozen=0.7), VisualExit(layer=4))
    # Layers 0, 1 and 2 can be frozen: 3 is dead in front of the exit.
    assert [layer.reason for layer in plan.layers] == [
        "",
        "shortv",
        "shortv",
        "dead",
        "visual_exit",
        "visual_exit",
    ]
    plan = planned(ShortV(layers=(1,)), VisualExit(layer=3))
    assert [layer.reason for layer in plan.layers] == ["", "shortv", "dead", *["visual_exit"] * 3]


def test_a_speedup_is_that_of_the_whole_recipe():
    # Few text rows, so that cuts of visual ones count for much.
    options = {"workload": Workload(text=3)}
    alone = planned(VisualExit(speedup=2.0), **options)
    both = planned(ShortV(frozen=0.4), VisualExit(speedup=2.0), **options)
    assert both.exit_layer > alone.exit_layer
    assert work(both.naive()) / work(both) >= 2.0
    later = leave(
        identity_plan(facts.facts(), facts.DIGEST, Workload(text=3)),
        both.exit_layer + 1,
        "visual_exit",
    )
    more = freeze(later, (3, 1), "shortv")
    assert work(more.naive()) / work(more) < 2.0
    frozen = planned(ShortV(speedup=2.0), VisualExit(layer=4), **options)
    assert sum(layer.reason == "shortv" for layer in frozen.layers) < sum(
        layer.reason == "shortv" for layer in planned(ShortV(speedup=2.0), **options).layers
    )


def test_a_recipe_of_format_1_is_planned_as_it_was_then_and_says_what_it_would_be_now():
    def older(*methods):
        return planned(*methods, recipe_format=1)

    plan = older(VisualExit(layer=4), ShortV(frozen=0.5))
    # Half of six layers; the lowest contributions among layers 0 to 3 are those of 3, 1 and 2.
    assert [layer.reason for layer in plan.layers] == [
        "",
        "shortv",
        "shortv",
        "dead",
        "visual_exit",
        "visual_exit",
    ]
    plan = older(ShortV(frozen=0.5), VisualExit(layer=4))
    # 5, 3 and 1 are chosen first; 5 is then behind the exit.
    assert [layer.reason for layer in plan.layers] == [
        "",
        "shortv",
        "",
        "shortv",
        "visual_exit",
        "visual_exit",
    ]
    (note,) = plan.notes
    assert note.startswith(
        "vtcompress: 1: methods are applied in the order of the list, and shortv.frozen"
    )
    today = planned(ShortV(frozen=0.5), VisualExit(layer=4))
    ratios = [f"{work(p.naive()) / work(p):.2f} x" for p in (today, plan)]
    assert note.endswith(f"a prefill predicted {ratios[0]} instead of {ratios[1]}")
    assert older(VisualExit(layer=4)).notes == ()


BEHIND = "visual tokens have left by layers 4, 5: there is nothing to freeze"
IN_EVERY_PLAN = "visual rows of layer 5 are frozen in every plan, as nobody reads what comes out"


@pytest.mark.parametrize(
    ("methods", "notes"),
    [
        (
            [ShortV(layers=(1, 4, 5)), VisualExit(layer=4)],
            [f"compress[0].shortv.layers: {BEHIND}"],
        ),
        (
            [VisualExit(layer=3), ShortV(layers=(4, 5))],
            [
                f"compress[1].shortv.layers: {BEHIND}",
                "compress[1].shortv: freezes no layer: visual tokens are gone from layer 3 on",
            ],
        ),
        (
            [ShortV(layers=(5,))],
            [
                f"compress[0].shortv: freezes no layer: {IN_EVERY_PLAN}",
            ],
        ),
        (
            [ShortV(frozen=0.05)],
            [
                "compress[0].shortv.frozen: 0.05 of the 5 layers that can be frozen (without layer 5, "
                "whose rows are dead) is 0.25, rounded to 0"
            ],
        ),
        (
            [ShortV(frozen=0.0)],
            [
                f"compress[0].shortv: freezes no layer: the share is 0; {IN_EVERY_PLAN}",
            ],
        ),
        (
            [ShortV(speedup=1.0001)],
            ["compress[0].shortv.speedup: freezes no layer: 1.0001 x is reached without"],
        ),
        (
            [ShortV(layers=(0, 1, 2)), VisualExit(layer=4)],
            [
                "compress: no layer updates visual rows: whatever the picture is, text tokens read it as the "
                "projector gave it, in front of the first layer"
            ],
        ),
    ],
)
def test_what_is_asked_for_and_not_done_or_done_to_every_layer_is_noted(methods, notes):
    assert list(planned(*methods).notes) == notes


def test_visual_rows_that_the_tower_adds_to_are_not_called_those_of_the_projector():
    model = facts.facts(facts.dims(deepstack=2))
    assert planned(ShortV(layers=(0, 1, 2)), VisualExit(layer=4), model=model).notes == ()


@pytest.mark.parametrize("methods", [(), (ShortV(layers=(1, 2)),), (VisualExit(layer=3),)])
def test_what_is_done_as_asked_needs_no_note(methods):
    assert planned(*methods).notes == ()


def test_a_layer_may_be_given_as_a_share_of_the_depth():
    for share, layer in ((0.5, 3), (0.01, 1), (0.75, 5), (0.58, 3), (0.59, 4)):
        assert planned(VisualExit(layer=share)).exit_layer == layer
        assert planned(Yopo(off_from=share)).exit_layer == layer
    masked = planned(Yopo(off_from=0.5, semantics="masked"))
    assert [layer.off for layer in masked.layers] == [False] * 3 + [True] * 3
    assert problems(VisualExit(layer=0.99), profile=None) == (
        "compress[0].visual_exit.layer: 6 is outside 1..5; the model has 6 layers",
    )


@settings(deadline=None)
@given(models(), st.data())
def test_freezing_one_more_layer_never_costs_more_and_nothing_costs_more_than_the_original(
    model, data
):
    layers = st.integers(0, model.decoder.layers - 1)
    frozen = data.draw(st.sets(layers))
    extra = data.draw(layers)
    before = identity_plan(
        model, facts.DIGEST, Workload(images=2, text=data.draw(st.integers(1, 99)))
    )
    before = freeze(before, sorted(frozen), "shortv")
    after = freeze(before, [extra], "shortv")
    assert set(after.frozen_layers()) == frozen | {extra, model.decoder.layers - 1}
    assert work(after) <= work(before) <= work(before.naive())


@settings(deadline=None)
@given(models_with_contribution(), st.floats(1.001, 6), st.integers(1, 80))
def test_a_wanted_speedup_is_reached_with_no_layer_to_spare_or_refused(case, wanted, text):
    model, contribution = case
    options = {"contribution": contribution, "model": model, "workload": Workload(text=text)}
    layers = range(model.decoder.layers)
    everything = facts.plan(layers, model=model, text=text)
    original = work(everything.naive())
    # The quotient of two integers; apart from where it is the wanted one to the last bit.
    assume(abs(original / work(everything) - wanted) > 1e-9)
    if original / work(everything) < wanted:
        with pytest.raises(PlanError, match="out of reach"):
            planned(ShortV(speedup=wanted), **options)
        return
    plan = planned(ShortV(speedup=wanted), **options)
    assert original / work(plan) >= wanted - 1e-9
    chosen = [layer.index for layer in plan.layers if layer.reason == "shortv"]
    assert len(set(chosen)) == len(chosen)
    left = [i for i in layers[:-1] if i not in chosen]  # the last one's rows are dead
    if chosen:
        highest = max(contribution[i] for i in chosen)
        assert all(contribution[i] >= highest for i in left)
        dropped = max(chosen, key=lambda i: (contribution[i], -i))
        fewer = [i for i in chosen if i != dropped]
        less = freeze(identity_plan(model, facts.DIGEST, Workload(text=text)), fewer, "shortv")
        assert original / work(less) < wanted + 1e-9
