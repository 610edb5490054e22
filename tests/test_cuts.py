"""Decoders with YOPO's cuts against an independent dense reference, in torch."""

import time

import numpy as np
import pytest
import torch

from compressor.decoder.weights import Slice, slice_of, source_of
from compressor.plan.edits import identity_plan
from compressor.plan.plan import Plan
from tests.cuts import (
    ANEW,
    CASES,
    CUTS,
    EVERY_OTHER,
    HIDDEN,
    NEURONS,
    TOLERANCE,
    WIDE_GRID,
    batch_of_two,
    conversation,
    cut,
    dead,
    decoder_of,
    logits_of,
    model,
    plan_of,
    tensors_of,
)
from tests.facts import dims, facts
from tests.reference import text_logits


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("name", "kv_heads"), CASES)
def test_a_cut_decoder_equals_the_dense_reference_call_by_call(
    name: str, kv_heads: int, biased: bool
) -> None:
    plan = plan_of(name, kv_heads, qkv_bias=biased, o_bias=biased, mlp_bias=biased)
    tensors = tensors_of(plan)
    assert any(source.endswith(".bias") for source in tensors) is biased
    rows, calls = conversation()
    found = logits_of(decoder_of(plan, tensors), calls)[0]
    wanted = text_logits(plan, tensors, rows)
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)
    uncut = text_logits(plan.naive(), tensors, rows)
    assert np.abs(wanted - uncut).max() > 100 * TOLERANCE, "the cut changes nothing: says nothing"


@pytest.mark.parametrize(("name", "kv_heads"), CASES)
def test_two_conversations_in_one_batch_give_each_its_own_reference_on_a_grid_wider_than_windows(
    name: str, kv_heads: int
) -> None:
    plan = plan_of(name, kv_heads, WIDE_GRID)
    tensors = tensors_of(plan)
    both, calls = batch_of_two(WIDE_GRID)
    found = logits_of(decoder_of(plan, tensors), calls)
    wanted = [text_logits(plan, tensors, rows) for rows in both]
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)
    assert np.abs(wanted[0] - wanted[1]).max() > 100 * TOLERANCE


@pytest.mark.parametrize(("name", "kv_heads"), [case for case in CASES if case[0] not in ANEW])
def test_text_alone_gives_the_originals_logits(name: str, kv_heads: int) -> None:
    plan = plan_of(name, kv_heads)
    tensors = tensors_of(plan)
    text = [torch.zeros(1, 0, HIDDEN), torch.randn(1, 9, HIDDEN)]
    text += [torch.zeros(1, 0, dtype=torch.int64), torch.arange(9)[None]]
    with torch.inference_mode():
        cut_one, original = (decoder_of(p, tensors) for p in (plan, identity_plan(plan.model, "")))
        one, _ = cut_one(*text, cut_one.empty_past(1))
        other, _ = original(*text, original.empty_past(1))
    np.testing.assert_allclose(one.numpy(), other.numpy(), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", CUTS)
def test_parts_hold_every_number_of_the_original_once(name: str) -> None:
    plan = plan_of(name, 2, qkv_bias=True, o_bias=True, mlp_bias=True)
    tensors = tensors_of(plan)
    parts: dict[str, list[torch.Tensor]] = {}
    for parameter, tensor in decoder_of(plan, tensors).named_parameters():
        parts.setdefault(source_of(parameter)[0], []).append(tensor.detach().flatten())
    assert parts.keys() == tensors.keys()
    for source, held in parts.items():
        if source.endswith(("q_norm.weight", "k_norm.weight")):
            # Every group of heads has the whole of it.
            assert all(part.equal(tensors[source]) for part in held), source
            continue
        # Random numbers tell which place they come from.
        assert torch.cat(held).sort().values.equal(tensors[source].flatten().sort().values), source


def test_only_parts_that_do_not_lie_together_are_copied_from_the_original() -> None:
    everything = tuple(range(NEURONS))
    layers = [
        cut(0, window=3),
        cut(1, neurons=EVERY_OTHER),
        cut(2, groups=(1,), neurons=everything),
        dead(3, groups=(0, 1)),
    ]
    plan = Plan(model=model(2), model_digest="0" * 64, layers=tuple(layers))
    tensors = tensors_of(plan)
    decoder = decoder_of(plan, tensors)
    ours = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    parts = {
        name
        for name, p in decoder.named_parameters()
        if p.numel() and p.untyped_storage().data_ptr() not in ours
    }
    mlp = [f"mlp.{part}.{name}" for part in ("first", "rest") for name in ("gate", "up", "down")]
    assert parts == {f"layers.1.{name}.weight" for name in mlp}


def test_the_places_of_a_wide_mlps_parts_are_found_at_once() -> None:
    wide = 30_000
    plan = Plan(
        model=facts(dims(layers=1, intermediate=wide)),
        model_digest="",
        layers=(cut(0, neurons=tuple(range(0, wide, 2))),),
    )
    start = time.process_time()
    part = slice_of("layers.0.mlp.rest.up.weight", plan)
    assert part == Slice(1, tuple(range(1, wide, 2)))
    # Milliseconds; what grows with the square of the width takes many seconds.
    assert time.process_time() - start < 1
