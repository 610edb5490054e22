"""The shipped recipes: found by name, explained by their own comments, true to their sources."""

import re
import shutil
from pathlib import Path

import pytest

import vtcompress.shipped as shipped_module
from compressor.disk.gate_file import GateFile
from compressor.disk.model_digest import same_model
from compressor.errors import GatesError, PlanError, RecipeError
from compressor.families.folder import digest
from compressor.families.registry import describe
from compressor.methods.shortv import ShortV
from compressor.methods.yopo.method import Yopo
from compressor.planner import check_methods, plan_recipe
from compressor.profile import Profile, SampleScore
from compressor.recipe import load_recipe
from compressor.schema.values import layer_at
from vtcompress.shipped import find_recipe, recipes_folder, shipped_recipes
from vtcompress.stages.gates.report import GatesReport

ROOT = Path(__file__).parent.parent
NAMES = [
    "auto",
    "cls_knee",
    "divprune",
    "dyvte",
    "fastv",
    "gamma_mod",
    "gprune",
    "identity",
    "internvl3",
    "mod",
    "pool",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "random",
    "shortv",
    "shortv+vtw",
    "shortv-llava-1.5-13b",
    "shortv-llava-1.5-7b",
    "shortv-llava-next-13b",
    "shortv-llava-next-7b",
    "skip",
    "smolvlm",
    "visionzip",
    "vtw",
    "wico",
    "wico_plus",
    "yopo",
    "yopo-heads",
]
STARTING_POINTS = {
    "internvl3": "shortv",
    "qwen2_5_vl": "vtw",
    "qwen2_vl": "yopo",
    "qwen3_vl": "vtw",
    "smolvlm": "shortv",
}
"""Recipes of a family, which mostly have nothing published to go by, by the method that they begin with."""
PAPERS = {
    "auto": "This project's own",
    "shortv": "ShortV: Efficient Multimodal Large Language Models "
    "by Freezing Visual Tokens in Ineffective Layers",
    "vtw": "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference",
    "dyvte": "Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit "
    "and the Empirical Findings",
    "yopo": "Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See",
    "fastv": "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large "
    "Vision-Language Models",
    "gamma_mod": "gamma-MoD: Exploring Mixture-of-Depth Adaptation for Multimodal Large Language Models",
    "mod": "VideoLLM-MoD: Efficient Video-Language Streaming with Mixture-of-Depths Vision Computation",
    "skip": "This project's own, in the manner of ShortV",
    "gprune": "What Kind of Visual Tokens Do We Need? Training-free Visual Token Pruning for Multi-modal "
    "Large Language Models from the Perspective of Graph",
    "divprune": "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
    "visionzip": "VisionZip: Longer is Better but Not Necessary in Vision Language Models",
    "cls_knee": "Sparsity Meets Similarity: Leveraging Long-Tail Distribution for Dynamic Optimized Token "
    "Representation in Multimodal Large Language Models",
    "wico": "Window Token Concatenation for Efficient Visual Large Language Models",
    "random": "A baseline without a paper",
    "pool": "A baseline without a paper",
    "wico_plus": "Window Token Concatenation for Efficient Visual Large Language Models",
}


def test_the_shipped_recipes_are_listed_by_name():
    assert sorted(recipe.name for recipe in shipped_recipes()) == NAMES


def test_the_title_is_the_first_comment_line_and_the_explanation_the_whole_block():
    identity = next(recipe for recipe in shipped_recipes() if recipe.name == "identity")
    assert identity.title == "Identity: the model exported as it is, nothing compressed."
    assert identity.explanation.startswith(identity.title + "\n\nThe baseline")
    assert identity.explanation.endswith(
        "vtcompress export --recipe identity --model ID_OR_FOLDER --data questions.jsonl\n\n"
        "Model: any of a supported family"
    )
    assert identity.model == "any of a supported family"


def test_every_shipped_recipe_says_what_it_is_in_one_line_and_how_to_call_it():
    for recipe in shipped_recipes():
        assert 20 < len(recipe.title) < 100
        assert recipe.title.endswith(".")
        assert f"vtcompress export --recipe {recipe.name}" in recipe.explanation
        said = " ".join(recipe.explanation.split())
        if recipe.name == "shortv+vtw":
            assert "See vtw.yaml and shortv.yaml" in said
        elif recipe.name != "identity":
            method = STARTING_POINTS.get(recipe.name, recipe.name.partition("-")[0])
            assert PAPERS[method] in said


def test_gates_belong_to_a_model_so_the_recipe_names_none_and_says_how_to_get_some():
    recipe = load_recipe(find_recipe("dyvte"))
    assert recipe.gated is not None
    assert (recipe.gated.gates, recipe.gated.exit) == (None, "dynamic")
    (shipped,) = (r for r in shipped_recipes() if r.name == "dyvte")
    assert "vtcompress train-gates --recipe dyvte" in shipped.explanation
    assert "--gates gates.safetensors" in shipped.explanation


def test_the_bundled_models_gates_are_those_of_the_shipped_recipe():
    method = load_recipe(find_recipe("dyvte")).gated
    folder = "examples/digits-llava"
    file = GateFile.read(ROOT / folder / "gates.safetensors")
    assert file.path.stat().st_size < 500_000
    facts = describe(str(ROOT / folder / "model"))
    model_digest = digest(ROOT / folder / "model")
    method.model_copy(update={"gates": file.path}).gate_file(facts, model_digest)
    assert same_model(file.model_digest, model_digest)
    assert file.width == method.gate_width
    report = GatesReport.model_validate_json((ROOT / folder / "gates.json").read_bytes())
    assert (report.gates_digest, report.model_digest) == (file.digest, file.model_digest)
    assert report.train == method.train
    assert report.candidates == method.gate_layers(facts.decoder.layers)
    held = report.held_out
    assert held.answers.overall.samples == 1800
    assert sum(held.fired) > 0.5 * 1800
    assert held.answers.overall.exact_match_kept >= 0.98


def test_identity_compresses_nothing_and_shortv_takes_a_share():
    assert load_recipe(find_recipe("identity")).methods == ()
    (method,) = load_recipe(find_recipe("shortv")).methods
    assert method.frozen is not None


def test_yopo_is_the_published_example_and_its_heads_alone_are_the_mildest_cut():
    (whole,) = load_recipe(find_recipe("yopo")).methods
    assert (whole.window, whole.off_from, whole.mlp_ratio) == (5, 0.5, 2)
    assert layer_at(whole.off_from, 40) == 20, "as published for a model of 40 layers"
    assert (whole.causal, whole.select, whole.semantics) == (False, "first", "removed")
    (heads,) = load_recipe(find_recipe("yopo-heads")).methods
    assert heads == Yopo(heads=whole.heads)


# The lists as the authors published them, in their order.
@pytest.mark.parametrize(
    ("name", "model", "layers"),
    [
        (
            "shortv-llava-1.5-7b",
            "llava-hf/llava-1.5-7b-hf",
            "31 29 30 28 0 26 27 25 24 22 23 21 2 3 20 18 17 12 19",
        ),
        (
            "shortv-llava-1.5-13b",
            "llava-hf/llava-1.5-13b-hf",
            "39 32 28 36 27 37 29 30 1 38 25 31 2 26 23 34 0 33 35 22 24 21 20 17",
        ),
        (
            "shortv-llava-next-7b",
            "llava-hf/llava-v1.6-vicuna-7b-hf",
            "31 29 30 28 26 27 22 24 21 23 25 20 19 17 18 15 12 0 2",
        ),
        (
            "shortv-llava-next-13b",
            "llava-hf/llava-v1.6-vicuna-13b-hf",
            "39 32 29 36 27 30 37 23 25 31 26 2 28 22 33 35 34 24 38 21 20 18 1 17",
        ),
    ],
)
def test_the_published_lists_are_the_published_ones(name, model, layers):
    recipe = load_recipe(find_recipe(name))
    assert recipe.model.id == model
    assert recipe.methods == (ShortV(layers=tuple(map(int, layers.split()))),)
    title = next(r.title for r in shipped_recipes() if r.name == name)
    frozen, total = map(int, re.findall(r"the (\d+) of (\d+) layers", title)[0])
    assert (frozen, total) == (len(layers.split()), 40 if name.endswith("13b") else 32)


def test_the_list_says_which_models_a_recipe_is_for():
    for recipe in shipped_recipes():
        named = load_recipe(recipe.path).model.id
        assert recipe.model.startswith(named or "any of a supported family")
        assert ("gates" in recipe.model) == (recipe.name == "dyvte")


REFUSED = {
    "qwen2_vl": "visual_exit.layer: 24 is outside 1..19; the model has 20 layers",
    "dyvte": "compress[0].dyvte: dyvte.gates: the recipe names no gates; give `gates`, or train them",
    "gamma_mod": "compress[0].gamma_mod.routers: the recipe names no routers, and none come with vtcompress",
    "mod": "compress[0].mod.routers: the recipe names no routers, and none come with vtcompress",
    "wico": "compress[0].wico.weights: none are given; name the safetensors file of a trained projector; "
    "without trained weights use pool with keep: 0.25",
    "shortv-llava-1.5-7b": "the model has 20 layers: give layers of this model, or a share (frozen)",
}
REFUSED |= {
    f"shortv-llava-{name}": REFUSED["shortv-llava-1.5-7b"]
    for name in ("1.5-13b", "next-7b", "next-13b")
}


@pytest.fixture(scope="module")
def digits():
    """Facts of the bundled model, and a made-up profile of it with every measure."""
    facts = describe(str(ROOT / "examples/digits-llava/model"))
    layers, heads = facts.decoder.layers, facts.decoder.heads
    sample = SampleScore(
        visual=64,
        text=8,
        layer_contribution=tuple(float(layers - i) for i in range(layers)),
        exit_kl=tuple(2.0 ** -(2 * i) for i in range(layers)),
        head_score=tuple(tuple(float(h) for h in range(heads)) for _ in range(layers)),
        operator_kl=tuple((float(layers - i), 1.0) for i in range(layers)),
        class_knee=(20.0,),
    )
    profile = Profile(
        model=facts.name,
        model_digest="0" * 64,
        data="x.jsonl",
        data_digest="0" * 64,
        layers=layers,
        total=1,
        measures=("layer_contribution", "exit_kl", "head_score", "operator_kl", "class_knee"),
        samples=(sample,),
    )
    return facts, profile


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_runs_on_the_bundled_model_or_says_what_to_do(name, digits):
    facts, profile = digits
    recipe = load_recipe(find_recipe(name))
    if recipe.searched is not None:  # tests of searches run it
        check_methods(facts, recipe.methods)
        return
    if name not in REFUSED:
        plan = plan_recipe(recipe, facts, "0" * 64, profile)
        cut = any(layer.cuts for layer in plan.layers)
        assert name == "identity" or cut or plan.methods
        return
    with pytest.raises((PlanError, GatesError)) as caught:
        check_methods(facts, recipe.methods)
    (line,) = caught.value.problems
    assert REFUSED[name].removeprefix("compress[0].dyvte: ") in line


def test_the_share_of_the_shipped_shortv_is_that_of_its_documentation(digits):
    facts, profile = digits
    plan = plan_recipe(load_recipe(find_recipe("shortv")), facts, "0" * 64, profile)
    assert len(plan.frozen_layers()) == 14
    assert [layer.reason for layer in plan.layers].count("shortv") == 13


def test_a_name_is_found_with_and_without_its_ending():
    assert find_recipe("shortv") == find_recipe("shortv.yaml") == recipes_folder() / "shortv.yaml"


def test_an_existing_file_wins_over_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("shortv.yaml").write_text("vtcompress: 1\n")
    assert find_recipe("shortv.yaml") == Path("shortv.yaml")
    assert find_recipe("shortv") == recipes_folder() / "shortv.yaml"


def test_a_folder_of_the_same_name_does_not_hide_a_shipped_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("shortv").mkdir()
    assert find_recipe("shortv") == recipes_folder() / "shortv.yaml"


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(RecipeError) as caught:
        find_recipe("shortw")
    assert str(caught.value) == (
        "'shortw': no such file, and no shipped recipe has this name; did you mean 'shortv'? "
        f"(shipped: {', '.join(r.name for r in shipped_recipes())})"
    )


@pytest.mark.parametrize("name", ["", "..", "../pyproject.toml.yaml", "zzzzzz", "a\0b", "x" * 5000])
def test_no_name_but_a_shipped_one_or_a_file_is_found(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError):
        find_recipe(name)


def test_an_installed_wheel_finds_the_recipes_beside_the_module(tmp_path, monkeypatch):
    package = tmp_path / "vtcompress"
    shutil.copytree(recipes_folder(), package / "recipes")
    monkeypatch.setattr(shipped_module, "__file__", str(package / "shipped.py"))
    assert recipes_folder() == package / "recipes"
    assert [recipe.name for recipe in shipped_recipes()] == NAMES
