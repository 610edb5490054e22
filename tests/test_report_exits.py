"""Exits in what people read: told from frozen layers, counted where gates decide, their bytes measured."""

import json
import re
import xml.etree.ElementTree as ET

import pytest
import torch
from safetensors.torch import save_file

import vtcompress
from compressor.plan.cost import predict
from compressor.plan.dead_rows import freeze_dead_rows
from compressor.plan.layer import LayerPlan
from compressor.profile import SampleScore
from export.report.charts.bars import contribution_chart, exit_chart
from export.report.charts.decoder import decoder_picture
from export.report.compare.comparison import compare_artifacts, comparison_table
from export.report.compare.tradeoff_chart import tradeoff_chart
from export.report.data import figures
from export.report.pages.model_card import Origin, model_card
from export.report.pages.report import html_report, markdown_report
from export.report.sections.layers import layer_table
from export.report.words.exits import (
    cache_table,
    cache_words,
    exits_table,
    gates_words,
    mean_words,
    staying,
    timed_plan,
)
from export.report.words.methods import state
from export.report.words.states import GATE
from export.runtime.runtime import Runtime
from export.session.session import cached_rows, exit_of
from tests import facts
from tests.artifacts import make_artifact
from tests.test_charts import NAME, drawn, of_class, words
from tests.test_compare import with_kept, with_speed
from tests.test_html_report import PROFILE, Structure
from tests.test_report import section, table, tables
from vtcompress.cli.main import run_command
from vtcompress.stages.report import read_report

# Layer 1 frozen, layer 3 dead, no visual tokens in layers 4 and 5.
FIXED = facts.plan(frozen=(1,), dead=(3,), exit_layer=4)
# Gates behind layers 1 and 3: of ten prompts six leave behind layer 1, three behind layer 3.
GATED = facts.plan(dead=(5,), gates=facts.gates())
UNCOUNTED = facts.plan(dead=(5,), gates=facts.gates((), 0, mode="staged"))


def exited(folder, **changes):
    changes = {
        "frozen": (1,),
        "dead": (3,),
        "exit_layer": 4,
        "measured": facts.measured(4),
    } | changes
    return read_report(make_artifact(folder, **changes))


def gated(folder, **changes):
    loss = facts.loss().model_copy(update={"exits": ((2, 5), (4, 1))})
    given = {"frozen": (), "gates": facts.gates(), "measured": facts.measured(2), "loss": loss}
    return read_report(make_artifact(folder, **given | changes))


def test_an_exit_is_read_off_the_lengths_of_the_caches():
    assert exit_of((76, 76, 64, 64), 12, 64) == 2
    assert exit_of((64, 64, 64), 0, 64) is None
    assert exit_of((), 0, 64) is None
    # 6 of the 12 visual rows are kept, from the start or from a layer on: that is no exit.
    assert exit_of((70, 70), 12, 64) is None
    assert exit_of((76, 70, 64), 12, 64) == 2
    caches = facts.plan(exit_layer=1).caches()
    shapes = [(1, 2, rows, 4) for rows in (76, 64, 64, 64, 64, 64) for _ in "kv"]
    assert cached_rows(caches, shapes) == (76, 64, 64, 64, 64, 64)


def test_visual_tokens_stay_up_to_the_exit_or_in_the_share_of_prompts_whose_gates_did_not_fire():
    assert staying(facts.plan(frozen=(1, 2))) == (1, 1, 1, 1, 1, 1)
    assert staying(FIXED) == (1, 1, 1, 1, 0, 0)
    # Behind a gate: visual rows of that very layer ran already.
    assert staying(GATED) == (1, 1, 0.4, 0.4, 0.1, 0.1)
    assert staying(UNCOUNTED) == (1, 1, 1, 1, 1, 1)


def test_the_share_of_prompts_is_that_of_the_predicted_cache():
    """The picture's share and the predicted figures count the same prompts, by two ways."""
    for share, values in zip(staying(GATED), predict(GATED).layer_kv_values, strict=True):
        assert values == pytest.approx(2 * 8 * (64 + 12 * share), abs=0.5)


def test_a_table_of_layers_tells_exited_frozen_dead_and_gates_apart():
    assert [row[1] for row in layer_table(FIXED, "float32").rows] == [
        "updated",
        "frozen (shortv)",
        "updated",
        "frozen (dead rows: nobody reads them)",
        "exited (visual_exit)",
        "exited (visual_exit)",
    ]
    assert [row[1] for row in layer_table(GATED, "float32").rows] == [
        "updated",
        "updated; gate behind it",
        "updated in 40% of prompts",
        "updated in 40% of prompts; gate behind it",
        "updated in 10% of prompts",
        "frozen (dead rows: nobody reads them) in 10% of prompts",
    ]
    baked = facts.plan(exit_layer=5, reason="dyvte")
    assert layer_table(baked, "float32").rows[5][1] == "exited (dyvte)"


def test_an_exited_layer_draws_no_visual_token_at_all_below_a_bar():
    root = drawn(decoder_picture(FIXED, "float32"))
    assert [w for w in words(root) if w in ("frozen", "dead", "exited")] == [
        "frozen", "dead", "exited", "exited",
    ]  # fmt: skip
    # Three boxes in each updated layer, K and V in frozen and dead ones, none behind the exit; and bars.
    assert len(of_class(root, "updated")) == 2 * 3 + 2 * 1 + 6 * 2
    assert len(of_class(root, "pass")) == 2
    assert len(of_class(root, "gone")) == 2
    (bar,) = of_class(root, "exit")
    first = next(e for e in root.iter(f"{NAME}text") if e.text == "exited")
    assert 0 < float(first.get("y")) - float(bar.get("y1")) < 16
    assert "exited in 2 of 6 layers (4, 5)" in root[1].text
    assert of_class(drawn(decoder_picture(facts.plan(frozen=(4, 5)), "float32")), "exit") == []


def test_the_cache_bar_of_an_exited_layer_holds_text_tokens_only():
    root = drawn(decoder_picture(FIXED, "float16"))
    hints = [e.find(f"{NAME}title").text for e in root.iter(f"{NAME}rect") if len(e)]
    full, text = 76 * 8 * 2 * 2, 64 * 8 * 2 * 2
    assert hints[1::2] == [f"{full:,} of {full:,}"] * 4 + [f"{text:,} of {full:,}"] * 2


def test_gates_are_marked_behind_their_layers_and_boxes_are_filled_by_shares():
    root = drawn(decoder_picture(GATED, "float32"))
    lines = of_class(root, "gate")
    assert len(lines) == 2
    # One more diamond explains the mark.
    assert len(of_class(root, "gate-mark")) == 3
    heights = {e.get("height") for e in of_class(root, "updated") if e.get("x") == "60"}
    assert heights == {"12", "4.8", "1.2"}
    assert "gates behind layers 1, 3" in root[1].text
    assert "2: 40%" in root[1].text
    assert "5: 10%" in root[1].text
    assert of_class(drawn(decoder_picture(FIXED, "float32")), "gate-mark") == []


def test_contribution_draws_exited_layers_hollow_and_frozen_ones_striped():
    root = drawn(contribution_chart(PROFILE.mean("layer_contribution"), 1, FIXED))
    assert len(of_class(root, "hollow")) == 2
    assert len([e for e in root.iter(f"{NAME}rect") if "url(#" in (e.get("fill") or "")]) == 2
    assert words(root).count("exited") == 2
    assert "not updated: 1, 3. Layers without visual tokens: 4, 5." in root[1].text


def exits_profile(*measures):
    """A profile of one sample; what is not measured is not in it."""
    sample = SampleScore(
        visual=12,
        text=64,
        layer_contribution=PROFILE.mean("layer_contribution")
        if "layer_contribution" in measures
        else (),
        exit_kl=(4.0, 2.0, 1.0, 0.5, 0.04, 0.002) if "exit_kl" in measures else (),
    )
    return PROFILE.model_copy(update={"measures": measures, "samples": (sample,)})


def test_what_every_exit_changes_is_drawn_with_the_chosen_exit_and_the_bound():
    root = drawn(exit_chart((4.0, 2.0, 1.0, 0.5, 0.04, 0.002), 8, 4, 0.05))
    stripes = [e for e in root.iter(f"{NAME}rect") if "url(#" in (e.get("fill") or "")]
    assert [e.find(f"{NAME}title").text for e in stripes] == ["layer 4: 0.04 nats"]
    assert words(root).count("exit") == 1
    assert "allowed: 0.05" in words(root)
    (bound,) = of_class(root, "mark")
    chosen = float(stripes[0].get("x")) + float(stripes[0].get("width"))
    assert chosen < float(bound.get("x1"))
    assert root[1].text.endswith("Chosen: layer 4 (0.04 nats). Allowed: 0.05 nats.")
    # Gates have no exit to mark, and a bound outside the axis has no place on it.
    bare = drawn(exit_chart((4.0, 2.0), 8, None, 100.0))
    assert of_class(bare, "mark") == []
    assert "exit" not in words(bare)


@pytest.mark.parametrize(
    ("measures", "drawings"),
    [
        (("layer_contribution",), ["decoder", "contribution", "speed"]),
        (("exit_kl",), ["decoder", "exit", "speed"]),
        (("layer_contribution", "exit_kl"), ["decoder", "contribution", "exit", "speed"]),
        (("gate_margin",), ["decoder", "speed"]),
    ],
)
def test_reports_show_what_calibration_measured_and_nothing_else(tmp_path, measures, drawings):
    recipe = "vtcompress: 1\ncompress:\n- visual_exit: {max_kl: 0.05}\n"
    data = exited(tmp_path / "a", profile=exits_profile(*measures), recipe=recipe)
    page = html_report(data)
    assert re.findall(r'aria-labelledby="(\w+)-title"', page) == drawings
    assert "not chosen by calibration" not in page
    assert ("Allowed: 0.05 nats." in page) is ("exit" in drawings)
    rows = table(section(markdown_report(data), "Layers"))
    contribution = ["0.001"] if "contribution" in drawings else []
    exits = ["2"] if "exit" in drawings else []
    assert rows[1][4:-2] == [*contribution, *exits]
    layer = figures(data)["layers"][1]
    assert layer["exit_kl"] == (2.0 if exits else None)
    assert layer["contribution"] == (0.001 if contribution else None)


def test_a_token_that_takes_longer_is_not_sold_as_a_gain(tmp_path):
    measured = facts.measured(4)
    step = measured.decode_step.model_copy(
        update={"ratio": 0.35, "ratio_low": 0.3, "ratio_high": 0.4}
    )
    slow = exited(tmp_path / "a", measured=measured.model_copy(update={"decode_step": step}))
    text = section(markdown_report(slow), "In short")
    assert "Measured per token: slower, 2.86 times the original's time." in text


def test_a_method_is_named_without_folders_and_without_what_only_training_reads(tmp_path):
    recipe = (
        "vtcompress: 1\ncompress:\n- dyvte:\n    gates: /some/folder/g.safetensors\n"
        "    exit: staged\n    candidates: [1, 3]\n    gate_width: 64\n    train: {steps: 9}\n"
    )
    data = gated(tmp_path / "a", recipe=recipe)
    named = "dyvte (gates: g.safetensors, exit: staged, candidates: 1, 3)"
    assert named in Structure(html_report(data)).text
    for text in (html_report(data), markdown_report(data), model_card(data, Origin())):
        assert "gate_width: 64" not in text.split("vtcompress: 1")[0]
    method = {"gates": "g.safetensors", "exit": "staged", "candidates": [1, 3]}
    assert json.loads(json.dumps(figures(data)))["methods"] == [{"dyvte": method}]


@pytest.mark.parametrize(
    ("gates", "line"),
    [
        (facts.gates((), 0, mode="staged"), "How often they fire was not counted in calibration."),
        (facts.gates((0, 0), 4), "In none of the 4 calibration prompts did a gate fire."),
        (
            facts.gates((1, 2), 0),
            "In 3 of 3 calibration prompts a gate fired, most often behind layer 3",
        ),
    ],
)
def test_what_gates_did_in_calibration_is_said_or_said_to_be_unknown(gates, line):
    assert any(line in sentence for sentence in gates_words(gates))
    cut = "cut into 3 graphs" in " ".join(gates_words(gates))
    assert cut is (gates.mode == "staged")


def test_predicted_figures_say_what_they_stand_for():
    assert mean_words(FIXED) == ""
    assert "mean over the exits of 10 calibration prompts" in mean_words(GATED)
    assert "no gate fires, the dearest one" in mean_words(UNCOUNTED)


def test_exits_are_counted_beside_each_other_for_calibration_and_validation(tmp_path):
    data = gated(tmp_path / "a")
    nowhere = "nowhere: no gate fires, or no picture"
    rows = [
        ["behind layer 1", "6", "5"],
        ["behind layer 3", "3", "1"],
        # Eight questions, six of which exited.
        [nowhere, "1", "2"],
    ]
    assert tables(section(markdown_report(data), "Layers"))[0] == rows
    # Gates behind which nothing left are not listed, and nothing is where nothing was counted.
    assert exits_table(GATED.model_copy(update={"gates": facts.gates((0, 3), 7)}), None).rows == [
        ("behind layer 3", "3", "-"),
        (nowhere, "7", "-"),
    ]
    assert exits_table(UNCOUNTED, data.manifest.loss).rows == [
        ("behind layer 1", "-", "5"),
        ("behind layer 3", "-", "1"),
        (nowhere, "-", "2"),
    ]
    assert exits_table(UNCOUNTED, None) is None
    assert exits_table(FIXED, data.manifest.loss) is None
    found = Structure(html_report(data))
    assert "Where visual tokens leave" in found.text
    assert "behind layer 1 6 5" in found.text
    assert f"{GATE[0]} : {GATE[1]}" in found.text
    assert "| behind layer 1 | 6 | 5 |" in model_card(data, Origin())


EXITED = state(LayerPlan(index=1, visual="exited", reason="visual_exit"))[1]
FROZEN = state(LayerPlan(index=1, visual="frozen", reason="shortv"))[1]


def test_the_page_explains_each_state_that_it_shows_and_no_other(tmp_path):
    text = Structure(html_report(exited(tmp_path / "a", profile=PROFILE))).text
    assert f"exited : {EXITED}." in text
    assert f"frozen : {FROZEN}." in text
    assert "a dotted line under the thick bar" in text
    assert "hollow: exited" in text
    assert GATE[1] not in text
    frozen = Structure(html_report(exited(tmp_path / "b", exit_layer=None))).text
    assert EXITED not in frozen
    assert "thick bar" not in frozen
    assert "Where visual tokens leave" not in frozen


def test_measured_bytes_stand_beside_those_predicted_for_the_timed_prompt(tmp_path):
    # 64 text rows everywhere, 12 visual rows up to layer 4; K and V of width 8, four bytes each.
    before, after = 6 * 76 * 8 * 2 * 4, (4 * 76 + 2 * 64) * 8 * 2 * 4
    text = section(markdown_report(exited(tmp_path / "a")), "Speed")
    assert tables(text)[2] == [
        ["predicted for this prompt", f"{before:,}", f"{after:,}", f"{before / after:.2f} x"],
        ["measured", f"{before:,}", f"{after:,}", f"{before / after:.2f} x"],
    ]
    assert (
        "From layer 4 on, caches hold text tokens only. Measured and predicted KV bytes are equal"
        in text
    )
    page = Structure(html_report(exited(tmp_path / "b"))).text
    assert "Measured and predicted KV bytes are equal." in page
    assert "| KV cache bytes (float32) | 1.06 x | measured |" in model_card(
        exited(tmp_path / "c"), Origin()
    )


def test_bytes_that_are_not_those_of_the_plan_are_said_to_differ():
    """The graphs of another exit, or of a plan that freezes only."""
    for report in (facts.measured(3), facts.measured(None)):
        assert "KV bytes DIFFER" in cache_words(FIXED, report, "float32")
    assert "DIFFER" in cache_words(FIXED, facts.measured(4), "float16")
    assert "are equal" in cache_words(FIXED, facts.measured(4), "float32")


@pytest.mark.parametrize(
    ("exit_layer", "line"),
    [(2, "a gate fired behind layer 1."), (4, "behind layer 3."), (None, "no gate fired.")],
)
def test_with_gates_the_prediction_is_that_of_the_timed_prompts_own_exit(exit_layer, line):
    report = facts.measured(exit_layer)
    said = cache_words(GATED, report, "float32")
    assert f"{line} Measured and predicted KV bytes for this exit are equal." in said
    rows = cache_table(GATED, report, "float32").rows
    assert rows[0][1:] == rows[1][1:]
    assert timed_plan(GATED, report).exit_layer == exit_layer


def test_the_prediction_is_for_the_prompt_that_was_timed_not_for_the_plans():
    report = facts.measured(4).model_copy(update={"text": 10})
    assert timed_plan(FIXED, report).workload.text == 10
    assert "DIFFER" in cache_words(FIXED, report, "float32")


def test_the_headline_names_the_cache_only_where_it_shrinks(tmp_path):
    page = markdown_report(exited(tmp_path / "a"))
    assert "of the original's work for that reading is left (FLOPs)\n" in page
    predicted = facts.manifest_fields()["predicted"].model_copy(update={"kv_bytes": 1024})
    page = markdown_report(exited(tmp_path / "b", predicted=predicted))
    assert "of the original's work for that reading is left (FLOPs), 25% of its KV cache\n" in page


def test_a_card_does_not_say_that_decode_is_no_faster_where_it_may_be(tmp_path):
    assert "Decode steps are not faster" not in model_card(exited(tmp_path / "a"), Origin())
    assert "Decode steps are not faster" not in model_card(gated(tmp_path / "b"), Origin())
    frozen = exited(tmp_path / "c", exit_layer=None)
    assert "Decode steps are not faster" in model_card(frozen, Origin())


def test_figures_for_dashboards_hold_exits_gates_and_bytes(tmp_path):
    document = json.loads(json.dumps(figures(exited(tmp_path / "a")), allow_nan=False))
    assert (document["frozen_layers"], document["exit_layer"]) == (2, 4)
    assert [layer["visual"] for layer in document["layers"]][4:] == ["exited"] * 2
    assert [layer["visual_stays"] for layer in document["layers"]] == [1, 1, 1, 1, 0, 0]
    assert document["gates"] is None
    cache = document["kv_cache"]
    assert cache["bytes"] == cache["bytes_predicted"] < cache["bytes_original"]
    assert cache["exit_layer"] == 4
    document = figures(gated(tmp_path / "b"))
    assert document["exit_layer"] is None
    assert document["gates"]["fired"] == [6, 3]
    assert document["loss"]["exits"] == [[2, 5], [4, 1]]
    assert figures(gated(tmp_path / "c", measured=None))["kv_cache"] is None


def test_a_comparison_tells_exits_gates_cache_and_decode_apart(tmp_path):
    small = facts.manifest_fields()["predicted"].model_copy(update={"kv_bytes": 1024})
    folders = {"frozen": {}, "exit": {"dead": (3,), "exit_layer": 4, "predicted": small},
               "gates": {"gates": facts.gates()}}  # fmt: skip
    made = [
        make_artifact(
            tmp_path / name, measured=with_speed(1.5 + place), loss=with_kept(1.0), **changes
        )
        for place, (name, changes) in enumerate(folders.items())
    ]
    comparison = compare_artifacts(made)
    rows = {name: cells for name, *cells in comparison_table(comparison).rows}
    assert rows["frozen layers"] == ["3 of 6", "2 of 6", "3 of 6"]
    assert rows["exited layers"] == ["none", "2 of 6, from layer 4 on", "by 2 gates, dynamic"]
    assert rows["KV cache, predicted"] == ["100%", "25%", "100%"]
    assert rows["measured decode step"] == ["1.00 x (0.95 to 1.05)"] * 3
    root = ET.fromstring(str(tradeoff_chart(comparison)))
    # A circle, a square and a diamond; each once more in the legend.
    assert len(list(root.iter(f"{NAME}circle"))) == 2
    shapes = [len(e.get("points").split()) for e in root.iter(f"{NAME}polygon")]
    assert shapes == [4] * 4
    assert {"stay", "leave at an exit", "may leave at gates"} <= set(words(root))
    assert "exit: 2.50 times, 100.0%, visual tokens leave" in root[1].text
    alone = ET.fromstring(str(tradeoff_chart(compare_artifacts([made[0]] * 2))))
    assert "visual tokens" not in words(alone)


@pytest.fixture(scope="module")
def exit_artifact(tiny_model, questions, tmp_path_factory):
    """Return an artifact of a real little model whose visual rows leave before layer 1 of 2."""
    folder = tmp_path_factory.mktemp("exit")
    model = {"model.id": str(tiny_model)}
    plan = vtcompress.plan(vtcompress.load_recipe("identity").override(model))
    recipe = vtcompress.load_recipe("vtw").override(
        {**model, "validate.data": questions, "validate.max_new_tokens": 4}
    )
    layers = freeze_dead_rows(
        (LayerPlan(index=0), LayerPlan(index=1, visual="exited", reason="visual_exit"))
    )
    plan = plan.model_copy(update={"layers": layers})
    vtcompress.compress(recipe, plan, folder / "small")
    vtcompress.export(recipe, folder / "artifact", compressed=folder / "small", bench_rounds=1)
    return folder / "artifact"


def test_the_bytes_of_an_exit_artifact_are_measured_and_exactly_those_predicted(exit_artifact):
    manifest = read_report(exit_artifact).manifest
    measured, predicted = manifest.measured, manifest.predicted
    assert (measured.images, measured.text) == (predicted.images, predicted.text)
    assert measured.exit_layer == 1
    assert measured.kv_layers[0] - measured.kv_layers[1] == measured.visual == predicted.visual
    assert measured.kv_bytes == predicted.kv_bytes < predicted.kv_bytes_original
    assert measured.kv_bytes_original == predicted.kv_bytes_original
    assert "are equal." in (exit_artifact / "report.md").read_text(encoding="utf-8")


def test_bench_tells_bytes_and_exit_of_another_prompt_too(exit_artifact, capsys):
    assert (
        run_command(["bench", str(exit_artifact), "--rounds", "1", "--text", "9", "--images", "2"])
        == 0
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "From layer 1 on, caches hold text tokens only." in said
    assert "Measured and predicted KV bytes are equal." in said
    # 41 rows in layer 0, 9 in layer 1; K and V of two heads of 16, four bytes each.
    assert f"{(41 + 9) * 2 * 2 * 16 * 4:,}" in said


def test_a_reply_tells_where_visual_rows_left_and_nothing_where_there_were_none(
    exit_artifact, tiny_artifact, questions
):
    picture = next(questions.parent.rglob("*.png"))
    runtime = Runtime.load(exit_artifact)
    assert runtime.answer("what is this", [picture], max_new_tokens=2).exit_layer == 1
    assert runtime.answer("what is this", max_new_tokens=2).exit_layer is None
    stays = Runtime.load(tiny_artifact).answer("what is this", [picture], max_new_tokens=2)
    assert stays.exit_layer is None


def test_the_loss_check_counts_the_exits_of_its_questions(exit_artifact):
    loss = read_report(exit_artifact).manifest.loss
    stored = json.loads((exit_artifact / "validation" / "compressed.json").read_text())["answers"]
    original = json.loads((exit_artifact / "validation" / "original.json").read_text())["answers"]
    with_picture = sum("exit_layer" in answer for answer in stored)
    assert loss.exits == ((1, with_picture),)
    assert 0 < with_picture <= len(stored)
    assert not any("exit_layer" in answer for answer in original)


@pytest.fixture(scope="module", params=["dynamic", "staged"])
def gated_artifact(request, tiny_model, questions, tmp_path_factory):
    """Return an artifact of a real little model whose only gate, behind layer 0, always fires."""
    folder = tmp_path_factory.mktemp("gated")
    generator = torch.Generator().manual_seed(0)
    # The sum of GELUs of many values is positive: logit 1 is greater by its double.
    gates = {
        "visual_gates_router.0.w1.weight": torch.randn(64, 128, generator=generator),
        "visual_gates_router.0.w2.weight": torch.stack([-torch.ones(64), torch.ones(64)]),
    }
    save_file(gates, folder / "g.safetensors")
    (folder / "r.yaml").write_text(
        "vtcompress: 1\ncompress:\n- dyvte:\n    gates: g.safetensors\n    candidates: [0]\n"
        f"    exit: {request.param}\n"
    )
    recipe = vtcompress.load_recipe(folder / "r.yaml").override(
        {"model.id": str(tiny_model), "validate.data": questions, "validate.max_new_tokens": 4}
    )
    vtcompress.export(recipe, folder / "artifact", bench_rounds=1)
    return folder / "artifact"


def test_the_exit_of_gates_is_measured_and_its_bytes_are_those_predicted_for_it(gated_artifact):
    data = read_report(gated_artifact)
    measured, loss = data.manifest.measured, data.manifest.loss
    assert measured.exit_layer == 1
    rows = 64 + measured.visual
    assert measured.kv_layers == (rows, 64)
    # K and V of two heads of 16, four bytes each; nothing fires in the prediction of the plan.
    assert measured.kv_bytes == (rows + 64) * 2 * 2 * 16 * 4
    assert measured.kv_bytes < data.manifest.predicted.kv_bytes == measured.kv_bytes_original
    assert loss.exits[0][0] == 1
    assert len(loss.exits) == 1
    report = (gated_artifact / "report.md").read_text(encoding="utf-8")
    assert (
        "a gate fired behind layer 0. Measured and predicted KV bytes for this exit are equal."
        in report
    )
    assert f"| behind layer 0 | - | {loss.exits[0][1]} |" in report
    assert "g.safetensors" in report
    assert str(gated_artifact.parent) not in report
