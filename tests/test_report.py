"""The report of an artifact: what was frozen, both verdicts apart from each other, and nothing promised."""

import re

import pytest

from compressor.samples.questions import Sample
from export.artifact.manifest import Manifest
from export.report.data import ReportData
from export.report.pages.report import markdown_report
from export.report.questions import Question
from export.report.sections.layers import layer_table, what_visual_rows_do
from export.results.bench import bench_rows
from tests import facts

PLAN = facts.plan(frozen=(1, 4), dead=(5,))


def report(*, profile=None, recipe="", questions=(), **changes):
    manifest = Manifest(files={}, **facts.manifest_fields(PLAN, **changes))
    return markdown_report(ReportData(manifest, PLAN, profile, recipe, (), tuple(questions)))


def section(text, title):
    return text.split(f"\n## {title}")[1].split("\n## ")[0]


def cells(line):
    # A pipe ends a cell unless a backslash, itself not escaped, stands before it.
    found = re.findall(r"((?:\\.|[^|\\])*)\|", line)[1:]
    return [re.sub(r"\\([<>])", r"\1", cell.strip()) for cell in found]


def table(text):
    """Return the rows of the only table of a section, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    return [cells(line) for line in lines[2:]]


def tables(text):
    """Return the rows of every table of a section, without their heads."""
    blocks, inside = [], False
    for line in text.splitlines():
        if line.startswith("|") and not inside:
            blocks.append([])
        inside = line.startswith("|")
        if inside:
            blocks[-1].append(cells(line))
    return [block[2:] for block in blocks]


def test_every_layer_is_listed_with_what_visual_rows_do_in_it():
    rows = table(section(report(), "Layers"))
    assert [(r[0], r[1]) for r in rows] == [
        ("0", "updated"),
        ("1", "frozen (shortv)"),
        ("2", "updated"),
        ("3", "updated"),
        ("4", "frozen (shortv)"),
        ("5", "frozen (dead rows: nobody reads them)"),
    ]
    assert [what_visual_rows_do(layer) for layer in PLAN.layers] == [r[1] for r in rows]


def test_a_layers_figures_are_before_and_after():
    # 76 rows of which 64 text: D = H*d = 16, KV width 8, M = 24; in millions, one decimal.
    full = 4 * 76 * 16 * 8 + 4 * 76 * 16 * 16 + 4 * 76 * 76 * 16 + 6 * 76 * 16 * 24
    frozen = 4 * 76 * 16 * 8 + 4 * 64 * 16 * 16 + 4 * 64 * 76 * 16 + 6 * 64 * 16 * 24
    rows = layer_table(PLAN, "float32").rows
    assert rows[0][2:4] == (f"{full / 1e6:.1f}", f"{full / 1e6:.1f}")
    assert rows[1][2:4] == (f"{full / 1e6:.1f}", f"{frozen / 1e6:.1f}")


def test_the_head_says_how_much_work_is_left_and_that_the_weights_do_not_shrink():
    head = report().split("\n## ")[0]
    assert head.startswith(
        "# owner/little-model, compressed\n\nno compression method · float32 ONNX · vtcompress 0.0.1\n"
    )
    first = "- **2.00 x** less work for reading of picture and question (prefill), predicted"
    assert f"{first}; no time was measured\n" in head
    assert "- **50%** of the original's work for that reading is left (FLOPs)\n" in head
    assert "answers kept: not checked" in head
    assert "the weight file does not shrink" in section(report(), "In short")


@pytest.mark.parametrize(
    ("fidelity", "loss", "first", "second"),
    [
        (None, None, "not run.", "not run."),
        ((), (), "passed.", "passed."),
        (("x",), (), "FAILED.**", "passed."),
        ((), ("x",), "passed.", "FAILED.**"),
        (("x",), None, "FAILED.**", "not run."),
    ],
)
def test_the_two_verdicts_are_told_apart(fidelity, loss, first, second):
    text = report(
        fidelity=None if fidelity is None else facts.fidelity(fidelity),
        loss=None if loss is None else facts.loss(loss, max_kl=1),
    )
    head = text.split("\n## ")[0]
    assert f"Export fidelity (compressed model and its files): {first}\n" in head
    assert f"Compression loss (original and compressed answers): {second}\n" in head


def test_the_failing_lines_of_each_check_stand_in_its_own_section():
    text = report(fidelity=facts.fidelity(["prefill: shape"]), loss=facts.loss(["mean KL is 2"]))
    first, second = (
        section(text, t) for t in ("Check 1: export fidelity", "Check 2: compression loss")
    )
    assert "cosine 0.9999999: FAILED.**\n" in first
    assert "**Compression loss: FAILED.**\n" in second
    assert "- **prefill: shape**" in first
    assert "- **mean KL is 2**" in second
    assert "mean KL is 2" not in first
    assert "prefill: shape" not in second
    assert "passed." not in first + second


def test_checks_that_passed_and_checks_that_did_not_run_say_so():
    passed, absent = report(fidelity=facts.fidelity(), loss=facts.loss(max_kl=1)), report()
    for title in ("Check 1: export fidelity", "Check 2: compression loss"):
        assert ": passed.\n" in section(passed, title)
        assert "FAILED" not in section(passed, title)
        assert ": not run" in section(absent, title)
        assert "passed" not in section(absent, title)


def test_every_limit_stands_beside_what_was_found_and_is_judged_by_itself():
    judged = facts.loss(("mean KL",), max_kl=0.01, min_agreement=0.8, min_exact_match_kept=0.7501)
    rows = tables(section(report(loss=judged), "Check 2: compression loss"))[0]
    assert rows == [
        ["KL mean, nats", "0.0123", "<= 0.01", "failed"],
        ["next token equal", "87.5% (52.9 to 97.8)", ">= 80.0%", "passed"],
        ["common prefix of the answers", "90.0%", "none", "not judged"],
        ["right answers", "75.0% (40.9 to 92.9)", "none", "not judged"],
        ["right answers kept", "75.0% (47.1 to 119.4)", ">= 75.0%", "failed"],
    ]


def test_loss_is_shown_over_all_and_for_every_kind_with_its_limits():
    unknown = facts.figures(
        "count", samples=3, agreement=2 / 3, answered=0, exact_match_original=None, exact_match=None,
        equal_answers=None, right_to_wrong=None, wrong_to_right=None,
    )  # fmt: skip
    text = report(loss=facts.loss((), [unknown], max_kl=0.5, min_agreement=0.8))
    tokens, right = tables(section(text, "Check 2: compression loss"))[1:]
    assert tokens == [
        ["all", "8", "0.0123", "0.4", "87.5% (52.9 to 97.8)", "90.0%", "6"],
        ["count", "3", "0.0123", "0.4", "66.7% (20.8 to 93.9)", "90.0%", "-"],
    ]
    assert right == [
        [
            "all",
            "8",
            "100.0% (67.6 to 100.0)",
            "75.0% (40.9 to 92.9)",
            "75.0% (47.1 to 119.4)",
            "2",
            "0",
        ],
        ["count", "0", "-", "-", "-", "-", "-"],
    ]
    assert "Over all 8 questions of heldout.jsonl" in text
    kept = "- **75.0%** of the original's right answers kept (100.0% right before, 75.0% now); 95% "
    assert f"{kept}interval 47.1 to 119.4%\n" in text.split("\n## ")[0]


def test_without_limits_nothing_is_said_to_have_passed():
    text = report(loss=facts.loss())
    assert "answers): not judged: no limit set." in text.split("\n## ")[0]
    assert "good enough was not judged: no limit set." in section(text, "In short")
    second = section(text, "Check 2: compression loss")
    assert {row[-1] for row in tables(second)[0]} == {"not judged"}
    assert "Compression loss: not judged: no limit set.\n" in second
    assert "assed" not in second


def test_measured_ratios_stand_beside_their_spread_or_are_said_to_be_missing():
    text = report(measured=facts.measured())
    _, rows, cache = tables(section(text, "Speed"))
    assert rows[0] == ["prefill", "20.00", "12.50", "1.60 x (1.55 to 1.65)"]
    assert [r[0] for r in rows] == [name for name, _ in bench_rows(facts.measured())]
    first = "- **1.60 x** faster reading of picture and question (prefill), measured"
    assert f"{first} (quartiles 1.55 to 1.65)\n" in text
    # 76 rows in each of 6 layers, K and V of width 8, four bytes each.
    size = f"{6 * 76 * 8 * 2 * 4:,}"
    assert cache == [
        ["predicted for this prompt", size, size, "1.00 x"],
        ["measured", size, size, "1.00 x"],
    ]
    assert "\nTimes: not measured.\n" in section(report(), "Speed")


def test_a_pipe_in_a_name_does_not_break_the_table():
    text = section(report(loss=facts.loss((), [facts.figures("a|b")])), "Check 2: compression loss")
    assert "| a\\|b | 8 |" in text


@pytest.mark.parametrize("name", ["a\nb", "a\\|b", "`a", "<b>a", "[a](javascript:b)", "# a"])
def test_a_hostile_name_breaks_neither_table_nor_page(name):
    questions = [Question(Sample((), name, name, name), name, name)]
    text = report(loss=facts.loss((name,), [facts.figures(name)]), questions=questions)
    kinds = tables(section(text, "Check 2: compression loss"))[1]
    assert [len(row) for row in kinds] == [7, 7]
    assert len(tables(section(text, "Sample questions"))[0]) == 1
    assert "<b>" not in text.replace("\\<b", "")
    assert re.search(r"(?<!\\)\]\(", text) is None
    assert [line for line in text.splitlines() if line.startswith("# ")] == [
        "# owner/little-model, compressed"
    ]


def test_a_recipe_cannot_end_its_own_code_block():
    text = section(report(recipe="a: 1\n```\n# not a title\n"), "Recipe")
    assert text.strip().startswith("````yaml\n")
    assert text.strip().endswith("\n````")


def test_questions_show_both_answers_and_lost_ones_come_first():
    def asked(number, right, original, compressed):
        return Question(Sample((), f"question {number}", right, "k"), original, compressed)

    questions = [
        asked(1, "a", "a", "a"), asked(2, "a", "b", "a"), asked(3, None, "c", "d"),
        asked(4, "a", "a", "e"), asked(5, "a", "f", "g"),
    ]  # fmt: skip
    text = section(report(loss=facts.loss(), questions=questions), "Sample questions")
    assert "4 of 5 answers differ. 5 are shown, lost answers first." in text
    assert table(text) == [
        ["question 4", "a", "a", "e", "different: was right, is wrong"],
        ["question 2", "a", "b", "a", "different: was wrong, is right"],
        ["question 3", "-", "c", "d", "different"],
        ["question 5", "a", "f", "g", "different: both wrong"],
        ["question 1", "a", "a", "a", "same answer"],
    ]
    assert "None: compression loss was not run." in section(report(), "Sample questions")


def test_layers_show_their_contribution_and_cache():
    measured = facts.profile([[0.5, 0.001, 0.25, 0.25, 0.0, 0.0]])
    rows = table(section(report(profile=measured), "Layers"))
    assert [row[4] for row in rows] == ["0.5", "0.001", "0.25", "0.25", "0", "0"]
    # 76 rows, K and V of width 8, four bytes each.
    assert {tuple(row[5:]) for row in rows} == {(f"{2 * 76 * 8 * 4:,}",) * 2}
    assert {len(row) for row in table(section(report(), "Layers"))} == {6}


def test_times_of_a_busy_machine_are_called_unsteady():
    measured = facts.measured()
    assert "not steady" not in report(measured=measured)
    decode = measured.decode_step.model_copy(update={"ratio_low": 0.9, "ratio_high": 1.2})
    prefill = measured.prefill.model_copy(update={"ratio_low": 1.0, "ratio_high": 2.0})
    busy = measured.model_copy(update={"decode_step": decode, "prefill": prefill})
    text = report(measured=busy)
    assert "These times are not steady (prefill, decode step)" in section(text, "In short")
    assert "measured (not steady: quartiles 1.00 to 2.00)" in text.split("\n## ")[0]
