"""The drawings: every layer in its place, marks that are more than colours, and colours that can be read."""

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.methods import METHODS, method_of
from compressor.plan.layer import LayerPlan
from export.report.charts.bars import (
    contribution_chart,
    contribution_scale,
    kinds_chart,
    speed_chart,
)
from export.report.charts.decoder import decoder_picture, lane
from export.report.render.html import TEMPLATES
from export.report.text.scale import decades, nice_ticks
from export.report.text.svg import element, standalone
from export.report.words.methods import state, why
from export.results.bench import bench_rows
from tests import facts

PLAN = facts.plan(frozen=(1, 4), dead=(5,))
NAME = "{http://www.w3.org/2000/svg}"


def drawn(markup):
    return ET.fromstring(str(markup))


def of_class(root, name):
    return [e for e in root.iter() if name in (e.get("class") or "").split()]


def words(root):
    return [e.text for e in root.iter(f"{NAME}text")]


def test_the_decoder_has_a_row_for_every_layer_and_boxes_for_what_runs():
    root = drawn(decoder_picture(PLAN, "float32"))
    labels = [w for w in words(root) if w in set("012345")]
    assert labels == list("012345")
    # Text tokens do three things in each layer; visual tokens three, or K and V alone where frozen.
    assert len(of_class(root, "words")) == 6 * 3
    work_and_cache = 6 * 2
    assert len(of_class(root, "updated")) == 3 * 3 + 3 * 1 + work_and_cache
    assert len(of_class(root, "pass")) == 3
    assert [w for w in words(root) if w in ("frozen", "dead")] == ["frozen", "frozen", "dead"]


def test_the_decoder_is_told_in_words_too():
    description = drawn(decoder_picture(PLAN, "float32"))[1].text
    assert "frozen in 2 of 6 layers (1, 4)" in description
    assert "dead in 1 of 6 layers (5)" in description
    assert "Text tokens do everything in every layer." in description


def test_bars_of_work_shrink_where_a_layer_is_frozen_and_the_cache_does_not():
    root = drawn(decoder_picture(PLAN, "float16"))
    hints = [e.find(f"{NAME}title").text for e in root.iter(f"{NAME}rect") if len(e)]
    work, cache = hints[0::2], hints[1::2]
    assert len(set(work)) == 2
    assert work[0] == work[2] == work[3]
    assert work[1] == work[4] == work[5]
    # 76 rows, K and V of width 8, two bytes each.
    assert set(cache) == {f"{76 * 8 * 2 * 2:,} of {76 * 8 * 2 * 2:,}"}


def test_what_visual_rows_do_is_a_share_of_each_part():
    dims = PLAN.model.decoder
    assert lane(PLAN.layers[0], dims).note == ""
    frozen = lane(PLAN.layers[1], dims)
    assert (frozen.kv, frozen.attention, frozen.mlp, frozen.note) == (1, 0, 0, "frozen")


def test_every_reason_of_a_plan_has_its_word_and_its_sentence():
    parts = [{}, {"groups": ()}, {"groups": (), "masked": True}]
    layers = [
        LayerPlan(index=0, visual=visual, reason=method.name, **more)
        for method in METHODS
        for visual, kinds in (("frozen", parts), ("exited", parts[:1]))
        for more in kinds
    ]
    layers += [LayerPlan(index=0, visual="frozen", reason="dead", **more) for more in parts]
    said = {why(layer, "chosen", "YOPO") for layer in layers}
    # Dead rows are dead, whether or not masked heads read them.
    assert len(said) == len(layers) - 1
    for layer in layers:
        label = "dead rows" if layer.reason == "dead" else method_of(layer.reason).words.label
        assert label in why(layer, "chosen", "YOPO")
    meanings = {state(layer)[1] for layer in layers}
    # Frozen is frozen, whoever asked for it; of exits the legend says how they came about.
    assert len(meanings) == 3 + 3 + len({method.words.exit_meaning for method in METHODS})


def test_contribution_marks_layers_that_are_not_updated_by_stripes_and_a_word():
    root = drawn(contribution_chart((0.5, 0.001, 0.25, 0.25, 0.003, 0.0), 1, PLAN))
    stripes = [e for e in root.iter(f"{NAME}rect") if (e.get("fill") or "").startswith("url(#")]
    assert len(stripes) == 3
    assert len(of_class(root, "updated")) == 3
    assert words(root).count("frozen") == 2
    assert words(root).count("dead") == 1
    assert "0.5" in words(root)
    bars = [float(e.get("width")) for e in of_class(root, "updated")]
    assert bars[0] == max(bars)
    assert "Largest in layer 0 (0.5 nats), smallest in layer 5 (0 nats)" in root[1].text


@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e3)), min_size=1, max_size=50))
def test_every_contribution_finds_its_place_on_the_axis(values):
    scale = contribution_scale(values)
    assert list(scale.ticks) == sorted(set(scale.ticks))
    assert 2 <= len(scale.ticks) <= 8
    places = [scale.place(v) for v in values if v > 0]
    assert all(scale.start <= p <= scale.start + scale.length + 1e-6 for p in places)


@given(st.floats(-1e3, 1e3), st.floats(0, 1e3), st.integers(2, 8))
def test_round_numbers_enclose_what_they_are_for(low, span, most):
    ticks = nice_ticks(low, low + span, most)
    slack = 1e-6 * max(1.0, abs(low), span)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert 2 <= len(ticks) <= most + 2


@given(st.lists(st.floats(1e-12, 1e6), min_size=1))
def test_decades_enclose_positive_values(values):
    low, high = decades(values)
    assert 10.0**low < min(values)
    assert 10.0**high >= max(values) * (1 - 1e-12)


def test_speed_shows_the_prediction_and_every_measured_call():
    root = drawn(speed_chart(2.0, bench_rows(facts.measured())))
    assert "prefill, predicted from FLOPs" in words(root)
    assert {"2.00 x", "1.60 x", "1.00 x", "1.40 x"} <= set(words(root))
    assert "prefill, measured: 1.60 times" in root[1].text
    assert len([w for w in words(drawn(speed_chart(2.0, []))) if w.endswith("measured")]) == 0


def test_a_disturbed_round_does_not_leave_the_drawing():
    timing = facts.measured().prefill.model_copy(update={"ratio_high": 90.0})
    root = drawn(speed_chart(1.5, [("prefill", timing)]))
    width = float(root.get("viewBox").split()[2])
    assert all(float(e.get("x2")) <= width for e in root.iter(f"{NAME}line"))


def test_kinds_are_pairs_of_bars_where_answers_are_known():
    unknown = facts.figures("z", exact_match=None, exact_match_original=None)
    assert kinds_chart([unknown]) is None
    root = drawn(kinds_chart([facts.figures("<b>"), unknown]))
    assert "<b> (8)" in words(root)
    assert {"100.0%", "75.0%"} <= set(words(root))
    many = drawn(kinds_chart([facts.figures(f"kind {i}") for i in range(30)]))
    assert "and 6 more kinds in the table" in words(many)


def test_elements_escape_what_they_hold():
    made = element("text", class_='"><script>', x=1.5, y=2.0, hidden=None)
    assert made == '<text class="&#34;&gt;&lt;script&gt;" x="1.5" y="2"></text>'


def test_a_file_of_its_own_carries_its_colours():
    text = standalone(decoder_picture(PLAN, "float32"))
    root = ET.fromstring(text.encode())
    assert "--updated" in root[0].text
    assert "prefers-color-scheme: dark" in root[0].text


def colours(sheet, theme):
    """Return the variables of a style sheet, light ones overlaid with dark ones if asked for."""
    light, dark = sheet.split("prefers-color-scheme: dark", 1)
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    return found | (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark)) if theme == "dark" else {}
    )


def contrast(a, b):
    """Ratio of relative luminances, by WCAG 2."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_the_standards():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_and_marks_stand_out_from_what_is_behind_them(theme):
    charts = colours((TEMPLATES / "charts.css").read_text(encoding="utf-8"), theme)
    page = colours((TEMPLATES / "page.css").read_text(encoding="utf-8"), theme)
    assert charts["paper"] == page["page"]
    for name in ("ink", "faint", "chosen", "updated", "words", "accent"):
        assert contrast(charts[name], charts["paper"]) >= 4.5, name
    assert contrast(charts["chosen"], charts["stripe"]) >= 3
    for name in ("text", "muted", "link", "good", "bad"):
        for behind in ("page", "card"):
            assert contrast(page[name], page[behind]) >= 4.5, (name, behind)
    assert contrast(page["mark-text"], page["mark"]) >= 4.5
