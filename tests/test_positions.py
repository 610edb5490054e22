"""A place orders the causal mask, a position turns the rotation: two inputs of the decoder."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from compressor.decoder import Decoder
from compressor.decoder.full_pass import full_pass, text_tails
from compressor.plan.edits import leave
from compressor.samples.layout import layout_of
from export.session.feeds import prompt_rows
from tests.cuts import CASES, GROWN, HIDDEN, LAYERS, conversation, decoder_of, plan_of, tensors_of
from tests.reference import Conversation, text_logits

TOLERANCE = 2e-5
# As M-RoPE spreads three axes over the frequencies of a head of eight, in sections and by turns.
AXES = (None, (0, 1, 1, 2), (0, 1, 2, 0))


def positions_of(rows: int, axes: int) -> np.ndarray:
    """Positions [S, axes] of which no order follows: a mask made of them would be another."""
    rng = np.random.default_rng(4)
    columns = [rng.permutation(rows) for _ in range(axes)]
    return np.stack(columns, axis=1).astype(np.int64)


def logits_of(
    decoder: Decoder, calls: Sequence[list[torch.Tensor]], positions: np.ndarray
) -> np.ndarray:
    """Logits [1, text rows, vocab] of calls behind each other, rotated by positions [S, axes]."""
    past, found = decoder.empty_past(1), []
    for call in calls:
        places = torch.cat(call[2:], dim=1)
        with torch.inference_mode():
            logits, past = decoder(*call, past, torch.from_numpy(positions)[places])
        found.append(logits.numpy())
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize(("name", "kv_heads"), [c for c in CASES if not c[0].startswith(GROWN)])
def test_rotations_follow_the_positions_and_the_mask_the_places(
    name: str, kv_heads: int, axes: tuple[int, ...] | None
) -> None:
    plan = plan_of(name, kv_heads, rope_axes=axes)
    tensors = tensors_of(plan)
    rows, calls = conversation()
    positions = positions_of(len(rows.embeds), 1 if axes is None else 3)
    wanted = text_logits(plan, tensors, replace(rows, positions=positions))
    decoder = decoder_of(plan, tensors)
    np.testing.assert_allclose(logits_of(decoder, calls, positions)[0], wanted, atol=TOLERANCE)


def test_the_reference_depends_on_both() -> None:
    """Guards the test above."""
    plan = plan_of("heads", 2)
    tensors, (rows, _) = tensors_of(plan), conversation()
    positions = positions_of(len(rows.embeds), 1)
    turned = text_logits(plan, tensors, replace(rows, positions=positions))
    assert np.abs(turned - text_logits(plan, tensors, rows)).max() > 100 * TOLERANCE
    # As if positions were places too: rows in their order.
    order = np.argsort(positions[:, 0])
    moved = Conversation(
        *(part[order] for part in (rows.embeds, rows.visual, rows.image, rows.cell))
    )
    found = np.zeros((len(order), turned.shape[1]))
    found[order[rows.visual[order] == 0]] = text_logits(plan, tensors, moved)
    assert np.abs(found[~rows.visual] - turned).max() > 100 * TOLERANCE


def test_positions_that_are_the_places_change_no_bit() -> None:
    plan = plan_of("everything, frozen, then exit", 2)
    decoder = decoder_of(plan, tensors_of(plan))
    rows, calls = conversation()
    places = np.arange(len(rows.embeds))[:, None]
    past = decoder.empty_past(1)
    with torch.inference_mode():
        wanted, _ = decoder(*calls[0], past)
    assert np.array_equal(logits_of(decoder, calls[:1], places), wanted.numpy())


def test_a_decoder_of_several_axes_without_positions_is_refused() -> None:
    plan = plan_of("heads", 2, rope_axes=AXES[1])
    decoder = decoder_of(plan, tensors_of(plan), "last")
    with pytest.raises(ValueError, match="on several axes: give the rows' positions"):
        decoder(*conversation()[1][0], decoder.empty_past(1))


def test_rows_that_grow_count_positions_from_places_and_take_no_others() -> None:
    decoder = decoder_of(plan := plan_of(GROWN, 2), tensors_of(plan))
    rows, calls = conversation()
    with pytest.raises(
        ValueError, match="where visual rows grow, positions are counted from places"
    ):
        logits_of(decoder, calls, np.arange(len(rows.embeds))[:, None])


def test_tails_behind_an_exit_are_rotated_by_the_positions_of_the_whole_prompt() -> None:
    plan = plan_of("heads", 2).naive()
    tensors = tensors_of(plan)
    call = conversation()[1][0]
    rows = call[0].shape[1] + call[1].shape[1]
    positions = torch.from_numpy(positions_of(rows, 1))[None]
    original = decoder_of(plan, tensors)
    full = full_pass(original, *call, positions)
    for layer in range(1, LAYERS):
        early = decoder_of(leave(plan, layer, "visual_exit"), tensors)
        with torch.inference_mode():
            wanted, _ = early(*call, early.empty_past(1), positions)
        found = original.next_token_logits(text_tails(full, (layer,)))
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
    assert full.places.cos.shape == (1, rows, HIDDEN // 4 // 2)


def test_pictures_of_unequal_sizes_are_read_in_the_order_of_the_prompt() -> None:
    plan = plan_of("heads", 2)
    tensors, counts, rng = tensors_of(plan), (2, 5, 1), np.random.default_rng(6)
    image = plan.model.image_token_id
    ids = [7, *[image] * 2, 8, 9, *[image] * 6, 7, 9]
    layout = layout_of(ids, plan.model, counts)
    features = rng.standard_normal((sum(counts), HIDDEN)).astype(np.float32)
    text = rng.standard_normal((1, len(layout.text_ids), HIDDEN)).astype(np.float32)
    visual = np.array(ids) == image
    embeds = np.zeros((len(ids), HIDDEN))
    embeds[~visual] = text[0]
    embeds[visual] = features
    nothing = np.zeros(len(ids), np.int64)
    wanted = text_logits(plan, tensors, Conversation(embeds, visual, nothing, nothing))
    decoder = decoder_of(plan, tensors)
    rows = [torch.from_numpy(part) for part in prompt_rows(layout, text, (features,))[:4]]
    with torch.inference_mode():
        found, _ = decoder(*rows, decoder.empty_past(1))
    np.testing.assert_allclose(found[0], wanted, atol=TOLERANCE)
