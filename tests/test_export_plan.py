"""An export from a plan that was made already: nothing is measured, and what contradicts is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vtcompress
from compressor.errors import ArtifactError, GatesError, PlanError, RecipeError, VtcompressError
from compressor.plan.edits import freeze
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Gates, Plan
from export.report.pages.report import NOT_BY_RECIPE
from tests import facts
from tests.artifacts import make_artifact
from tests.test_prompts_early import Said

Vt = Callable[..., tuple[int, str, str]]


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.families.load", lambda *_, **__: pytest.fail("loaded"))


def identity(model: Path, **values: Any) -> vtcompress.Recipe:
    return vtcompress.load_recipe("identity").override({"model.id": str(model), **values})


def by_hand(model: Path) -> Plan:
    """A plan that no recipe makes: the first layer frozen, with a note of the researcher's."""
    plan = freeze(vtcompress.plan(identity(model)), [0], "shortv")
    return plan.model_copy(update={"notes": ("layer 0 was chosen by hand",)})


def test_the_plan_is_done_as_it_is_without_calibration_and_told_with_its_notes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = by_hand(tiny_model)
    plan.save(tmp_path / "mine.json")
    profile = facts.profile([[0.1, 0.2]] * 3).model_copy(update={"model_digest": plan.model_digest})
    # The recipe chooses by calibration and names no data for it.
    recipe = vtcompress.load_recipe("shortv").override({"model.id": str(tiny_model)})
    monkeypatch.setattr("vtcompress.stages.export.run_calibration", lambda *_: pytest.fail("ran"))
    output = tmp_path / "out"
    manifest = vtcompress.export(
        recipe, output, plan=tmp_path / "mine.json", profile=profile, bench_rounds=0
    )
    assert Plan.load(output / "plan.json") == plan
    assert vtcompress.Profile.load(output / "profile.json") == profile
    assert manifest.fidelity is not None
    assert manifest.fidelity.passed
    assert manifest.predicted.flops < manifest.predicted.flops_original
    for name in ("report.md", "report.html"):
        text = (output / name).read_text(encoding="utf-8")
        assert "shortv, as the plan has it" in text
        assert NOT_BY_RECIPE[False] in text
        assert "layer 0 was chosen by hand" in text
        assert "shortv" in text
    assert "shortv" in (output / "README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_loading")
def test_what_contradicts_is_refused_before_the_model_is_loaded(
    tiny_model: Path, tmp_path: Path
) -> None:
    plan, output = by_hand(tiny_model), tmp_path / "out"
    recipe = vtcompress.load_recipe("shortv").override({"model.id": str(tiny_model)})

    def refused(error: type[VtcompressError], words: str, plan: Plan, **given: Any) -> None:
        with pytest.raises(error, match=words):
            vtcompress.export(given.pop("recipe", recipe), output, plan=plan, **given)

    other = r"the plan was made for owner/little-model, not for .* \(layers 6, not 2\)"
    refused(ArtifactError, other, facts.plan([1]))
    digest = plan.model_copy(update={"model_digest": "a" * 64})
    refused(ArtifactError, r"the plan was made for .* \(.*\); make it anew", digest)
    small = recipe.override({"export.image_size": 48})
    words = "pictures of 32 pixels, but the model takes 48: set export.image_size=32"
    refused(ArtifactError, words, plan, recipe=small)
    words = "compress: the plan was made by shortv, which the recipe does not have"
    refused(RecipeError, words, plan, recipe=identity(tiny_model))
    window = plan.model_copy(update={"layers": (LayerPlan(index=0, window=3), LayerPlan(index=1))})
    words = "made by yopo, which the recipe does not have"
    refused(RecipeError, words, window, recipe=identity(tiny_model))
    gates = Gates(candidates=(0,), mode="dynamic", width=4, digest="a" * 64)
    refused(GatesError, "the recipe names no gates", plan.model_copy(update={"gates": gates}))
    words = "measured on another model"
    refused(VtcompressError, words, plan, profile=facts.profile([[0.1, 0.2, 0.3, 0.4]]))
    words = "small: holds plan and profile already, so another plan is not read; leave it out"
    refused(VtcompressError, words, plan, compressed=tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("first", "words"),
    [
        (
            LayerPlan(index=0, visual="exited", reason="shortv"),
            "visual rows enter layer 0, and layers",
        ),
        (
            LayerPlan(index=0, visual="frozen", reason="dead"),
            "layer 0: frozen for the reason dead, though",
        ),
        (LayerPlan(index=0, groups=(99,)), "layer 0: key/value heads up to 99; there are"),
    ],
    ids=["exit at once", "not dead", "no such heads"],
)
def test_a_plan_changed_past_its_rules_is_refused_by_export_and_compress(
    first: LayerPlan, words: str, tiny_model: Path, tmp_path: Path
) -> None:
    plan = vtcompress.plan(identity(tiny_model))
    plan = plan.model_copy(update={"layers": (first, *plan.layers[1:])})
    recipe = vtcompress.load_recipe("shortv").override({"model.id": str(tiny_model)})
    makers: tuple[Callable[[], object], ...] = (
        lambda: vtcompress.export(recipe, tmp_path / "out", plan=plan),
        lambda: vtcompress.compress(recipe, plan, tmp_path / "out"),
    )
    for make in makers:
        with pytest.raises(PlanError) as caught:
            make()
        assert caught.value.problems[0].startswith(f"the plan: {words}")
        assert caught.value.problems[0].endswith("or make it anew with `vtcompress plan`")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_loading")
def test_the_command_names_the_file(vt: Vt, tiny_model: Path, tmp_path: Path) -> None:
    plan = facts.plan([1])
    plan.save(tmp_path / "mine.json")
    asked = ["export", "--recipe", "shortv", "--model", tiny_model, "--plan"]
    code, _, err = vt(*asked, tmp_path / "mine.json", "--output", tmp_path / "out")
    assert code == 1
    assert f"error: {tmp_path / 'mine.json'}: the plan was made for owner/little-model" in err
    code, _, err = vt(*asked, tmp_path / "none.json", "--output", tmp_path / "out")
    assert code == 1
    assert "none.json" in err


@pytest.mark.usefixtures("no_loading")
def test_a_plan_for_another_image_size_is_refused_by_compress_as_well(
    tiny_model: Path, tmp_path: Path
) -> None:
    plan = vtcompress.plan(identity(tiny_model))
    recipe = identity(tiny_model, **{"export.image_size": 48})
    with pytest.raises(ArtifactError, match="pictures of 32 pixels, but the model takes 48"):
        vtcompress.compress(recipe, plan, tmp_path / "small")


@pytest.mark.usefixtures("no_loading")
def test_compress_refuses_a_recipe_without_the_methods_of_the_plan(
    tiny_model: Path, tmp_path: Path
) -> None:
    words = "the plan was made by shortv, which the recipe does not have"
    with pytest.raises(RecipeError, match=words):
        vtcompress.compress(identity(tiny_model), by_hand(tiny_model), tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_was_changed_is_said_to_be_so_and_taken(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By all stages that take a plan; each ends here where it would load the model."""
    recipe = vtcompress.load_recipe("shortv").override({"model.id": str(tiny_model)})
    own = vtcompress.plan(identity(tiny_model)).signed(("shortv (frozen: 0.7)",), "")
    small = tmp_path / "small"
    vtcompress.compress(recipe, own, small)
    monkeypatch.setattr(
        "compressor.families.llava.family.LlavaFamily.original", lambda *_, **__: 1 / 0
    )
    monkeypatch.setattr("compressor.compressed.load_compressed", lambda *_, **__: 1 / 0)

    def told(plan: Plan, stage: Any) -> list[str]:
        plan.save(small / "plan.json")
        said = Said()
        with pytest.raises((ZeroDivisionError, VtcompressError), match="division"):
            stage(plan, said)
        return [line for line in said.lines if "changed since it was made" in line]

    out, bare = tmp_path / "out", recipe.override({"model.id": None})
    stages: dict[str, Any] = {
        "the plan": lambda p, s: vtcompress.export(recipe, out, plan=p, progress=s),
        f"{small / 'plan.json'}: the plan": lambda _, s: vtcompress.export(
            recipe, out, plan=small / "plan.json", progress=s
        ),
        f"{small}: the plan": lambda _, s: vtcompress.export(
            bare, out, compressed=small, progress=s
        ),
        "the plan itself": lambda p, s: vtcompress.compress(recipe, p, out, progress=s),
    }
    for name, stage in stages.items():
        assert told(own, stage) == []
        (line,) = told(freeze(own, [0], "shortv"), stage)
        assert line.startswith(f"note: {name.removesuffix(' itself')}: changed since it was made")


def test_a_folder_is_exported_by_the_recipe_that_it_was_made_by_alone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = vtcompress.load_recipe("shortv").override({"model.id": str(tiny_model)})
    small, out = tmp_path / "small", tmp_path / "out"
    made = by_hand(tiny_model).signed(("shortv (frozen: 0.7)",), "")
    vtcompress.compress(recipe, made, small)
    monkeypatch.setattr("compressor.compressed.load_compressed", lambda *_, **__: 1 / 0)
    words = "small: the plan was made by shortv, which the recipe does not have"
    with pytest.raises(RecipeError, match=words):
        vtcompress.export(identity(tiny_model), out, compressed=small)
    other = recipe.override({"compress.shortv.frozen": 0.25})
    words = r"made by shortv \(frozen: 0.7\), and the recipe asks for shortv \(frozen: 0.25\)"
    with pytest.raises(RecipeError, match=words) as refused:
        vtcompress.export(other, out, compressed=small)
    assert not out.exists()
    remedy = str(refused.value).rpartition("own recipe, ")[2]
    own = vtcompress.load_recipe(remedy).override({"model.id": None})
    with pytest.raises(ZeroDivisionError):
        vtcompress.export(own, out, compressed=small)
    # The plan tells what made it, also where the recipe is lost.
    (small / "recipe.yaml").unlink()
    with pytest.raises(RecipeError, match=words):
        vtcompress.export(other, out, compressed=small)


def test_an_artifact_in_place_of_a_compressed_folder_is_called_one(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    recipe = vtcompress.load_recipe("shortv")
    with pytest.raises(
        ArtifactError, match="artifact: an artifact, not a folder that `vtcompress co"
    ):
        vtcompress.export(recipe, tmp_path / "out", compressed=artifact)
