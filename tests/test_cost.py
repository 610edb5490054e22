"""Predicted cost: the formulas against numbers worked out by hand and the paper's own figure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.plan.cost import layer_flops, predict, predicted_speedup
from compressor.plan.edits import identity_plan, leave
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Gates
from export.checks.bench import _Prompt
from tests import facts

UPDATE, FROZEN = LayerPlan(index=0), LayerPlan(index=0, visual="frozen", reason="shortv")

# Published with the paper: the layers that ShortV freezes in LLaVA-NeXT-13B.
NEXT_13B = (
    39, 32, 29, 36, 27, 30, 37, 23, 25, 31, 26, 2, 28, 22, 33, 35, 34, 24, 38, 21, 20, 18, 1, 17,
)  # fmt: skip


def next_13b(frozen):
    decoder = facts.dims(
        layers=40, hidden=5120, heads=40, kv_heads=40, head_dim=128, intermediate=13824, vocab=32064
    )
    model = facts.facts(decoder, visual_tokens=2880, image_size=336, dtype="float16")
    return facts.plan(frozen, model=model, text=64)


def test_a_layer_costs_what_is_counted_by_hand():
    # D = 2, one head of 2, M = 3, n = 4 rows. Each product of [a, b] and [b, c] is 2abc.
    # Q, K, V, O: 4 * 2*4*2*2 = 128; QK^T and PV: 2 * 2*4*2*4 = 128; gate, up, down: 3 * 2*4*2*3 = 144.
    dims = facts.dims(hidden=2, heads=1, kv_heads=1, head_dim=2, intermediate=3)
    assert layer_flops(dims, UPDATE, visual=3, text=1) == 128 + 128 + 144


def test_costs_are_of_the_picture_that_is_timed():
    """Pictures of sizes of their own: 97 rows at most, which no square has."""
    model = facts.facts(visual_tokens=97, cell=8, image_size=72)
    timed = _Prompt(model, 2, 5).layout
    assert facts.plan((), model=model, images=2).visual == timed.visual_index.size == 2 * 90


def test_a_frozen_layer_costs_what_is_counted_by_hand():
    # As above with t = 1: K, V on 4 rows 2 * 2*4*2*2 = 64; Q, O on one 2 * 2*1*2*2 = 16;
    # attention 1 x 4: 2 * 2*1*2*4 = 32; MLP on one row 3 * 2*1*2*3 = 36.
    dims = facts.dims(hidden=2, heads=1, kv_heads=1, head_dim=2, intermediate=3)
    assert layer_flops(dims, FROZEN, visual=3, text=1) == 64 + 16 + 32 + 36


def test_a_layer_behind_an_exit_costs_what_text_alone_costs():
    dims = facts.dims(hidden=2, heads=1, kv_heads=1, head_dim=2, intermediate=3)
    exited = LayerPlan(index=1, visual="exited", reason="visual_exit")
    assert layer_flops(dims, exited, visual=3, text=1) == layer_flops(dims, UPDATE, 0, 1)


def test_the_cache_behind_an_exit_holds_text_alone():
    plan = leave(identity_plan(facts.facts(), facts.DIGEST), 2, "visual_exit")
    dims, visual, text = plan.model.decoder, plan.visual, plan.workload.text
    values = 2 * dims.kv_width
    wanted = (2 * (visual + text) + 4 * text) * values
    assert sum(predict(plan).layer_kv_values) == wanted


def test_gates_cost_their_own_work_and_the_mean_of_the_exits_that_were_seen():
    identity = identity_plan(facts.facts(), facts.DIGEST)
    width, hidden = 8, identity.model.decoder.hidden
    # Linear(2D, W) and Linear(W, 2) on one row.
    gate = 2 * 2 * hidden * width + 2 * width * 2

    def gated(fired, unfired=0):
        gates = Gates(
            candidates=(1, 3), mode="dynamic", width=width, digest="", fired=fired, unfired=unfired
        )
        return identity.model_copy(update={"gates": gates})

    early = predict(identity.fired_after(1)).flops + gate
    late = predict(identity.fired_after(3)).flops + 2 * gate
    never = predict(identity).flops + 2 * gate
    assert predict(gated((1, 0))).flops == early
    assert predict(gated((0, 5))).flops == late
    assert predict(gated((0, 0), unfired=2)).flops == never
    # Layers are rounded one by one.
    assert abs(predict(gated((2, 1), unfired=1)).flops - (2 * early + late + never) / 4) <= 6
    # Without a calibration: the dearest prompt, in which no gate fires.
    assert predict(gated(())).flops == never
    assert (
        predict(gated((1, 0))).layer_kv_values == predict(identity.fired_after(1)).layer_kv_values
    )
    assert early < late < never


@given(
    st.integers(1, 64),
    st.integers(1, 128),
    st.integers(1, 20000),
    st.integers(0, 5000),
    st.integers(1, 99),
)
def test_full_attention_costs_the_formula_of_the_paper(heads, head_dim, width, visual, text):
    hidden, n = heads * head_dim, visual + text
    dims = facts.dims(
        hidden=hidden, heads=heads, kv_heads=heads, head_dim=head_dim, intermediate=width
    )
    expected = 8 * n * hidden**2 + 4 * n**2 * hidden + 6 * n * hidden * width
    assert layer_flops(dims, UPDATE, visual, text) == expected


def test_grouped_queries_make_keys_and_values_cheaper_by_the_group():
    # D = 896, 14 heads of 64, 2 KV heads: K and V are 896 x 128 each.
    full = facts.dims(hidden=896, heads=14, kv_heads=14, head_dim=64, intermediate=4864)
    grouped = facts.dims(hidden=896, heads=14, kv_heads=2, head_dim=64, intermediate=4864)
    saved = 2 * 2 * 793 * 896 * (896 - 128)
    for layer in (UPDATE, FROZEN):
        costs = [layer_flops(d, layer, visual=729, text=64) for d in (full, grouped)]
        assert costs[0] - costs[1] == saved


def test_a_head_size_of_its_own_counts_in_queries_and_output():
    # D = 4, 2 heads of 6 (H * d = 12), 1 KV head (6), M = 5, n = 3 rows.
    dims = facts.dims(hidden=4, heads=2, kv_heads=1, head_dim=6, intermediate=5)
    q_and_o, k_and_v = 2 * (2 * 3 * 4 * 12), 2 * (2 * 3 * 4 * 6)
    attention, mlp = 2 * (2 * 3 * 12 * 3), 3 * (2 * 3 * 4 * 5)
    assert layer_flops(dims, UPDATE, visual=2, text=1) == q_and_o + k_and_v + attention + mlp


def test_without_visual_rows_a_frozen_layer_costs_as_much_as_any_other():
    dims = facts.dims()
    assert layer_flops(dims, FROZEN, 0, 9) == layer_flops(dims, UPDATE, 0, 9)


def test_the_published_list_of_next_13b_halves_the_work_as_the_paper_says():
    cost, naive = predict(next_13b(NEXT_13B)), predict(next_13b(()))
    assert sum(cost.layer_flops) / sum(naive.layer_flops) == pytest.approx(0.50, abs=0.005)
    # Worked out apart from the code: 16 full layers and 24 frozen ones.
    n, t, d, m = 2944, 64, 5120, 13824
    full = 8 * n * d**2 + 4 * n**2 * d + 6 * n * d * m
    frozen = 4 * n * d**2 + 4 * t * d**2 + 4 * t * n * d + 6 * t * d * m
    assert sum(cost.layer_flops) == 16 * full + 24 * frozen
    assert sum(cost.layer_flops) / sum(naive.layer_flops) == pytest.approx(0.50164, abs=1e-5)


def test_the_speedup_is_against_the_original_that_updates_dead_rows_too():
    plan = facts.plan(dead=(5,), text=4)
    one = predict(plan.naive()).layer_flops[0]
    dead = layer_flops(plan.model.decoder, FROZEN, 12, 4)
    head = 2 * 16 * 40
    assert predicted_speedup(plan) == pytest.approx((6 * one + head) / (5 * one + dead + head))
    assert predicted_speedup(plan.naive()) == 1.0


def test_the_whole_prefill_counts_the_output_embedding_once_for_the_last_token():
    cost = predict(facts.plan(text=50))
    assert cost.head_flops == 2 * 16 * 40
    assert cost.flops == sum(cost.layer_flops) + 2 * 16 * 40


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_the_cache_holds_keys_and_values_of_every_row_also_in_frozen_layers(dtype, size):
    plan = facts.plan((1, 2), dead=(5,), images=2, text=10)
    values = 6 * (2 * 12 + 10) * 2 * (2 * 4)  # layers, rows, key and value, KV width
    assert predict(plan).kv_bytes(dtype) == values * size


def test_the_cache_of_a_7b_model_is_half_a_mebibyte_a_token_in_float16():
    decoder = facts.dims(layers=32, hidden=4096, heads=32, kv_heads=32, head_dim=128)
    plan = facts.plan(model=facts.facts(decoder, visual_tokens=576), text=64)
    assert predict(plan).kv_bytes("float16") == 640 * 2**19
