"""Methods that keep some visual rows in front of the decoder, each against the unmodified model on these.

A plan that chooses there changes the vision graph alone, so each method's is exported by itself and runs with
the decoder of the family's identity artifact.
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

import vtcompress
from compressor.arrangement import Unpadded
from compressor.calibration import run
from compressor.chosen_rows import load_front_weights, vision_of
from compressor.compressed import CompressedModel, compress, load_compressed
from compressor.contract.choice import highest_places, ranked_places
from compressor.decoder.weights import LoadedGates
from compressor.errors import ArtifactError, ArtifactWarning, DataError, PlanError, RecipeError
from compressor.facts import TowerFacts
from compressor.methods.divprune import farthest
from compressor.plan.cost import predict
from compressor.plan.edits import keep_in_front
from compressor.plan.plan import Plan, Workload
from compressor.planner import check_methods, make_plan
from compressor.profile import Profile, SampleScore
from compressor.samples.questions import Sample
from export.backends.onnxruntime import OnnxSession
from export.backends.openvino import OpenVinoSession
from export.backends.tensorrt.build import EnginePlan
from export.backends.tensorrt.maker import Maker
from export.backends.tensorrt.targets import TARGETS
from export.backends.torch_model import TorchSession
from export.graphs.limits import limits_of, rows_of_picture
from export.graphs.profiles import profiles_of
from export.graphs.spec import decoder_graphs, vision_graph
from export.runtime.images import rows_of
from export.runtime.runtime import Runtime
from export.session.arrays import Array
from export.session.session import Session
from export.writer.weights import SharedWeights
from export.writer.write import export_vision, save_graph
from tests import (
    facts,
    test_family_idefics3,
    test_family_internvl,
    test_family_llava,
    test_family_llava_next,
    test_family_llava_onevision,
    test_family_qianfan_ocr,
    test_family_qwen2_vl,
    test_family_smolvlm,
    test_family_vipllava,
)
from tests.chosen import (
    Rule,
    Tile,
    Whole,
    at,
    class_cosines,
    cls_knee,
    divprune,
    first_of,
    gprune,
    means,
    visionzip,
    wico,
)
from tests.conftest import made_once, shared
from tests.family_cases import BACKENDS, NEW_TOKENS, STEPS, TOLERANCE, Made, ask, random_picture
from tests.family_matrix import TORCH
from tests.flops import flops_by_layer
from tests.runtimes import Spy
from tests.test_qwen_vl_engines import SIZES, wide
from tests.tiny_families import (
    IMAGE,
    TinyFamily,
    clip_section,
    text_section,
    write_model,
    write_projector,
)
from vtcompress.stages.checks.recipe import check_plan_rules


def make_siglip(folder: Path) -> None:
    """Write LLaVA with a tower that has no class token."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    processor = test_family_llava.processor_of("full")
    processor.num_additional_image_tokens = 0
    config = LlavaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **clip_section(),
            "vision_use_head": False,
        },
        text_config={"model_type": "llama", **text_section()},
        image_token_index=processor.tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=16,
        vision_feature_select_strategy="full",
    )
    write_model(LlavaForConditionalGeneration, config, processor, folder)


FAMILIES = {
    name: file.family
    for name, file in {
        "llava": test_family_llava.TestLlava,
        "internvl": test_family_internvl.TestInternVl,
        "smolvlm": test_family_smolvlm.TestSmolVlm,
        "vipllava": test_family_vipllava.TestVipLlava,
        "llava_next": test_family_llava_next.TestLlavaNext,
        "llava_onevision": test_family_llava_onevision.TestLlavaOnevision,
        "qwen2_vl": test_family_qwen2_vl.TestQwen2Vl,
        "qianfan_ocr": test_family_qianfan_ocr.TestQianfanOcr,
        "idefics3": test_family_idefics3.TestIdefics3,
    }.items()
} | {
    "llava without a class token": TinyFamily("llava_siglip", make_siglip, grid=(4, 4)),
    "internvl on an even grid": TinyFamily(
        "internvl_even", partial(test_family_internvl.make, side=64), grid=(4, 4)
    ),
    "smolvlm on an even grid": TinyFamily(
        "smolvlm_even",
        partial(test_family_smolvlm.make, side=64),
        grid=(4, 4),
        layers="model.text_model.layers",
    ),
}
THREE_KINDS = ("llava", "internvl", "smolvlm")
OF_A_TOWER = ("llava", "vipllava", "llava without a class token")
# Four patches are a visual token; of nine tokens there were one contextual, to which all others went.
OF_BLOCKS = ("internvl on an even grid", "smolvlm on an even grid")
NAMES = ("one picture", "two apart", "text alone", "a second turn with a new picture")
SESSIONS = {"onnxruntime": OnnxSession, "openvino": OpenVinoSession}

# Of the 16 places of LLaVA's tile and the 9 of the others', as numpy's generator of seed 3 orders them.
RANDOM = {16: [1, 2, 9, 10, 11, 12, 14, 15], 9: [0, 1, 2, 7]}
# Blocks of 3 x 3 of LLaVA's 4 x 4 tokens: of 1, 1 and 2 rows; and of 2 x 2 of 3 x 3: of 1 and 2.
POOLED = {
    16: ([[0], [1], [2, 3], [4], [5], [6, 7], [8, 12], [9, 13], [10, 11, 14, 15]],
         [0, 1, 2, 4, 5, 6, 8, 9, 10]),
    9: ([[0], [1, 2], [3, 6], [4, 5, 7, 8]], [0, 1, 3, 4]),
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "gprune": {"keep": 0.5},
    "divprune": {"keep": 0.5},
    "random": {"keep": 0.5, "seed": 3},
    "pool": {"keep": 0.5},
    "visionzip": {"keep": 0.5, "contextual": 0.25},
    "cls_knee": {"keep": 0.5},
    "wico": {},  # a file of weights, which is made
}
FAMILIES_OF = {
    "visionzip": (*OF_A_TOWER, *OF_BLOCKS),
    "cls_knee": (*OF_A_TOWER[:2], "internvl", "llava_next"),
    "wico": (*OF_A_TOWER, *OF_BLOCKS),
}
CASES = [(family, one) for one in METHODS for family in FAMILIES_OF.get(one, THREE_KINDS)]


# Families whose pictures have grids of their own, and the cells of the largest.
OWN_GRIDS = {"llava_next": 72, "llava_onevision": 40, "qwen2_vl": 97}
CASES += [(family, one) for family in OWN_GRIDS for one in ("gprune", "random")]


def rule_of(family: str, method: str, rows: int, weights: Path) -> Rule:
    """Return a method's rule, written anew, on tiles of so many rows."""
    if family in OWN_GRIDS and method == "random":
        order = np.random.default_rng(3).permutation(OWN_GRIDS[family])
        return first_of(order, Fraction(rows // 2, rows))
    return {
        "gprune": gprune(0.5, rows),
        "divprune": divprune(0.5),
        "random": at(RANDOM.get(rows, [])),
        "pool": means(*POOLED.get(rows, ([], []))),
        "visionzip": visionzip(rows // 2, rows // 8),
        "cls_knee": cls_knee(rows // 2, rows),
        "wico": wico(weights),
    }[method]


@dataclass
class Looking(Spy):
    """A decoder and token embedding beside the vision side of another session.

    Attributes:
        looks: that session.
        seen: visual_index of every decoder call.
    """

    looks: Session = field(kw_only=True)
    seen: list[Array] = field(default_factory=list)

    @property
    def rows_kept(self) -> int | None:
        return self.looks.rows_kept

    def vision(self, *given: Any) -> Any:
        return self.looks.vision(*given)

    def decode(self, rows: Any, past: Any) -> Any:
        self.seen.append(rows.visual_index)
        return super().decode(rows, past)


class Chosen:
    """A tiny family with a method in front of its decoder."""

    def __init__(self, made: Made, method: str) -> None:
        self.made, self.method = made, method
        tower = made.loaded.facts.tower
        patches = 4 * (tower.patches if tower is not None else 1)
        folder = made_once(
            made.place / "projector", lambda half: write_projector(half, patches=patches)
        )
        self.weights = folder / "projector.safetensors"
        keys = {"weights": str(self.weights)} if method == "wico" else METHODS[method]
        recipe = vtcompress.load_recipe("identity").override({"compress": [{method: keys}]})
        facts, digest = made.loaded.facts, made.loaded.digest
        self.plan = make_plan(facts, digest, recipe.methods)
        self.front = load_front_weights(recipe.methods)
        rule = rule_of(made.family.name, method, facts.tile_rows, self.weights)
        self.whole = Whole(made, rule, anew=method == "wico")

    def compressed(self) -> CompressedModel:
        """Return the plan's model, on the family's weights."""
        return compress(self.made.loaded, self.plan, front=self.front)

    def runtime(self, backend: str) -> tuple[Runtime, Looking]:
        """Return what runs it."""
        small = self.compressed()
        runtime, spy = self.made.runtime("identity", backend)
        looks: Session = TorchSession(small)
        if backend != TORCH:
            folder, spec = self.graph(), vision_graph(self.plan.model, "float32", self.plan.front)
            decoder = decoder_graphs(self.plan, "float32", "last")
            identity = decoder_graphs(self.made.plan("identity"), "float32", "last")
            assert decoder == identity  # so that the artifact's is the plan's
            looks = SESSIONS[backend](folder, (spec, *decoder), threads=1)
        looking = Looking(spy.inner, looks=looks)
        parts = (self.plan.model, runtime.prompter, runtime.images, runtime.settings)
        return Runtime(looking, *parts), looking

    def graph(self) -> Path:
        """Return a folder of the vision graph."""
        spec = vision_graph(self.plan.model, "float32", self.plan.front)

        def write(half: Path) -> None:
            with SharedWeights(half) as weights:
                model = export_vision(self.compressed(), spec)
                save_graph(model, half / spec.file, weights)

        return made_once(self.made.place / f"front {self.method}", write)


@pytest.fixture(scope="module")
def chosen(pytestconfig: pytest.Config) -> Any:
    made = {
        name: Made(family, shared(pytestconfig) / "families") for name, family in FAMILIES.items()
    }
    found: dict[tuple[str, str], Chosen] = {}

    def get(family: str, method: str) -> Chosen:
        key = family, method
        if key not in found:
            found[key] = Chosen(made[family], method)
        return found[key]

    return get


@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_choice_is_the_unmodified_model_on_the_rows_that_stay(
    family: str, method: str, chosen: Any
) -> None:
    one = chosen(family, method)
    wanted = {name: one.whole.answer(name) for name in NAMES}
    for backend in BACKENDS:
        if backend == "openvino":
            pytest.importorskip("openvino", reason="the extra openvino is not installed")
        runtime, spy = one.runtime(backend)
        for name in NAMES:
            tokens, logits = ask(one.made, runtime, spy, name)
            difference = np.abs(logits[:STEPS] - wanted[name][1][:STEPS]).max()
            assert difference <= TOLERANCE, f"{backend}, {name}: {difference}"
            assert tokens == wanted[name][0], f"{backend}, {name}"
            assert len(tokens) == NEW_TOKENS


@pytest.mark.parametrize(
    ("family", "method"),
    [("qianfan_ocr", "visionzip"), ("qianfan_ocr", "cls_knee"), ("idefics3", "visionzip")],
)
def test_towers_of_classes_of_their_own_are_read_as_their_like(
    family: str, method: str, chosen: Any
) -> None:
    one = chosen(family, method)
    made, small = one.made, one.compressed()
    runtime, _ = made.runtime("identity", TORCH)
    pixels = torch.from_numpy(np.concatenate([seen.pixels for seen in runtime.look(made.pictures)]))
    assert len(pixels) > 2
    with torch.inference_mode():
        whole = made.loaded.vision(pixels).double().numpy()
        features, kept = small.vision(pixels)
        for place, rows in enumerate(whole):
            tile = Tile(rows, pixels[place : place + 1], made.loaded.original)
            wanted, places = one.whole.rule(tile)
            assert kept[place].tolist() == places.tolist()
            assert np.abs(features[place].numpy() - wanted).max() <= TOLERANCE


def test_prompts_of_a_batch_keep_places_of_their_own(chosen: Any) -> None:
    one = chosen("llava", "gprune")
    runtime, spy = one.runtime("onnxruntime")
    pictures = [random_picture((45, 30), seed) for seed in range(3)]
    alone = [runtime.answer("what", picture, max_new_tokens=4) for picture in pictures]
    spy.seen.clear()
    together = dict(runtime.answers([("what", picture) for picture in pictures], max_new_tokens=4))
    prefill, step, *_ = spy.seen
    assert (prefill.shape, step.shape) == ((3, 8), (3, 0))
    assert len({tuple(places) for places in prefill.tolist()}) == 3
    for place, reply in enumerate(alone):
        assert together[place].token_ids == reply.token_ids
        assert np.abs(together[place].first_logits - reply.first_logits).max() <= TOLERANCE


def exported(
    folder: Path, model: Path, context: int, changes: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Any, Path]:
    """Return a recipe that keeps half in front, with fixed caches of so many rows, and its artifact."""
    recipe = vtcompress.load_recipe("gprune").override(
        {
            "model.id": str(model),
            "export.kv_cache": "fixed",
            "export.profiles.max_context": context,
            **changes,
        }
    )
    vtcompress.export(recipe, folder / "artifact", bench_rounds=1)
    return recipe, folder / "artifact"


@pytest.fixture(scope="module")
def exported_choice(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Return a recipe that keeps half, leaves at layer 1 and has fixed caches, and its artifact."""
    leaving = [{"visual_exit": {"layer": 1}}, {"gprune": {"keep": 0.5}}]
    return exported(tmp_path_factory.mktemp("front"), tiny_model, 64, {"compress": leaving})


def test_an_artifact_answers_as_the_compressed_model_in_torch(
    exported_choice: tuple[Any, Path], tmp_path: Path
) -> None:
    recipe, folder = exported_choice
    vtcompress.compress(recipe, vtcompress.plan(recipe), tmp_path / "compressed")
    small = load_compressed(tmp_path / "compressed")
    with pytest.warns(ArtifactWarning):
        runtime = Runtime.load(folder)
    pictures = [random_picture((45, 30), seed) for seed in range(2)]
    for given in ([pictures[0]], pictures, []):
        reply = runtime.answer("what is it", given, max_new_tokens=8)
        assert reply.text == small.generate("what is it", given or None, max_new_tokens=8).text
        assert reply.exit_layer == (1 if given else None)
    seen = runtime.prefill_image(pictures[0])
    assert seen.rows > small.facts.tile_rows  # the choice reads no question, so all of it is kept
    kept = seen.answer("what is it", max_new_tokens=8)
    assert kept.text == runtime.answer("what is it", pictures[0], max_new_tokens=8).text
    states = small.hidden_states("what is it", pictures[0])
    assert states.visual[0].shape[1] == 8
    assert states.in_order(0).shape[1] == 8 + states.text[0].shape[1]


def test_figures_and_words_are_of_the_rows_that_enter(exported_choice: tuple[Any, Path]) -> None:
    _, folder = exported_choice
    manifest = vtcompress.Artifact.open(folder).manifest
    plan = Plan.load(folder / "plan.json")
    assert (plan.visual, plan.image_tokens) == (8, 16)
    assert plan.methods == ("gprune", "visual_exit")
    assert manifest.fidelity is not None
    assert manifest.fidelity.passed
    timed = manifest.measured
    assert timed is not None
    # 64 rows of context, an image of 8 and a decode step: 55 rows of text are left.
    assert (timed.visual, timed.text, timed.exit_layer) == (8, 55, 1)
    assert timed.kv_layers == (63, 55)
    of_timed = plan.model_copy(update={"workload": Workload(text=timed.text)})
    assert timed.kv_bytes == predict(of_timed).kv_bytes("float32")
    assert timed.kv_bytes_original == predict(of_timed.naive()).kv_bytes("float32")
    specs = {spec.name: spec for spec in manifest.graphs}
    assert specs["vision"].rows_kept == 8
    assert specs["baseline_vision"].rows_kept is None
    assert [t.rows for t in specs["decoder"].cached][::2] == [64, 56]
    # The original's caches have room for the same conversation with all rows of its image.
    assert {t.rows for t in specs["baseline_decoder"].cached} == {72}
    sizes = {"batch": 1, "visual": 8, "text": 55, "room": 63, "room_text": 55}
    counted = flops_by_layer(folder, specs["decoder"], sizes)
    for layer, wanted in enumerate(predict(of_timed).layer_flops):
        assert counted[layer] == pytest.approx(wanted, rel=0.02)
    said = (folder / "report.md").read_text(encoding="utf-8")
    assert "Of 16 visual tokens of a picture 8 enter the decoder" in said
    told = vtcompress.inspect(folder, random_picture((45, 30), 0))["picture"]
    assert (told["visual_tokens"], told["visual_tokens_kept"]) == (16, 8)


def test_a_prompt_is_refused_by_the_rows_that_enter(exported_choice: tuple[Any, Path]) -> None:
    _, folder = exported_choice
    with pytest.warns(ArtifactWarning):
        runtime = Runtime.load(folder)
    picture = random_picture((45, 30), 0)
    rows = runtime.prepare("what", picture).layout.rows - 8
    reply = runtime.answer("what", picture, max_new_tokens=64 - rows + 1)
    assert reply.token_ids
    with pytest.raises(DataError, match=f"{65} rows with the tokens to come"):
        runtime.answer("what", picture, max_new_tokens=64 - rows + 2)


@pytest.mark.parametrize(
    ("changes", "entry", "line"),
    [
        (
            {"sizes": True},
            {"pool": {"keep": 0.5}},
            "pictures of made-up have grids of their own, so different numbers of visual tokens, and which "
            "of them make up a block is written into the graph; leave pool out",
        ),
        (
            {"arranged": True},
            {"divprune": {"keep": 0.5}},
            "and how many are chosen one after the other is written into the graph; leave divprune out",
        ),
        (
            {},
            {"gprune": {"keep": 0.05}},
            "compress[0].gprune.keep: 0.05 of 12 visual tokens is none",
        ),
        ({}, {"pool": {"keep": 0.5}}, "have no grid, so there are no neighbours to pool"),
        ({"deepstack": 1}, {"pool": {"keep": 0.5}}, "and these are not pooled"),
        (
            {},
            {"visionzip": {"keep": 0.5}},
            "the family made-up does not tell what its vision tower is like; leave visionzip out",
        ),
        (
            {"grid": True, "joined": True},
            {"visionzip": {"keep": 0.5}},
            "the family made-up does not tell what layers of its vision tower make of pictures; leave vis",
        ),
        (
            {"grid": True, "joined": True},
            {"cls_knee": {}},
            "the vision tower of owner/little-model has no class token; leave cls_knee out",
        ),
        (
            {"grid": True, "early": True},
            {"cls_knee": {"keep": 0.05}},
            "compress[0].cls_knee.keep: 0.05 of 12 visual tokens is none; give more",
        ),
        (
            {"arranged": True, "early": True},
            {"cls_knee": {}},
            "compress[0].cls_knee.keep: pictures of made-up have grids of their own, so different numbers of "
            "visual tokens, and knees are those of tiles of one number; give a share",
        ),
        (
            {"shrunk": True, "early": True},
            {"cls_knee": {"keep": 0.5}},
            "a visual token of a large picture of made-up is made of 4 of the projector's; leave cls_knee",
        ),
        (
            {"arranged": True, "early": True},
            {"visionzip": {"keep": 0.5}},
            "and its rule is for tiles of one number of visual tokens; leave visionzip out",
        ),
        (
            {"odd": True, "early": True},
            {"wico": {"weights": "projector.safetensors"}},
            "a grid of 3 x 4 visual tokens has no windows of 2 x 2; leave wico out",
        ),
        (
            {"early": True},
            {"visionzip": {"keep": 0.5}},
            "visual tokens of owner/little-model are not the patches of its vision tower alone",
        ),
        (
            {"grid": True, "early": True},
            {"visionzip": {"keep": 0.5}},
            "layer -2 of the vision tower of owner/little-model is to be read, which has 6 layers, and runs "
            "4",
        ),
    ],
)
def test_a_model_that_rules_a_choice_out_is_refused_before_weights(
    changes: dict[str, Any], entry: dict[str, Any], line: str
) -> None:
    model = facts.facts(facts.dims(deepstack=changes.get("deepstack", 0)))
    given = {
        "sizes": {"cell": 2},
        "arranged": {"arrangement": Unpadded(side=3), "most_rows": 40},
        "shrunk": {"arrangement": Unpadded(side=3, most_tiles=9), "most_rows": 40},
        "odd": {"token_grid": (3, 4)},
        "deepstack": {"token_grid": (3, 4)},
        "grid": {"token_grid": (3, 4)},
        "joined": {"tower": TowerFacts(patches=4, class_token=False)},
        "early": {"tower": TowerFacts(class_token=True, layers=6, layers_read=4, width=8)},
    }
    model = model.model_copy(update={k: v for key in changes for k, v in given[key].items()})
    recipe = vtcompress.load_recipe("identity").override({"compress": [entry]})
    with pytest.raises(PlanError) as caught:
        check_methods(model, recipe.methods)
    (problem,) = caught.value.problems
    assert line in problem
    assert problem.startswith(f"compress[0].{next(iter(entry))}")


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        (
            [{"gprune": {"keep": 0.5}}, {"random": {"keep": 0.5}}],
            "gprune and random both choose which visual tokens enter the decoder; give one of them",
        ),
        (
            [{"yopo": {"window": 3}}, {"pool": {"keep": 0.5}}],
            "yopo.window cannot go with pool, behind which some of it is gone: it reads the grid of visual "
            "tokens; leave one of them out",
        ),
    ],
)
def test_choices_that_exclude_each_other_are_refused_in_one_line(
    entries: list[Any], line: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        vtcompress.load_recipe("identity").override({"compress": entries})
    assert any(line in problem for problem in caught.value.problems), caught.value.problems


def test_a_plan_that_was_changed_by_hand_is_refused_where_its_choice_makes_no_sense() -> None:
    model = facts.facts(token_grid=(3, 4))
    plan = keep_in_front(facts.plan(model=model), 6, "gprune", {"keep": 0.5})
    Plan.model_validate(plan.model_dump())
    windowed = plan.layers[0].model_copy(update={"window": 3})
    for change, line in (
        ({"front": plan.front.model_copy(update={"of": 16})}, "a tile has 12"),
        ({"front": plan.front.model_copy(update={"count": 13})}, "keeps 13 of 12 visual rows"),
        ({"layers": (windowed, *plan.layers[1:])}, "a window reads the grid of all visual rows"),
    ):
        with pytest.raises(ValidationError, match=line):
            Plan.model_validate(plan.model_copy(update=change).model_dump())
    check_plan_rules(plan)
    for front, line in (
        ({"by": "nobody"}, "visual rows are kept by 'nobody', a method that is not installed"),
        (
            {"asked": {"keep": 2}},
            "visual rows are kept by gprune: keep: 2 is not allowed; a number abo",
        ),
        (
            {"count": 5},
            "front: keeps 5 visual rows, and gprune as it was asked keeps 6; correct it, or",
        ),
    ):
        changed = plan.model_copy(update={"front": plan.front.model_copy(update=front)})
        with pytest.raises(PlanError) as caught:
            check_plan_rules(changed)
        (problem,) = caught.value.problems
        assert f"the plan: {line}" in problem


def test_a_choice_that_does_not_go_with_the_models_pictures_is_refused_in_a_plan_too() -> None:
    model = facts.facts(cell=2, token_grid=None)
    check_plan_rules(keep_in_front(facts.plan(model=model), 6, "random", {"keep": 0.5}))
    with pytest.raises(PlanError, match=r"the plan: front: pool\.keep: pictures of made-up"):
        check_plan_rules(keep_in_front(facts.plan(model=model), 6, "pool", {"keep": 0.5}))


def test_scores_that_are_equal_keep_those_that_come_first() -> None:
    scores = torch.tensor([[1.0, 3, 3, 0, 3, 4], [5, 4, 3, 2, 1, 0]])
    assert ranked_places(scores, 3).tolist() == [[1, 2, 5], [0, 1, 2]]
    assert ranked_places(scores, 0).shape == (2, 0)
    assert ranked_places(scores[:, :0], 0).shape == (2, 0)
    drawn = torch.rand(3, 50)
    assert ranked_places(drawn, 20).equal(highest_places(drawn, 20))


# Width and height of pictures whose tiles are padded otherwise, or not at all; of the last two as many rows
# are in the prompt, and not as many stay.
PADDED = ((45, 30), (28, 61), (60, 60), (100, 9), (1, 70), (66, 38), (14, 74))


@pytest.fixture(scope="module")
def exported_grids(chosen: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Return a recipe for pictures of grids of their own, with fixed caches, and its artifact."""
    model = chosen("llava_next", "gprune").made.folder
    return exported(tmp_path_factory.mktemp("grids"), model, 160)


def test_pictures_padded_otherwise_answer_as_the_compressed_model_in_torch(
    exported_grids: tuple[Any, Path], tmp_path: Path
) -> None:
    recipe, folder = exported_grids
    vtcompress.compress(recipe, vtcompress.plan(recipe), tmp_path / "compressed")
    small = load_compressed(tmp_path / "compressed")
    with pytest.warns(ArtifactWarning):
        runtime = Runtime.load(folder)
    pictures = [random_picture(size, seed) for seed, size in enumerate(PADDED)]
    counts = set()
    replies = []
    for picture in pictures:
        (seen,) = runtime.prepare("what", picture).seen
        wanted = seen.rows_kept(8, 16)
        assert len(rows_of(runtime.session, [seen]).kept) == wanted
        told = vtcompress.inspect(folder, picture)["picture"]
        assert (told["visual_tokens"], told["visual_tokens_kept"]) == (seen.rows, wanted)
        assert wanted <= rows_of_picture(small.facts, 8)
        counts.add((seen.rows, wanted))
        replies.append(runtime.answer("what is it", picture, max_new_tokens=4))
        assert replies[-1].text == small.generate("what is it", picture, max_new_tokens=4).text
    assert {(52, 8 + 16 + 4), (52, 8 + 12 + 12)} < counts
    together = dict(
        runtime.answers([("what is it", one) for one in [*pictures, *pictures]], max_new_tokens=4)
    )
    for place, reply in enumerate([*replies, *replies]):
        assert together[place].token_ids == reply.token_ids


def test_figures_of_grids_are_those_of_the_rows_that_enter(
    exported_grids: tuple[Any, Path],
) -> None:
    _, folder = exported_grids
    manifest = vtcompress.Artifact.open(folder).manifest
    plan = Plan.load(folder / "plan.json")
    # 16 of the whole and 72 of the tiles, of which 8 end lines.
    assert (plan.visual, plan.image_tokens) == (8 + 64 // 2 + 8, 88)
    assert manifest.fidelity is not None
    assert manifest.fidelity.passed
    timed = manifest.measured
    assert timed is not None
    assert timed.visual == plan.visual
    of_timed = plan.model_copy(update={"workload": Workload(text=timed.text)})
    assert timed.kv_bytes == predict(of_timed).kv_bytes("float32")
    specs = {spec.name: spec for spec in manifest.graphs}
    assert (specs["vision"].rows_kept, specs["baseline_vision"].rows_kept) == (8, None)
    assert specs["vision"].kept == {"kept": ((8, 16),)}
    rows = timed.visual + timed.text
    sizes = {"batch": 1, "visual": timed.visual, "text": timed.text, "room": rows}
    counted = flops_by_layer(folder, specs["decoder"], sizes)
    for layer, wanted in enumerate(predict(of_timed).layer_flops):
        assert counted[layer] == pytest.approx(wanted, rel=0.02)
    said = (folder / "report.md").read_text(encoding="utf-8")
    assert "Of every 16 visual tokens of a grid 8 enter the decoder" in said
    assert "tokens that end lines are in none and all enter" in said


def test_a_prompt_of_grids_is_refused_by_the_rows_that_enter(
    exported_grids: tuple[Any, Path],
) -> None:
    _, folder = exported_grids
    with pytest.warns(ArtifactWarning):
        runtime = Runtime.load(folder)
    picture = random_picture((45, 30), 0)
    prompt = runtime.prepare("what", picture)
    (seen,) = prompt.seen
    rows = prompt.layout.rows - seen.rows + seen.rows_kept(8, 16)
    reply = runtime.answer("what", picture, max_new_tokens=160 - rows + 1)
    assert reply.token_ids
    with pytest.raises(DataError, match="161 rows with the tokens to come"):
        runtime.answer("what", picture, max_new_tokens=160 - rows + 2)


def test_engines_of_grids_take_all_cells_and_the_decoder_those_that_stay(
    exported_grids: tuple[Any, Path],
) -> None:
    _, folder = exported_grids
    artifact, target = vtcompress.Artifact.open(folder), TARGETS["tensorrt-rtx"]
    profiles = vtcompress.load_recipe("identity").export.profiles
    facts = artifact.manifest.model
    limits = limits_of(profiles.model_copy(update={"max_images": 2}), facts, 8)
    plan = EnginePlan(artifact, target, Maker(target, None, ()), ("SM86",), "", limits, False)
    by_name = {spec.name: profiles for spec, profiles in plan.profiles}
    (profile,) = by_name["vision"]
    # One grid a call, of all its cells; a picture's rows are never more.
    assert profile.most == {"images": 5, "rows": 88}
    assert by_name["decoder"][0].most["visual"] == 2 * rows_of_picture(facts, 8)


def test_tensorrt_rtx_builds_a_choice_among_pictures_of_their_own_sizes(tmp_path: Path) -> None:
    """Of a real tower: tiny heads have no kernel."""
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    family, config, model = wide("Qwen2VL", SIZES["sizes of their own"])
    plan = keep_in_front(facts.plan(model=model), 128, "gprune", {"keep": 0.5})
    torch.manual_seed(0)
    vision = vision_of(plan, family.vision(config, image_size=model.image_size).half())
    build_vision(SimpleNamespace(vision=vision), plan, tmp_path)


def test_gates_that_were_measured_on_all_rows_are_told_from_those_on_some() -> None:
    plan = facts.plan()
    kept = keep_in_front(plan, 6, "gprune", {"keep": 0.5})
    assert plan.gates_see() == "" != kept.gates_see()
    assert kept.naive() == plan.naive()
    assert json.loads(plan.model_dump_json()).keys() == json.loads(
        kept.model_dump_json()
    ).keys() - {"front"}


def test_of_two_tokens_that_are_nearest_to_each_other_the_first_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    angles = torch.tensor([0.0, 0.1, 2.0, 2.9, 0.2])
    features = torch.stack([angles.cos(), angles.sin()], dim=-1)[None]
    product = torch.Tensor.__matmul__

    def rounded(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return a product in which the same two tokens are not as far from each other both ways."""
        return product(one, other) - 1e-7 * torch.ones(5, 5).tril()

    assert farthest(features, 1).tolist() == [[2]]
    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert farthest(features, 1).tolist() == [[2]]


def build_vision(model: Any, plan: Plan, folder: Path) -> set[str]:
    """Build the vision graph of a plan and a float16 model, and return the kinds of its nodes."""
    spec = vision_graph(plan.model, "float16", plan.front)
    assert [t.dtype for t in spec.outputs] == ["float16", "int64"]
    with SharedWeights(folder) as weights:
        save_graph(export_vision(model, spec), folder / spec.file, weights)
    graph = onnx.load(folder / spec.file).graph
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"NonZero", "If", "Loop"}
    assert onnx.TensorProto.UINT16 not in {tensor.data_type for tensor in graph.initializer}
    limits = limits_of(
        vtcompress.load_recipe("identity").export.profiles, plan.model, plan.rows_kept
    )
    maker = Maker.of(TARGETS["tensorrt-rtx"], ("SM86",))
    profiles, built = profiles_of(spec, limits), folder / "engine"
    maker.build_engine(folder / spec.file, profiles, spec, built, b"")
    assert built.stat().st_size > 10_000
    return kinds


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("llava", "gprune"),
        ("llava_next", "gprune"),
        ("llava_onevision", "gprune"),
        ("llava", "divprune"),
        ("llava", "random"),
        ("llava", "pool"),
        ("llava", "visionzip"),
        ("llava without a class token", "visionzip"),
        ("llava", "cls_knee"),
        ("llava", "wico"),
        ("internvl on an even grid", "visionzip"),
        ("smolvlm on an even grid", "visionzip"),
        ("internvl", "cls_knee"),
        ("llava_next", "cls_knee"),
        ("internvl on an even grid", "wico"),
        ("smolvlm on an even grid", "wico"),
    ],
)
def test_tensorrt_rtx_builds_a_vision_graph_that_chooses(
    family: str, method: str, chosen: Any, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    one = chosen(family, method)
    small = one.compressed()
    small = replace(small, vision=copy.deepcopy(small.vision).half())
    kinds = build_vision(small, one.plan, tmp_path)
    assert ("Scan" in kinds) == (method == "divprune")
    # TopK gives 3840 at most, and a picture with a grid of its own may have more cells.
    assert method != "gprune" or "TopK" not in kinds


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of three questions, one of them about two pictures."""
    folder = tmp_path_factory.mktemp("pictured")
    for seed in range(4):
        random_picture((45, 30), seed).save(folder / f"{seed}.png")
    asked: list[dict[str, Any]] = [{"image": f"{n}.png", "question": "what"} for n in range(2)]
    asked.append({"image": ["2.png", "3.png"], "question": "which"})
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
    return folder / "q.jsonl"


def knee_of(curve: np.ndarray) -> int:
    """Return the place, from 1 on, of the point of a falling curve that is farthest from its chord."""
    points = np.stack([np.arange(len(curve)), curve], axis=1).astype(float)
    along = points[-1] - points[0]
    normal = np.array([-along[1], along[0]]) / np.linalg.norm(along)
    return int(np.abs((points - points[0]) @ normal).argmax()) + 1


def test_calibration_finds_the_mean_knee_and_the_plan_keeps_so_many(
    chosen: Any, pictured: Path, tmp_path: Path
) -> None:
    made = chosen("llava", "cls_knee").made
    recipe = vtcompress.load_recipe("cls_knee").override(
        {"model.id": str(made.folder), "calibrate.data": str(pictured)}
    )
    profile = vtcompress.calibrate(recipe, tmp_path / "p.json")
    knees = []
    for number in range(4):
        picture = made.loaded.processor.image_processor(
            random_picture((45, 30), number), return_tensors="pt"
        )
        tile = Tile(np.zeros(0), picture["pixel_values"], made.loaded.original)
        knees.append(knee_of(-np.sort(-class_cosines(tile))))
    by_question = [knees[0], knees[1], (knees[2] + knees[3]) / 2]
    found = Profile.load(tmp_path / "p.json")
    assert found == profile
    assert sorted(found.measured()["class_knee"].samples) == sorted((k,) for k in by_question)
    plan = vtcompress.plan(recipe, profile=tmp_path / "p.json")
    assert plan.front is not None
    assert plan.front.count == int(np.mean(by_question) + 0.5)
    (note,) = plan.notes
    assert f"{np.mean(by_question):.1f} of 16; of 3 calibration questions it lies at" in note
    with pytest.raises(
        PlanError, match="no profile; run `vtcompress calibrate` first, or give a share"
    ):
        vtcompress.plan(recipe)
    vtcompress.compress(recipe, plan, tmp_path / "compressed")
    small = load_compressed(tmp_path / "compressed")
    states = small.hidden_states("what is it", random_picture((45, 30), 0))
    assert states.visual[0].shape[1] == plan.front.count


@pytest.mark.parametrize("method", ["gprune", "wico"])
def test_gates_are_counted_on_the_rows_that_enter(
    method: str, chosen: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = chosen("llava", method)
    plan = one.plan.model_copy(update={"gates": facts.gates(candidates=(1, 3), width=4)})
    hidden, seen = plan.model.decoder.hidden, []
    tensors = {
        f"visual_gates_router.{layer}.{name}.weight": torch.ones(shape)
        for layer in (1, 3)
        for name, shape in (("w1", (4, 2 * hidden)), ("w2", (2, 4)))
    }
    monkeypatch.setattr(
        run, "margins_behind_cuts", lambda _, rows: seen.append(rows) or torch.ones(2)
    )
    random_picture((45, 30), 0).save(tmp_path / "0.png")
    sample = Sample((tmp_path / "0.png",), "what")
    profile = Profile.model_construct(samples=(SampleScore(visual=16, text=5, sample="0"),))
    gates = LoadedGates((1, 3), 4, "", tensors)
    found = run.ask_gates_again(one.made.loaded, [sample], profile, plan, gates, front=one.front)
    assert found.gates_under == plan.gates_see()
    (rows,) = seen
    assert rows.visual_embeds.shape[1] == rows.visual_index.shape[1] == plan.rows_kept
    assert rows.layout.end == rows.text_index.shape[1] + (plan.model.tile_places or 16)


def test_a_projector_s_weights_are_found_again_and_others_are_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    weights = write_projector(tmp_path)
    recipe = vtcompress.load_recipe("wico").override(
        {"model.id": str(tiny_model), "compress.wico.weights": str(weights)}
    )
    plan = vtcompress.plan(recipe)
    plan.save(tmp_path / "plan.json")
    assert plan.front is not None
    assert plan.front.weights == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (plan.visual, plan.image_tokens, plan.model.tile_places) == (4, 16, 4)
    assert plan.naive().model.tile_places is None
    assert str(tmp_path) not in (tmp_path / "plan.json").read_text(encoding="utf-8")
    vtcompress.compress(recipe, plan, tmp_path / "compressed")
    folder = tmp_path / "artifact"
    manifest = vtcompress.export(recipe, folder, plan=tmp_path / "plan.json", bench_rounds=1)
    assert manifest.fidelity is not None
    assert manifest.fidelity.passed, manifest.fidelity.failures
    assert (manifest.measured.visual, manifest.model.tile_places) == (4, 4)
    said = (folder / "report.md").read_text(encoding="utf-8")
    assert "Of 16 visual tokens of a picture 4 enter the decoder" in said
    assert "numbered anew, as if there were so many" in said
    assert "another projector in front of the same decoder" in said
    small = load_compressed(tmp_path / "compressed")
    with pytest.warns(ArtifactWarning):
        runtime = Runtime.load(folder)
    pictures = [random_picture((45, 30), seed) for seed in range(2)]
    for given in ([pictures[0]], pictures, []):
        reply = runtime.answer("what is it", given, max_new_tokens=8)
        assert reply.text == small.generate("what is it", given or None, max_new_tokens=8).text
        layout = runtime.prepare("what is it", given).layout
        assert layout.end == layout.text_ids.size + 4 * len(given)
    seen = runtime.prefill_image(pictures[0])
    kept = seen.answer("what is it", max_new_tokens=8)
    assert kept.text == runtime.answer("what is it", pictures[0], max_new_tokens=8).text
    with pytest.raises(PlanError, match="no such file"):  # an artifact keeps the file's name alone
        vtcompress.validate(folder, model=str(tiny_model))
    again = vtcompress.validate(folder, model=str(tiny_model), weights=weights)
    assert again.fidelity is not None
    assert again.fidelity.passed
    other = write_projector(Path(shutil.copytree(tmp_path / "compressed", tmp_path / "other")))
    save_file({k: v + 1 for k, v in load_file(other).items()}, other)
    changed = recipe.override({"compress.wico.weights": str(other)})
    for stage in (
        lambda: vtcompress.compress(changed, plan, tmp_path / "new"),
        lambda: vtcompress.export(changed, tmp_path / "new", plan=plan, bench_rounds=0),
    ):
        with pytest.raises(ArtifactError, match="was made with weights of wico of digest"):
            stage()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            "missing",
            "projector.safetensors: no such file; give the file of trained weights; without",
        ),
        (
            "pickle",
            "projector.bin: a pickle runs what is written in it, so none is read; where you",
        ),
        ("text", "projector.safetensors: no readable safetensors file"),
        (
            "names",
            "none of the tensors that are read are in it, but other.layer_norm1.bias, other.l",
        ),
        ("without", "window_proj.bias: missing; give the whole file"),
        (
            "NaN",
            "window_proj.bias: NaN or infinite values; take an earlier checkpoint of the training",
        ),
        ("shape", "window_proj.weight: shape [64, 64], this model needs [64, 128]; give weights"),
    ],
)
def test_weights_of_a_projector_that_cannot_be_used_are_refused_by_name(
    change: str, line: str, tmp_path: Path
) -> None:
    file = write_projector(tmp_path, width=16 if change == "shape" else 32)
    tensors = load_file(file)
    match change:
        case "missing":
            file.unlink()
        case "pickle":
            file = file.rename(file.with_suffix(".bin"))
        case "text":
            file.write_text("no weights", encoding="utf-8")
        case "names":
            renamed = ((k.split(".0.")[-1], v) for k, v in tensors.items() if ".0." in k)
            save_file({f"other.{name}": v for name, v in renamed}, file)
        case "NaN":
            broken = (n for n in tensors if n.endswith("window_proj.bias"))
            save_file(tensors | {n: tensors[n] / 0 for n in broken}, file)
        case "without":
            save_file({k: v for k, v in tensors.items() if "window_proj.bias" not in k}, file)
    tower = TowerFacts(class_token=True, layers=6, layers_read=5, width=32)
    model = facts.facts(facts.dims(hidden=64), token_grid=(2, 6), tower=tower)
    recipe = vtcompress.load_recipe("wico").override({"compress.wico.weights": str(file)})
    with pytest.raises(PlanError) as caught:
        check_methods(model, recipe.methods)
    assert all(p.startswith("compress[0].wico.weights: ") for p in caught.value.problems)
    assert any(line in p for p in caught.value.problems), caught.value.problems
