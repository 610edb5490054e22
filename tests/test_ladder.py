"""The ladder of checks: every rung has its outcome, its proof and its limits; no claim goes beyond them."""

import re
from pathlib import Path
from typing import Any

import onnx
import pytest

from compressor.facts import Facts
from export.artifact.manifest import Compared, Manifest
from export.checks.onnx_checker import check_graphs
from export.graphs.spec import embed_graph
from export.report.data import ReportData, figures
from export.report.pages.model_card import Origin, model_card
from export.report.pages.report import html_report, markdown_report
from export.report.sections.checks import ladder_blocks
from export.report.words import ladder
from export.report.words.ladder import EngineFacts, Rung, claim
from export.results.backend_parity import BackendParity
from export.results.checker import CheckerReport
from tests import facts
from vtcompress.cli.show import show_blocks
from vtcompress.console import Output

ROOT = Path(__file__).parent.parent
PLAN = facts.plan(frozen=(1, 4), dead=(5,))
CHECKED = CheckerReport(version="1.23.2", files=("decoder.onnx",), failures=())
PARITY = BackendParity(
    backend="tensorrt-rtx", precision="f32", device="A card", outputs=facts.fidelity()
)
AHEAD = EngineFacts("tensorrt-rtx", ("SM86", "SM120"), "1.7.1", ("vision", "embed", "decoder"))
RAN = EngineFacts("tensorrt-rtx", ("SM86",), "1.7.1", ("decoder",), parity=PARITY)
ON_DEVICE = EngineFacts("tensorrt", ("SM87",), "10.13", ("decoder",), device="Orin")

# What may be written only where engines have run on a GPU.
CLAIMS = re.compile(
    r"(tested|verified|validated|runs|ran|measured|checked|works) (on|with|in) (a |an |the )?"
    r"(GPUs?|TensorRT|CUDA|Jetson|Orin|Thor|RTX)|faster on (a |an |the )?(GPU|Jetson|Orin|Thor|RTX)",
    re.IGNORECASE,
)
# Sentences that deny it, or say what somebody would have to do.
DENIALS = re.compile(
    r"\b(never|nothing|not|no|none|needs?|until|whether|if|would|where|must)\b", re.IGNORECASE
)


def data(engines: tuple[EngineFacts, ...] = (), **changes: Any) -> ReportData:
    fields = facts.manifest_fields(PLAN, **({"checker": CHECKED} | changes))
    return ReportData(Manifest(files={}, **fields), PLAN, engines=engines)


def outcomes(of: ReportData) -> list[tuple[str, str]]:
    return [(rung.name, rung.outcome) for rung in of.rungs]


def test_rungs_stand_in_order_and_what_did_not_run_says_why_and_what_to_do() -> None:
    found = data(checker=None).rungs
    assert [rung.name for rung in found] == [
        "ONNX checker",
        "ONNX Runtime numerics",
        "TensorRT-RTX parser",
        "TensorRT-RTX engine built ahead of time",
        "Engine run and parity",
    ]
    assert {rung.outcome for rung in found} == {"not run"}
    assert "`vtcompress build ARTIFACT --target tensorrt-rtx`" in found[3].detail
    assert "`vtcompress validate ARTIFACT --backend tensorrt-rtx`" in found[4].detail
    assert claim(found) == "Nothing was checked."


def test_every_proof_says_what_it_does_not_prove() -> None:
    assert all(
        re.search(r"says nothing of|have not run by that", words)
        for words in ladder.PROVES.values()
    )


@pytest.mark.parametrize(
    ("engines", "reached", "on_gpu"),
    [
        ((), "ONNX Runtime numerics", False),
        ((AHEAD,), "TensorRT-RTX engine built ahead of time", False),
        ((ON_DEVICE,), "TensorRT engine built on the device", False),
        ((AHEAD, RAN), "Engine run and parity", True),
    ],
)
def test_the_claim_reaches_the_last_rung_that_ran_and_no_further(
    engines: tuple[EngineFacts, ...], reached: str, on_gpu: bool
) -> None:
    found = data(engines, fidelity=facts.fidelity()).rungs
    words = claim(found)
    assert words.startswith(f"Checked up to: {reached}")
    assert ("Nothing was run on a GPU." in words) is not on_gpu
    assert ladder.ran_on_gpu(found) is on_gpu


def test_engines_are_named_with_what_they_serve_and_who_built_them() -> None:
    parser, built = data((AHEAD,)).rungs[2:4]
    assert parser.detail == "vision, embed, decoder (TensorRT-RTX 1.7.1)"
    assert built.detail == "vision, embed, decoder for SM86, SM120 (builder 1.7.1)"
    device = data((ON_DEVICE,)).rungs
    assert device[4].detail == "decoder for SM87 on Orin (builder 10.13)"
    assert device[2].outcome == "not run"
    assert "on A card: 7 outputs, largest difference 3.00e-06" in data((RAN,)).rungs[-1].detail


def test_one_failure_is_what_is_claimed() -> None:
    refused = CheckerReport(version="1", files=("a.onnx",), failures=("a.onnx: refused",))
    found = data(checker=refused, fidelity=facts.fidelity())
    assert outcomes(found)[0] == ("ONNX checker", "failed")
    assert claim(found.rungs) == "Failed: ONNX checker."
    assert not found.manifest.passed
    assert found.manifest.failures == ("a.onnx: refused",)
    bad = PARITY.model_copy(update={"outputs": facts.fidelity(["prefill: differs"])})
    ran = data((EngineFacts("tensorrt", ("SM87",), "10", ("decoder",), parity=bad),)).rungs[-1]
    assert ran.outcome == "failed"
    assert ran.detail.endswith("missed: prefill: differs")


def test_every_report_shows_every_rung_with_its_proof(capsys: pytest.CaptureFixture[str]) -> None:
    of = data((AHEAD,), fidelity=facts.fidelity())
    show_blocks(Output(), ladder_blocks(of.rungs))
    printed = " ".join(re.sub(r"[│┃]", " ", capsys.readouterr().out).split())
    pages = [markdown_report(of), html_report(of), model_card(of, Origin())]
    for rung in of.rungs:
        for page in pages:
            assert rung.name in page
            assert rung.proves.split(";")[0].replace("'", "&#39;") in page or (
                rung.proves.split(";")[0] in page
            )
        assert rung.name.split()[0] in printed
    assert all(claim(of.rungs) in page for page in (*pages, printed))
    assert [rung["outcome"] for rung in figures(of)["ladder"]] == [r.outcome for r in of.rungs]


def test_reports_deny_a_gpu_until_engines_ran_on_one() -> None:
    without, ran = data((AHEAD,)), data((RAN,))
    assert "Nothing here was run on a GPU." in html_report(without)
    assert "Nothing here was run on a GPU." not in html_report(ran)
    assert "Never run on a GPU." in model_card(without, Origin())
    assert "Never run on a GPU." not in model_card(ran, Origin())


def test_backends_without_engines_that_were_compared_are_a_rung() -> None:
    def compared(*names: str, passed: bool = True) -> ReportData:
        found = [Compared(backend=name, precision="f32", passed=passed) for name in names]
        return data((AHEAD,), compared=tuple(found), fidelity=facts.fidelity())

    assert "Other backends" not in dict(outcomes(compared()))
    cpu, gpu = compared("openvino"), compared("openvino", "onnxruntime-cuda")
    assert outcomes(cpu)[2] == ("Other backends", "passed")
    assert cpu.rungs[2].detail == "openvino (f32): passed"
    assert claim(cpu.rungs).endswith("built ahead of time. Nothing was run on a GPU.")
    assert "Nothing here was run on a GPU." in html_report(cpu)
    assert claim(gpu.rungs).endswith(
        "built ahead of time. On a GPU: Other backends (openvino (f32): passed; "
        "onnxruntime-cuda (f32) on a GPU: passed)."
    )
    assert "was run on a GPU" not in html_report(gpu)
    assert "Never run on a GPU." not in model_card(gpu, Origin())
    missed = compared("openvino", passed=False)
    assert claim(missed.rungs) == "Failed: Other backends."
    # Of a version that has more backends than this one.
    assert "else (f32): passed" in compared("else").rungs[2].detail


def claims_in(text: str) -> list[str]:
    """Return sentences that claim a run on a GPU, and deny nothing."""
    flat = " ".join(re.sub(r"(?m)^\s*\|.*\|\s*$", " ", text).split())
    sentences = re.split(r"(?<=[.;:!?])\s|\s[-*]\s", flat)
    return [s for s in sentences if CLAIMS.search(s) and not DENIALS.search(s)]


def test_the_search_for_claims_finds_them() -> None:
    assert claims_in("It was tested on TensorRT. Fine.") == ["It was tested on TensorRT."]
    assert claims_in("- Runs on Jetson Orin\n- other") != []
    assert claims_in("It is 2 x faster on a GPU.") != []
    assert claims_in("Nothing here was measured on a GPU.") == []


def pages() -> list[tuple[str, str]]:
    written = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
    made = {
        "report.md": markdown_report(data((AHEAD,), fidelity=facts.fidelity())),
        "card": model_card(data((AHEAD,), fidelity=facts.fidelity()), Origin()),
        "report.html": re.sub(r"<[^>]+>", " ", html_report(data((AHEAD,)))),
    }
    return [*((p.name, p.read_text(encoding="utf-8")) for p in written), *made.items()]


@pytest.mark.parametrize(("name", "text"), pages(), ids=[name for name, _ in pages()])
def test_no_page_claims_a_run_that_the_ladder_does_not_hold(name: str, text: str) -> None:
    assert claims_in(text) == [], name


def test_the_checker_accepts_exported_graphs_and_names_one_that_is_wrong(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    manifest = Manifest.model_validate_json((tiny_artifact / "manifest.json").read_text())
    assert manifest.checker is not None
    assert manifest.checker.passed
    assert set(manifest.checker.files) == {spec.file for spec in manifest.graphs}
    spec = embed_graph(PLAN.model, "float32")
    node = onnx.helper.make_node("Add", ["x", "nobody"], ["y"])
    value = onnx.helper.make_tensor_value_info
    shapes = [value(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", shapes[:1], shapes[1:])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / spec.file))
    found = check_graphs(tmp_path, [spec])
    assert not found.passed
    assert found.failures[0].startswith(f"{spec.file}: the ONNX checker refuses it: ")
    assert "nobody" in found.failures[0]


def test_wrong_shapes_between_nodes_are_found_too(tmp_path: Path) -> None:
    spec = embed_graph(PLAN.model, "float32")
    value = onnx.helper.make_tensor_value_info
    inputs = [
        value("a", onnx.TensorProto.FLOAT, [2, 3]),
        value("b", onnx.TensorProto.FLOAT, [4, 5]),
    ]
    node = onnx.helper.make_node("MatMul", ["a", "b"], ["y"])
    graph = onnx.helper.make_graph(
        [node], "g", inputs, [value("y", onnx.TensorProto.FLOAT, [2, 5])]
    )
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / spec.file))
    assert not check_graphs(tmp_path, [spec]).passed


def test_rungs_are_frozen_values() -> None:
    rung = Rung("a", "b", "passed", "c")
    with pytest.raises(AttributeError):
        rung.outcome = "failed"  # type: ignore[misc]
    assert issubclass(CheckerReport, Facts)
