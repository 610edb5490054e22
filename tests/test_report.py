"""The report of an artifact: what was frozen, both verdicts apart from each other, and nothing promised."""

import pytest

from export.manifest import Manifest
from export.report import bench_rows, layer_rows, loss_row, markdown_report, what_visual_rows_do
from tests import facts

PLAN = facts.plan(frozen=(1, 4), dead=(5,))


def report(**changes):
    return markdown_report(Manifest(files={}, **facts.manifest_fields(PLAN, **changes)), PLAN)


def section(text, title):
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table(text):
    """Return the rows of the only table of a section, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    return [cells(line) for line in lines[2:]]


def test_every_layer_is_listed_with_what_visual_rows_do_in_it():
    rows = table(section(report(), "Layers"))
    assert [(r[0], r[1]) for r in rows] == [
        ("0", "updated"),
        ("1", "frozen (shortv)"),
        ("2", "updated"),
        ("3", "updated"),
        ("4", "frozen (shortv)"),
        ("5", "frozen (dead rows: exact)"),
    ]
    assert [what_visual_rows_do(layer) for layer in PLAN.layers] == [r[1] for r in rows]


def test_a_layers_figures_are_before_and_after():
    # 76 rows of which 64 text: D = H*d = 16, KV width 8, M = 24; in millions, one decimal.
    full = 4 * 76 * 16 * 8 + 4 * 76 * 16 * 16 + 4 * 76 * 76 * 16 + 6 * 76 * 16 * 24
    frozen = 4 * 76 * 16 * 8 + 4 * 64 * 16 * 16 + 4 * 64 * 76 * 16 + 6 * 64 * 16 * 24
    rows = layer_rows(PLAN)
    assert rows[0][2:] == (f"{full / 1e6:.1f}", f"{full / 1e6:.1f}")
    assert rows[1][2:] == (f"{full / 1e6:.1f}", f"{frozen / 1e6:.1f}")


def test_the_number_of_frozen_layers_and_the_workload_are_said():
    text = section(report(), "Predicted")
    assert "3 of 6 layers frozen for visual rows" in text
    assert "For 1 image(s), 12 visual and 64 text rows" in text
    assert table(text)[0][-1] == "2.00 x"
    assert table(text)[1] == ["KV cache bytes (float32)", "4,096", "4,096", "1.00 x"]


def test_the_head_says_how_much_work_is_left_and_that_the_weights_do_not_shrink():
    head = report().split("\n## ")[0]
    assert head.startswith("# owner/little-model, compressed by vtcompress 0.0.1\n")
    assert "**50%** of the original's work (predicted speed-up 2.00 x)" in head
    assert "The weight file does not shrink" in head


@pytest.mark.parametrize(
    ("fidelity", "loss", "line"),
    [
        (None, None, "Export fidelity: not run. Compression loss: not run."),
        ((), (), "Export fidelity: passed. Compression loss: passed."),
        (("x",), (), "Export fidelity: **FAILED**. Compression loss: passed."),
        ((), ("x",), "Export fidelity: passed. Compression loss: **FAILED**."),
        (("x",), None, "Export fidelity: **FAILED**. Compression loss: not run."),
    ],
)
def test_the_two_verdicts_are_told_apart(fidelity, loss, line):
    text = report(
        fidelity=None if fidelity is None else facts.fidelity(fidelity),
        loss=None if loss is None else facts.loss(loss),
    )
    assert f"- {line}\n" in text.split("\n## ")[0]


def test_the_failing_lines_of_each_check_stand_in_its_own_section():
    text = report(fidelity=facts.fidelity(["prefill: shape"]), loss=facts.loss(["mean KL is 2"]))
    first, second = (
        section(text, t) for t in ("Check 1: export fidelity", "Check 2: compression loss")
    )
    assert "**Failed:**\n\n- prefill: shape" in first
    assert "**Failed:**\n\n- mean KL is 2" in second
    assert "mean KL is 2" not in first
    assert "prefill: shape" not in second
    assert "Passed." not in first + second


def test_checks_that_passed_and_checks_that_did_not_run_say_so():
    passed, absent = report(fidelity=facts.fidelity(), loss=facts.loss()), report()
    for title in ("Check 1: export fidelity", "Check 2: compression loss"):
        assert "Passed." in section(passed, title)
        assert "Failed" not in section(passed, title)
        assert "Not run" in section(absent, title)
        assert "Passed." not in section(absent, title)


def test_fidelity_is_shown_with_the_worst_call_of_each_measure_beside_its_limit():
    rows = table(section(report(fidelity=facts.fidelity()), "Check 1: export fidelity"))
    assert rows == [
        ["max abs", "3.00e-06", "<= 0.001", "1 images, T=9: prefill"],
        ["max relative", "2.00e-06", "<= 0.001", "2 images, T=5: decode step 3"],
        ["cosine", "0.9999999", ">= 0.99999", "0 images, T=9: later turn"],
    ]


def test_loss_is_shown_over_all_and_for_every_kind_with_its_limits():
    unknown = facts.figures("count", samples=3, exact_match_original=None, exact_match=None)
    text = report(loss=facts.loss((), [unknown], max_kl=0.5, min_agreement=0.8))
    rows = table(section(text, "Check 2: compression loss"))
    assert rows == [
        ["all", "8", "0.0123", "0.400", "87.5%", "90.0%", "100.0%", "75.0%", "75.0%"],
        ["count", "3", "0.0123", "0.400", "87.5%", "90.0%", "-", "-", "-"],
    ]
    assert "Data: heldout.jsonl. Limits: max_kl 0.5, min_agreement 0.8." in text
    assert "Right answers kept: **75.0%** of the original's" in text
    assert list(loss_row(unknown)) == rows[1]


def test_without_limits_the_figures_are_said_to_be_reported_only():
    assert "Limits: none, figures are reported only." in report(loss=facts.loss())


def test_measured_ratios_stand_beside_their_spread_or_are_said_to_be_missing():
    text = report(measured=facts.measured())
    rows = table(section(text, "Measured"))
    assert rows[0] == ["prefill", "20.00", "12.50", "1.60 x (1.55 to 1.65)"]
    assert [r[0] for r in rows] == [name for name, _ in bench_rows(facts.measured())]
    assert "Measured: prefill **1.60 x (1.55 to 1.65)**" in text
    assert section(report(), "Measured").strip() == "Not measured."


def test_a_pipe_in_a_name_does_not_break_the_table():
    text = report(loss=facts.loss((), [facts.figures("a|b")]))
    assert "| a\\|b | 8 |" in section(text, "Check 2: compression loss")
    table(section(text, "Check 2: compression loss"))


def test_a_line_break_in_a_name_does_not_break_the_table():
    text = report(loss=facts.loss((), [facts.figures("a\nb")]))
    assert len(table(section(text, "Check 2: compression loss"))) == 2


def test_what_it_was_made_with_is_listed_by_name():
    text = section(report(), "Made with")
    assert table(text) == [["python", "3.11.7"], ["vtcompress", "0.0.1"]]
    assert f"Model digest `{facts.DIGEST}`" in text
    assert "Peak memory of the export: 300 MiB" in text
