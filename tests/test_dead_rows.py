"""Dead visual rows: found in front of layers that nobody reads visual rows in, and freezing them is exact."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.decoder import decoder_from
from compressor.methods.yopo.method import Yopo
from compressor.plan.cost import predict
from compressor.plan.dead_rows import freeze_dead_rows
from compressor.plan.edits import identity_plan, leave
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan
from compressor.planner import make_plan
from tests.cuts import (
    LAYERS,
    conversation,
    cut,
    dead,
    frozen,
    gone,
    logits_of,
    model,
    tensors_of,
)

MODEL = model(2)
TENSORS = tensors_of(identity_plan(MODEL, ""))

HEADS = st.sampled_from([None, (), (0,), (1,)])
LAYER_PARTS = st.tuples(st.sampled_from(["update", "shortv", "masked"]), HEADS)


def marked(layers: Sequence[LayerPlan]) -> list[str]:
    return [layer.reason for layer in freeze_dead_rows(tuple(layers))]


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        ([cut(0), cut(1), cut(2), cut(3)], ["", "", "", "dead"]),
        ([cut(0), cut(1), gone(2), gone(3)], ["", "dead", "visual_exit", "visual_exit"]),
        ([cut(0), cut(1), cut(2), frozen(3)], ["", "", "", "shortv"]),
        ([cut(0), cut(1), cut(2, groups=()), cut(3, groups=())], ["", "dead", "dead", "dead"]),
        ([cut(0), cut(1, groups=()), cut(2), cut(3, groups=())], ["", "", "dead", "dead"]),
        ([cut(0), cut(1), frozen(2, groups=()), gone(3)], ["", "dead", "shortv", "visual_exit"]),
        ([cut(i, groups=()) for i in range(4)], ["dead"] * 4),
        ([cut(0), cut(1), cut(2), cut(3, groups=(), masked=True)], ["", "", "", "dead"]),
    ],
)
def test_rows_are_dead_where_no_later_layer_reads_them(
    layers: list[LayerPlan], wanted: list[str]
) -> None:
    assert marked(layers) == wanted


def layer_of(index: int, kind: str, groups: tuple[int, ...] | None) -> LayerPlan:
    if kind == "masked" and groups is not None:
        return cut(index, groups=groups, masked=True)
    return (frozen if kind == "shortv" else cut)(index, groups=groups)


@given(st.lists(LAYER_PARTS, min_size=LAYERS, max_size=LAYERS))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_freezing_dead_rows_is_exact(parts: list[tuple[str, tuple[int, ...] | None]]) -> None:
    layers = tuple(layer_of(i, *each) for i, each in enumerate(parts))
    _, calls = conversation()
    wanted, found = (
        logits_of(decoder_from(plan, TENSORS, logits="all"), calls)
        for plan in (
            Plan(model=MODEL, model_digest="", layers=chosen)
            for chosen in (layers, freeze_dead_rows(layers))
        )
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)


def test_last_layers_without_visual_heads_cost_what_an_exit_costs(tmp_path: Path) -> None:
    keep = np.ones((LAYERS, MODEL.decoder.heads), bool)
    keep[2:] = False
    np.save(tmp_path / "keep.npy", keep)
    method = Yopo.model_validate({"heads": {"mask": tmp_path / "keep.npy"}, "mlp_ratio": 2})
    plan = make_plan(MODEL, "", [method])
    assert [layer.reason for layer in plan.layers] == ["", "dead", "dead", "dead"]
    exited = leave(identity_plan(MODEL, ""), 2, "visual_exit")
    assert predict(plan).layer_flops[1:] == predict(exited).layer_flops[1:]
    assert predict(plan).layer_kv_values == predict(exited).layer_kv_values
    assert plan.layers[1] == dead(1)
