"""Artifacts side by side: the Pareto front, the table, the plot, and what forbids comparing."""

import json
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import ArtifactError
from export.report.compare.comparison import (
    compare_artifacts,
    comparison_figures,
    comparison_table,
    pareto_front,
)
from export.report.compare.page import html_comparison
from export.report.compare.tradeoff_chart import tradeoff_chart
from tests import facts
from tests.artifacts import make_artifact
from tests.test_html_report import HOSTILE, Structure

# Few values, so that equal points and equal coordinates are common.
POINT = st.tuples(st.integers(0, 5), st.integers(0, 5))


def beats(a, b):
    return a != b and a[0] >= b[0] and a[1] >= b[1]


@given(st.lists(POINT, max_size=12))
def test_the_front_is_what_nobody_beats_and_beats_everything_else(points):
    front = pareto_front(points)
    assert list(front) == sorted(set(front))
    kept = [points[i] for i in front]
    assert not any(beats(a, b) for a in points for b in kept)
    for i, point in enumerate(points):
        assert i in front or any(beats(a, point) for a in kept)
    assert bool(front) == bool(points)


@given(st.lists(POINT, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_front_does_not_depend_on_the_order(points, random):
    shuffled = random.sample(points, len(points))
    front = sorted(points[i] for i in pareto_front(points))
    assert front == sorted(shuffled[i] for i in pareto_front(shuffled))


def with_kept(kept):
    lost = round(100 * (1 - kept))
    overall = facts.figures(
        samples=100, answered=100, exact_match=kept, right_to_wrong=lost, agreement=0.95
    )
    return facts.loss(max_kl=1).model_copy(update={"overall": overall})


def with_speed(ratio):
    return facts.measured().model_copy(
        update={"prefill": facts.measured().prefill.model_copy(update={"ratio": ratio})}
    )


LITTLE_KEPT = "3: only 80.0% of the original's right answers were kept."


@pytest.fixture
def three(tmp_path):
    made = {"slow": (1.2, 0.99), "beaten": (1.1, 0.9), "fast": (2.0, 0.8)}
    return [
        make_artifact(tmp_path / name, measured=with_speed(speed), loss=with_kept(kept))
        for name, (speed, kept) in made.items()
    ]


def test_speed_and_accuracy_are_the_measured_ones(three):
    comparison = compare_artifacts(three)
    assert comparison.speed.title == "prefill time, original / compressed, measured"
    assert comparison.speed.values == (1.2, 1.1, 2.0)
    assert comparison.accuracy.title == "right answers kept"
    assert comparison.accuracy.values == (0.99, 0.9, 0.8)
    assert comparison.front == (0, 2)
    assert comparison.notes == (LITTLE_KEPT,)


def test_the_table_has_a_column_for_every_artifact(three):
    comparison = compare_artifacts(three)
    assert comparison_table(comparison).columns == ("", "1: slow", "2: beaten", "3: fast")
    rows = {name: cells for name, *cells in comparison_table(comparison).rows}
    assert rows["methods"] == ["shortv (frozen: 0.5)"] * 3
    assert rows["frozen layers"] == ["3 of 6"] * 3
    assert rows["right answers kept"] == [
        "99.0% (96.3 to 101.7)",
        "90.0% (84.2 to 96.2)",
        "80.0% (72.5 to 88.3)",
    ]
    assert rows["on the Pareto front"] == ["yes", "no", "yes"]
    assert rows["measured prefill"][2] == "2.00 x (1.55 to 1.65)"


def test_without_all_times_the_predicted_ones_are_plotted(tmp_path, three):
    untimed = make_artifact(tmp_path / "untimed", loss=with_kept(1.0))
    comparison = compare_artifacts([*three, untimed])
    assert comparison.speed.title == "prefill work, original / compressed, predicted"
    assert comparison.speed.values == (2.0,) * 4


def test_without_all_right_answers_agreement_is_plotted_and_without_checks_nothing(tmp_path, three):
    unknown = facts.figures(exact_match=None, exact_match_original=None)
    loss = facts.loss().model_copy(update={"overall": unknown})
    second = make_artifact(tmp_path / "unknown", measured=with_speed(1.0), loss=loss)
    comparison = compare_artifacts([*three, second])
    assert comparison.accuracy.title == "first tokens equal to the original's"
    unchecked = make_artifact(tmp_path / "unchecked")
    comparison = compare_artifacts([*three, unchecked])
    assert comparison.accuracy is None
    assert comparison.front == ()
    assert tradeoff_chart(comparison) is None
    assert "No plot" in html_comparison(comparison)
    assert "Compression loss was not run: 4." in comparison.notes


def test_what_must_not_be_compared_is_said(tmp_path, three):
    other = facts.plan().model_copy(update={"model_digest": "f" * 64})
    data = with_kept(1.0).model_copy(update={"data_digest": "e" * 64})
    machine = with_speed(1.0).model_copy(update={"processor": "another"})
    fields = {"model_digest": other.model_digest, "loss": data, "measured": machine}
    last = make_artifact(tmp_path / "other", **fields)
    notes = compare_artifacts([*three, last]).notes
    assert [note.split(":")[0] for note in notes] == [
        "Different models",
        "Different validation data",
        "Timed on different machines, threads or prompts",
        "3",
    ]
    assert all("1, 2, 3 against 4. Do not compare" in note for note in notes[:3])


def test_times_of_a_busy_machine_are_noted(tmp_path, three):
    busy = with_speed(1.5)
    prefill = busy.prefill.model_copy(update={"ratio_low": 1.0, "ratio_high": 3.0})
    last = make_artifact(
        tmp_path / "busy",
        loss=with_kept(1.0),
        measured=busy.model_copy(update={"prefill": prefill}),
    )
    assert compare_artifacts([*three, last]).notes == (
        "Times are not steady, the machine was busy: 4.",
        LITTLE_KEPT,
    )


def test_the_plot_marks_the_front_and_names_every_point(three):
    root = ET.fromstring(str(tradeoff_chart(compare_artifacts(three))))
    circles = [e.get("class") for e in root.iter() if e.tag.endswith("circle")]
    assert circles == ["point-front", "point", "point-front"]
    labels = [e.text for e in root.iter() if e.tag.endswith("text")]
    assert {"slow", "beaten", "fast", "original"} <= set(labels)
    assert "Not beaten by any other of their model, data and machine: slow, fast." in root[1].text
    assert "beaten: 1.10 times, 90.0%" in root[1].text


def test_points_at_one_place_share_a_label(tmp_path):
    same = {"measured": with_speed(1.5), "loss": with_kept(1.0)}
    made = [make_artifact(tmp_path / name, **same) for name in "ab"]
    root = ET.fromstring(str(tradeoff_chart(compare_artifacts(made))))
    assert "a, b" in [e.text for e in root.iter() if e.tag.endswith("text")]


def labels_of(comparison):
    """Where the names of points stand: left, right, base line, words."""
    root = ET.fromstring(str(tradeoff_chart(comparison)))
    found = []
    for e in root.iter():
        if e.tag.endswith("text") and e.get("class") == "halo strong":
            x, width = float(e.get("x")), 5.5 * len(e.text)
            left = x - width if e.get("text-anchor") == "end" else x
            found.append((left, left + width, float(e.get("y")), e.text))
    return found


def test_names_beside_points_stay_inside_and_cover_each_other_nowhere(tmp_path):
    made = [
        make_artifact(
            tmp_path / f"llava-1.5-7b-{'shortv' * 4}-{i}",
            measured=with_speed(1.5 + 0.02 * i),
            loss=with_kept(0.9 - 0.005 * i),
        )
        for i in range(5)
    ]
    found = labels_of(compare_artifacts(made))
    assert all(words.startswith("llava-1.5-7") for *_, words in found)
    assert (
        sum(words.count("llava") for *_, words in found) + sum("more" in w for *_, w in found) >= 3
    )
    for left, right, _, _ in found:
        assert left >= 0
        assert right <= 360
    for i, (left, right, y, _) in enumerate(found):
        for other_left, other_right, other_y, _ in found[:i]:
            assert right <= other_left or other_right <= left or abs(y - other_y) >= 9


def of_another_model(folder, speed, kept):
    return make_artifact(
        folder, measured=with_speed(speed), loss=with_kept(kept), model_digest="f" * 64
    )


def test_every_model_has_a_front_of_its_own(tmp_path, three):
    """The other model's artifacts beat all three, which says nothing about them."""
    others = [
        of_another_model(tmp_path / "x", 3.0, 1.0),
        of_another_model(tmp_path / "y", 2.9, 0.9),
    ]
    comparison = compare_artifacts([*three, *others])
    assert comparison.groups == ((0, 1, 2), (3, 4))
    assert comparison.fronts == ((0, 2), (3,))
    rows = {name: cells for name, *cells in comparison_table(comparison).rows}
    assert rows["on the Pareto front"] == [
        "yes, of slow, beaten, fast",
        "no, of slow, beaten, fast",
        "yes, of slow, beaten, fast",
        "yes, of x, y",
        "no, of x, y",
    ]
    root = ET.fromstring(str(tradeoff_chart(comparison)))
    assert sum(e.tag.endswith("polyline") for e in root.iter()) == 2
    assert "one for each of 2 groups" in html_comparison(comparison)
    figures = comparison_figures(comparison)["artifacts"]
    assert [a["group"] for a in figures] == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("what", ["data", "machine"])
def test_other_data_and_other_machines_are_no_rivals_either(what, tmp_path, three):
    loss, measured = with_kept(1.0), with_speed(9.0)
    if what == "data":
        loss = loss.model_copy(update={"data_digest": "e" * 64})
    else:
        measured = measured.model_copy(update={"processor": "another"})
    last = make_artifact(tmp_path / "last", loss=loss, measured=measured)
    comparison = compare_artifacts([*three, last])
    assert comparison.fronts == ((0, 2), (3,))
    rows = {name: cells for name, *cells in comparison_table(comparison).rows}
    assert rows["on the Pareto front"][-1] == "nothing to compare it with"


def test_another_machine_matters_only_where_times_are_compared(tmp_path, three):
    machine = with_speed(1.0).model_copy(update={"processor": "another"})
    fields = {"measured": machine, "loss": with_kept(1.0)}
    untimed = make_artifact(tmp_path / "untimed", loss=with_kept(1.0))
    last = make_artifact(tmp_path / "last", **fields)
    assert compare_artifacts([*three, untimed, last]).groups == ((0, 1, 2, 3, 4),)


def test_the_page_is_whole_and_hostile_names_stay_words(tmp_path, three):
    name = "<img src=x onerror=alert(1)>"
    hostile = make_artifact(
        tmp_path / name, measured=with_speed(1.5), loss=with_kept(1.0),
        model=facts.facts(name=HOSTILE),
    )  # fmt: skip
    text = html_comparison(compare_artifacts([*three, hostile]))
    found = Structure(text)
    assert found.all("img") == []
    assert found.all("script") == []
    assert f"4: {name}" in found.text
    assert len(found.all("table")) == len(found.all("caption")) == 1


def test_figures_are_plain_json(three):
    document = json.loads(json.dumps(comparison_figures(compare_artifacts(three)), allow_nan=False))
    assert [a["on_front"] for a in document["artifacts"]] == [True, False, True]
    assert document["artifacts"][0]["name"] == "slow"
    assert document["accuracy"] == "right answers kept"


def test_one_artifact_or_none_cannot_be_compared_and_all_that_are_none_are_named(tmp_path, three):
    with pytest.raises(ArtifactError, match="at least two"):
        compare_artifacts(three[:1])
    with pytest.raises(ArtifactError) as failure:
        compare_artifacts([tmp_path / "x", three[0], tmp_path / "y"])
    assert len(failure.value.problems) == 2
