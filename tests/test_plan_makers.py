"""What was done is told from the plan: what made it stands in it, and is gone when it is changed."""

import json
from pathlib import Path
from typing import Any

import pytest

import vtcompress
from compressor.errors import ProfileError, RecipeError
from compressor.plan.edits import freeze
from compressor.plan.plan import Plan
from compressor.planner import plan_recipe
from compressor.recipe import Recipe
from export.report.compare.comparison import (
    compare_artifacts,
    comparison_figures,
    comparison_table,
)
from export.report.data import figures
from export.report.pages.model_card import Origin, model_card
from export.report.pages.report import NOT_BY_RECIPE, html_report, markdown_report
from tests import facts
from tests.artifacts import make_artifact
from vtcompress.stages.checks.recipe import check_made_by
from vtcompress.stages.report import read_report

PROFILE = facts.profile([[0.1, 0.9, 0.2, 0.8, 0.3, 0.7]] * 2)


def recipe(**settings: Any) -> Recipe:
    values = {f"compress.shortv.{key}": value for key, value in settings.items()}
    return vtcompress.load_recipe("shortv").override(values)


def made(of: Recipe, profile: Any = PROFILE) -> Plan:
    return plan_recipe(of, facts.facts(), facts.DIGEST, profile)


def test_a_plan_says_what_made_it_until_it_is_changed_in_python_or_by_hand(tmp_path: Path) -> None:
    plan = made(recipe())
    assert plan.makers is not None
    assert plan.makers.methods == ("shortv (frozen: 0.7)",)
    assert plan.makers.profile == PROFILE.digest
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").makers == plan.makers
    assert freeze(plan, [1, 3], "shortv").makers is None
    document = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    document["layers"][0] |= {"visual": "update", "reason": ""}
    (tmp_path / "plan.json").write_text(json.dumps(document), encoding="utf-8")
    edited = Plan.load(tmp_path / "plan.json")
    assert edited.makers is None
    assert (plan.changed, edited.changed) == (False, True)
    (line,) = vtcompress.inspect(tmp_path / "plan.json")["problems"]
    assert line.startswith(f"{tmp_path / 'plan.json'}: changed since it was made")
    plan.save(tmp_path / "plan.json")
    assert "problems" not in vtcompress.inspect(tmp_path / "plan.json")
    noted = plan.model_copy(update={"notes": ("read by me",)})
    assert noted.makers == plan.makers


def test_another_recipe_and_another_profile_than_a_plan_was_made_by_are_refused() -> None:
    plan, half = made(recipe()), recipe(frozen=0.5)
    words = r"made by shortv \(frozen: 0.7\), and the recipe asks for shortv \(frozen: 0.5\)"
    with pytest.raises(RecipeError, match=words):
        check_made_by(plan, half)
    other = PROFILE.model_copy(update={"data": "other.jsonl"})
    with pytest.raises(ProfileError, match="made by another profile than the one given"):
        check_made_by(plan, recipe(), other)
    check_made_by(plan, recipe(), PROFILE)
    check_made_by(plan, recipe())
    check_made_by(made(recipe(layers=[1]), None), recipe(layers=[1]), other)
    # What was changed has no maker; reports say so, see below.
    check_made_by(freeze(plan, [1], "shortv"), half, other)


def test_what_a_recipe_asks_is_nowhere_said_of_a_plan_that_it_did_not_make(tmp_path: Path) -> None:
    """Layers 1 and 4 by hand, beside a recipe of two methods, one of which did nothing here."""
    text = "vtcompress: 2\ncompress:\n- shortv: {frozen: 0.0625}\n- visual_exit: {max_kl: 0.0625}\n"
    both = [
        make_artifact(tmp_path / name, recipe=text, profile=PROFILE, by_recipe=by_recipe)
        for name, by_recipe in (("asked", True), ("given", False))
    ]
    asked, given = map(read_report, both)
    for page in (html_report, markdown_report, lambda data: model_card(data, Origin())):
        before = {True: page(asked), False: page(given)}
        # Once more in the recipe itself, which is shown as what it is.
        times = {key: words.count("0.0625") for key, words in before.items()}
        assert times == {True: 4, False: 2}
        assert "changed the prediction of the next token least on" in before[True]
        assert "changed the prediction of the next token least on" not in before[False]
        assert "as the plan has it (method ShortV)" in before[False]
        assert "shortv, as the plan has it" in before[False]
        assert "Why these layers" not in before[False]
    assert "visual_exit" not in model_card(given, Origin()).split("---")[1]
    assert figures(asked)["methods"] == [
        {"shortv": {"frozen": 0.0625}},
        {"visual_exit": {"max_kl": 0.0625}},
    ]
    assert figures(given)["methods"] == [{"shortv": None}]
    assert [figures(asked)["plan_given"], figures(given)["plan_given"]] == [False, None]
    comparison = compare_artifacts(both)
    rows = {row[0]: row[1:] for row in comparison_table(comparison).rows}
    assert rows["methods"] == (
        "shortv (frozen: 0.0625), visual_exit (max_kl: 0.0625)",
        "shortv, as the plan has it",
    )
    told = [entry["methods"] for entry in comparison_figures(comparison)["artifacts"]]
    assert told[1] == ["shortv"]


@pytest.mark.parametrize(
    ("how", "given"), [("by an older version", None), ("by hand", None), ("changed", True)]
)
def test_who_made_a_plan_is_said_where_it_is_known_alone(
    tmp_path: Path, how: str, given: bool | None
) -> None:
    """An artifact of an earlier version, whose plan the recipe made, is not said to be of a given plan."""
    plan = facts.plan([1, 4], dead=[5])
    if how == "by an older version":
        plan = plan.model_copy(update={"plan_format": 1})
    if how == "changed":
        plan = freeze(
            facts.plan([1], dead=[5]).signed(("shortv (layers: [1, 4])",), ""), [4], "shortv"
        )
    folder = make_artifact(tmp_path / "artifact", plan=plan, by_recipe=False)
    data = read_report(folder)
    pages = (html_report(data), markdown_report(data), model_card(data, Origin()))
    comparison = compare_artifacts([folder, make_artifact(tmp_path / "other")])
    table = comparison_table(comparison).rows
    for words in (*pages, str(table)):
        assert "that was given" not in words
        assert "as the plan has it" in words
    for key, words in NOT_BY_RECIPE.items():
        said = key is False if given else key is None
        assert [words in page for page in pages[:2]] == [said, said]
    assert figures(data)["plan_given"] is given
    assert comparison_figures(comparison)["artifacts"][0]["plan_given"] is given


def test_a_calibration_that_is_not_stored_is_not_called_none(tmp_path: Path) -> None:
    words = "No calibration is stored here, so there is no contribution to show."
    by_hand = make_artifact(tmp_path / "by-hand", by_recipe=False)
    assert words in markdown_report(read_report(by_hand))
    listed = make_artifact(tmp_path / "listed")
    assert "were not chosen by calibration" in markdown_report(read_report(listed))
    plan = facts.plan([1, 4], dead=[5]).signed(("shortv (frozen: 0.5)",), PROFILE.digest)
    lost = make_artifact(tmp_path / "lost", plan=plan, by_recipe=False)
    assert words in markdown_report(read_report(lost))
