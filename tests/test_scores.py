"""What makes an answer right: rules against their papers' definitions, graded scores up to reports."""

import json
import math
import shutil
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import vtcompress
from compressor.errors import DataError, RecipeError, VtcompressError
from compressor.samples.questions import Sample, data_digest
from compressor.samples.scores import EXACT, SCORES, find_score, normalised
from export.checks.loss import compare
from export.report.document import Document
from export.report.questions import Question
from export.report.render.markdown import markdown
from export.report.sections.checks import loss_section
from export.results.answers import Answer, Answers, scored
from export.results.intervals import kept_interval, share_interval
from export.results.loss_report import LossLimits, LossReport
from export.results.sweep import beaten
from tests import facts
from tests.sweeps import point

OWN = "python:own_scores.{}"
OWN_CODE = """
from pathlib import Path

def half(answer, answers):
    return 0.5 if answer else 0

def many(answer, answers):
    return 2

def broken(answer, answers):
    raise KeyError(answer)

other = 3
"""


@pytest.fixture
def own_scores(tmp_path, monkeypatch):
    """A module of the user's own, importable; forgotten afterwards."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "own_scores.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(folder)
    yield
    sys.modules.pop("own_scores", None)


def asked(*answers):
    return Sample((), "how many?", answers[0] if answers else None, "", answers[1:])


def of(score, text, *answers):
    return find_score(score).of(text, asked(*answers))


def test_the_recipe_names_every_score_and_no_other():
    wrong = (
        "",
        "vqa2",
        "python:",
        "python:f",
        "python:a.b.",
        "python:a..b",
        "python:a.2",
        "python:a.b\n",
    )
    recipe = vtcompress.load_recipe("identity")
    assert recipe.validation.score == "exact"
    for name in (*SCORES, "python:a.b", "python:a.b_2.c"):
        assert recipe.override({"validate.score": name}).validation.score == name
    for name in wrong:
        with pytest.raises(
            RecipeError, match="is not allowed; exact, contains, normalized, vqa, anls, or"
        ):
            recipe.override({"validate.score": name})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The U.S.A.", "usa"),
        ("3.50", "3.50"),
        ("7.", "7"),
        ("100,978", "100978"),
        ("2:50 pm", "2:50 pm"),
        ("dont", "don't"),
        ("Don\u2019t!", "don't"),
        ("girl's", "girl's"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("-5", "-5"),
        ("red/blue", "red blue"),
        ("a", "a"),
        ("?", "?"),
        ("were", "were"),
    ],
)
def test_answers_are_normalised_as_the_benchmark_describes(text, wanted):
    assert normalised(text) == wanted
    assert normalised(wanted) == wanted


@pytest.mark.parametrize(
    ("text", "right", "holds"),
    [
        ("I know.", "no", False),
        ("No, there is none", "no", True),
        ("It is 3.5", "3", False),
        ("12", "2", False),
        ("answer:7", "7", True),
        ("a big red bus", "the red bus", True),
        ("red big bus", "red bus", False),
        ("这是猫。", "猫", True),
        ("The answer is A.", "A", True),
        ("A dog", "A", False),
        ("(B) a dog", "B", True),
    ],
)
def test_whole_words_are_contained_and_letters_of_choices_are_no_articles(text, right, holds):
    assert of("contains", text, right) == holds


def test_a_normalised_answer_is_right_where_an_exact_one_is_not():
    assert [of(score, "Two.", "2") for score in ("exact", "normalized")] == [0, 1]
    assert [of(score, "it is 2", "2") for score in ("normalized", "contains")] == [0, 1]
    assert of("normalized", "-5", "5") == 0


@pytest.mark.parametrize("agree", range(11))
def test_vqa_accuracy_is_a_third_for_each_annotator_up_to_three(agree):
    others = [f"other {i}" for i in range(10 - agree)]
    assert of("vqa", "The Cat.", *["cat"] * agree, *others) == pytest.approx(min(1, agree / 3))


def distance(a, b):
    """Levenshtein's, by its recursion."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0])
    )


def test_anls_is_the_papers_formula_over_all_short_texts():
    texts = ["".join(letters) for n in range(1, 4) for letters in product("ab", repeat=n)]
    for text, right in product(["", *texts], texts):
        nl = distance(text, right) / max(len(text), len(right))
        assert of("anls", f" {text.upper()}", "zzzz", right) == (1 - nl if nl < 0.5 else 0), (
            text,
            right,
        )


def test_no_score_is_told_where_no_right_answer_is_known():
    assert all(score.of("x", asked()) is None for score in SCORES.values())


def test_vqa_refuses_questions_that_could_never_be_right():
    few = Sample((), "q", "a", "", ("b",), where="x.jsonl:3")
    with pytest.raises(
        DataError, match=r"validate\.score: vqa: x\.jsonl:3: right answers: 2; give those of all"
    ):
        SCORES["vqa"].check([asked("a", "a", "b"), few, asked()])
    SCORES["vqa"].check([asked("a", "a", "b"), asked()])
    with pytest.raises(DataError, match="vqa: and 5 more"):
        SCORES["vqa"].check([few] * 25)


@pytest.mark.usefixtures("own_scores")
def test_a_function_of_the_users_own_scores_and_is_graded():
    score = find_score(OWN.format("half"))
    assert (score.graded, score.of("x", asked("y")), score.of("", asked("y"))) == (True, 0.5, 0)


@pytest.mark.usefixtures("own_scores")
@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("many", r"many: x\.jsonl:7: gave 2; it must give a number from 0 to 1"),
        ("broken", r"broken: x\.jsonl:7: the function failed: KeyError: 'yes'"),
    ],
)
def test_what_a_function_of_the_users_own_does_wrong_is_one_line_with_the_sample(function, words):
    sample = Sample((), "q", "yes", where="x.jsonl:7")
    with pytest.raises(DataError, match=words) as caught:
        find_score(OWN.format(function)).check([asked(), sample])
    assert len(caught.value.problems) == 1


@pytest.mark.usefixtures("own_scores")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("python:not_there.f", "not_there cannot be imported: ModuleNotFoundError: .*PYTHONPATH"),
        (OWN.format("nothing"), "own_scores has no function nothing"),
        (OWN.format("other"), "own_scores has no function other"),
    ],
)
def test_a_score_that_is_not_there_is_refused_in_one_line(name, words):
    with pytest.raises(RecipeError, match=words) as caught:
        find_score(name)
    assert len(caught.value.problems) == 1


def answers(*texts):
    made = tuple(Answer(token_ids=(1,), text=text) for text in texts)
    return Answers(made, np.zeros((len(texts), 4), np.float32), 8)


SAMPLES = [
    asked("cat", "cat", "cat"),
    asked("dog", "dog", "cow"),
    asked("red", "blue", "green"),
    asked(),
]
BEFORE, AFTER = answers("cat", "dog", "x", "y"), answers("cat", "cow", "red", "z")


def judged(score=SCORES["vqa"], **limits) -> LossReport:
    samples = [Sample((Path(__file__),), s.question, s.answer, s.kind, s.others) for s in SAMPLES]
    return compare(samples, BEFORE, AFTER, LossLimits(**limits), "heldout.jsonl", score)


def test_figures_of_a_graded_score_are_means_and_never_counts():
    report = judged()
    figures = report.overall
    assert report.score == "vqa"
    # Worked out by hand: 1, 2/3, 0 before; 1, 1/3, 1/3 now.
    assert figures.answered == 3
    assert figures.exact_match_original == pytest.approx(5 / 9)
    assert figures.exact_match == pytest.approx(5 / 9)
    assert figures.exact_match_kept == pytest.approx(1)
    assert (figures.right_to_wrong, figures.wrong_to_right) == (None, None)
    assert (figures.scores_down, figures.scores_up) == (1, 1)
    assert (figures.score_lost, figures.score_won) == pytest.approx((1 / 3, 1 / 3))
    # Of the sum of scores as it is, not rounded to a count.
    assert figures.exact_match_interval == pytest.approx(share_interval(5 / 3, 3))
    again = LossReport.model_validate_json(report.model_dump_json())
    assert again == report


def test_an_older_report_was_scored_by_equal_text():
    stored = json.loads(judged(EXACT).model_dump_json())
    del stored["score"]
    for name in ("scores_down", "scores_up", "score_lost", "score_won"):
        del stored["overall"][name]
    assert LossReport.model_validate(stored) == judged(EXACT)


def test_limits_of_a_graded_score_say_what_they_are_of():
    (line,) = judged(min_exact_match=0.9).failures
    assert line == "VQA accuracy is 0.5556, wanted min_exact_match 0.9"
    (line,) = judged(min_exact_match_kept=1.5).failures
    assert line == "VQA accuracy kept is 1.0000, wanted min_exact_match_kept 1.5"
    page = markdown(Document("", "", (loss_section(judged(min_exact_match=0.9)),)))
    assert "mean VQA accuracy kept" in page
    assert "1 scored lower than before and 1 higher" in page
    assert "right answers" not in page.lower()
    assert "right to wrong" not in page


def test_reports_say_in_words_which_way_answers_went():
    page = markdown(Document("", "", (loss_section(judged(EXACT)),)))
    assert "1 went from right to wrong and 1 from wrong to right" not in page
    assert "0 went from right to wrong and 1 from wrong to right" in page


def simulated(draw, total, draws, seed):
    """Return how often the intervals of level, change and ratio hold the truth; and the share's bounds."""
    rng = np.random.default_rng(seed)
    level = change = ratio = 0
    truth = draw(rng, 400_000).mean(axis=1)
    for _ in range(draws):
        before, after = draw(rng, total)
        figures = facts.figures(
            answered=total,
            exact_match_original=float(before.mean()),
            exact_match=float(after.mean()),
            right_to_wrong=None,
            wrong_to_right=None,
            scores_down=int((after < before).sum()),
            scores_up=int((after > before).sum()),
            score_lost=float(np.maximum(before - after, 0).sum()),
            score_won=float(np.maximum(after - before, 0).sum()),
        )
        for low, high in (
            figures.exact_match_interval,
            figures.exact_match_change_interval,
            figures.exact_match_kept_interval,
        ):
            assert low < high
        level += figures.exact_match_interval[0] <= truth[1] <= figures.exact_match_interval[1]
        low, high = figures.exact_match_change_interval
        change += low <= truth[1] - truth[0] <= high
        low, high = figures.exact_match_kept_interval
        ratio += low <= truth[1] / truth[0] <= high
    return level / draws, change / draws, ratio / draws


def thirds(rng, total):
    """VQA accuracy: mostly 1, changed in a tenth of the questions."""
    before = rng.choice([0, 1 / 3, 2 / 3, 1], size=total, p=[0.1, 0.1, 0.1, 0.7])
    after = np.where(rng.random(total) < 0.1, rng.choice([0, 1 / 3, 2 / 3, 1], size=total), before)
    return np.stack([before, after])


def smooth(rng, total):
    """ANLS: anything between, correlated."""
    before = rng.beta(4, 1, size=total)
    after = np.clip(before - rng.exponential(0.05, size=total) * (rng.random(total) < 0.3), 0, 1)
    return np.stack([before, after])


@pytest.mark.parametrize("draw", [thirds, smooth])
def test_intervals_of_graded_scores_hold_the_truth_at_least_as_often_as_they_say(draw):
    assert all(held >= 0.95 for held in simulated(draw, 60, 400, seed=0))


def test_intervals_of_graded_scores_have_a_width_where_all_are_alike_and_are_the_usual_ones_of_counts():
    same = facts.figures(
        exact_match_original=1.0, exact_match=1.0, right_to_wrong=None, wrong_to_right=None,
        scores_down=0, scores_up=0, score_lost=0.0, score_won=0.0,
    )  # fmt: skip
    counted = facts.figures(exact_match_original=1.0, exact_match=1.0, right_to_wrong=0)
    for name in ("exact_match", "exact_match_change", "exact_match_kept"):
        low, high = getattr(same, f"{name}_interval")
        assert low < high
        assert (low, high) == getattr(counted, f"{name}_interval")
    assert kept_interval(18.0, 2.0, 1.0) == kept_interval(18, 2, 1)
    assert all(map(math.isfinite, kept_interval(0.5, 0.1, 0.0)))


def test_two_answers_that_are_both_right_lost_nothing():
    sample = asked("2", "two")
    assert Question(sample, "two", "2").outcome == "both right"
    assert Question(sample, "two", "3").verdict == "different: was right, is wrong"
    normalized = scored([asked("2")], answers("Two"), SCORES["normalized"]).answers[0]
    wrong = scored([asked("2")], answers("3"), SCORES["normalized"]).answers[0]
    assert Question.of(asked("2"), normalized, wrong, graded=False).outcome == "lost"
    half = Answer(token_ids=(1,), text="x", score=0.5)
    third = Answer(token_ids=(1,), text="y", score=0.25)
    graded = Question.of(asked("2"), half, third, graded=True)
    assert (graded.outcome, graded.verdict) == ("lost", "different: score 0.50 before, 0.25 now")


def test_repeated_answers_count_are_told_once_and_change_the_digest():
    assert Question(asked("2", "2", "two"), "a", "b").right == "2 or two"
    assert data_digest([asked("2", "2")]) != data_digest([asked("2")])


def test_a_sweep_compares_graded_scores_by_how_far_they_fell():
    told = {"hits": ""}
    near = point("clever keep 0.5", "11", 1.5, scores=(0.5, 1.0)).model_copy(update=told)
    base = point("random keep 0.5", "11", 1.5, baseline=True, scores=(1.0, 1.0)).model_copy(
        update=told
    )
    worse = near.loss.model_copy(
        update={"overall": facts.figures(samples=2, answered=2, exact_match=0.75), "score": "vqa"}
    )
    ((found,),) = beaten([near.model_copy(update={"loss": worse}), base])
    assert found.change == pytest.approx(-0.25)


def test_an_artifact_is_checked_by_the_score_it_was_validated_by(tiny_artifact, tmp_path):
    folder = changed(tiny_artifact, tmp_path, "normalized")
    found = vtcompress.validate(folder).loss
    assert found.score == "normalized"
    assert vtcompress.validate(tiny_artifact).loss.score == "exact"
    assert vtcompress.validate(folder, score="anls").loss.score == "anls"
    with pytest.raises(RecipeError, match=r"score: validate\.score: 'near' is not allowed; exact,"):
        vtcompress.validate(folder, score="near")


def changed(artifact, tmp_path, score):
    """Return a copy of an artifact that says it was validated by another score."""
    folder = tmp_path / "a"
    shutil.copytree(artifact, folder)
    document = json.loads((folder / "manifest.json").read_text())
    document["loss"]["score"] = score
    (folder / "manifest.json").write_text(json.dumps(document))
    return folder


@pytest.mark.usefixtures("own_scores")
def test_an_artifact_has_no_code_run_that_it_names_but_who_checks_it_may(
    tiny_artifact, tmp_path, vt
):
    folder = changed(tiny_artifact, tmp_path, OWN.format("half"))
    code, _, err = vt("validate", folder)
    assert (code, err.count("\n")) == (1, 1)
    assert "scored by python:own_scores.half, and no artifact can have code run" in err
    assert "give --score" in err
    assert "own_scores" not in sys.modules
    with pytest.raises(VtcompressError, match="no artifact can have code run"):
        vtcompress.validate(folder)
    loss = vtcompress.validate(folder, score=OWN.format("half")).loss
    assert (loss.score, loss.overall.exact_match) == (OWN.format("half"), 0.5)


def test_a_score_that_nothing_is_scored_by_is_said(plain_artifact):
    with pytest.raises(
        VtcompressError, match="score: compression loss is not measured: no held-out"
    ):
        vtcompress.validate(plain_artifact, score="vqa")


def test_every_score_but_the_users_own_has_words_of_its_own():
    from export.results.score_words import GRADED_NAMES, RULES, score_words

    assert RULES.keys() == SCORES.keys()
    assert {name for name, score in SCORES.items() if score.graded} == GRADED_NAMES.keys()
    own = score_words("python:a.b")
    assert (own.graded, own.kept) == (True, "mean score python:a.b kept")
