"""A search judges answers by the recipe's score: what plans keep, against scores of what they really say."""

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from compressor.compressed import compress, plain
from compressor.families import LoadedModel, load
from compressor.samples.layout import VisualRows
from compressor.samples.prompts import embed, encode_answered
from compressor.samples.questions import Sample, read_samples
from compressor.samples.scores import EXACT, SCORES, Score
from compressor.search.asking.kept_rows import KeptRows
from compressor.search.candidates import Choice, PlanSpace, candidates_of
from compressor.search.engine import find
from compressor.search.measuring import Measuring
from export.report.render.markdown import markdown
from export.report.search.page import search_document
from tests.conftest import made_once, shared
from tests.models import Variant, make_llava, make_questions
from tests.searched import terms

if TYPE_CHECKING:
    from collections.abc import Callable

TOKENS = 4
USE = ("skip", "random")


@pytest.fixture(scope="module")
def model(pytestconfig: pytest.Config) -> LoadedModel:
    folder = shared(pytestconfig) / "models" / "llava-of-five"
    return load(str(made_once(folder, lambda half: make_llava(half, Variant(layers=5)))))


@pytest.fixture(scope="module")
def samples(pytestconfig: pytest.Config, model: LoadedModel) -> tuple[Sample, ...]:
    """Return questions with several right answers: a part of what the original says, and others."""
    folder = made_once(
        shared(pytestconfig) / "made" / "searched", lambda half: make_questions(half, 8)
    )
    original, found = plain(model), []
    for number, sample in enumerate(read_samples(folder / "questions.jsonl")):
        text = said(original, sample)
        given = (text, text.split()[0], "red")[number % 3]
        found.append(replace(sample, answer="blue", others=(given, given, given)))
    return (*found[:7], replace(found[7], answer=None, others=()))


def said(model: object, sample: Sample) -> str:
    """Return what a model answers in torch, decoded by itself."""
    generate: Callable[..., object] = model.generate  # type: ignore[attr-defined]
    found = generate(sample.question, sample.images, max_new_tokens=TOKENS, generation_config=False)
    return str(found.text)  # type: ignore[attr-defined]


def space(model: LoadedModel, measuring: Measuring, samples: tuple[Sample, ...]) -> PlanSpace:
    one = terms(samples, keep=0.5, use=USE)
    return candidates_of(model.facts, model.digest, measuring.workload, one.searched, one.evidence)


def own(text: str, answers: tuple[str, ...]) -> float:
    return 0.25 + 0.5 * any(answer in text for answer in answers)


@pytest.mark.parametrize(
    "score", [*SCORES.values(), Score("python:mine.own", own, graded=True)], ids=lambda s: s.name
)
def test_what_is_kept_is_what_the_score_says_of_what_plans_say(
    model: LoadedModel, samples: tuple[Sample, ...], score: Score
) -> None:
    measuring = Measuring(model, samples, TOKENS, score=score)
    candidates = space(model, measuring, samples)
    original = plain(model)
    first = [said(original, sample) for sample in samples]
    seen = set()
    for choice in (
        candidates.nothing,
        Choice(0, 0, (1, 0, 0, 0, 0)),
        Choice(0, 0, (1, 2, 1, 2, 0)),
        Choice(2, 0, (0, 0, 2, 1, 0)),
    ):
        small = compress(model, candidates.plan(choice))
        before, after = [], []
        for sample, was in zip(samples, first, strict=True):
            now = said(small, sample)
            known = bool(sample.answers)
            before.append((score.of(was, sample) or 0.0) if known else 1.0)
            after.append((score.of(now, sample) or 0.0) if known else float(now == was))
        kept = measuring.figures(candidates, choice, range(len(samples))).overall
        each = list(zip(before, after, strict=True))
        assert kept.original == pytest.approx(sum(before))
        assert kept.kept == pytest.approx(sum(map(min, each)))
        assert kept.won == pytest.approx(sum(max(b - a, 0.0) for a, b in each))
        assert kept.graded is score.graded
        assert (kept.bound is None) is score.graded
        seen |= set(after)
    assert len(seen) > 1


def test_a_report_says_which_score_and_a_graded_one_has_no_bound(
    model: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    asked = terms(samples, speedup=1.3, use=("skip",))
    exact, _ = find(model, asked, None)
    mine = Score("python:mine.own", own, graded=True)
    graded, _ = find(model, replace(asked, score=mine), None)
    assert (exact.score, graded.score) == ("exact", "python:mine.own")
    assert "95% sure of" in exact.why
    assert "95% sure of" not in graded.why
    assert isinstance(exact.original_judged_on.original, int)
    assert exact.original_judged_on.original != graded.original_judged_on.original
    page = markdown(search_document(graded))
    assert "Answers are scored as validate.score says: python:mine.own." in page
    assert "no bound 'sure of' is given" in page
    judged = graded.chosen_point.judged_on
    assert judged is not None
    assert f"({judged.overall.counts})" in page
    assert "validate.score says: exact." in markdown(search_document(exact))


@pytest.mark.parametrize(
    ("text", "may"),
    [("", True), ("bl", True), ("blue", True), (" blue ", True), ("blue\ufffd", True), ("b l", True),
     ("blues", False), ("ble", False)],
)  # fmt: skip
def test_only_what_can_no_longer_be_right_is_not_decoded_on(text: str, may: bool) -> None:
    sample = Sample((), "which colour?", "blue", others=("black",))
    assert EXACT.may(text, sample) is may
    assert SCORES["contains"].may(text, sample)


def test_pictures_are_seen_once_and_rows_are_the_same_to_the_bit(
    model: LoadedModel, samples: tuple[Sample, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = type(model.vision).features
    monkeypatch.setattr(
        type(model.vision), "features", lambda self, *a: calls.append(1) or real(self, *a)
    )
    # As two questions' pictures fit into memory, the others are read from the file again.
    size = samples[0].images and model.facts.tile_rows * model.facts.decoder.hidden * 4
    monkeypatch.setattr(KeptRows.__init__, "__defaults__", (None, 2 * size))
    measuring = Measuring(model, samples, TOKENS)
    monkeypatch.setattr("compressor.search.measuring.MOST_BATCHED_BYTES", 0)
    measuring._room = 0
    candidates = space(model, measuring, samples)
    places = tuple(range(len(samples)))
    batches = [b for _ in range(2) for b in measuring.batches_of_singles(places)]
    one, two = (measuring.figures(candidates, candidates.nothing, places) for _ in range(2))
    assert one == two
    assert len(calls) == len({sample.images for sample in samples})
    measuring.figures(candidates, Choice(2, 0, (0,) * 5), places)
    measuring.figures(candidates, Choice(2, 0, (1, 0, 0, 0, 0)), places)
    monkeypatch.undo()
    for batch in batches:
        for row, place in enumerate(batch.places):
            question = measuring.questions[place]
            whole = embed(model, question.prompt)
            assert torch.equal(batch.rows.visual_embeds[row], whole.visual_embeds[0])
            assert torch.equal(batch.rows.text_embeds[row], whole.text_embeds[0])
            if not question.own:
                answer = replace(question.sample, answer=None, others=())
                texts = {model.processor.decode(question.answer, skip_special_tokens=True)}
                assert texts & set(question.sample.answers), answer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_from_the_file_is_what_was_written(dtype: torch.dtype, tmp_path) -> None:
    kept, made = KeptRows(tmp_path, most_bytes=0), {}
    for number in range(3):
        made[number] = torch.randn(2, number + 1, 3).to(dtype)
        kept.of(number, lambda n=number: VisualRows((made[n], made[n][:1]), None))
    for number in (2, 0, 1):
        again = kept.of(number, lambda: pytest.fail("made again"))
        assert torch.equal(again.features[0], made[number])
        assert torch.equal(again.features[1], made[number][:1])
        assert again.features[0].dtype is dtype
    assert not list(tmp_path.iterdir())


def test_a_forced_prompt_is_that_of_encoding_it_with_its_answer(
    model: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    measuring = Measuring(model, samples, TOKENS)
    question = measuring.questions[0]
    text = model.processor.decode(question.answer, skip_special_tokens=True)
    one = replace(samples[0], answer=text, others=())
    prompt, answer = encode_answered(model.processor, one, model.facts)
    assert torch.equal(prompt.input_ids, question.prompt.input_ids)
    assert torch.equal(answer, question.answer)
