"""YOPO's cuts in what people read: per layer, in words with their semantics, drawn, and measured in bytes."""

import contextlib
import io
import json
import re
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

import vtcompress
from compressor.contract.asked import method_words
from compressor.methods.yopo.method import Yopo
from compressor.plan.cost import predict
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan
from compressor.planner import make_plan
from compressor.profile import Profile, SampleScore
from export.graphs.spec import caches_of, decoder_graph
from export.report.charts.bars import contribution_chart
from export.report.charts.decoder import VISUAL, decoder_picture, lane
from export.report.charts.heads import head_chart, head_table
from export.report.compare.comparison import compare_artifacts, comparison_table
from export.report.data import figures
from export.report.pages.model_card import Origin, model_card
from export.report.pages.report import html_report, markdown_report
from export.report.render.markdown import escaped
from export.report.words.cuts import cut_sentences, cuts_words, kept_heads, semantics
from export.report.words.exits import cache_words, exits_table, gate_before, timed_plan, timed_words
from export.report.words.states import states
from export.runtime.runtime import Runtime
from export.session.session import cached_rows, exit_of
from tests import facts
from tests.artifacts import make_artifact
from tests.models import Variant, make_llava
from tests.test_charts import drawn, of_class, words
from tests.test_compare import with_kept
from tests.test_html_report import Structure
from tests.test_report import section, table, tables
from vtcompress.cli.show import show_plan, show_profile
from vtcompress.console import Output
from vtcompress.stages.report import read_report

MODEL = facts.facts(token_grid=(3, 4))
FIRST = tuple(range(12))
NOTE = "compress[0].yopo.heads.mask: heads <3> stay | layer 1: 3"


def plan_of(*layers: LayerPlan, **changes: object) -> Plan:
    values = {"model": MODEL, "model_digest": facts.DIGEST, "layers": layers, **changes}
    return Plan.model_validate(values)


# Two heads share a key/value head; text has 64 rows, a picture 12.
CUT = plan_of(
    LayerPlan(index=0),
    LayerPlan(index=1, groups=(1,), window=3, neurons=FIRST),
    LayerPlan(index=2, groups=(), neurons=(0, 1, 2, 3, 4, 5)),
    LayerPlan(index=3, visual="frozen", reason="shortv", groups=(0,)),
    LayerPlan(index=4, visual="exited", reason="yopo"),
    LayerPlan(index=5, visual="exited", reason="yopo"),
    notes=(NOTE,),
)
MASKED = plan_of(
    LayerPlan(index=0),
    LayerPlan(index=1, groups=(1,), window=3, window_causal=True, neurons=FIRST, masked=True),
    LayerPlan(index=2, groups=(0,), masked=True, visual="frozen", reason="shortv"),
    LayerPlan(index=3, masked=True, off=True),
    LayerPlan(index=4, masked=True, off=True),
    LayerPlan(index=5, visual="frozen", reason="dead", masked=True, off=True),
)
YOPO = {
    "heads": {"mask": "some/folder/kept.npy"},
    "window": 3,
    "mlp_ratio": 2,
    "off_from": 4,
}
RECIPE = "vtcompress: 1\ncompress:\n- yopo: {window: 3, mlp_ratio: 2, off_from: 4, heads: {mask: kept.npy}}\n"
RECIPE_MASKED = RECIPE.replace("}}\n", "}, semantics: masked}\n")
SCORES = tuple(tuple(0.1 * layer + 0.01 * head for head in range(4)) for layer in range(6))
SCORED = Profile(
    model="owner/little-model",
    model_digest=facts.DIGEST,
    data="calibration.jsonl",
    data_digest=facts.DATA_DIGEST,
    layers=6,
    total=1,
    measures=("head_score",),
    samples=(SampleScore(visual=12, text=64, head_score=SCORES),),
)


def measured_of(plan):
    """Return times of a prompt like the plan's, with the caches that the plan predicts."""
    full = plan.visual + plan.workload.text
    rows = tuple(
        plan.workload.text if layer.exited else 0 if layer.split and not layer.groups else full
        for layer in plan.layers
    )
    caches = {
        "kv_bytes_original": predict(plan.naive()).kv_bytes("float32"),
        "kv_bytes": predict(plan).kv_bytes("float32"),
        "kv_layers": rows,
    }
    return facts.measured().model_copy(update=caches)


def report_of(folder, plan=CUT, recipe=RECIPE, **changes):
    given = {"plan": plan, "recipe": recipe, "measured": measured_of(plan)} | changes
    return read_report(make_artifact(folder, **given))


def test_every_layer_lists_its_visual_heads_window_neurons_and_what_its_caches_hold(tmp_path):
    rows = tables(section(markdown_report(report_of(tmp_path / "a")), "Layers"))[0]
    assert [r[1:5] for r in rows] == [
        ["updated", "4 of 4", "all", "24 of 24"],
        ["updated", "2 of 4", "3 x 3", "12 of 24"],
        ["updated", "0 of 4", "-", "6 of 24"],
        ["frozen (shortv)", "2 of 4", "-", "-"],
        ["exited (yopo)", "-", "-", "-"],
        ["exited (yopo)", "-", "-", "-"],
    ]
    # K and V of one key/value head of width 4, four bytes each: 32 bytes a row.
    full, text = 76 * 32, 64 * 32
    now = [2 * full, full + text, 2 * text, full + text, 2 * text, 2 * text]
    alone = [0, text, 2 * text, text, 0, 0]
    assert [r[-2:] for r in rows] == [[f"{a:,}", f"{b:,}"] for a, b in zip(now, alone, strict=True)]


def test_a_plan_without_cuts_has_no_columns_and_no_words_for_them(tmp_path):
    data = read_report(make_artifact(tmp_path / "a"))
    text = markdown_report(data)
    assert "visual heads" not in text
    assert "Semantics" not in text
    assert len(table(section(text, "Layers"))[0]) == 6
    assert cuts_words(data.plan) == "none"
    assert "part of K V" not in Structure(html_report(data)).text


def test_masked_layers_say_what_is_not_read_and_not_that_it_is_gone(tmp_path):
    data = report_of(tmp_path / "a", MASKED, RECIPE_MASKED)
    rows = table(section(markdown_report(data), "Layers"))
    assert [r[1:4] for r in rows] == [
        ["updated", "4 of 4", "all"],
        ["updated", "2 of 4, masked", "3 x 3, causal"],
        ["frozen (shortv)", "2 of 4, masked", "-"],
        ["updated, read by no head (off)", "0 of 4, masked", "-"],
        ["updated, read by no head (off)", "0 of 4, masked", "-"],
        ["frozen (dead rows: nobody reads them)", "0 of 4, masked", "-"],
    ]
    said = " ".join(cut_sentences(MASKED))
    assert "read in 2 of 4 heads of layers 1, 2 (method YOPO, heads), and computed in all" in said
    assert "Layers 3 to 5: no head reads visual tokens" in said
    assert "have no queries" not in said
    assert "KV cache) keeps its size" in markdown_report(data)
    assert "Nothing is saved on further tokens" in markdown_report(data)


def test_a_layer_that_reads_no_visual_tokens_is_not_said_to_read_neighbours():
    method = Yopo.model_validate({"window": 3, "off_from": 3, "semantics": "masked"})
    plan = make_plan(MODEL, facts.DIGEST, [method])
    assert [bool(layer.window) for layer in plan.layers] == [True] * 5 + [False]
    near, off = sorted(cut_sentences(plan))
    assert near.startswith("Layers 0 to 2: a visual token reads only its neighbours")
    assert off.startswith("Layers 3 to 5: no head reads visual tokens")


@pytest.mark.parametrize(
    ("plan", "recipe", "word", "sentence"),
    [
        (CUT, RECIPE, "removed", "What is cut is gone"),
        (MASKED, RECIPE_MASKED, "masked", "it saves no more than the predicted figures count"),
    ],
)
def test_every_report_names_the_semantics(tmp_path, plan, recipe, word, sentence):
    data = report_of(tmp_path / "a", plan, recipe)
    page = Structure(html_report(data)).text
    # In short, and under the picture of the layers.
    assert page.count(f"Semantics: {word}") == 2
    said = [page, markdown_report(data), model_card(data, Origin())]
    for text in said:
        assert f"Semantics: {word}" in text
        assert sentence in text
        assert f"semantics: {word}" in text
    assert figures(data)["semantics"] == word
    assert cuts_words(plan, data.methods).endswith(f"; {word}")
    assert "2410.06169" in said[2]


def test_a_recipe_knows_the_semantics_where_its_plan_does_not_tell():
    """A window is cut alike in both."""
    alone = plan_of(*(LayerPlan(index=i, window=3) for i in range(6)))
    masked = Yopo.model_validate({"window": 3, "semantics": "masked"})
    assert semantics(alone) is None
    assert semantics(alone, [masked]) == "masked"
    assert (semantics(CUT), semantics(MASKED), semantics(facts.plan())) == (
        "removed",
        "masked",
        None,
    )


def test_masked_semantics_that_change_nothing_are_said_to_and_not_to_keep_keys(tmp_path):
    alone = plan_of(*(LayerPlan(index=i, window=3, neurons=FIRST) for i in range(6)))
    recipe = "vtcompress: 1\ncompress:\n- yopo: {window: 3, mlp_ratio: 2, semantics: masked}\n"
    data = report_of(tmp_path / "a", alone, recipe)
    for text in (
        Structure(html_report(data)).text,
        markdown_report(data),
        model_card(data, Origin()),
    ):
        assert "Semantics: masked, which changes nothing here" in text
        assert "visual tokens run on" not in text


def test_what_was_asked_is_said_with_file_names_and_without_folders():
    method = Yopo.model_validate(YOPO)
    assert method_words(method) == (
        "yopo (heads: {mask: kept.npy}, window: 3, mlp_ratio: 2, off_from: 4, semantics: removed)"
    )
    voted = {"heads": {"threshold": 0.07, "votes": 0.4}, "keep_layers": [0], "window": 5}
    found = Yopo.model_validate(voted | {"causal": True}, strict=False)
    assert method_words(found) == (
        "yopo (heads: {threshold: 0.07, votes: 0.4}, keep_layers: 0, window: 5, causal: true, "
        "semantics: removed)"
    )


def test_many_different_numbers_of_heads_are_a_range():
    model = facts.facts(facts.dims(heads=8, kv_heads=8), token_grid=(3, 4))
    layers = (LayerPlan(index=i, groups=tuple(range(i))) for i in range(6))
    said = cut_sentences(plan_of(*layers, model=model))[0]
    assert "take part in 0 to 5 of 8 heads of layers 0 to 5 (method YOPO, heads)" in said


def test_the_planners_notes_are_in_every_report_and_in_the_printed_plan(tmp_path):
    data = report_of(tmp_path / "a")
    text = section(markdown_report(data), "Layers")
    assert f"Notes of the planner\n\n- {escaped(NOTE)}" in text
    page = Structure(html_report(data))
    assert NOTE in page.text
    assert "Notes of the planner" in [title for _, title in page.headings]
    assert figures(data)["notes"] == [NOTE]
    printed = said(lambda out: show_plan(out, CUT, "float32"))
    assert "heads <3> stay" in printed
    assert "visual heads" in printed
    assert "Semantics: removed" in printed


def said(show):
    """Return what is printed, with single spaces."""
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        show(Output())
    return " ".join(stream.getvalue().split())


def test_shares_of_a_layer_are_widths_of_its_boxes():
    dims = MODEL.decoder
    assert lane(CUT.layers[1], dims) == type(lane(CUT.layers[1], dims))(0.5, 0.5, 0.5, "", "3x3")
    assert (lane(CUT.layers[2], dims).attention, lane(CUT.layers[2], dims).label) == (0, "none")
    frozen = lane(CUT.layers[3], dims)
    assert (frozen.kv, frozen.attention, frozen.note) == (0.5, 0, "frozen")
    root = drawn(decoder_picture(CUT, "float32"))
    y = {layer: str(44 + 16 * layer + 2) for layer in range(6)}

    def widths(layer, class_):
        boxes = [e for e in of_class(root, class_) if e.get("y") == y[layer]]
        return [float(e.get("width")) for e in boxes if float(e.get("x")) < VISUAL[-1][0] + 1]

    whole = [width for _, width in VISUAL]
    assert widths(0, "updated") == whole
    assert widths(1, "updated") == [width / 2 for width in whole]
    # The outline of what a part is missing from tells it without colour.
    assert widths(1, "outline") == whole
    assert widths(2, "updated") == [whole[2] / 4]
    assert widths(3, "updated") == [whole[0] / 2]
    assert widths(4, "updated") == widths(4, "outline") == []
    assert {"3x3", "none", "frozen", "exited"} <= set(words(root))


def test_a_frozen_layer_without_visual_heads_is_not_drawn_as_left():
    layers = (*(LayerPlan(index=i) for i in range(5)), LayerPlan(
        index=5, visual="frozen", reason="shortv", groups=()))  # fmt: skip
    root = drawn(decoder_picture(plan_of(*layers), "float32"))
    assert len(of_class(root, "pass")) == 1
    assert of_class(root, "gone") == []


# Frozen layers in no head: 2 by the recipe, 5 by the dead rows' rule; 1 and 3 are frozen and read.
BARE = plan_of(
    LayerPlan(index=0),
    LayerPlan(index=1, visual="frozen", reason="shortv"),
    LayerPlan(index=2, visual="frozen", reason="shortv", groups=()),
    LayerPlan(index=3, visual="frozen", reason="shortv", groups=(0,)),
    LayerPlan(index=4),
    LayerPlan(index=5, visual="frozen", reason="dead", groups=()),
)


def test_frozen_layers_in_no_head_have_words_of_their_own_and_are_not_said_to_be_read(tmp_path):
    data = report_of(tmp_path / "a", BARE)
    for text in (markdown_report(data), Structure(html_report(data)).text):
        (read,) = re.findall(r"Layers 1, 3: [^:]*through unchanged\.([^:]*)", text)
        assert read.startswith(" Text tokens still read them.")
        (bare,) = re.findall(r"Layer 2: [^:]*through unchanged\.([^:]*)", text)
        (dead,) = re.findall(r"Layer 5: nobody reads[^:]*\(dead rows\)\.([^:]*)", text)
        for said in (bare, dead):
            assert said.startswith(
                " They take part in no head there (method YOPO, heads), so that no keys"
            )
            assert "still read them" not in said
    # What is said of keys and values is what is counted: two key/value heads of width 4, K and V.
    assert predict(BARE).layer_kv_values == tuple(
        16 * rows // 2 for rows in (152, 152, 128, 140, 152, 128)
    )


def test_frozen_layers_in_no_head_are_drawn_and_explained_apart():
    meanings = dict(states(BARE))
    assert list(meanings) == [
        "updated", "frozen", "frozen, none", "dead, none", "part of K V and attention",
    ]  # fmt: skip
    assert "text tokens still read their keys and values" in meanings["frozen"]
    for word in ("frozen, none", "dead, none"):
        assert "take part in no head" in meanings[word]
        assert "no keys and values to read or to keep" in meanings[word]
        assert "still read" not in meanings[word]
    root = drawn(decoder_picture(BARE, "float32"))
    assert [w for w in words(root) if w in meanings or w in ("dead", "none")] == [
        "frozen", "frozen, none", "frozen", "dead, none",
    ]  # fmt: skip
    description = root[1].text
    assert "frozen in 2 of 6 layers (1, 3): visual tokens pass unchanged; text" in description
    assert "frozen, none in 1 of 6 layers (2): visual tokens pass unchanged and take" in description
    assert "dead, none in 1 of 6 layers (5): visual tokens take part in no head" in description
    docs = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    for word in ("frozen, none", "dead, none", "frozen, off", "dead, off"):
        assert re.search(rf"^\|[^|]*{word}[;| ]", docs, re.M), word


def test_masked_frozen_layers_that_no_head_reads_are_not_said_to_be_read(tmp_path):
    kept = {"visual": "frozen", "reason": "shortv", "masked": True}
    layers = (
        LayerPlan(index=0, groups=(0,), **kept),
        LayerPlan(index=1, groups=(), **kept),
        LayerPlan(index=2, off=True, **kept),
    )
    plan = plan_of(*layers, *(LayerPlan(index=i) for i in range(3, 6)))
    text = markdown_report(report_of(tmp_path / "a", plan, RECIPE_MASKED))
    assert re.search(r"Layer 0: [^:]* unchanged\. Text tokens still read them\.", text)
    assert re.search(
        r"Layers 1, 2: [^:]* unchanged\. No head reads them \(method YOPO\), but", text
    )
    meanings = dict(states(plan))
    assert "no head reads their values" in meanings["frozen, off"]
    assert "still read" not in meanings["frozen, off"]
    notes = [lane(layer, MODEL.decoder).note for layer in plan.layers[:3]]
    assert notes == ["frozen, masked", "frozen, off", "frozen, off"]


def test_masked_heads_are_drawn_as_work_that_is_done():
    dims = MODEL.decoder
    found = [lane(layer, dims) for layer in MASKED.layers]
    assert [(x.kv, x.attention) for x in found] == [(1, 1), (1, 1), (1, 0), (1, 1), (1, 1), (1, 0)]
    assert [x.label for x in found] == ["", "masked", "", "off", "off", ""]
    assert [x.note for x in found] == ["", "", "frozen, masked", "", "", "dead, off"]
    assert of_class(drawn(decoder_picture(MASKED, "float32")), "text-alone") == []


def test_the_bar_of_the_cache_sets_apart_what_pruned_heads_hold():
    root = drawn(decoder_picture(CUT, "float32"))
    apart = [float(e.get("width")) for e in of_class(root, "text-alone")]
    # 64 text rows of one or both key/value heads, of the 2 x 76 rows that are 42 wide.
    assert apart == pytest.approx([42 * 64 / 152, 42 * 128 / 152, 42 * 64 / 152], abs=0.01)
    assert any("in heads of text alone" in (e.text or "") for e in root.iter())


def test_the_legend_explains_the_cuts_that_are_drawn_and_no_other():
    shown = [word for word, _ in states(CUT)]
    assert shown == [
        "updated",
        "frozen",
        "exited",
        "part of K V and attention",
        "none",
        "3x3 or so on attention",
        "part of MLP",
    ]
    assert "in full or in part" in dict(states(CUT))["updated"]
    assert "as in the original" in dict(states(facts.plan()))["updated"]
    masked = [word for word, _ in states(MASKED)]
    assert masked == ["updated", "frozen", "dead, off", "part of MLP", "masked", "off"]
    drawn_words = words(drawn(decoder_picture(MASKED, "float32")))
    assert {"masked", "off"} <= set(drawn_words)
    assert "3x3" not in drawn_words


def test_a_contribution_is_hollow_behind_yopos_exit():
    root = drawn(contribution_chart((0.5, 0.1, 0.2, 0.2, 0.1, 0.1), 1, CUT))
    assert len(of_class(root, "hollow")) == 2


def test_head_scores_are_squares_filled_where_visual_tokens_take_part():
    root = drawn(head_chart(SCORES, 7, CUT))
    filled, hollow = of_class(root, "updated"), of_class(root, "pruned-head")
    assert (len(filled), len(hollow)) == (4 + 2 + 0 + 2, 2 + 4 + 2 + 4 + 4)
    hints = {e[0].text for e in filled}
    assert "layer 1, head 2: 0.12, kept" in hints
    assert "layer 1, head 1: 0.11, pruned" in {e[0].text for e in hollow}
    sides = [float(e.get("width")) for e in (*filled, *hollow)]
    assert min(sides) >= 2.5
    assert max(sides) == pytest.approx(14)
    assert "take part in 8 of 24 heads" in root[1].text
    assert "Mean over 7 questions" in root[1].text
    assert {"4 of 4", "2 of 4", "0 of 4"} <= set(words(root))


@pytest.mark.parametrize("heads", [1, 32, 64])
def test_squares_of_many_heads_stay_apart_and_inside(heads):
    model = facts.facts(facts.dims(heads=heads, kv_heads=1))
    plan = plan_of(*(LayerPlan(index=i) for i in range(6)), model=model)
    root = drawn(head_chart([[1.0] * heads] * 6, 1, plan))
    row = sorted(
        (float(e.get("x")), float(e.get("width"))) for e in of_class(root, "updated")[:heads]
    )
    assert all(a + w <= b for (a, w), (b, _) in pairwise(row))
    assert row[-1][0] + row[-1][1] <= 312
    zero = drawn(head_chart([[0.0] * heads] * 6, 1, plan))
    assert len(of_class(zero, "updated")) == 6 * heads


def test_head_scores_have_rows_in_every_report_where_they_were_measured(tmp_path):
    assert head_table(SCORES, CUT).rows[1] == ("1", "0.1", "0.115", "0.13", "2, 3")
    assert [row[-1] for row in head_table(SCORES, CUT).rows] == [
        "all", "2, 3", "none", "0, 1", "none", "none",
    ]  # fmt: skip
    data = report_of(tmp_path / "a", profile=SCORED)
    found = tables(section(markdown_report(data), "Layers"))
    assert [tuple(row) for row in found[1]] == head_table(SCORES, CUT).rows
    page = html_report(data)
    assert 'id="heads-title"' in page
    assert "Head scores of every layer" in page
    assert figures(data)["layers"][1]["head_score"] == SCORES[1]
    without = report_of(tmp_path / "b")
    assert 'id="heads-title"' not in html_report(without)
    assert "Head scores" not in markdown_report(without) + html_report(without)
    assert figures(without)["layers"][1]["head_score"] is None


def test_a_printed_profile_tells_head_scores_and_how_activity_was_measured():
    activity = tuple((4.0, 1.0, 3.0, 2.0) for _ in range(6))
    both = SCORED.model_copy(
        update={"measures": ("head_score", "neuron_activity"), "neuron_activity": activity}
    )
    printed = said(lambda out: show_profile(out, both))
    assert "│ 1 │ 0.1 │ 0.115 │ 0.13 │" in printed
    assert "over visual rows and 1 samples, for 4 neurons in each of 6 layers" in printed
    assert "carries 70% to 70% of it" in printed
    assert "Neuron activity" not in said(lambda out: show_profile(out, SCORED))


def test_figures_for_dashboards_hold_the_cuts(tmp_path):
    document = json.loads(json.dumps(figures(report_of(tmp_path / "a")), allow_nan=False))
    layers = document["layers"]
    assert [layer["heads"] for layer in layers] == [4, 2, 0, 2, 0, 0]
    assert [layer["neurons"] for layer in layers] == [24, 12, 6, 0, 0, 0]
    assert [layer["window"] for layer in layers] == [None, 3, None, None, None, None]
    assert [layer["kv_bytes_text_heads"] for layer in layers] == [0, 2048, 4096, 2048, 0, 0]
    assert document["kv_cache"]["bytes"] == document["kv_cache"]["bytes_predicted"]
    assert document["methods"][0]["yopo"]["heads"] == {"mask": "kept.npy"}


def test_a_comparison_has_a_row_for_the_cuts(tmp_path):
    made = [
        make_artifact(tmp_path / "cut", plan=CUT, recipe=RECIPE, loss=with_kept(1.0)),
        make_artifact(tmp_path / "masked", plan=MASKED, recipe=RECIPE_MASKED, loss=with_kept(1.0)),
        make_artifact(
            tmp_path / "window",
            plan=plan_of(*(LayerPlan(index=i, window=3) for i in range(6))),
            recipe="vtcompress: 1\ncompress:\n- yopo: {window: 3, semantics: masked}\n",
            loss=with_kept(1.0),
        ),
        make_artifact(tmp_path / "frozen", loss=with_kept(1.0)),
    ]
    rows = {name: cells for name, *cells in comparison_table(compare_artifacts(made)).rows}
    assert rows["YOPO's cuts"] == [
        "8 of 16 visual heads; window 3 x 3; 6 of 24 MLP neurons; 12 of 24 MLP neurons; removed",
        "8 of 24 visual heads; window 3 x 3, causal; 12 of 24 MLP neurons; masked",
        "window 3 x 3; masked",
        "none",
    ]
    assert rows["exited layers"] == ["2 of 6, from layer 4 on", "none", "none", "none"]


def test_a_card_says_what_decode_steps_save(tmp_path):
    card = model_card(report_of(tmp_path / "a"), Origin())
    assert "keys and values of visual tokens in pruned heads and behind an exit" in card
    masked = model_card(report_of(tmp_path / "b", MASKED, RECIPE_MASKED), Origin())
    assert "Decode steps are not faster" in masked


def shapes_of(plan, rows):
    """Return shapes of a past, with the rows that a function gives for each cache."""
    return [(1, c.groups, rows(c), 4) for c, _ in product(plan.caches(), "kv")]


def rows_at(exit_layer):
    """Return the rows of caches after a prefill of 12 visual and 64 text rows with this exit."""
    return lambda c: 64 if c.part or c.layer >= exit_layer else 76


def test_caches_are_known_by_the_names_in_the_graphs():
    gated = plan_of(
        *(LayerPlan(index=i, groups=(0,) if i % 2 else None) for i in range(6)), gates=facts.gates()
    )
    for plan in (CUT, MASKED, gated, facts.plan(exit_layer=3)):
        assert caches_of(decoder_graph(plan, "float32", "last").inputs) == plan.caches()


def test_pruned_heads_are_not_taken_for_an_exit():
    held = cached_rows(CUT.caches(), shapes_of(CUT, rows_at(4)))
    assert held == (76, 76, 0, 76, 64, 64)
    assert exit_of(held, 12, 64) == 4
    told = [*shapes_of(MASKED, rows_at(9)), (1, 76)]
    assert exit_of(cached_rows(MASKED.caches(), told), 12, 64) is None
    # No visual head before the exit: nothing in these caches was ever longer than text.
    bare = plan_of(
        LayerPlan(index=0, groups=()),
        *(LayerPlan(index=i, visual="exited", reason="yopo") for i in range(1, 6)),
    )
    held = cached_rows(bare.caches(), shapes_of(bare, rows_at(1)))
    assert held == (0, 64, 64, 64, 64, 64)
    assert exit_of(held, 12, 64) == 1
    assert exit_of(held, 0, 64) is None


def test_a_gate_before_layers_without_visual_heads_is_found_behind_them():
    layers = (LayerPlan(index=i, groups=() if i == 2 else None) for i in range(6))
    plan = plan_of(*layers, gates=facts.gates())
    held = cached_rows(plan.caches(), shapes_of(plan, rows_at(2)))
    assert exit_of(held, 12, 64) == 3
    assert gate_before(plan.gates, 3) == 1
    report = measured_of(plan).model_copy(update={"kv_layers": held})
    assert timed_plan(plan, report).exit_layer == 2
    assert "a gate fired behind layer 1." in timed_words(plan, report)
    loss = facts.loss().model_copy(update={"exits": ((3, 5), (4, 1))})
    assert [row[2] for row in exits_table(plan, loss).rows] == ["5", "1", "2"]


def test_bytes_of_a_plan_with_cuts_are_those_predicted_or_said_to_differ():
    report = measured_of(CUT)
    said = cache_words(CUT, report, "float32")
    assert said.startswith("From layer 4 on, caches hold text tokens only. In layers 1 to 3 pruned")
    assert "are equal" in said
    whole = CUT.model_copy(
        update={"layers": (LayerPlan(index=0), LayerPlan(index=1), *CUT.layers[2:])}
    )
    assert "DIFFER" in cache_words(whole, report, "float32")


def test_heads_are_those_of_the_kept_groups():
    assert kept_heads(CUT.layers[1], MODEL.decoder) == (2, 3)
    assert kept_heads(MASKED.layers[3], MODEL.decoder) == ()


@pytest.fixture(scope="module")
def cut_artifact(questions, tmp_path_factory):
    """Return an artifact of a real little model with heads, window, neurons and an exit cut."""
    folder = tmp_path_factory.mktemp("cut")
    model = make_llava(folder / "model", Variant(layers=4))
    mask = np.ones((4, 4), bool)
    mask[0, :2] = False
    mask[1] = False
    mask[2, 3] = False
    np.save(folder / "kept.npy", mask)
    (folder / "r.yaml").write_text(
        "vtcompress: 1\ncompress:\n- yopo:\n    heads: {mask: kept.npy}\n    window: 3\n"
        "    mlp_ratio: 2\n    off_from: 3\n"
    )
    recipe = vtcompress.load_recipe(folder / "r.yaml").override(
        {"model.id": str(model), "validate.data": questions, "validate.max_new_tokens": 4}
    )
    vtcompress.export(recipe, folder / "artifact", bench_rounds=1)
    return folder / "artifact"


def test_bytes_of_cut_caches_are_measured_and_exactly_those_predicted(cut_artifact):
    data = read_report(cut_artifact)
    measured, predicted = data.manifest.measured, data.manifest.predicted
    full, text = measured.visual + measured.text, measured.text
    assert measured.kv_layers == (full, 0, full, text)
    assert measured.exit_layer == 3
    # K and V of heads of 16, four bytes each: rows of one, none, two and no key/value heads.
    held = (full + text) + 2 * text + 2 * full + 2 * text
    assert measured.kv_bytes == held * 2 * 16 * 4 == predicted.kv_bytes
    assert measured.kv_bytes_original == 4 * 2 * full * 2 * 16 * 4 == predicted.kv_bytes_original
    text = (cut_artifact / "report.md").read_text(encoding="utf-8")
    assert "Measured and predicted KV bytes are equal." in text
    # The mask prunes head 3 of layer 2, and its key/value head stays.
    assert "layer 2: 3" in section(text, "Layers")
    assert str(cut_artifact.parent) not in text + (cut_artifact / "README.md").read_text()


def test_a_reply_tells_the_exit_behind_pruned_heads(cut_artifact, questions):
    picture = next(questions.parent.rglob("*.png"))
    runtime = Runtime.load(cut_artifact)
    assert runtime.answer("what is this", [picture], max_new_tokens=2).exit_layer == 3
    assert runtime.answer("what is this", max_new_tokens=2).exit_layer is None
    assert {layer for layer, _ in read_report(cut_artifact).manifest.loss.exits} == {3}
