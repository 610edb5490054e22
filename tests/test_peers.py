"""`benchmarks.peers`: what contenders are judged by, and the table that they stand in."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.interleaved import Ratio
from benchmarks.peers import decoders
from benchmarks.peers.image import comparison as image
from benchmarks.peers.image.model import Question, torch_answer, torch_answer_of_plan
from benchmarks.peers.measuring import Comparison, Row
from benchmarks.peers.showing import head, line
from compressor.compressed import compress
from compressor.families import LoadedModel, load
from compressor.plan.edits import freeze, identity_plan, keep_in_front
from compressor.plan.plan import Workload
from compressor.samples.layout import layout_of
from export.backends.torch_model import TorchSession
from export.session.feeds import prompt_rows

FROZEN = (1, 2)


@pytest.fixture(scope="module")
def model(llava: Callable[[str], Path]) -> LoadedModel:
    return load(str(llava("clip+llama")))


@pytest.fixture(scope="module")
def asked(model: LoadedModel) -> Question:
    rng = np.random.default_rng(0)
    count, side = model.facts.visual_tokens, model.facts.image_size
    image_token = model.facts.image_token_id
    ids = np.array([1, 5, *[image_token] * count, 7, 8, 9])
    pixels = rng.standard_normal((1, 3, side, side), dtype=np.float32)
    return Question(ids, pixels, np.flatnonzero(ids == image_token))


def test_without_a_plan_the_judge_gives_what_transformers_gives(
    model: LoadedModel, asked: Question
) -> None:
    expected = torch_answer(model.original, asked).numpy()
    found = torch_answer_of_plan(model.original, asked, (), None).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_judge_and_the_compressed_model_agree_on_frozen_and_kept_rows(
    model: LoadedModel, asked: Question
) -> None:
    plan = freeze(identity_plan(model.facts, model.digest, Workload(text=5)), FROZEN, "shortv")
    plan = keep_in_front(plan, model.facts.visual_tokens // 2, "random", {"keep": 0.5})
    session = TorchSession(compress(model, plan))
    layout = layout_of(asked.ids, model.facts, [len(asked.visual)])
    seen = session.vision(asked.pixels)
    rows = prompt_rows(layout, session.embed(layout.text_ids[None]), *seen)
    logits, _ = session.decode(rows, session.empty_past(1))
    assert seen.kept is not None

    def judged(frozen: tuple[int, ...], kept: np.ndarray | None) -> float:
        found = torch_answer_of_plan(model.original, asked, frozen, kept).numpy()
        return float(np.abs(found - logits[0, -1]).max() / np.abs(found).max())

    assert judged(FROZEN, seen.kept[0]) < 1e-5
    # The one without a part of the plan is another: what is compared does depend on it.
    assert judged(FROZEN, None) > 1e-3
    assert judged((), seen.kept[0]) > 1e-3


@pytest.mark.parametrize("comparison", [decoders.comparison(), image.comparison()])
def test_contenders_have_names_of_their_own_and_share_files_of_one_maker(
    comparison: Comparison,
) -> None:
    names = [contender.name for contender in comparison.contenders]
    assert len(names) == len(set(names))
    makers: dict[str, str] = {}
    for contender in comparison.contenders:
        made = f"{contender.make} {contender.file}"
        assert makers.setdefault(contender.made, made) == made
    assert comparison.contenders[0].plan is None
    assert comparison.wanted.keys() <= comparison.calls.keys()


def test_every_line_of_the_table_has_a_cell_for_every_title() -> None:
    calls = ("first token", "vision")
    title, rule = head(calls, "torch").splitlines()
    ratio = Ratio(2.0, 1.9, 2.0, 2.25)
    whole = Row(
        "a", 1.0, 10**9, 10**9, 10**9, {"first token": ratio}, {"first token": 0.5}, None, 0
    )
    found = line(whole, calls)
    assert title.count("|") == rule.count("|") == found.count("|")
    assert found.startswith("| a | 2.00 (1.90 to 2.25) | - | 500 | - | - | 1,000 |")
