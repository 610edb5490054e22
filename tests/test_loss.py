"""Compression loss: its figures against formulas written anew, its limits, and what an artifact stores."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compressor.errors import ArtifactError, VtcompressError
from compressor.samples.questions import Sample, data_digest
from compressor.samples.scores import exact
from export.checks.loss import common_prefix, compare, kl_rows, measure_answers
from export.checks.stored import store_original, stored_original, write_answers
from export.report.sections.checks import kinds_tables
from export.results.answers import Answer, Answers
from export.results.loss_report import LossLimits, LossReport
from tests import facts


def kl_by_hand(a, b):
    """KL of two softmaxes, in plain Python, straight from the definition."""
    p = [math.exp(x - max(a)) for x in a]
    q = [math.exp(x - max(b)) for x in b]
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)


def answers(*texts, logits=None, tokens=None, cut=16):
    tokens = tokens or [tuple(map(ord, text)) for text in texts]
    made = tuple(Answer(token_ids=t, text=x) for t, x in zip(tokens, texts, strict=True))
    if logits is None:
        logits = np.tile(np.arange(4.0, dtype=np.float32), (len(texts), 1))
    return Answers(made, np.asarray(logits, np.float32), cut)


# Of a picture only its bytes count here.
PICTURE = Path(__file__)


def asked(*pairs):
    return [
        Sample((PICTURE,), f"question {i}", answer, kind) for i, (answer, kind) in enumerate(pairs)
    ]


def judged(original, compressed, samples, **limits):
    return compare(samples, original, compressed, LossLimits(**limits), "heldout.jsonl")


def logits_of(*rows):
    return np.log(np.array(rows, dtype=np.float64))


def test_the_divergence_of_two_distributions_is_the_textbooks():
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): ln 2 / 2 - ln 2 / 4.
    p, q = logits_of((0.5, 0.25, 0.25)), logits_of((0.25, 0.5, 0.25))
    assert kl_rows(p, q)[0] == pytest.approx(math.log(2) / 4)


def test_the_divergence_has_the_original_on_the_left():
    p, q = logits_of((0.9, 0.1)), logits_of((0.5, 0.5))
    assert kl_rows(p, q)[0] == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert kl_rows(p, q)[0] != pytest.approx(kl_rows(q, p)[0])


@given(
    arrays.arrays(np.float64, (2, 3, 7), elements=st.floats(-8, 8)),
    st.floats(-500, 500),
)
def test_the_divergence_is_that_of_the_definition_and_no_constant_changes_it(pair, shift):
    expected = [kl_by_hand(a.tolist(), b.tolist()) for a, b in zip(*pair, strict=True)]
    found = kl_rows(pair[0], pair[1] + shift)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert (found >= 0).all()
    assert (kl_rows(pair[0], pair[0]) == 0).all()


def test_large_half_precision_logits_do_not_overflow():
    a = np.array([[60000.0, -60000.0]], np.float16)
    assert kl_rows(a, a)[0] == 0.0
    assert kl_rows(a, -a)[0] == pytest.approx(120000.0, rel=1e-2)


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_the_common_prefix_ends_at_the_first_difference(a, b):
    count = common_prefix(a, b)
    assert a[:count] == b[:count]
    assert count == min(len(a), len(b)) or a[count] != b[count]


def test_an_answer_is_exact_but_for_white_space_around_it():
    assert exact(" 7\n", "7")
    assert not exact("7.", "7")
    assert not exact("seven", "Seven")


def test_equal_models_lose_nothing():
    same = answers("7", "8")
    report = judged(same, same, asked(("7", "a"), ("9", "a")))
    figures = report.overall
    assert (figures.kl, figures.kl_worst) == (0.0, 0.0)
    assert (figures.agreement, figures.common_prefix) == (1.0, 1.0)
    assert (figures.exact_match_original, figures.exact_match) == (0.5, 0.5)
    assert figures.exact_match_kept == 1.0
    assert report.verdict == "not judged"
    assert not report.passed
    assert report.data == "heldout.jsonl"
    assert report.data_digest == data_digest(asked(("7", "a"), ("9", "a")))


def test_the_figures_over_all_samples_are_those_worked_out_by_hand():
    p, q = (0.5, 0.25, 0.25), (0.25, 0.5, 0.25)
    original = answers("abcd", "x", "12", "zz", logits=logits_of(p, p, p, p))
    compressed = answers("abXd", "x", "1", "yy", logits=logits_of(p, q, p, q))
    samples = asked(("abcd", ""), ("x", ""), ("12", ""), (None, ""))
    figures = judged(original, compressed, samples).overall
    assert figures.samples == 4
    assert figures.kl == pytest.approx(math.log(2) / 8, rel=1e-6)
    assert figures.kl_worst == pytest.approx(math.log(2) / 4, rel=1e-6)
    assert figures.agreement == 0.5
    assert figures.common_prefix == pytest.approx((2 / 4 + 1 + 1 / 2 + 0) / 4)
    assert figures.answered == 3
    assert figures.exact_match_original == 1.0
    assert figures.exact_match == pytest.approx(1 / 3)
    assert figures.exact_match_kept == pytest.approx(1 / 3)


def test_the_common_prefix_is_a_share_of_the_originals_answer():
    longer = judged(answers("ab"), answers("abcdef"), asked((None, "")))
    shorter = judged(answers("abcdef"), answers("ab"), asked((None, "")))
    assert longer.overall.common_prefix == 1.0
    assert shorter.overall.common_prefix == pytest.approx(1 / 3)


def test_every_kind_has_figures_of_its_own_samples_alone():
    p, q = (0.5, 0.25, 0.25), (0.25, 0.5, 0.25)
    original = answers("1", "2", "3", "4", logits=logits_of(p, p, p, p))
    compressed = answers("1", "9", "3", "9", logits=logits_of(p, q, p, p))
    samples = asked(("1", "read"), ("2", "count"), ("x", "read"), ("4", ""))
    report = judged(original, compressed, samples)
    assert report.overall.kind == "all"
    count, read = report.kinds
    assert (count.kind, count.samples, count.exact_match, count.agreement) == ("count", 1, 0.0, 0.0)
    assert count.kl == pytest.approx(math.log(2) / 4, rel=1e-6)
    assert (read.kind, read.samples, read.exact_match_original) == ("read", 2, 0.5)
    assert (read.exact_match_kept, read.kl, read.agreement) == (1.0, 0.0, 1.0)


def test_exits_are_counted_by_layer_over_the_artifacts_answers_that_had_one():
    same = answers("1", "2", "3", "4")
    exits = (4, None, 2, 4)
    left = [
        a.model_copy(update={"exit_layer": e}) for a, e in zip(same.answers, exits, strict=True)
    ]
    found = Answers(tuple(left), same.logits, same.max_new_tokens)
    samples = asked(*[(None, "")] * 4)
    assert judged(same, found, samples).exits == ((2, 1), (4, 2))
    assert judged(found, same, samples).exits == ()


def test_an_exit_is_stored_with_the_answer_and_the_lack_of_one_is_not(tmp_path):
    left, stayed = answers("1", "2").answers
    left = left.model_copy(update={"exit_layer": 3})
    write_answers(tmp_path / "answers.json", Answers((left, stayed), np.zeros((2, 4)), 8))
    rows = json.loads((tmp_path / "answers.json").read_text())["answers"]
    assert rows[0]["exit_layer"] == 3
    assert "exit_layer" not in rows[1]
    assert tuple(map(Answer.model_validate, rows)) == (left, stayed)


def test_without_answers_there_is_no_exact_match():
    figures = judged(answers("1"), answers("1"), asked((None, "k"))).overall
    assert (figures.answered, figures.exact_match_original, figures.exact_match) == (0, None, None)
    assert figures.exact_match_kept is None


def test_what_is_kept_of_nothing_is_unknown():
    figures = judged(answers("1"), answers("2"), asked(("2", ""))).overall
    assert (figures.exact_match_original, figures.exact_match) == (0.0, 1.0)
    assert figures.exact_match_kept is None


def halves():
    p, q = (0.5, 0.25, 0.25), (0.25, 0.5, 0.25)
    return (
        answers("1", "2", logits=logits_of(p, p)),
        answers("1", "3", logits=logits_of(p, q)),
        asked(("1", ""), ("2", "")),
    )


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        ({"max_kl": 0.08}, "mean KL is 0.08664 nats, allowed max_kl 0.08"),
        (
            {"min_agreement": 0.51},
            "agreement of next tokens is 0.5000, wanted min_agreement 0.51",
        ),
        ({"min_common_prefix": 0.6}, "common prefix is 0.5000, wanted min_common_prefix 0.6"),
        ({"min_exact_match": 0.9}, "exact match is 0.5000, wanted min_exact_match 0.9"),
        (
            {"min_exact_match_kept": 0.97},
            "exact match kept is 0.5000, wanted min_exact_match_kept 0.97",
        ),
    ],
)
def test_each_limit_that_is_missed_fails_with_its_figure_and_its_key(limits, line):
    assert judged(*halves(), **limits).failures == (line,)


def test_all_limits_that_are_missed_are_named_at_once():
    report = judged(
        *halves(),
        max_kl=0.0,
        min_agreement=1.0,
        min_common_prefix=1.0,
        min_exact_match=1.0,
        min_exact_match_kept=1.0,
    )
    assert len(report.failures) == 5
    assert not report.passed


def test_limits_that_are_just_met_pass():
    report = judged(
        *halves(),
        max_kl=0.0867,
        min_agreement=0.5,
        min_common_prefix=0.5,
        min_exact_match=0.5,
        min_exact_match_kept=0.5,
    )
    assert report.passed


def test_a_limit_on_right_answers_is_not_judged_where_the_data_has_none():
    report = judged(answers("1"), answers("1"), asked((None, "")), min_exact_match=0.5)
    assert (report.verdict, report.failures) == ("not judged", ())
    assert report.not_judged == ("min_exact_match: the data has no answers",)
    # Not even where another limit is kept: something that was asked for is not known.
    report = judged(answers("1"), answers("1"), asked((None, "")), min_exact_match=0.5, max_kl=1)
    assert report.verdict == "not judged"


@pytest.mark.parametrize(
    ("right", "why"),
    [(None, "the data has no answers"), ("9", "the original gives no right answer")],
)
def test_where_nothing_can_be_kept_next_tokens_must_agree_to_the_same_share(right, why):
    original, compressed, _ = halves()
    samples = asked((right, ""), (right, ""))
    report = judged(original, compressed, samples, min_exact_match_kept=0.95)
    assert report.failures == (
        "agreement of next tokens is 0.5000, wanted min_exact_match_kept 0.95 (in place of right answers "
        f"kept: {why})",
    )
    assert judged(original, original, samples, min_exact_match_kept=0.95).verdict == "passed"
    # A limit of its own takes that place.
    limits = {"min_exact_match_kept": 0.95, "min_agreement": 0.5}
    assert judged(original, compressed, samples, **limits).verdict == "passed"


def test_answers_that_became_wrong_and_became_right_are_counted_for_all_and_for_every_kind():
    original = answers("1", "2", "3", "4", "5")
    compressed = answers("1", "x", "3 ", "y", "z")
    samples = asked(("1", "a"), ("2", "a"), ("9", "a"), ("y", "b"), (None, "b"))
    report = judged(original, compressed, samples)

    def counts(figures):
        return figures.equal_answers, figures.right_to_wrong, figures.wrong_to_right

    assert counts(report.overall) == (2, 1, 1)
    assert [counts(kind) for kind in report.kinds] == [(2, 1, 0), (0, 0, 1)]
    none = judged(original, compressed, asked(*[(None, "")] * 5))
    assert counts(none.overall) == (2, None, None)


@pytest.mark.parametrize("kept", [0, 17, 18, 20])
def test_much_changed_answers_are_warned_of_whatever_the_limits_are(kept):
    original = answers(*["1"] * 20)
    compressed = answers(*["1"] * kept, *["2"] * (20 - kept))
    for right in ("1", None):
        report = judged(original, compressed, asked(*[(right, "")] * 20), max_kl=1)
        assert report.verdict == "passed"
        assert len(report.warnings) == (kept < 18)
    p, q = (0.5, 0.25, 0.25), (0.25, 0.5, 0.25)
    turned = answers(*["1"] * 20, logits=logits_of(*[p] * kept, *[q] * (20 - kept)))
    report = judged(
        answers(*["1"] * 20, logits=logits_of(*[p] * 20)), turned, asked(*[("1", "")] * 20)
    )
    assert [
        f"only {kept / 20:.1%} of the most likely next tokens" in w for w in report.warnings
    ] == [True] * (kept < 18)


def test_a_report_of_format_1_is_read_and_says_what_it_does_not_know():
    stored = json.loads(judged(*halves(), max_kl=1).model_dump_json())
    for figures in (stored["overall"], *stored["kinds"]):
        for key in list(figures):
            if key not in FORMAT_1_FIGURES:
                del figures[key]
    del stored["verdict"]
    report = LossReport.model_validate_json(json.dumps(stored))
    found = report.overall
    assert (found.equal_answers, found.right_to_wrong, found.wrong_to_right) == (None,) * 3
    assert (found.exact_match_change_interval, found.exact_match_kept_interval) == (None, None)
    assert found.exact_match_interval == pytest.approx((0.0945, 0.9055), abs=1e-4)
    assert report.verdict == "passed"


FORMAT_1_FIGURES = (
    "kind", "samples", "kl", "kl_worst", "agreement", "common_prefix", "answered",
    "exact_match_original", "exact_match",
)  # fmt: skip


def test_logits_that_are_no_numbers_do_not_pass_a_limit():
    broken = answers("1", logits=[[np.nan, 0, 0, 0]])
    report = judged(answers("1"), broken, asked((None, "")), max_kl=0.5)
    assert not report.passed


class FakeRuntime:
    """Answers with the question's length; in `answers` the last question first, as batches may."""

    def __init__(self):
        self.asked = []

    def answer(self, question, images, *, max_new_tokens):
        self.asked.append((question, tuple(images), max_new_tokens))
        size = len(question)
        return SimpleNamespace(
            token_ids=(size, 2),
            text=str(size),
            first_logits=np.full(3, size, np.float32),
            exit_layer=size if images else None,
        )

    def answers(self, asked, *, max_new_tokens, generation_config):
        assert not generation_config, "both sides are plain"
        for place, (question, images) in reversed(list(enumerate(asked))):
            yield place, self.answer(question, images, max_new_tokens=max_new_tokens)


def test_a_runtime_is_asked_every_question_with_its_pictures_and_answers_keep_their_order(tmp_path):
    samples = [Sample((tmp_path / "a.png",), "q"), Sample((), "rr"), Sample((), "sss")]
    runtime = FakeRuntime()
    found = measure_answers(runtime, samples, 5)
    assert sorted(runtime.asked) == [("q", (tmp_path / "a.png",), 5), ("rr", (), 5), ("sss", (), 5)]
    assert [a.text for a in found.answers] == ["1", "2", "3"]
    assert [a.token_ids for a in found.answers] == [(1, 2), (2, 2), (3, 2)]
    assert [a.exit_layer for a in found.answers] == [1, None, None]
    assert found.logits.tolist() == [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    assert found.max_new_tokens == 5


@pytest.fixture
def stored(tmp_path):
    """Store three samples; two have the same picture under two names."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.PNG").write_bytes(b"one picture")
    (source / "b.png").write_bytes(b"one picture")
    (source / "c.jpg").write_bytes(b"another")
    samples = [
        Sample((source / "a.PNG", source / "c.jpg"), "größer?", "ja", "kind"),
        Sample((source / "b.png",), "q"),
        Sample((), "no picture"),
    ]
    logits = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    original = answers("日本", "2", "", logits=logits, cut=9)
    folder = tmp_path / "artifact"
    folder.mkdir()
    store_original(folder, samples, original)
    for path in source.iterdir():
        path.unlink()
    return SimpleNamespace(folder=folder, samples=samples, original=original)


def test_the_originals_answers_come_back_without_the_original_data(stored):
    samples, original = stored_original(stored.folder)
    assert [(s.question, s.answer, s.kind) for s in samples] == [
        (s.question, s.answer, s.kind) for s in stored.samples
    ]
    pictures = [[p.read_bytes() for p in s.images] for s in samples]
    assert pictures == [[b"one picture", b"another"], [b"one picture"], []]
    assert original.answers == stored.original.answers
    assert original.max_new_tokens == 9
    np.testing.assert_array_equal(original.logits, stored.original.logits)
    assert original.logits.dtype == np.float32


def test_an_equal_picture_is_stored_once_and_no_path_of_the_source_is(stored, tmp_path):
    pictures = sorted(p.suffix for p in (stored.folder / "validation" / "images").iterdir())
    assert pictures == [".jpg", ".png"]
    for path in (stored.folder / "validation").glob("*.json*"):
        assert str(tmp_path) not in path.read_text(encoding="utf-8")


def test_the_digest_of_stored_data_is_that_of_the_data(stored, tmp_path):
    source = tmp_path / "source"
    (source / "a.PNG").write_bytes(b"one picture")
    (source / "b.png").write_bytes(b"one picture")
    (source / "c.jpg").write_bytes(b"another")
    assert data_digest(stored_original(stored.folder)[0]) == data_digest(stored.samples)


@pytest.mark.parametrize(
    "question",
    [
        "one\u2028two",
        "one\ntwo",
        'a "quoted" \\ one',
    ],
)
def test_any_question_survives_storing(tmp_path, question):
    store_original(tmp_path, [Sample((), question)], answers("x"))
    assert stored_original(tmp_path)[0][0].question == question


def test_an_artifact_without_answers_says_what_is_needed(tmp_path):
    with pytest.raises(ArtifactError) as caught:
        stored_original(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: holds no answers of the original; give `data` and `model` to measure them"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"answers": 5, "max_new_tokens": 3}',
        '{"answers": [{"text": "x"}], "max_new_tokens": 3}',
        '{"answers": [], "max_new_tokens": "many"}',
        '{"answers": []}',
    ],
)
def test_stored_answers_that_are_broken_are_refused(stored, text):
    (stored.folder / "validation" / "original.json").write_text(text)
    with pytest.raises(ArtifactError, match="validation: broken: "):
        stored_original(stored.folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no numpy file",
        b"PK\x03\x04 no archive",
        b"\x93NUMPY\x01\x00",
        None,
    ],
)
def test_stored_logits_that_are_broken_or_gone_are_refused(stored, content):
    path = stored.folder / "validation" / "original_logits.npy"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="validation: broken: "):
        stored_original(stored.folder)


def test_stored_logits_that_are_pickled_are_never_loaded(stored):
    path = stored.folder / "validation" / "original_logits.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="validation: broken: "):
        stored_original(stored.folder)


def test_stored_samples_and_answers_of_different_number_are_refused(stored):
    path = stored.folder / "validation" / "original.json"
    document = json.loads(path.read_text())
    document["answers"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="samples and answers differ in number"):
        stored_original(stored.folder)


def test_stored_samples_whose_picture_is_gone_are_refused(stored):
    next((stored.folder / "validation" / "images").iterdir()).unlink()
    with pytest.raises(VtcompressError, match="no such file"):
        stored_original(stored.folder)


def test_the_report_of_a_loss_is_plain_data():
    report = facts.loss(["x"], [facts.figures("count")], max_kl=0.5)
    assert type(report).model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize("answer", ["a", None])
def test_without_a_picture_nothing_is_passed_and_what_is_missed_is_still_failed(answer):
    samples = [Sample((), f"question {i}", answer) for i in range(2)]
    kept = answers("a", "a")
    limits = {"max_kl": 0.1, "min_exact_match_kept": 0.9}
    report = judged(kept, kept, samples, **limits)
    assert (report.verdict, report.not_judged) == ("not judged", ("no question has a picture",))
    assert {m.verdict for m in report.measures if m.limit is not None} == {"not judged"}
    assert report.overall.pictured == 0
    other = answers("b", "b", logits=np.tile(np.arange(4.0)[::-1], (2, 1)))
    assert judged(kept, other, samples, **limits).verdict == "failed"


def test_questions_with_pictures_are_counted_and_said_where_some_have_none():
    samples = [*asked(("a", "x"), ("a", "y")), Sample((), "text", "a", "y")]
    kept = answers("a", "a", "a")
    report = judged(kept, kept, samples, max_kl=0.1)
    assert report.verdict == "passed"
    assert [f.pictured for f in (report.overall, *report.kinds)] == [2, 1, 1]
    assert [row[1] for row in kinds_tables(report)[0].rows] == [
        "3, 2 with a picture",
        "1",
        "2, 1 with a picture",
    ]


def test_figures_of_older_artifacts_say_nothing_of_pictures():
    samples = asked(("a", ""))
    report = judged(answers("a"), answers("a"), samples, max_kl=0.1)
    stored = report.model_dump(mode="json")
    del stored["overall"]["pictured"]
    older = LossReport.model_validate(stored)
    assert (older.overall.pictured, older.verdict) == (None, "passed")
    assert [row[1] for row in kinds_tables(older)[0].rows] == ["1"]
