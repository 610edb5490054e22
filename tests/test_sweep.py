"""A sweep: its points, its table beside what artifacts say, a stop and a go, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import vtcompress
from benchmarks.methods_table import points
from benchmarks.methods_table import recipes as table_recipes
from compressor.contract.searched import SearchedMethod
from compressor.disk.opening import sha256_of
from compressor.errors import RecipeError, VtcompressError
from compressor.families import describe
from compressor.methods import BUILT_IN
from compressor.plan.plan import Plan
from export.artifact.staging import sweep_folder
from export.report.sweep.page import sweep_table
from export.results.sweep import SweepReport, beaten
from tests.conftest import made_once, shared
from tests.models import make_questions
from tests.sweeps import HALF, RIGHT, SWEEPS, point
from vtcompress.stages.sweep import list_points

Vt = Callable[..., tuple[int, str, str]]
OVER = {"compress.gprune.keep": [0.5], "compress.shortv.frozen": [1.0]}
NAMES = ["gprune-keep-0.5", "shortv-frozen-1", "random-keep-0.5", "pool-keep-0.5"]


def recipes(model: Path, questions: Path, *names: str, **values: Any) -> list[vtcompress.Recipe]:
    common = {
        "model.id": str(model),
        "calibrate.data": questions,
        "calibrate.samples": 4,
        "validate.data": questions,
        "validate.max_new_tokens": 3,
    }
    found = (vtcompress.load_recipe(name) for name in names or ("gprune", "shortv"))
    return [recipe.override(common | values) for recipe in found]


@dataclass(frozen=True)
class Swept:
    folder: Path
    report: SweepReport
    saved: Counter[str]


@pytest.fixture(scope="module")
def swept(tiny_model: Path, questions: Path, pytestconfig: pytest.Config) -> Swept:
    """Return a sweep of two points with baselines, with how often each graph was written."""

    def make(half: Path) -> None:
        from export.writer import write

        saved: Counter[str] = Counter()
        real = write.save_graph
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(write, "save_graph", lambda *a: (saved.update([a[1].name]), real(*a))[1])
            vtcompress.sweep(recipes(tiny_model, questions), half / "out", over=OVER, rounds=2)
        (half / "saved.json").write_text(json.dumps(saved))

    base = made_once(shared(pytestconfig) / "made" / "sweep", make)
    text = (base / "out" / "sweep.json").read_text(encoding="utf-8")
    saved = Counter(json.loads((base / "saved.json").read_text()))
    return Swept(base / "out", SweepReport.model_validate_json(text), saved)


def test_a_sweep_is_a_folder_of_table_page_plot_and_plans_and_lists_them(swept: Swept) -> None:
    assert [p.name for p in swept.report.points] == NAMES
    assert [p.baseline for p in swept.report.points] == [False, False, True, True]
    files = {p.relative_to(swept.folder).as_posix() for p in swept.folder.rglob("*") if p.is_file()}
    assert files == {"sweep.json", *swept.report.files}
    assert files == {
        "sweep.json", "sweep.html", "sweep.md", "sweep.svg", "profile.json",
        *(f"plans/{name}.json" for name in NAMES), *(f"recipes/{name}.yaml" for name in NAMES),
    }  # fmt: skip
    for name, entry in swept.report.files.items():
        assert entry["sha256"] == sha256_of(swept.folder / name)
    text = (swept.folder / "sweep.md").read_text(encoding="utf-8")
    for cells in sweep_table(swept.report).rows:
        assert all(cell in text for cell in cells)
    assert not list(swept.folder.parent.glob(".out*"))


def test_graphs_are_exported_once_where_points_share_them(swept: Swept) -> None:
    # Three points choose in front of one decoder; between the first and the second lies another.
    assert swept.saved == {
        "baseline_vision.onnx": 1, "embed.onnx": 1, "baseline_decoder.onnx": 1, "decoder.onnx": 3,
        "vision.onnx": 3,
    }  # fmt: skip
    for found in swept.report.points:
        assert found.measured is not None
        assert found.measured.rounds == 2
        plan = Plan.load(swept.folder / found.plan)
        assert found.measured.visual == plan.visual
        assert found.measured.text == plan.workload.text


def test_a_points_plan_is_that_of_its_recipe_and_of_plan(
    swept: Swept, tiny_model: Path, questions: Path
) -> None:
    for found in swept.report.points:
        stored = Plan.load(swept.folder / found.plan)
        recipe = vtcompress.load_recipe(swept.folder / found.recipe)
        again = recipe.override({"model.id": str(tiny_model)})
        assert vtcompress.plan(again, swept.folder / "profile.json") == stored
    gprune = recipes(tiny_model, questions, "gprune", **{"compress.gprune.keep": 0.5})[0]
    assert vtcompress.plan(gprune, swept.folder / "profile.json") == Plan.load(
        swept.folder / "plans" / f"{NAMES[0]}.json"
    )


@pytest.mark.parametrize("name", NAMES[:2])
def test_the_table_has_the_numbers_of_the_artifact_of_a_points_plan(
    swept: Swept, name: str, tiny_model: Path, questions: Path, tmp_path: Path
) -> None:
    (found,) = (p for p in swept.report.points if p.name == name)
    values = {
        "model.id": str(tiny_model),
        "validate.data": questions,
        "validate.keep_pictures": "all",
        "validate.max_new_tokens": 3,
    }
    recipe = vtcompress.load_recipe(swept.folder / found.recipe).override(values)
    vtcompress.export(recipe, tmp_path / "out", plan=swept.folder / found.plan, bench_rounds=0)
    loss = vtcompress.validate(tmp_path / "out").loss
    assert loss is not None
    for mine, other in zip(
        (found.loss.overall, *found.loss.kinds), (loss.overall, *loss.kinds), strict=True
    ):
        exact = {"kl", "kl_worst"}
        assert mine.model_dump(exclude=exact) == other.model_dump(exclude=exact)
        assert mine.kl == pytest.approx(other.kl, abs=1e-5)
    assert found.loss.data_digest == loss.data_digest
    right = found.loss.overall.exact_match
    assert right is not None
    assert found.hits.count("1") == round(right * len(found.hits))


def test_methods_with_weights_of_their_own_are_answered_and_timed(
    tiny_model: Path, questions: Path, tmp_path: Path
) -> None:
    dims = describe(str(tiny_model)).decoder
    router = {"router.weight": torch.full((1, dims.hidden), 0.1)}
    save_file(router, tmp_path / "routers.safetensors")
    asked = [{"mod": {"routers": tmp_path / "routers.safetensors", "layers": [0], "keep": 0.5}}]
    points = recipes(tiny_model, questions, "identity", compress=asked)
    report = vtcompress.sweep(points, tmp_path / "out", baselines=False, rounds=1)
    (found,) = report.points
    assert found.measured is not None
    assert Plan.load(tmp_path / "out" / found.plan).runs()


def test_one_calibration_measures_for_all_recipes_and_the_original_is_asked_once(
    tiny_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()
    count(monkeypatch, asked)
    report = vtcompress.sweep(
        recipes(tiny_model, questions, "shortv", "skip", "vtw", **{"validate.samples": 2}),
        tmp_path / "out",
        over={"compress.visual_exit.layer": [1], "compress.skip.share": [0.5, 1.0]},
        measure=False,
    )
    profile = vtcompress.Profile.load(tmp_path / "out" / "profile.json")
    assert profile.complete
    assert set(profile.measures) == {"layer_contribution", "operator_kl"}
    assert asked == {"original": 1, "calibrate": 1, "answers": 4}
    assert [p.label for p in report.points] == [
        "shortv", "skip share 0.5", "skip share 1", "visual_exit layer 1",
    ]  # fmt: skip
    assert [p.leaves for p in report.points] == ["stay", "stay", "stay", "leave"]
    assert all(p.measured is None for p in report.points)
    assert not (tmp_path / "out" / "sweep.html").read_text().count("measured (quartiles)")


def count(monkeypatch: pytest.MonkeyPatch, asked: Counter[str], stop_at: int = 0) -> None:
    """Count what a sweep does, and end it in front of an answer."""
    from compressor.calibration import run
    from export.checks import loss, original

    def counted(what: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if what == "answers" and asked["answers"] + 1 == stop_at:
                raise KeyboardInterrupt
            asked[what] += 1
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(
        original, "measure_original", counted("original", original.measure_original)
    )
    monkeypatch.setattr(loss, "measure_answers", counted("answers", loss.measure_answers))
    monkeypatch.setattr(run, "calibrate", counted("calibrate", run.calibrate))


def test_a_killed_sweep_goes_on_and_ends_as_if_it_had_not_been(
    tiny_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "killed"
    words = [
        "sweep", "--recipe", "gprune", "--over", "compress.gprune.keep=0.5,0.25", "--no-measure",
        "--model", tiny_model, "--validate-data", questions, "--output", output,
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "vtcompress", *map(str, words)], stderr=subprocess.DEVNULL
    )
    points, end = sweep_folder(output) / "points", time.monotonic() + 240
    while not list(points.glob("*.json")) and time.monotonic() < end:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = len(list(points.glob("*.json")))
    assert 1 <= there <= 6
    assert not output.exists()
    asked: Counter[str] = Counter()
    count(monkeypatch, asked)
    over = {"compress.gprune.keep": [0.5, 0.25]}
    values = {"model.id": str(tiny_model), "validate.data": questions}
    recipe = vtcompress.load_recipe("gprune").override(values)
    vtcompress.sweep(recipe, output, over=over, measure=False)
    assert asked["original"] == 0
    assert asked["answers"] == 6 - there
    assert [path.name for path in tmp_path.iterdir()] == ["killed"]
    monkeypatch.undo()
    vtcompress.sweep(recipe, tmp_path / "whole", over=over, measure=False)
    for name in ("sweep.json", "sweep.md", "sweep.html", "sweep.svg"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_a_stopped_sweep_left_is_not_taken_for_other_inputs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, data = tmp_path / "out", make_questions(tmp_path / "data", 2)
    asked: Counter[str] = Counter()

    def run(**values: Any) -> None:
        swept = recipes(tiny_model, data, "gprune", **values)
        vtcompress.sweep(swept, output, baselines=False, over=OVER_GPRUNE, measure=False)

    with monkeypatch.context() as patch:
        count(patch, asked, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert asked == {"original": 1, "answers": 1}
    assert not output.exists()
    # Other questions: the original is asked again, and so is the point that was done.
    lines = data.read_text(encoding="utf-8").splitlines()
    data.write_text("\n".join(reversed(lines)) + "\n", encoding="utf-8")
    with monkeypatch.context() as patch:
        asked.clear()
        count(patch, asked, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            run()
        assert asked == {"original": 1, "answers": 1}
    # A limit is judged in a point; the original's answers do not rest on it.
    with monkeypatch.context() as patch:
        asked.clear()
        count(patch, asked)
        run(**{"validate.loss.max_kl": 1.0})
    assert asked == {"answers": 2}
    assert not list(tmp_path.glob(".out*"))


OVER_GPRUNE = {"compress.gprune.keep": [0.5, 0.25]}


def test_points_are_the_product_of_what_concerns_a_recipe(
    tiny_model: Path, questions: Path
) -> None:
    over = {"compress.fastv.keep": [0.5, 0.25], "compress[0].fastv.layer": [1], **OVER_GPRUNE}
    found = list_points(recipes(tiny_model, questions, "gprune", "fastv"), over)
    assert [p.label for p in found] == [
        "gprune keep 0.5", "gprune keep 0.25", "fastv keep 0.5, layer 1", "fastv keep 0.25, layer 1",
        "random keep 0.5", "random keep 0.25", "pool keep 0.5", "pool keep 0.25",
    ]  # fmt: skip
    assert all(p.plan is not None for p in found)
    for mine in found[:4]:
        kept = {p.plan.front.count for p in found[4:6] if p.plan and p.plan.front}
        assert mine.plan is not None
        chosen = mine.plan.front or next(iter(mine.plan.keeps().values()))
        assert chosen.count in kept
    assert (
        len(list_points(recipes(tiny_model, questions, "gprune", "fastv"), over, baselines=False))
        == 4
    )


def test_recipes_of_one_method_are_told_apart_by_what_differs(
    tiny_model: Path, questions: Path
) -> None:
    two = [
        recipes(tiny_model, questions, "gprune", **{"compress.gprune.keep": keep})[0]
        for keep in (0.5, 0.25)
    ]
    found = list_points(two, baselines=False)
    assert [p.label for p in found] == ["gprune keep 0.5", "gprune keep 0.25"]
    assert {p.series for p in found} == {"gprune keep"}


REFUSED: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "an unknown key": ({"compress.gprune.kep": [0.5]}, ["gprune"], "did you mean 'keep'"),
    "a value out of range": ({"compress.gprune.keep": [0.5, 1.5]}, ["gprune"], "over: .*1.5"),
    "no value": ({"compress.gprune.keep": []}, ["gprune"], "over: compress.gprune.keep: gives no value"),
    "no list": ({"compress.gprune.keep": 0.5}, ["gprune"], "0.5 is no list of values"),
    "a point twice": ({"compress.gprune.keep": [0.5, 0.50]}, ["gprune"], "gprune keep 0.5: .* twice"),
    "two recipes that are one point": ({}, ["gprune", "gprune"], "twice"),
    "a method that no recipe has": ({"compress.fastv.keep": [0.5]}, ["gprune"], "has no fastv"),
    "no method": ({"compress.gprun.keep": [0.5]}, ["gprune"], "unknown method; did you mean 'gprune'"),
    "a key without its section": ({"gprune.keep": [0.5]}, ["gprune"], "did you mean 'compress.gprune.keep'"),
    "another model": ({"model.id": ["a", "b"]}, ["gprune"], "model.id: is no key of compress"),
    "no row": ({"compress.gprune.keep": [0.5, 0.01]}, ["gprune"], "keep 0.01: .*is none; give more"),
    "no layer": ({"compress.visual_exit.layer": [1, 9]}, ["vtw"], "9 is outside"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_points_that_cannot_be_are_refused_before_weights_are_read(
    name: str, tiny_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "compressor.families.folder.digest", lambda *_, **__: pytest.fail("weights were read")
    )
    over, names, words = REFUSED[name]
    with pytest.raises(RecipeError, match=words) as caught:
        vtcompress.sweep(recipes(tiny_model, questions, *names), tmp_path / "out", over=over)
    assert len(caught.value.problems) == 1
    assert not list(tmp_path.iterdir())


def test_recipes_of_two_models_or_data_are_refused(
    tiny_model: Path, questions: Path, tmp_path: Path
) -> None:
    one, other = recipes(tiny_model, questions)
    for key, value in (
        ("model.id", "other"),
        ("validate.max_new_tokens", 5),
        ("calibrate.seed", 1),
    ):
        with pytest.raises(RecipeError, match=f"recipes: {key} is .*set it for all"):
            vtcompress.sweep([one, other.override({key: value})], tmp_path / "out")
    with pytest.raises(RecipeError, match=r"held-out questions; give `validate\.data`"):
        vtcompress.sweep(one.override({"validate.data": None}), tmp_path / "out")
    with pytest.raises(TypeError, match="not a recipe"):
        vtcompress.sweep(["gprune"], tmp_path / "out")  # type: ignore[list-item]


def test_a_folder_with_anything_else_is_not_replaced(
    swept: Swept, tiny_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "compressor.families.folder.digest", lambda *_, **__: pytest.fail("weights were read")
    )
    swept_recipe = recipes(tiny_model, questions, "gprune")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    shutil.copytree(swept.folder, tmp_path / "old")
    for name, overwrite, words in (
        ("mine", True, "vtcompress did not write, such as thesis.txt"),
        ("old", False, "holds a sweep; choose another `output` or add `overwrite`"),
    ):
        with pytest.raises(VtcompressError, match=words):
            vtcompress.sweep(swept_recipe, tmp_path / name, overwrite=overwrite)
    (tmp_path / "old" / "sweep.md").write_text("mine now")
    with pytest.raises(VtcompressError, match=r"sweep.md \(changed since\)"):
        vtcompress.sweep(swept_recipe, tmp_path / "old", overwrite=True)


def test_the_command_lists_points_and_refuses_what_is_no_list(
    vt: Vt, tiny_model: Path, questions: Path, tmp_path: Path
) -> None:
    base = [
        "sweep", "--recipe", "gprune", "--recipe", "shortv", "--model", tiny_model,
        "--output", tmp_path / "out",
    ]  # fmt: skip
    data = ["--validate-data", questions, "--data", questions]
    code, out, _ = vt(
        "--json", *base, *data, "--over", "compress.gprune.keep=0.5,0.25", "--dry-run"
    )
    assert code == 0
    labels = [one["point"] for one in json.loads(out)]
    assert labels[:3] == ["gprune keep 0.5", "gprune keep 0.25", "shortv"]
    assert len(labels) == 7
    for over, words in (
        (["compress.gprune.keep"], "is not KEY=VALUE,VALUE..."),
        (["compress.gprune.keep=0.5", "compress.gprune.keep=0.25"], "is given twice"),
        (["compress.gprune.keep=0.5]"], "is no list of values"),
    ):
        code, _, err = vt(*base, *data, *(word for one in over for word in ("--over", one)))
        assert code == 2
        assert words in " ".join(err.replace("│", " ").split())
    code, _, err = vt(*base, "--data", questions)
    assert code == 1
    assert "give --validate-data" in err
    code, _, err = vt(*base, *data, "--set", "compress.fastv.keep=0.5")
    assert code == 1
    assert "has no fastv" in err
    assert not list(tmp_path.iterdir())


def test_the_command_prints_a_table_or_a_line_a_point(
    vt: Vt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = SWEEPS["timed, nothing beaten"]
    monkeypatch.setattr("vtcompress.stages.sweep.list_points", lambda *_, **__: ())
    monkeypatch.setattr("vtcompress.sweep", lambda *_, **__: report)
    words = ("sweep", "--recipe", "gprune", "--output", tmp_path / "out")
    code, out, err = vt("-q", *words)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == (
        "clever keep 0.5: 100.0% (91.2 to 100.0); prefill predicted 1.50 x, measured 1.60 x (1.55 to 1.65)"
    )
    assert len(lines) == len(report.points) + 1
    assert lines[-1].startswith("written: ")
    assert "Points of the sweep" in vt(*words)[1]
    assert SweepReport.model_validate_json(vt("--json", *words)[1]) == report


def test_a_point_loses_to_a_baseline_that_is_as_fast_and_answers_more() -> None:
    points = [
        point("slow", HALF, 1.4),
        point("fast", HALF, 1.6),
        point("good", RIGHT, 1.4),
        point("near", "1" * 38 + "00", 1.5),
        point("random keep 0.5", "1" * 39 + "0", 1.5, baseline=True),
        point("pool keep 0.5", "1" * 30 + "0" * 10, 1.5, baseline=True),
    ]
    found = beaten(points)
    assert [(ones[0].point.label, [one.by.label for one in ones]) for ones in found] == [
        ("slow", ["random keep 0.5", "pool keep 0.5"]),
        ("near", ["random keep 0.5"]),
    ]
    assert [one.change for one in found[0]] == pytest.approx([-19 / 40, -10 / 40])
    assert found[0][0].told_apart
    ((near,),) = found[1:]
    low, high = near.interval
    assert low < near.change < 0 < high
    assert not near.told_apart


def test_of_several_points_of_a_baseline_the_best_that_is_as_fast_counts() -> None:
    points = [
        point("mine", HALF, 1.4),
        point("random keep 0.9", RIGHT, 1.3, baseline=True),
        point("random keep 0.5", "1" * 36 + "0000", 1.5, baseline=True),
        point("random keep 0.1", "1" * 30 + "0" * 10, 3.0, baseline=True),
    ]
    (((one,)),) = beaten(points)
    assert one.by.label == "random keep 0.5"
    assert not beaten(points[1:])


def test_the_table_of_docs_has_every_method_of_this_package() -> None:
    shares = Counter(method.name for recipe in table_recipes() for method in recipe.methods)
    expected = {method.name for method in BUILT_IN if not method.baseline and points(method)}
    ruled = {m.name for m in BUILT_IN if not m.baseline and not issubclass(m, SearchedMethod)}
    assert set(shares) - {"pool"} == expected == ruled  # a searched plan is no point of a sweep
    assert {name for name, number in shares.items() if number < 3} == {"dyvte", "wico"}
    assert {"gprune", "divprune", "fastv", "shortv", "skip", "visual_exit", "yopo"} <= set(shares)
