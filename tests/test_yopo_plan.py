"""YOPO without the decoder: its recipe, what the planner makes of it, and what it is predicted to cost."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from compressor.errors import PlanError, RecipeError
from compressor.methods.shortv import ShortV
from compressor.methods.visual_exit import VisualExit
from compressor.methods.yopo.keys import HeadKeys
from compressor.methods.yopo.method import Yopo
from compressor.methods.yopo.rule import group_means, groups_of_mask, most_active, top_share, voted
from compressor.plan.cost import BAND_OVERHEAD, band_ratio, predict, predicted_speedup
from compressor.plan.edits import freeze, identity_plan, leave
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan, Workload
from compressor.planner import check_methods, make_plan, measures_needed, measures_of
from compressor.profile import SampleScore
from compressor.recipe import dump_recipe, load_recipe
from tests import facts
from tests.test_planner import work

LAYERS, HEADS, GROUPS, NEURONS = 6, 4, 2, 24
MODEL = facts.facts(visual_tokens=20, token_grid=(4, 5))
# So many pictures that a window pays: of 200 visual rows each reads 20 at most.
MANY = Workload(images=10, text=1)


def profile(scores=None, activity=None, *, total=None):
    """A profile of one sample for each [L][H] of scores."""
    samples = tuple(SampleScore(visual=20, text=10, head_score=s) for s in scores or ())
    measures = ("head_score",) * bool(scores) + ("neuron_activity",) * bool(activity)
    return facts.profile([[0.0] * LAYERS]).model_copy(
        update={
            "samples": samples or (SampleScore(visual=20, text=10),),
            "total": total or max(1, len(samples)),
            "measures": measures,
            "neuron_activity": activity or (),
        }
    )


def planned(*methods, model=MODEL, measured=None, **options):
    return make_plan(model, facts.DIGEST, methods, measured, **options)


def problems(*methods, model=MODEL, measured=None):
    with pytest.raises(PlanError) as caught:
        planned(*methods, model=model, measured=measured)
    return caught.value.problems


def groups(plan):
    return [layer.groups for layer in plan.layers]


def mask_file(folder, mask, name="mask.npy"):
    path = folder / name
    if path.suffix == ".safetensors":
        save_file({"keep": np.asarray(mask)}, path)
    else:
        np.save(path, np.asarray(mask))
    return path


def by_mask(folder, mask, name="mask.npy", **keys):
    return Yopo(heads=HeadKeys(mask=mask_file(folder, mask, name)), **keys)


def whole_mask():
    return np.ones((LAYERS, HEADS), dtype=bool)


# The recipe.


def read(folder, body):
    path = folder / "x.yaml"
    path.write_text(f"vtcompress: 1\ncompress: {body}\n")
    return load_recipe(path)


@pytest.mark.parametrize(
    ("keys", "method"),
    [
        ("heads: {keep: 0.5}", Yopo(heads=HeadKeys(keep=0.5))),
        (
            "heads: {threshold: 0.07, votes: 0.4}, keep_layers: []",
            Yopo(heads=HeadKeys(threshold=0.07, votes=0.4), keep_layers=()),
        ),
        ("window: 5, causal: true", Yopo(window=5, causal=True)),
        ("window: auto", Yopo(window="auto")),
        ("mlp_ratio: 2, select: activation", Yopo(mlp_ratio=2, select="activation")),
        (
            "off_from: 20, semantics: masked, keep_layers: null",
            Yopo(off_from=20, semantics="masked"),
        ),
    ],
)
def test_a_recipe_takes_every_cut_alone_and_is_written_back_equal(tmp_path, keys, method):
    recipe = read(tmp_path, f"[{{yopo: {{{keys}}}}}]")
    assert recipe.methods == (method,)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert recipe.override({"export.dtype": "float16"}).methods == recipe.methods


def test_a_mask_is_taken_from_the_folder_of_the_recipe_and_named_alone_in_a_portable_one(tmp_path):
    recipe = read(tmp_path, "[{yopo: {heads: {mask: sub/keep.npy}}}]")
    (method,) = recipe.methods
    assert method.heads.mask == tmp_path / "sub" / "keep.npy"
    text = dump_recipe(recipe, portable=True)
    assert str(tmp_path) not in text
    assert yaml.safe_load(text)["compress"][0]["yopo"]["heads"] == {"mask": "keep.npy"}


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (
            "[{yopo: {}}]",
            ["[0].yopo: nothing is cut; give at least one of: heads, window, mlp_ratio, off_from"],
        ),
        (
            "[{yopo: {window: 4}}]",
            ["[0].yopo.window: 4 is not allowed; an odd whole number, 3 or more, or auto"],
        ),
        (
            "[{yopo: {window: 1}}]",
            ["[0].yopo.window: 1 is not allowed; an odd whole number, 3 or more, or auto"],
        ),
        (
            "[{yopo: {window: wide}}]",
            ["[0].yopo.window: 'wide' is not allowed; an odd whole number, 3 or more, or auto"],
        ),
        (
            "[{yopo: {mlp_ratio: 1, off_from: 0}}]",
            [
                "[0].yopo.mlp_ratio: 1 is not allowed; a whole number, 2 or more",
                "[0].yopo.off_from: 0 is not allowed; a whole number, 1 or more, or a share of the "
                "depth, above 0 and below 1",
            ],
        ),
        (
            "[{yopo: {heads: {}}}]",
            [
                "[0].yopo.heads: nothing is given; give exactly one of: keep, threshold, mask",
            ],
        ),
        (
            "[{yopo: {heads: {votes: 0.4, keep: 0.5}}}]",
            ["[0].yopo.heads: votes goes with threshold; give both or neither"],
        ),
        (
            "[{yopo: {heads: {mask: 3}}}]",
            [
                "[0].yopo.heads.mask: 3 is not allowed; the path of a .npy or .safetensors file, as text"
            ],
        ),
        (
            "[{yopo: {heads: {keep: 1}, keep_layers: [1, 1]}}]",
            ["[0].yopo.keep_layers: [1] listed more than once; list each once"],
        ),
        (
            "[{yopo: {window: 5, keep_layers: [1]}}]",
            ["[0].yopo: keep_layers goes with heads; give both or neither"],
        ),
        (
            "[{yopo: {off_from: 3, causal: true}}]",
            ["[0].yopo: causal goes with window; give both or neither"],
        ),
        (
            "[{yopo: {off_from: 3, select: activation}}]",
            ["[0].yopo: select goes with mlp_ratio; give both or neither"],
        ),
        (
            "[{yopo: {window: auto, semantics: masked}}]",
            [
                "[0].yopo: masked gives the released numbers, and a window is part of them; give window a "
                "number, or leave it out"
            ],
        ),
        (
            "[{yopo: {off_from: 3}}, {visual_exit: {layer: 3}}]",
            [
                ": visual_exit and yopo.off_from both choose where visual tokens leave; give one of them"
            ],
        ),
        (
            "[{dyvte: {}}, {yopo: {off_from: 3, semantics: masked}}]",
            [": dyvte and yopo.off_from both choose where visual tokens leave; give one of them"],
        ),
        (
            "[{dyvte: {}}, {yopo: {window: 5}}]",
            [
                ": yopo.window cannot go with gates that decide for each prompt; take dyvte.exit: baked, "
                "or leave one of them out"
            ],
        ),
    ],
)
def test_keys_that_are_not_allowed_or_have_no_effect_are_refused(tmp_path, body, lines):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, body)
    start = f"{tmp_path / 'x.yaml'}: compress"
    assert list(caught.value.problems) == [start + line for line in lines]


def test_a_window_goes_with_gates_that_are_baked_and_heads_go_with_any(tmp_path):
    assert len(read(tmp_path, "[{dyvte: {exit: baked}}, {yopo: {window: 5}}]").methods) == 2
    assert len(read(tmp_path, "[{dyvte: {}}, {yopo: {heads: {keep: 0.5}}}]").methods) == 2


# What has to be measured.


def test_a_calibration_measures_what_yopo_chooses_by():
    keep, vote = Yopo(heads=HeadKeys(keep=0.5)), Yopo(heads=HeadKeys(threshold=0.1))
    active = Yopo(mlp_ratio=2, select="activation")
    given_mask = Yopo(heads=HeadKeys(mask=Path("x.npy")), window=5)
    assert measures_needed([keep]) == measures_needed([vote]) == ("head_score",)
    assert measures_needed([active]) == ("neuron_activity",)
    assert measures_needed([given_mask, Yopo(mlp_ratio=2)]) == ()
    assert measures_of([ShortV(frozen=0.5), keep]) == ("layer_contribution", "head_score")
    assert measures_of([given_mask]) == measures_of([])


def test_all_that_is_missing_from_a_profile_is_named_at_once():
    method = Yopo(heads=HeadKeys(keep=0.5), mlp_ratio=2, select="activation")
    assert problems(method) == (
        "compress[0].yopo: chooses heads by score, but there is no profile; run `vtcompress calibrate` "
        "first, or give a mask",
        "compress[0].yopo: chooses neurons by activation, but there is no profile; run `vtcompress "
        "calibrate` first, or take the first ones",
    )


# Which heads stay.


def test_scores_are_means_over_the_query_heads_of_a_group():
    assert group_means([[1.0, 2.0, 5.0, 9.0]], 2) == ((1.5, 7.0),)
    assert group_means([[1.0, 2.0]], 2) == ((1.0, 2.0),)


def test_a_share_keeps_the_best_groups_over_all_layers_that_may_lose_some():
    # Group scores: layer 2: 1, 9; layer 3: 3, 2; layer 4: 8, 7; layer 5: 0, 0. Half of eight stay.
    row = [[50, 50, 60, 60], [5, 5, 5, 5], [0, 2, 10, 8], [3, 3, 0, 4], [8, 8, 7, 7], [0] * 4]
    plan = planned(Yopo(heads=HeadKeys(keep=0.5)), measured=profile([row]))
    assert groups(plan) == [None, None, (1,), (0,), None, ()]
    assert [layer.masked for layer in plan.layers] == [False] * 6
    assert plan.notes == ()


def test_a_share_is_of_the_mean_over_samples():
    one = [[9.0] * 4] * 4 + [[4.0] * 4] + [[0.0] * 4]
    other = [[9.0] * 4] * 4 + [[0.0] * 4] + [[5.0] * 4]
    plan = planned(Yopo(heads=HeadKeys(keep=0.75)), measured=profile([one, other]))
    assert groups(plan) == [None] * 4 + [(), None]


@pytest.mark.parametrize(("votes", "stays"), [(0.3, True), (0.4, True), (0.41, False)])
def test_a_vote_needs_its_share_of_the_samples_and_more_than_the_threshold(votes, stays):
    def sample(value):
        return [[0.0] * 4] * 5 + [[0.0, 0.0, value, value]]

    # Above 0.07 in 4 of 10 samples; 0.07 itself is not above.
    samples = [sample(0.08)] * 4 + [sample(0.07)] * 6
    method = Yopo(heads=HeadKeys(threshold=0.07, votes=votes), keep_layers=(0, 1, 2, 3, 4))
    assert groups(planned(method, measured=profile(samples)))[5] == ((1,) if stays else ())


def test_the_authors_vote_is_the_default():
    samples = [[[1.0] * 4] * 6] * 4 + [[[0.0] * 4] * 6] * 6
    method = Yopo(heads=HeadKeys(threshold=0.5))
    assert groups(planned(method, measured=profile(samples))) == [None] * 6
    samples = [*samples[1:], samples[-1]]
    assert groups(planned(method, measured=profile(samples))) == [None, None, *[()] * 4]


@settings(deadline=None)
@given(st.data())
def test_a_larger_share_keeps_a_superset_and_never_a_worse_group(data):
    score = st.floats(0, 10) | st.sampled_from([0.0, 1.0])
    row = st.lists(score, min_size=HEADS, max_size=HEADS)
    scores = data.draw(st.lists(row, min_size=LAYERS, max_size=LAYERS))
    pool = data.draw(st.sets(st.integers(0, LAYERS - 1)))
    small, large = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))

    def places(share):
        kept = top_share(scores, share, sorted(pool))
        return {(i, g) for i, stay in enumerate(kept) for g in stay if i in pool}

    everywhere = {(i, g) for i in pool for g in range(HEADS)}
    few, many = places(small), places(large)
    assert few <= many
    assert abs(len(few) - small * len(everywhere)) <= 0.5 + 1e-9
    for stays in few:
        for gone in everywhere - few:
            assert scores[stays[0]][stays[1]] >= scores[gone[0]][gone[1]]
    for i, stay in enumerate(top_share(scores, small, sorted(pool))):
        assert i in pool or stay == tuple(range(HEADS))


@pytest.mark.parametrize("name", ["mask.npy", "mask.safetensors"])
def test_a_mask_keeps_a_group_if_any_of_its_heads_stays_and_the_plan_says_where(tmp_path, name):
    mask = whole_mask()
    mask[0, :2] = False  # a whole group, in a layer that is not kept unless asked
    mask[2] = False
    mask[3] = [True, False, False, False]
    mask[4, 1] = False
    plan = planned(by_mask(tmp_path, mask, name))
    assert groups(plan) == [(1,), None, (), (0,), None, None]
    assert plan.notes == (
        "compress[0].yopo.heads.mask: a key/value head goes only with all its query heads, so these heads "
        "stay though the mask prunes them: layer 3: 1; layer 4: 1",
    )


def test_a_mask_is_read_once_for_a_plan(tmp_path, monkeypatch):
    from compressor.methods.yopo import head_mask

    reads, read = [], head_mask._npy
    monkeypatch.setattr(head_mask, "_npy", lambda path: reads.append(path) or read(path))
    mask = whole_mask()
    mask[2, 0] = False
    plan = planned(by_mask(tmp_path, mask))
    assert "layer 2: 0" in plan.notes[0], "read for the notes too"
    assert reads == [tmp_path / "mask.npy"]


def test_a_mask_without_grouped_queries_is_taken_as_it_is(tmp_path):
    model = facts.facts(facts.dims(kv_heads=4), visual_tokens=20)
    mask = np.random.default_rng(0).random((LAYERS, HEADS)) < 0.5
    plan = planned(by_mask(tmp_path, mask), model=model)
    assert [row.tolist() for row in mask] == [
        [layer.groups is None or h in layer.groups for h in range(HEADS)] for layer in plan.layers
    ]
    assert plan.notes == ()


def test_layers_that_keep_all_heads_do_so_against_a_mask_and_the_plan_says_so(tmp_path):
    mask = whole_mask()
    mask[1:3] = False
    plan = planned(by_mask(tmp_path, mask, keep_layers=(1, 3)))
    assert groups(plan) == [None, None, (), None, None, None]
    assert plan.notes == (
        "compress[0].yopo.keep_layers: all heads stay in layer 1, though the mask prunes some",
    )


def test_rules_on_plain_numbers():
    assert groups_of_mask([[True, False, False, False], [False] * 4], 2) == ((0,), ())
    assert voted([[[1.0, 0.0]], [[1.0, 1.0]]], 0.5, 1.0, (0,)) == ((0,),)
    assert voted([[[1.0, 0.0]], [[1.0, 1.0]]], 0.5, 1.0, ()) == ((0, 1),)
    # 0.28 * 25 is a little above 7 in binary.
    assert voted([[[1.0]]] * 7 + [[[0.0]]] * 18, 0.5, 0.28, (0,)) == ((0,),)
    assert most_active([0.1, 0.9, 0.5, 0.9], 2) == (1, 3)
    assert most_active([0.5] * 4, 2) == (0, 1)


# Windows and neurons.


def test_a_window_is_in_every_layer_whose_visual_rows_are_updated():
    plan = planned(Yopo(window=3, causal=True), workload=MANY)
    assert [layer.window for layer in plan.layers] == [3] * 5 + [None]
    assert [layer.window_causal for layer in plan.layers] == [True] * 5 + [False]
    assert plan.layers[5].reason == "dead"
    assert plan.notes == ()


def test_a_layer_without_visual_heads_has_no_window(tmp_path):
    mask = whole_mask()
    mask[2] = False
    plan = planned(by_mask(tmp_path, mask, window=3))
    assert [layer.window for layer in plan.layers] == [3, 3, None, 3, 3, None]


def test_a_ratio_keeps_the_first_neurons_or_the_most_active_ones():
    plan = planned(Yopo(mlp_ratio=3))
    assert [layer.neurons for layer in plan.layers] == [tuple(range(8))] * 5 + [None]
    activity = np.random.default_rng(0).random((LAYERS, NEURONS))
    measured = profile(activity=tuple(map(tuple, activity.tolist())))
    plan = planned(Yopo(mlp_ratio=2, select="activation"), measured=measured)
    for layer, row in zip(plan.layers[:-1], activity, strict=False):
        assert set(layer.neurons) == set(np.argsort(-row)[:12].tolist())
        assert list(layer.neurons) == sorted(layer.neurons)


def measured_with(side):
    """The decoder that the window's overhead was measured with."""
    shape = facts.dims(layers=8, hidden=1024, heads=16, kv_heads=16, head_dim=64, intermediate=2752)
    return facts.facts(shape, visual_tokens=side * side, token_grid=(side, side))


@pytest.mark.parametrize(("side", "window", "ratio"), [(24, None, "0.99"), (54, 5, "0.36")])
def test_an_automatic_window_is_used_where_bands_are_cheaper_and_the_plan_says_why(
    side, window, ratio
):
    plan = planned(Yopo(window="auto"), model=measured_with(side))
    assert [layer.window for layer in plan.layers[:-1]] == [window] * 7
    (note,) = plan.notes
    assert note.startswith(
        f"compress[0].yopo.window: auto: {window or 'none'}; on {side * side} visual and 64 text rows"
    )
    assert f"is predicted to take {ratio} times as long as full attention" in note
    assert "measured with ONNX Runtime on a CPU, other targets may differ" in note


@pytest.mark.parametrize(
    ("side", "window", "ratio", "flops", "auto"),
    [(24, 5, "0.99", "36%", "none"), (54, 17, "0.95", "34%", "5")],
)
def test_a_window_that_is_given_and_does_not_pay_is_taken_and_the_plan_says_so(
    side, window, ratio, flops, auto
):
    plan = planned(Yopo(window=window), model=measured_with(side))
    assert [layer.window for layer in plan.layers[:-1]] == [window] * 7
    assert plan.notes == (
        f"compress[0].yopo.window: {window} is predicted not to pay: on {side * side} visual and 64 text "
        f"rows attention in bands of a {window} x {window} window takes {ratio} times as long as full "
        "attention (a FLOP in bands 2.75 times; measured with ONNX Runtime on a CPU, other targets may "
        f"differ), and pays below 0.9; the plan counts FLOPs all the same, {flops} of full attention's; "
        f"take window: auto, which uses {auto} here, or leave the window out",
    )
    # That share, pair by pair of rows: a band for visual rows, everything for text rows.
    v, t = side * side, 64
    share = (v * (window * side + t) + t * (v + t)) / (v + t) ** 2
    assert f"{share:.0%}" == flops


def test_nothing_is_said_of_a_window_that_pays_or_of_bands_that_no_layer_has(tmp_path):
    assert planned(Yopo(window=5), model=measured_with(54)).notes == ()
    frozen = planned(Yopo(window=5), ShortV(layers=(*range(7),)), model=measured_with(24))
    assert not any("not to pay" in note for note in frozen.notes)
    # Masked layers run attention in full.
    mask = whole_mask()
    mask[:, :2] = False
    masked = by_mask(tmp_path, mask, window=3, semantics="masked")
    assert planned(masked).notes == ()
    some = planned(by_mask(tmp_path, whole_mask(), window=3, off_from=4, semantics="masked")).notes
    assert "is predicted not to pay" in some[0]
    assert some[0].endswith("; leave the window out if you do not need the released numbers")


def test_the_overhead_of_bands_is_what_the_measurements_give():
    # A FLOP outside attention costs 1. Naive: 8 layers of rest + a * full. Cut: 7 of rest + b * bands, and a
    # last one with K and V on all rows and everything else on text rows.
    unknowns, known = [], []
    for side, measured in ((24, 1.11), (54, 1.64)):
        v, t, d, m = side * side, 64, 1024, 2752
        n = v + t
        rest, full = 8 * n * d * d + 6 * n * d * m, 4 * n * n * d
        bands = 4 * d * (v * (5 * side + t) + t * n)
        dead, dead_full = 4 * n * d * d + 4 * t * d * d + 6 * t * d * m, 4 * t * n * d
        unknowns.append([8 * full / measured - dead_full, -7 * bands])
        known.append(7 * rest + dead - 8 * rest / measured)
        assert band_ratio(5, (side, side), v, t) == pytest.approx(BAND_OVERHEAD * bands / full)
    a, b = np.linalg.solve(unknowns, known)
    assert (a, b) == (pytest.approx(2.05, abs=0.01), pytest.approx(5.64, abs=0.01))
    assert b / a == pytest.approx(BAND_OVERHEAD, rel=0.01)


def test_an_automatic_window_larger_than_the_grid_is_none_and_said_so():
    plan = planned(Yopo(window="auto", mlp_ratio=2))
    assert {layer.window for layer in plan.layers} == {None}
    assert plan.notes == (
        "compress[0].yopo.window: auto: none, as 5 is larger than the grid of 4 x 5",
    )


# Visual tokens off, and the two semantics.


def test_off_is_an_exit_where_what_is_cut_is_removed():
    plan = planned(Yopo(off_from=4, window=3), workload=MANY)
    assert [layer.reason for layer in plan.layers] == ["", "", "", "dead", "yopo", "yopo"]
    assert [layer.window for layer in plan.layers] == [3, 3, 3, None, None, None]
    assert plan.exit_layer == 4
    assert plan.notes == ()


def test_a_share_counts_the_heads_in_front_of_the_exit_alone():
    row = [[9.0] * 4] * 2 + [[1.0] * 4] + [[2.0] * 4] + [[8.0] * 4] * 2
    plan = planned(Yopo(heads=HeadKeys(keep=0.5), off_from=4), measured=profile([row]))
    assert groups(plan) == [None, None, (), None, None, None]


def test_masked_semantics_marks_layers_with_masked_heads_and_switches_off_without_an_exit(tmp_path):
    mask = whole_mask()
    mask[2], mask[4] = False, [True, True, False, False]
    plan = planned(by_mask(tmp_path, mask, window=3, mlp_ratio=2, off_from=4, semantics="masked"))
    assert [layer.masked for layer in plan.layers] == [False, False, True, False, True, True]
    assert [layer.off for layer in plan.layers] == [False] * 4 + [True] * 2
    assert groups(plan) == [None, None, (), None, (0,), None]
    assert [layer.visual for layer in plan.layers] == ["update"] * 5 + ["frozen"]
    assert plan.layers[5].reason == "dead"
    assert [layer.window for layer in plan.layers] == [3, 3, None, 3, 3, None]
    assert [bool(layer.neurons) for layer in plan.layers] == [True] * 5 + [False]
    assert plan.exit_layer is None


# Together with other methods.


def test_frozen_layers_keep_their_pruned_heads_and_lose_window_and_neurons_in_any_order(tmp_path):
    mask = whole_mask()
    mask[1, :2] = mask[3, :2] = False
    yopo, frozen = by_mask(tmp_path, mask, window=3, mlp_ratio=2), ShortV(layers=(1, 2))
    one, other = planned(yopo, frozen, workload=MANY), planned(frozen, yopo, workload=MANY)
    assert one.layers == other.layers
    assert groups(one) == [None, (1,), None, (1,), None, None]
    assert [layer.window for layer in one.layers] == [3, None, None, 3, 3, None]
    assert [bool(layer.neurons) for layer in one.layers] == [True, False, False, True, True, False]
    assert [layer.reason for layer in one.layers] == ["", "shortv", "shortv", "", "", "dead"]
    for number, plan in enumerate((one, other)):
        where = f"compress[{number}].yopo"
        assert plan.notes == (
            f"{where}.window: visual rows of layers 1, 2 are frozen by shortv: they read nothing, so there "
            "is no window",
            f"{where}.mlp_ratio: visual rows of layers 1, 2 are frozen by shortv: they have no MLP that "
            "could be narrower",
        )


def test_what_a_mask_prunes_behind_an_exit_is_said_to_be_nothing_in_any_order(tmp_path):
    mask = whole_mask()
    mask[2, :2] = mask[4, :2] = mask[5] = False
    yopo, exit_at = by_mask(tmp_path, mask), VisualExit(layer=4)
    one, other = planned(yopo, exit_at), planned(exit_at, yopo)
    assert one.layers == other.layers
    assert groups(one) == [None, None, (1,), None, None, None]
    for number, plan in enumerate((one, other)):
        assert plan.notes == (
            f"compress[{number}].yopo.heads.mask: prunes heads in layers 4, 5, where visual tokens have left "
            "by then: there is nothing to prune",
        )


def test_a_share_counts_the_heads_in_front_of_an_exit_wherever_that_is_listed():
    row = [[1.0] * 4] * 6
    yopo, exit_at = Yopo(heads=HeadKeys(keep=0.5)), VisualExit(layer=4)
    for methods in ((exit_at, yopo), (yopo, exit_at)):
        plan = planned(*methods, measured=profile([row]))
        assert groups(plan) == [None, None, None, (), None, None]  # two of the four groups stay
        assert plan.notes == ()


def test_what_a_threshold_prunes_behind_an_exit_is_said_to_be_nothing_in_any_order():
    # Heads of layers 2 to 5 are all below; those of layers 4 and 5 are behind the exit.
    measured = profile([[[1.0] * 4] * 2 + [[0.1] * 4] * 4])
    vote, exit_at = Yopo(heads=HeadKeys(threshold=0.5)), VisualExit(layer=4)
    own = Yopo(heads=HeadKeys(threshold=0.5), off_from=4)
    for number, methods in ((0, (vote, exit_at)), (1, (exit_at, vote)), (0, (own,))):
        plan = planned(*methods, measured=measured)
        assert groups(plan) == [None, None, (), (), None, None]
        assert plan.notes == (
            f"compress[{number}].yopo.heads.threshold: prunes no heads in layers 4, 5, where visual tokens "
            "have left by then: there is nothing to prune",
        )
    kept = Yopo(heads=HeadKeys(threshold=0.5), keep_layers=(4, 5))
    (note,) = planned(kept, exit_at, measured=measured).notes
    assert note.startswith("compress[0].yopo.keep_layers: visual tokens have left by layers 4, 5")


EVEN = profile([[[1.0] * 4] * 6])
DEAD = "visual rows of layer 0 are not updated, as nobody reads what comes out"
LEFT = "visual tokens are gone from layer 1 on"


@pytest.mark.parametrize(
    ("methods", "notes"),
    [
        (
            [Yopo(window=3, mlp_ratio=2), VisualExit(layer=1)],
            [
                f"window: no layer has one: {DEAD}; {LEFT}",
                f"mlp_ratio: no MLP is narrower: {DEAD}; {LEFT}",
            ],
        ),
        ([Yopo(window=3, off_from=1)], [f"window: no layer has one: {DEAD}; {LEFT}"]),
        (
            [Yopo(heads=HeadKeys(keep=0.5), off_from=2)],
            [
                "heads: no head is pruned: those of layers 0, 1 stay by keep_layers; visual tokens are gone "
                "from layer 2 on"
            ],
        ),
        (
            [Yopo(window=3, heads=HeadKeys(keep=0.0), keep_layers=(5,))],
            [
                "window: no layer has one: visual rows of layers 0, 1, 2, 3, 4 are in no head; visual rows "
                "of layer 5 are not updated, as nobody reads what comes out"
            ],
        ),
        (
            [Yopo(window=3, heads=HeadKeys(keep=0.0), keep_layers=())],
            [
                "window: no layer has one: visual rows of layers 0, 1, 2, 3, 4, 5 are not updated, as nobody "
                "reads what comes out"
            ],
        ),
        (
            [VisualExit(layer=1), Yopo(heads=HeadKeys(threshold=2.0), keep_layers=(0, 5))],
            [
                f"heads: no head is pruned: those of layer 0 stay by keep_layers; {LEFT}",
                "keep_layers: visual tokens have left by layer 5: there is nothing to keep",
            ],
        ),
        (
            [Yopo(heads=HeadKeys(threshold=0.07), keep_layers=(5,)), VisualExit(layer=1)],
            [
                f"heads: no head is pruned: those of layer 0 were all chosen to stay; {LEFT}",
                "keep_layers: visual tokens have left by layer 5: there is nothing to keep",
            ],
        ),
        (
            [Yopo(window=3, mlp_ratio=2, semantics="masked")],
            ["semantics: masked changes nothing: no heads are cut and no layer is switched off"],
        ),
        (
            [Yopo(heads=HeadKeys(keep=1.0), keep_layers=())],
            ["heads: no head is pruned: those of layers 0, 1, 2, 3, 4, 5 were all chosen to stay"],
        ),
        (
            [Yopo(mlp_ratio=2), ShortV(layers=(0, 1, 2, 3, 4))],
            [
                "mlp_ratio: no MLP is narrower: visual rows of layer 5 are not updated, as nobody reads what "
                "comes out; visual rows of layers 0, 1, 2, 3, 4 are frozen by shortv"
            ],
        ),
    ],
)
def test_a_cut_that_no_layer_has_in_the_end_is_named_with_the_reason(methods, notes):
    plan = planned(*methods, measured=EVEN, workload=MANY)
    number = next(i for i, method in enumerate(methods) if isinstance(method, Yopo))
    said = [note for note in plan.notes if note.startswith(f"compress[{number}].yopo.")]
    assert said == [f"compress[{number}].yopo.{note}" for note in notes]


def test_a_search_by_speed_counts_what_yopo_saves_already():
    yopo, few = Yopo(mlp_ratio=2), {"workload": Workload(text=3)}
    wanted, cut = 2.0, planned(yopo, **few)
    plan = planned(yopo, VisualExit(speedup=wanted), **few)
    fast = [k for k in range(1, 6) if predicted_speedup(leave(cut, k, "visual_exit")) >= wanted]
    assert plan.exit_layer == max(fast)
    alone = planned(VisualExit(speedup=wanted), **few)
    assert alone.exit_layer < plan.exit_layer


def test_a_plan_with_cuts_is_saved_and_loaded_equal(tmp_path):
    mask = whole_mask()
    mask[3, 1] = mask[2, :2] = False
    for semantics in ("removed", "masked"):
        plan = planned(
            by_mask(tmp_path, mask, window=3, mlp_ratio=2, off_from=4, semantics=semantics)
        )
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan
        assert plan.notes


# What is refused before any work.


def refused(method, model=MODEL):
    with pytest.raises(PlanError) as caught:
        check_methods(model, [method])
    assert problems(method, model=model) == caught.value.problems
    return caught.value.problems


def test_a_window_needs_a_grid_and_fits_it():
    blind = facts.facts(visual_tokens=20)
    for window in (3, "auto"):
        assert refused(Yopo(window=window), blind) == (
            f"compress[0].yopo.window: {window} needs a token grid, and that of owner/little-model is not "
            "known; leave the window out",
        )
    assert refused(Yopo(window=5)) == (
        "compress[0].yopo.window: 5 is larger than the token grid of 4 x 5; take an odd number up to 4",
    )


def test_everything_that_the_model_rules_out_is_named_at_once(tmp_path):
    method = Yopo(
        heads=HeadKeys(mask=tmp_path / "none.npy"),
        keep_layers=(1, 6),
        window=7,
        mlp_ratio=5,
        off_from=6,
    )
    assert refused(method) == (
        "compress[0].yopo.keep_layers: 6 is outside 0..5; the model has 6 layers",
        "compress[0].yopo.off_from: 6 is outside 1..5; the model has 6 layers",
        f"compress[0].yopo.heads.mask: {tmp_path}/none.npy: no such file",
        "compress[0].yopo.window: 7 is larger than the token grid of 4 x 5; take an odd number up to 4",
        "compress[0].yopo.mlp_ratio: 5 does not divide the MLP's 24 neurons; take one that does",
    )


@pytest.mark.parametrize("name", ["mask.npy", "mask.safetensors"])
def test_a_mask_of_another_shape_or_type_is_refused(tmp_path, name):
    method = by_mask(tmp_path, np.ones((5, 4), dtype=np.uint8), name)
    path = f"compress[0].yopo.heads.mask: {tmp_path}/{name}"
    assert refused(method) == (
        f"{path}: shape [5, 4]; the model has 6 layers of 4 heads: [6, 4]",
        f"{path}: numbers of type uint8; bool is needed, True: the head stays",
    )


def header(descr="'|b1'", shape="(6, 4)"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def npy(head):
    """A .npy file of format 1.0 with this header, and 24 bytes of values."""
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head.encode() + bytes(24)


def safetensors(dtype):
    """A file of one tensor [6, 4] of one-byte numbers."""
    head = json.dumps({"keep": {"dtype": dtype, "shape": [6, 4], "data_offsets": [0, 24]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(24)


def test_a_file_that_is_no_mask_is_refused_and_nothing_in_it_is_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    np.save(tmp_path / "pickle.npy", np.array([Bomb()] * 24, dtype=object))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "zip.npz", whole_mask())
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_file({"a": whole_mask(), "b": whole_mask()}, tmp_path / "two.safetensors")
    wanted = {
        "pickle.npy": "no readable .npy file",
        "text.npy": "no readable .npy file",
        "empty.npy": "no readable .npy file",
        "zip.npz": "no readable .npy file",
        "text.safetensors": "no readable .safetensors file",
        "two.safetensors": "2 tensors (a, b); one is needed",
    }
    headers = {
        "cut off": "{'descr': '|b1', 'fortran_order': False, 'shape': (6, 4",
        "too large": header(shape="(99999999999999999999, 4)"),
        "no number": header(shape="(True, 4)"),
        "no name": "{1: 2, 'shape': (6, 4)}",
        "no type": header(descr="('b1',)"),
        "too deep": header(shape="(" * 3000),
    }
    for name, head in headers.items():
        (tmp_path / f"{name}.npy").write_bytes(npy(head))
        wanted[f"{name}.npy"] = "no readable .npy file"
    for number in ("F8_E4M3", "F8_E5M2"):
        (tmp_path / f"{number}.safetensors").write_bytes(safetensors(number))
        wanted[f"{number}.safetensors"] = "no readable .safetensors file"
    wanted["sub"] = "no such file"
    (tmp_path / "sub").mkdir()
    for name, words in wanted.items():
        (line,) = refused(Yopo(heads=HeadKeys(mask=tmp_path / name)))
        assert line.startswith(f"compress[0].yopo.heads.mask: {tmp_path / name}: {words}")
    (line,) = refused(Yopo(heads=HeadKeys(mask=tmp_path / ("x" * 300 + ".npy"))))
    assert line.startswith("compress[0].yopo.heads.mask: ")
    assert ": a name of 304 bytes, and a file system takes 255 at most" in line
    assert not (tmp_path / "exploded").exists()


# Costs.


def counted(plan):
    """A plan's prefill counted matrix by matrix and head by head: the second implementation.

    Returns:
        Multiply-adds, and the numbers in the KV cache.
    """
    dims, v, t = plan.model.decoder, plan.visual, plan.workload.text
    grid = plan.model.token_grid
    size = dims.heads // dims.kv_heads
    total, cached = dims.hidden * dims.vocab, 0
    for layer in plan.layers:
        n = t if layer.exited else v + t
        busy = t if layer.frozen else n
        only_masked = layer.masked and (layer.off or layer.groups is not None)
        for group in range(dims.kv_heads):
            seen = only_masked or layer.groups is None or group in layer.groups
            keys = n if seen else t
            queries = busy if seen else t
            total += 2 * keys * dims.hidden * dims.head_dim  # K, V
            cached += 2 * keys * dims.head_dim
            for _ in range(size):
                total += 2 * queries * dims.hidden * dims.head_dim  # Q, O
                if layer.window and seen and not only_masked:
                    visual_rows = v * (layer.window * grid[1] + t)
                    total += 2 * (visual_rows + t * n) * dims.head_dim
                else:
                    total += 2 * queries * keys * dims.head_dim  # QK^T, PV
        kept = set(range(dims.intermediate) if layer.neurons is None else layer.neurons)
        for neuron in range(dims.intermediate):
            used = neuron in kept
            total += 3 * (busy if used else t) * dims.hidden  # gate, up, down
    return total, cached


def agrees(plan):
    cost = predict(plan)
    total, cached = counted(plan)
    assert cost.flops == 2 * total
    assert sum(cost.layer_kv_values) == cached


@st.composite
def cut_plans(draw):
    kv_heads, size = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    shape = facts.dims(
        layers=draw(st.integers(1, 6)),
        hidden=draw(st.integers(1, 64)),
        heads=kv_heads * size,
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 8)),
        intermediate=draw(st.integers(1, 40)),
    )
    grid = draw(st.tuples(st.integers(3, 9), st.integers(3, 9)))
    model = facts.facts(shape, visual_tokens=grid[0] * grid[1], token_grid=grid)
    masked = draw(st.booleans())
    windows = st.none() | st.integers(1, (min(grid) - 1) // 2).map(lambda half: 2 * half + 1)

    def layer(index):
        chosen = draw(st.none() | st.sets(st.integers(0, kv_heads - 1)))
        neurons = draw(st.none() | st.sets(st.integers(0, shape.intermediate - 1), min_size=1))
        off = masked and draw(st.booleans())
        return LayerPlan(
            index=index,
            groups=None if chosen is None else tuple(sorted(chosen)),
            window=draw(windows),
            neurons=None if neurons is None else tuple(sorted(neurons)),
            masked=off or (masked and chosen is not None),
            off=off,
        )

    workload = Workload(images=draw(st.integers(1, 2)), text=draw(st.integers(1, 50)))
    plan = identity_plan(model, facts.DIGEST, workload)
    plan = plan.model_copy(update={"layers": tuple(layer(i) for i in range(shape.layers))})
    plan = freeze(plan, draw(st.lists(st.integers(0, shape.layers - 1))), "shortv")
    if shape.layers > 1 and draw(st.booleans()):
        plan = leave(plan, draw(st.integers(1, shape.layers - 1)), "visual_exit")
    return Plan.model_validate(dict(plan))


@settings(deadline=None)
@given(cut_plans())
def test_predicted_work_and_cache_are_what_counting_matrix_by_matrix_gives(plan):
    agrees(plan)


@settings(deadline=None)
@given(cut_plans())
def test_no_removed_cut_but_a_window_adds_work_and_masked_heads_save_none(plan):
    for layer in plan.layers:
        whole = LayerPlan(index=layer.index, visual=layer.visual, reason=layer.reason)
        before = plan.model_copy(
            update={"layers": tuple(whole if x is layer else x for x in plan.layers)}
        )
        cost, without = predict(plan), predict(before)
        narrower = (
            layer.neurons is not None and len(layer.neurons) < plan.model.decoder.intermediate
        )
        if layer.masked:
            assert cost.layer_kv_values == without.layer_kv_values
            assert (cost.flops < without.flops) == (narrower and not layer.frozen)
        elif layer.window is None:
            assert cost.flops <= without.flops
            assert sum(cost.layer_kv_values) <= sum(without.layer_kv_values)


def test_a_plan_without_cuts_costs_what_it_did():
    plan = freeze(identity_plan(MODEL, facts.DIGEST), (1, 3), "shortv")
    assert counted(plan)[0] == work(plan)
    agrees(plan)


def test_the_parts_of_the_13b_example_together(tmp_path):
    # LLaVA-1.5-13B: the published parts, half of the heads. What the paper's own parts cost, by its formula.
    shape = facts.dims(
        layers=40, hidden=5120, heads=40, kv_heads=40, head_dim=128, intermediate=13824, vocab=32064
    )
    model = facts.facts(shape, visual_tokens=576, token_grid=(24, 24))
    mask = np.ones((40, 40), dtype=bool)
    mask[2:, 20:] = False
    method = by_mask(tmp_path, mask, window=5, mlp_ratio=2, off_from=20)
    plan = planned(method, model=model)
    agrees(plan)
    v, t, d, m = 576, 64, 5120, 13824
    n, half = v + t, d // 2
    text = 8 * t * d * d + 4 * t * t * d + 6 * t * d * m
    mlp = 3 * d * m * (n + t)
    bands = 4 * (v * (5 * 24 + t) + t * n)
    whole = 8 * n * d * d + bands * d + mlp
    cut_heads = 8 * d * half * (n + t) + half * (bands + 4 * t * t) + mlp
    dead = 4 * d * half * (n + t) + 8 * d * half * t + 4 * half * t * (n + t) + 6 * t * d * m
    wanted = [whole] * 2 + [cut_heads] * 17 + [dead] + [text] * 20
    assert list(predict(plan).layer_flops) == wanted
    kv = [2 * n * d] * 2 + [d * (n + t)] * 18 + [2 * t * d] * 20
    assert list(predict(plan).layer_kv_values) == kv


def test_a_prompt_whose_gate_fires_has_no_cuts_behind_it(tmp_path):
    mask = whole_mask()
    mask[2:, :2] = False
    plan = planned(by_mask(tmp_path, mask)).fired_after(3)
    assert groups(plan) == [None, None, (1,), (1,), None, None]
    assert plan.exit_layer == 4
    agrees(plan)
