"""`vtcompress search` and an export that searches: what they write, a stop and a go, what is refused."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vtcompress
from compressor.errors import DataError, PlanError, RecipeError
from compressor.methods.auto import Auto
from compressor.plan.plan import Plan
from compressor.recipe import Recipe
from compressor.search.measuring import Measuring
from compressor.search.results import SearchReport
from export.artifact.staging import search_folder
from tests import facts
from tests.test_prompts_early import Said

Vt = Callable[..., tuple[int, str, str]]
USE = ("shortv", "skip", "visual_exit")


@pytest.fixture(scope="module")
def recipe(llava: Callable[[str], Path], questions: Path) -> Recipe:
    values = {
        "model.id": str(llava("clip+llama")),
        "calibrate.data": questions,
        "compress.auto.speedup": 1.3,
        "compress.auto.use": USE,
        "validate.max_new_tokens": 3,
    }
    return vtcompress.load_recipe("auto").override(values)


@pytest.fixture(scope="module")
def searched(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched") / "front"
    vtcompress.search(recipe, folder)
    return folder


def test_the_folder_has_the_front_its_plans_and_the_chosen_one(searched: Path) -> None:
    report = SearchReport.load(searched / "front.json")
    assert report == SearchReport.model_validate_json(report.model_dump_json())
    speeds = [point.predicted for point in report.front]
    assert speeds == sorted(speeds)
    assert {point.series for point in report.baselines} == set(USE)
    for point in report.points:
        plan = Plan.load(searched / point.plan)
        assert plan.makers is not None
        assert plan.makers.methods == (f"auto (speedup: 1.3, use: {', '.join(USE)})",)
        assert len(point.layers) == len(plan.layers) == 4
        assert set(plan.methods) <= ({point.series} if point.series else set(USE))
    chosen = report.chosen_point
    assert Plan.load(searched / "chosen.json") == Plan.load(searched / chosen.plan)
    assert chosen.predicted >= 1.3
    fast = [p for p in report.front if p.predicted >= 1.3]
    assert chosen.chosen_on.kl == min(p.chosen_on.kl for p in fast)
    assert len(chosen.reasons) == 4
    assert not search_folder(searched).exists()
    listed = {path.relative_to(searched).as_posix() for path in searched.rglob("*.*")}
    assert listed == {*report.files, "front.json"}
    assert {"front.html", "front.md", "sums.svg"} <= listed


def test_what_was_changed_in_the_folder_is_told_by_inspect(searched: Path, tmp_path: Path) -> None:
    assert "problems" not in vtcompress.inspect(searched)
    copy = Path(shutil.copytree(searched, tmp_path / "copy"))
    (copy / "chosen.json").write_text("{}")
    (copy / "recipe.yaml").unlink()
    (line,) = vtcompress.inspect(copy)["problems"]
    assert line.startswith(f"{copy}: chosen.json, recipe.yaml: changed or removed since the search")


def test_the_recipe_beside_a_front_is_told_of_nothing_that_has_no_effect(
    searched: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a search chose and judged by stands in the recipe that it wrote itself."""
    settings = {"model.id": recipe.model.id, "validate.score": "contains", "calibrate.seed": 7}
    own = vtcompress.load_recipe(str(searched / "recipe.yaml")).override(settings)
    monkeypatch.setattr("vtcompress.stages.export.load_model", lambda *_, **__: 1 / 0)
    said = Said()
    with pytest.raises(ZeroDivisionError):
        vtcompress.export(own, tmp_path / "out", plan=searched / "chosen.json", progress=said)
    assert [line for line in said.lines if line.startswith("note: ")] == []


def test_a_report_says_the_floor_and_has_the_point_that_it_names(
    searched: Path, tmp_path: Path
) -> None:
    asked = Auto(keep=0.9, floor={"count": 0.5}).asked_words
    assert asked == "keep: 0.9 with floor: count: 0.5"
    front = json.loads((searched / "front.json").read_text())
    path = tmp_path / "front.json"
    for change, said in (
        ({"chosen": "../../x"}, r"chosen: '../../x' is none of its points"),
        ({"seconds": float("inf")}, "seconds"),
    ):
        path.write_text(json.dumps({**front, **change}))
        with pytest.raises(PlanError, match=said):
            SearchReport.load(path)


def test_with_measured_costs_a_speed_up_is_one_in_predicted_time(
    recipe: Recipe, searched: Path, tmp_path: Path
) -> None:
    flops = SearchReport.load(searched / "front.json")
    decoder = Plan.load(searched / "chosen.json").model.decoder
    costs, other = (facts.costs(decoder=d) for d in (decoder, facts.facts().decoder))
    costs.save(tmp_path / "costs.json")
    other.save(tmp_path / "other.json")
    found = vtcompress.search(recipe, tmp_path / "front", costs=tmp_path / "costs.json")
    assert (flops.unit, found.unit) == ("FLOPs", "seconds of this machine")
    for point in found.points:
        plan = Plan.load(tmp_path / "front" / point.plan)
        assert point.predicted == pytest.approx(costs.speedup(plan))
    with pytest.raises(PlanError, match=r"holds times of .*, which are not those of"):
        vtcompress.search(recipe, tmp_path / "more", costs=tmp_path / "other.json")
    assert not (tmp_path / "more").exists()


def test_what_is_there_is_replaced_only_when_asked(searched: Path, recipe: Recipe) -> None:
    with pytest.raises(vtcompress.VtcompressError, match="holds a search; choose another"):
        vtcompress.search(recipe, searched)


def test_an_export_searches_first_and_its_artifact_has_the_chosen_plan(
    searched: Path, recipe: Recipe, tmp_path: Path
) -> None:
    healing = recipe.override({"heal.steps": 2, "heal.train": ("norms",)})
    manifest = vtcompress.export(healing, tmp_path / "out", bench_rounds=0)
    assert manifest.healed is not None
    assert manifest.healed.steps == 2
    assert (tmp_path / "out" / "healed.safetensors").is_file()
    assert Plan.load(tmp_path / "out" / "plan.json") == Plan.load(searched / "chosen.json")
    assert manifest.fidelity is not None
    assert not manifest.failures
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "auto (speedup: 1.3" in page
    assert "chosen by a search" in page or "visual tokens have left" in page
    assert not search_folder(tmp_path / "out").exists()


def test_every_plan_of_the_front_is_taken_by_an_export(
    searched: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken: list[Plan] = []

    def stop(_: Any, __: str, ___: Any, chosen: Callable[[None], tuple[Plan, None]]) -> None:
        taken.append(chosen(None)[0])

    monkeypatch.setattr("vtcompress.stages.export.ExportRun._from_original", stop)
    files = sorted((searched / "plans").iterdir())
    for file in files:
        vtcompress.export(recipe, tmp_path / "out", plan=file)
    assert taken == [Plan.load(file) for file in files]
    other = recipe.override({"compress.auto.speedup": 1.4})
    with pytest.raises(RecipeError, match=r"was made by auto \(speedup: 1\.3"):
        vtcompress.export(other, tmp_path / "out", plan=files[0])


def test_a_stopped_search_goes_on(
    searched: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counts = {"figures": 0, "singles": 0}
    real, singles = Measuring.figures, Measuring.singles

    def figures(self: Measuring, *rest: Any) -> Any:
        counts["figures"] += 1
        if counts["figures"] == 6:
            raise KeyboardInterrupt
        return real(self, *rest)

    def counted(self: Measuring, *rest: Any) -> Any:
        counts["singles"] += 1
        return singles(self, *rest)

    monkeypatch.setattr(Measuring, "figures", figures)
    monkeypatch.setattr(Measuring, "singles", counted)
    monkeypatch.setattr("compressor.search.findings.SAVE_EVERY_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        vtcompress.search(recipe, tmp_path / "front")
    assert not (tmp_path / "front").exists()
    assert search_folder(tmp_path / "front").is_dir()
    batches = counts["singles"]
    vtcompress.search(recipe, tmp_path / "front")
    assert counts["singles"] == batches
    assert not search_folder(tmp_path / "front").exists()
    for name in ("chosen.json", "plans"):
        one, two = tmp_path / "front" / name, searched / name
        files = [one] if one.is_file() else sorted(one.iterdir())
        for file in files:
            other = two if two.is_file() else two / file.name
            assert file.read_bytes() == other.read_bytes()


def test_a_failed_search_says_what_it_kept_and_goes_on_from_there(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output, kept = tmp_path / "front", search_folder(tmp_path / "front")
    cannot = recipe.override({"compress.auto.speedup": None, "compress.auto.max_kl": 0.0})
    with pytest.raises(PlanError, match=r"max_kl: 0 is not reached") as caught:
        vtcompress.search(cannot, output)
    (line,) = caught.value.problems
    said = f"(what was measured is kept in {kept}; the same command, or one with another goal, "
    said += "goes on from there)"
    assert line.endswith(said)
    assert str(caught.value) == line
    assert not output.exists()
    monkeypatch.setattr(Measuring, "singles", lambda *_: pytest.fail("measured again"))
    vtcompress.search(recipe, output)
    assert not kept.exists()


@pytest.mark.parametrize("command", ["search", "export"])
def test_what_fails_behind_a_search_says_what_was_kept_too(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    output, kept = tmp_path / "front", search_folder(tmp_path / "front")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vtcompress.stages.searching.run.write_pages", full)
    monkeypatch.setattr("vtcompress.stages.export.compress_for_export", full)
    with pytest.raises(vtcompress.VtcompressError, match="No space left on device") as caught:
        getattr(vtcompress, command)(recipe, output)
    words = f"(what was measured is kept in {kept}; the same command, or one with another goal, "
    assert str(caught.value).endswith(f"another place {words}goes on from there)")
    assert kept.is_dir()


def test_a_search_that_measured_nothing_leaves_nothing(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise DataError(["no"])

    monkeypatch.setattr("compressor.search.engine.find", fails)
    with pytest.raises(DataError, match=r"^no$"):
        vtcompress.search(recipe, tmp_path / "front")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({"compress.auto.use": ("yopoo",)}, PlanError, "did you mean 'yopo'"),
        (
            {"compress.auto.floor": {"zz": 0.5}},
            PlanError,
            "floor.zz: no question of the search is of this kind",
        ),
        ({"compress.auto.never": {"layers": (9,)}}, PlanError, "never.layers: 9 is outside 0..3"),
        ({"calibrate.data": None}, RecipeError, "give `calibrate.data`"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_weights_are_loaded(
    recipe: Recipe, values: Any, error: Any, said: str, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "vtcompress.stages.searching.run.load_model", lambda *_: pytest.fail("loaded")
    )
    for stage in (vtcompress.search, vtcompress.export):
        with pytest.raises(error, match=said) as caught:
            stage(recipe.override(values), tmp_path / "out")
        assert len(caught.value.problems) == 1
    assert not (tmp_path / "out").exists()


def test_held_out_questions_are_not_the_searchs(
    recipe: Recipe, questions: Path, tmp_path: Path
) -> None:
    same = recipe.override({"validate.data": questions})
    for stage in (vtcompress.search, vtcompress.export):
        with pytest.raises(DataError, match=r"validate\.data: 6 of its questions are among those"):
            stage(same, tmp_path / "out")
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    held = tmp_path / "held.jsonl"
    picture = questions.with_name(rows[2]["image"])
    held.write_text(json.dumps({**rows[2], "image": str(picture), "answer": "another"}) + "\n")
    with pytest.raises(DataError, match=r"validate\.data: 1 of its questions are among those"):
        vtcompress.search(recipe.override({"validate.data": held}), tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("calibrate",), "compress.auto: a calibration serves methods that choose by it"),
        (("sweep", "--output", "out"), "compress.auto: a sweep makes its plans by rules"),
        (("plan",), "compress[0].auto: the plan is found by a search; run `vtcompress search`"),
        (("search", "--output", "out", "--budget", "20"), "'20' is no time; write 90s, 20m or 1h"),
        (
            ("export", "--output", "out", "--stream"),
            "stream: compress.auto: a search runs the model",
        ),
        (("export", "--output", "out", "--profile", "p.json"), "a search measures what it needs"),
    ],
)
def test_other_commands_say_that_the_plan_is_found_by_a_search(
    vt: Vt, llava: Callable[[str], Path], questions: Path, tmp_path: Path, monkeypatch: Any,
    plain_profile: Path, arguments: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.json").write_bytes(plain_profile.read_bytes())
    command, *rest = arguments
    model = str(llava("clip+llama"))
    code, _, words = vt(
        command, "--recipe", "auto", "--model", model, "--data", str(questions), *rest
    )
    assert code in (1, 2)
    assert said in " ".join(words.split())
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


@pytest.fixture(scope="module")
def plain_profile(
    llava: Callable[[str], Path], questions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    values = {"model.id": str(llava("clip+llama")), "calibrate.data": questions}
    vtcompress.calibrate(vtcompress.load_recipe("shortv").override(values), path)
    return path


def test_auto_stands_alone(recipe: Recipe) -> None:
    from compressor.recipe import parse_recipe

    entries = ({"auto": {"keep": 0.99}}, {"shortv": {"frozen": 0.5}})
    with pytest.raises(
        RecipeError, match="auto stands alone: it makes the whole plan; leave shortv"
    ):
        parse_recipe({"vtcompress": 2, "compress": entries}, "r")
    for keys, said in (
        ({"target": "prefill"}, "nothing is given; give exactly one of: keep, speedup, max_kl"),
        ({"keep": 0.9, "speedup": 2.0}, "keep and speedup are given together"),
        ({"keep": 1.5}, "1.5 is not allowed"),
        ({"keep": 0.9, "target": "first"}, "prefill, first_token or kv_bytes"),
    ):
        with pytest.raises(RecipeError, match=said):
            parse_recipe({"vtcompress": 2, "compress": ({"auto": keys},)}, "r")
    other = recipe.override({"compress.auto.keep": 0.95})
    assert other.searched is not None
    assert (other.searched.goal, other.searched.use) == (("keep", 0.95), USE)


def test_the_command_prints_front_reasons_and_bounds(
    vt: Vt, llava: Callable[[str], Path], questions: Path, tmp_path: Path
) -> None:
    code, out, _ = vt(
        "--json", "search", "--recipe", "auto", "--model", str(llava("clip+llama")), "--data",
        str(questions), "--set", "compress.auto.max_kl=9.0", "--set", "compress.auto.use=[shortv]",
        "--output", str(tmp_path / "front"), "--budget", "5m",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["asked"] == "max_kl: 9"
