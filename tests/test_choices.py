"""Export fidelity tells another choice among visual rows from other numbers, and passes neither."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from compressor.decoder import Decoder, decoder_from
from compressor.methods.fastv import read_most
from compressor.plan.edits import identity_plan, keep_at, keep_in_front
from compressor.plan.kept import Kept
from compressor.plan.plan import Plan
from compressor.samples.layout import VisualRows
from export.checks.fidelity import Recording, compare, record
from export.results.fidelity import FidelityLimits, FidelityReport
from export.session.session import in_rows, place_of
from tests.cuts import HIDDEN, IMAGE, model, tensors_of

KEPT = Kept(count=5, of=IMAGE, by="fastv")
LAYER = 2
AT_LAYER = keep_at(identity_plan(model(2), "0" * 64), LAYER, KEPT)
IN_FRONT = keep_in_front(identity_plan(model(2), "0" * 64), 5, "random", {"keep": 0.42})
LIMITS = FidelityLimits(max_abs=1e-4, max_relative=1e-4, min_cosine=0.99999)
Score = Callable[[Any], torch.Tensor]


@dataclass
class Tiny:
    """A tiny decoder in torch behind a made-up vision side, as far as recordings ask."""

    plan: Plan
    decoder: Decoder
    places: tuple[int, ...] = (0, 3, 4, 7, 9)

    @property
    def rows_kept(self) -> int | None:
        return self.plan.rows_kept

    def vision(self, pixels: np.ndarray, _: object = None) -> VisualRows:
        rng = np.random.default_rng(3)
        see = rng.normal(size=(pixels[0].size, IMAGE * HIDDEN)) / pixels[0].size ** 0.5
        rows = (pixels.reshape(len(pixels), -1) @ see).reshape(-1, IMAGE, HIDDEN).astype(np.float32)
        if self.plan.front is None:
            return VisualRows((rows,))
        kept = np.tile(np.array(self.places), (len(rows), 1))
        return VisualRows((rows[:, self.places],), kept)

    def embed(self, ids: np.ndarray) -> np.ndarray:
        table = np.random.default_rng(4).normal(size=(self.plan.model.decoder.vocab, HIDDEN))
        return table[ids].astype(np.float32)

    def empty_past(self, batch: int) -> Any:
        return self.decoder.empty_past(batch)

    def past_shapes(self, past: Any) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(part.shape) for pair in past for part in pair)

    def cached_keys(self, past: Any, layer: int) -> np.ndarray:
        return in_rows(past[place_of(self.plan.caches(), layer)].key.numpy())

    @torch.inference_mode()
    def decode(self, rows: Any, past: Any) -> tuple[np.ndarray, Any]:
        visual, text, *places = (torch.from_numpy(a) for a in rows[:4])
        dtype = self.decoder.norm.weight.dtype
        logits, present = self.decoder(visual.to(dtype), text.to(dtype), *places, past)
        return logits.numpy(), present


def tiny(plan: Plan, score: Score = read_most, scale: float = 1.0) -> Tiny:
    tensors = {name: tensor * scale for name, tensor in tensors_of(plan).items()}
    return Tiny(plan, decoder_from(plan, tensors, scores=dict.fromkeys(plan.keeps(), score)))


def judged(
    plan: Plan, session: Tiny, wanted: Recording, limits: FidelityLimits = LIMITS
) -> FidelityReport:
    return compare(wanted, record(session, plan), (), (), limits)


def swapped(rows: Any) -> torch.Tensor:
    """The last that would go on and the first that would not change places."""
    scores = read_most(rows)
    count = KEPT.rows(scores.shape[1])
    if count:
        order = scores.argsort(dim=-1, descending=True)[0]
        scores[0, order[[count - 1, count]]] = scores[0, order[[count, count - 1]]]
    return scores


def test_another_row_that_goes_on_at_a_layer_is_told_once_a_prompt_and_not_as_numbers() -> None:
    wanted = record(tiny(AT_LAYER), AT_LAYER)
    assert judged(AT_LAYER, tiny(AT_LAYER), wanted).passed
    found = judged(AT_LAYER, tiny(AT_LAYER, swapped), wanted)
    assert found.failures == tuple(
        f"{count} images, T={text}: at layer 2 1 of {5 * count} visual rows that go on are others than torch "
        "chooses: ties that rounding decides, or other scores; numbers behind them are not compared"
        for count in (1, 2)
        for text in (9, 5)
    )
    assert found.worst_abs.max_abs < LIMITS.max_abs
    # Of four prompts of six neither prefill, nor later turn, nor steps.
    assert found.calls == judged(AT_LAYER, tiny(AT_LAYER), wanted).calls - 4 * 18


def test_other_numbers_are_no_other_choice() -> None:
    wanted = record(tiny(AT_LAYER), AT_LAYER)
    found = judged(AT_LAYER, tiny(AT_LAYER, scale=1.01), wanted)
    assert len(found.failures) > 100
    assert not [line for line in found.failures if "go on" in line]


def test_another_row_that_enters_is_told_and_those_that_both_chose_are_compared() -> None:
    wanted = record(tiny(IN_FRONT), IN_FRONT)
    assert judged(IN_FRONT, tiny(IN_FRONT), wanted).passed
    other = tiny(IN_FRONT)
    other.places = (0, 3, 5, 7, 9)
    found = judged(IN_FRONT, other, wanted)
    assert found.failures == tuple(
        f"{count} images: {count} of {5 * count} visual rows that enter the decoder are others than torch "
        "chooses: ties that rounding decides, or other scores; numbers behind them are not compared"
        for count in (1, 2)
    )
    assert found.worst_abs.max_abs < LIMITS.max_abs
    faulty = tiny(IN_FRONT)
    faulty.vision = lambda *given: VisualRows(  # type: ignore[method-assign]
        (other.vision(*given).features[0] * 1.01,), other.vision(*given).kept
    )
    lines = judged(IN_FRONT, faulty, wanted).failures
    assert any(line.startswith("vision, 1 images: differs by") for line in lines)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_in_float16_ties_are_decided_otherwise_and_it_is_said(dtype: torch.dtype) -> None:
    """Scores that differ by 1e-5 are one number there: of equals others go on."""

    def first_number(rows: Any) -> torch.Tensor:
        scores: torch.Tensor = rows.visual[..., 0]
        return (scores * 0 + 1) + (scores.argsort(dim=-1).argsort(dim=-1) * 1e-5).to(scores.dtype)

    wanted = record(tiny(AT_LAYER, first_number), AT_LAYER)
    session = tiny(AT_LAYER, first_number)
    session.decoder.to(dtype)
    limits = FidelityLimits(max_abs=0.1, max_relative=0.05, min_cosine=0.99)
    found = judged(AT_LAYER, session, wanted, limits)
    if dtype is torch.float32:
        assert found.passed
    else:
        assert found.failures
        assert all("visual rows that go on are others than torch" in x for x in found.failures)
