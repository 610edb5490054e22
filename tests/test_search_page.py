"""Reports of a search: what was chosen and why, the front beside single methods, whether losses add up."""

import xml.etree.ElementTree as ET

import pytest

from export.report.charts.sums import sums_chart
from export.report.document import Chart, flat
from export.report.render.html import html
from export.report.render.markdown import markdown
from export.report.search.files import write_pages
from export.report.search.page import (
    additivity_chart,
    additivity_words,
    front_table,
    search_chart,
    search_document,
)
from export.report.text.svg import standalone
from tests.searches import ALONE, FRONT, SEARCHES, plan_point, search_report

WHOLE, NONE, BARE = SEARCHES.values()


def drawn(markup):
    return ET.fromstring(standalone(markup))


def circles(root):
    return [e for e in root.iter() if e.tag.endswith("circle")]


def section(report, key):
    (found,) = (part for part in search_document(report).sections if part.key == key)
    return markdown(type(search_document(report))("", "", (found,)))


def test_the_chosen_plan_comes_first_with_counts_of_the_half_that_no_choice_saw():
    words = section(WHOLE, "short")
    assert "Asked: keep: 0.97. Chosen: 2.00 x" in words
    # 98 of 100, not the 99 of the half that it was chosen on.
    assert "98.0% of the original's right answers (98 of 100; 95% sure of 93.8% or more)" in words
    assert "the fastest of 3 plans" in words
    assert "yopo keeps most: 94.0% of the original's right answers" in words
    assert "WARNING" not in words


def test_a_plan_that_nobody_judged_is_said_to_be_so_before_anything_else():
    words = section(BARE, "short").split("##")[-1]
    assert words.index("WARNING: the chosen plan was not judged") < words.index("Asked:")
    assert "half of the questions it was chosen on it keeps 99.0%" in words
    assert "not judged" in front_table(BARE).rows[0][0]
    assert "Plans that were not judged are drawn as on the half they were chosen on: 1." in section(
        BARE, "plot"
    )


def test_single_methods_that_are_slower_are_not_called_as_fast():
    slow = search_report(*FRONT, plan_point(1.5, (99, 99), 0.01, series="shortv"), chosen="2.00x")
    assert "No single method was measured at that speed or faster." in section(slow, "short")


def test_the_table_has_every_plan_and_its_bound():
    table = front_table(WHOLE)
    assert [row[0] for row in table.rows][2] == "search 2.00 x, CHOSEN"
    assert len(table.rows) == len(FRONT) + len(ALONE)
    assert table.rows[2][3:6] == ("98.0% (93.0 to 99.4)", "93.8%", "0.0088")
    kinds = section(WHOLE, "table")
    assert "Answers kept, by kind of question" in kinds
    # Of the 50 of a kind, not of the 100 of all.
    assert "96.0% (86.5 to 98.9)" in kinds


def test_the_plot_has_a_line_for_the_search_dashes_for_methods_and_an_interval_for_each_point():
    root = drawn(search_chart(WHOLE))
    styles = [c.get("class") for c in circles(root)]
    assert styles.count("point-front") == 1
    assert styles.count("point") == len(FRONT) - 1
    assert styles.count("point-baseline") == len(ALONE)
    lines = [e.get("class") for e in root.iter() if e.tag.endswith("polyline")]
    assert sorted(lines) == ["joined point-baseline-line", "joined point-line"]
    whiskers = [
        e for e in root.iter() if e.tag.endswith("line") and e.get("class") == "whisker-thin"
    ]
    upright = [e for e in whiskers if e.get("x1") == e.get("x2")]
    assert len(upright) == len(WHOLE.points)
    names = {e.text for e in root.iter() if e.tag.endswith("text")}
    assert {"chosen", "shortv", "yopo", "original"} <= names


def test_losses_that_add_up_lie_on_the_diagonal_and_larger_ones_above():
    sums, wholes = [0.001, 0.02, 0.3], [0.001, 0.08, 0.3]
    root = drawn(sums_chart("k", sums, wholes, ["point"] * 3, "nats"))
    at = [(float(c.get("cx")), float(c.get("cy"))) for c in circles(root)]
    (diagonal,) = (e for e in root.iter() if e.get("class") == "whisker-thin")
    x1, y1, x2, y2 = (float(diagonal.get(k)) for k in ("x1", "y1", "x2", "y2"))
    above = [y1 + (x - x1) * (y2 - y1) / (x2 - x1) - y for x, y in at]
    assert above == pytest.approx([0, above[1], 0], abs=0.05)
    assert above[1] > 10
    assert sums_chart("k", [0.0], [1.0], ["point"], "nats") is None


def test_where_sums_break_is_said_in_words():
    words = additivity_words(WHOLE)
    assert words.startswith("Of 8 plans 3 lose what their changes do alone, within a factor of 1.5")
    assert (
        "5 more, the first of them at a sum of 0.004 nats, the one furthest off 4.00 times" in words
    )
    less = search_report(plan_point(2.0, (99, 99), 0.1, summed_kl=0.4), chosen="2.00x")
    assert "1 less, the first of them at a sum of 0.4 nats, the one furthest off 0.25 times" in (
        additivity_words(less)
    )
    assert "No plan has changes that were all measured alone." in section(BARE, "sums")
    assert additivity_chart(BARE) is None


def test_where_the_original_is_never_right_nothing_is_said_to_be_kept(tmp_path):
    words = section(NONE, "short")
    assert "it keeps what cannot be told: the original answers none of these 9 right." in words
    assert "single method" not in words.lower()
    assert "No plot:" in section(NONE, "plot")
    assert search_chart(NONE) is None
    write_pages(tmp_path, NONE)
    assert not (tmp_path / "front.svg").exists()


def test_what_was_not_tried_and_the_time_are_told():
    assert "speed-ups above 4" in section(WHOLE, "left")
    assert "The search took 95 s of 10.0 min." in section(WHOLE, "left")
    assert (
        "Nothing was left out for want of time. The search took 95 s; no end was set."
        in section(BARE, "left")
    )


def test_every_layer_of_the_chosen_plan_has_its_reason():
    words = section(WHOLE, "chosen")
    for reason in FRONT[2].reasons:
        assert reason in words
    assert "--plan plans/2.00x.json" in words


def test_a_folder_gets_page_text_and_the_plots_that_there_are(tmp_path):
    for report, plots in ((WHOLE, ["front.svg", "sums.svg"]), (BARE, ["front.svg"])):
        folder = tmp_path / str(len(plots))
        folder.mkdir()
        write_pages(folder, report)
        assert sorted(p.name for p in folder.iterdir()) == sorted(
            ["front.html", "front.md", *plots]
        )
        assert all(path.stat().st_size > 500 for path in folder.iterdir())


@pytest.mark.parametrize("name", SEARCHES)
def test_page_and_text_are_written_whole(name):
    document = search_document(SEARCHES[name])
    page = html(document)
    assert page.count("<svg") == sum(
        isinstance(block, Chart) for part in document.sections for block in flat(part.blocks)
    )
    assert "None" not in markdown(document)
