"""Files of routers, and the plans of methods that read them: what is chosen, refused and kept."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import vtcompress
from compressor.contract.measure import Measured
from compressor.contract.method import CannotError, Evidence
from compressor.decoder.weights import load_routers
from compressor.disk.router_file import RouterFile
from compressor.errors import ArtifactError, PlanError, RecipeError, RoutersError
from compressor.methods import run_rules
from compressor.methods.fastv import FastV
from compressor.methods.gprune import GPrune
from compressor.methods.mixture.gamma_mod import GammaMod
from compressor.methods.mixture.mod import Mod
from compressor.methods.mixture.ranks import ARANK
from compressor.methods.visual_exit import VisualExit
from compressor.plan.edits import identity_plan
from compressor.plan.kept import rows_going_on
from compressor.plan.plan import Plan
from compressor.planner import make_plan
from compressor.recipe import load_recipe
from export.graphs.spec import decoder_graph
from tests.cuts import (
    GAMMA,
    HIDDEN,
    LAYERS,
    conversation,
    cut,
    dead,
    decoder_of,
    model,
    plan_of,
    tensors_of,
)
from tests.facts import dims, facts

DIGEST = "0" * 64


def write(path: Path, outputs: int, metadata: dict[str, str] | None = None, **more: Any) -> Path:
    """Write routers of all layers of the tiny model; more are tensors by name, None: left out."""
    named = {f"model.layers.{i}.router.weight": torch.rand(outputs, HIDDEN) for i in range(LAYERS)}
    named |= {name.replace("__", "."): tensor for name, tensor in more.items()}
    save_file({n: t for n, t in named.items() if t is not None}, path, metadata)
    return path


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Return routers of two numbers a row."""
    return write(tmp_path / "two.safetensors", 2)


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """Return routers of one number a row."""
    return write(tmp_path / "one.safetensors", 1)


def test_layers_that_are_not_dense_are_run_by_the_share_and_the_plan_knows_the_file(
    two: Path,
) -> None:
    plan = make_plan(model(2), DIGEST, [GammaMod(routers=two, dense=(0, 3), keep=0.5)])
    assert {i: (run.count, run.of) for i, run in plan.runs().items()} == {1: (6, 12), 2: (6, 12)}
    assert {run.weights for run in plan.runs().values()} == {RouterFile.read(two).digest}
    assert plan.methods == ("gamma_mod",)
    lengths = [cache.length for cache in plan.caches()]
    assert lengths == ["past", "past_runs_1", "past_runs_1", "past"]
    assert rows_going_on(24, plan.changed_by_length()["past_runs_1"]) == 12
    published = make_plan(
        facts(dims(layers=6, hidden=HIDDEN)),
        DIGEST,
        [
            GammaMod(
                routers=write(
                    two,
                    2,
                    **{f"layers__{i}__router__weight": torch.rand(2, HIDDEN) for i in range(6)},
                )
            )
        ],
    )
    assert tuple(published.runs()) == (3, 4)


def test_mod_lets_every_other_layer_be_run_by_some_rows_of_each_tile(one: Path) -> None:
    plan = make_plan(model(2), DIGEST, [Mod(routers=one, keep=0.25)])
    assert {i: (run.count, run.within) for i, run in plan.runs().items()} == {
        1: (3, "tile"),
        3: (3, "tile"),
    }
    assert plan.layers[3].reason == "dead"
    assert decoder_graph(plan, "float32", "last").visual_multiple == 12
    front = make_plan(model(2), DIGEST, [Mod(routers=one, keep=0.5), GPrune(keep=0.5)])
    assert {(run.count, run.of) for run in front.runs().values()} == {(3, 6)}


def test_layers_of_the_lowest_rank_are_chosen_by_calibration(two: Path) -> None:
    evidence = Evidence(
        "compress[0].gamma_mod", measured={ARANK.name: Measured((9.0, 3.0, 8.0, 4.5))}
    )
    method = GammaMod(routers=two, arank=0.5)
    plan = method.apply(identity_plan(model(2), DIGEST), evidence)
    assert tuple(plan.runs()) == (1, 3)
    assert method.needs() == method.shows() == (ARANK,)
    assert GammaMod(routers=two).shows() == ()
    with pytest.raises(
        CannotError, match="chooses layers by the rank of their attention, but there is no"
    ):
        method.apply(identity_plan(model(2), DIGEST), Evidence("compress[0].gamma_mod"))


def test_a_plan_is_read_back_and_its_rules_are_made_again(two: Path, tmp_path: Path) -> None:
    plan = make_plan(model(2), DIGEST, [GammaMod(routers=two, dense=(0, 3))])
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert run_rules(again).keys() == {1, 2}
    assert '"run"' not in identity_plan(model(2), DIGEST).model_dump_json()


def test_what_becomes_of_a_picture_does_not_depend_on_the_question(two: Path) -> None:
    plan = make_plan(model(2), DIGEST, [GammaMod(routers=two, dense=(0, 3))])
    assert not decoder_graph(plan, "float32", "last").reads_question
    leaving = make_plan(model(2), DIGEST, [GammaMod(routers=two, dense=(1, 2, 3)), FastV(layer=2)])
    assert decoder_graph(leaving, "float32", "last").reads_question


@pytest.mark.parametrize("name", ["some run anew", "some run, scaled"])
def test_a_prompt_in_two_calls_is_a_prompt_in_one(name: str) -> None:
    plan = plan_of(name, 2)
    decoder = decoder_of(plan, tensors_of(plan))
    _, ((visual, text, visual_index, text_index), *_) = conversation()
    with torch.inference_mode():
        whole, _ = decoder(visual, text, visual_index, text_index, decoder.empty_past(1))
        first, past = decoder(
            visual, text[:, :1], visual_index, text_index[:, :1], decoder.empty_past(1)
        )
        empty = visual[:, :0], visual_index[:, :0]
        rest, _ = decoder(empty[0], text[:, 1:], empty[1], text_index[:, 1:], past)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, atol=1e-4, rtol=0)


def test_layers_may_share_one_router(tmp_path: Path) -> None:
    file = tmp_path / "one_for_all.safetensors"
    save_file({"model.router.weight": torch.rand(2, HIDDEN), "other": torch.zeros(3)}, file)
    found = load_routers(RouterFile.read(file), (1, 3))
    assert [*found] == ["layers.1.router.weight", "layers.3.router.weight"]
    assert found["layers.1.router.weight"].equal(found["layers.3.router.weight"])
    # Two that share memory would be stored once, under one name.
    assert len({tensor.data_ptr() for tensor in found.values()}) == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"model__layers__2__router__weight": None},
            "layers.2.router.weight: missing; leave layer 2 out",
        ),
        (
            {"model__layers__2__router__weight": torch.rand(1, HIDDEN)},
            "model.layers.2.router.weight: shape [1, 32], this model (hidden 32) needs [2, 32]",
        ),
        ({"metadata": {"model_digest": "f" * 64}}, "trained on another model"),
        (
            {"model__layers__2__router__weight": torch.full((2, HIDDEN), torch.nan)},
            "model.layers.2.router.weight: NaN or infinite values; take an earlier checkpoint",
        ),
    ],
)
def test_routers_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    file = write(tmp_path / "routers.safetensors", 2, **change)
    with pytest.raises((RoutersError, PlanError), match=re.escape(problem)):
        make_plan(model(2), DIGEST, [GammaMod(routers=file, dense=(0,))])


def test_what_is_no_file_of_routers_is_refused(tmp_path: Path) -> None:
    nothing, other = tmp_path / "nothing.safetensors", tmp_path / "other.safetensors"
    pickle = tmp_path / "model.bin"
    pickle.write_bytes(b"no safetensors")
    save_file({"gate": torch.zeros(2)}, other)
    for file, problem in (
        (
            None,
            r"compress\[0\].mod.routers: the recipe names no routers, and none come with vtcompress",
        ),
        (nothing, "nothing.safetensors: no such file; give the file of routers"),
        (pickle, "model.bin: a pickle runs what is written in it, so none is read"),
        (
            other,
            "other.safetensors: no router in it; expected tensors named layers.0.router.weight",
        ),
    ):
        with pytest.raises(PlanError, match=problem):
            make_plan(model(2), DIGEST, [Mod(routers=file)])


def test_a_recipe_whose_entries_read_no_weights_refuses_gates_and_routers(two: Path) -> None:
    with pytest.raises(
        RecipeError, match="no entry reads gates or routers, so there is no use for"
    ):
        vtcompress.load_recipe("gprune").with_gates(two)


def test_a_plan_is_not_used_with_other_routers(two: Path, one: Path) -> None:
    plan = make_plan(model(2), DIGEST, [GammaMod(routers=two, dense=(0,))])
    plan.check_routers(RouterFile.read(two).digest)
    with pytest.raises(ArtifactError, match="the plan was made with routers of digest"):
        plan.check_routers(RouterFile.read(one).digest)
    with pytest.raises(ArtifactError, match="given: none; give these routers"):
        plan.check_routers(None)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (
            "gamma_mod: {keep: 1}",
            "compress[0].gamma_mod.keep: 1 is not allowed; a number above 0 and below",
        ),
        (
            "gamma_mod: {dense: [0], arank: 0.5}",
            "dense and arank are given together; give one of them",
        ),
        (
            "gamma_mod: {}}, {mod: {}",
            "gamma_mod and mod both choose which visual tokens run a layer; give one of them",
        ),
        (
            "mod: {}}, {yopo: {window: 3}",
            "yopo.window cannot go with mod: rows that pass a layer by have nothing there that others could",
        ),
        (
            "gamma_mod: {}}, {dyvte: {gates: g.safetensors}",
            "gamma_mod cannot go with gates that decide for each prompt; take dyvte.exit: baked",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_the_recipe(
    tmp_path: Path, entries: str, problem: str
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"vtcompress: 2\ncompress: [{{{entries}}}]\n")
    with pytest.raises(RecipeError, match=re.escape(problem)):
        load_recipe(file)


def test_what_cannot_be_planned_is_refused(two: Path, one: Path) -> None:
    gamma = GammaMod(routers=two, dense=(0,))
    sized = facts(dims(hidden=HIDDEN), cell=8, image_size=72, visual_tokens=81)
    for facts_, methods, problem in (
        (
            model(2),
            [gamma, VisualExit(layer=2)],
            "visual tokens have left by layers 2, 3, where routers",
        ),
        (
            model(2),
            [GammaMod(routers=two, dense=(0, 1, 2, 3))],
            "all 4 layers are dense; name fewer",
        ),
        (model(2), [GammaMod(routers=two, dense=(7,))], r"dense: 7 is outside 0\.\.3"),
        (
            model(2),
            [GammaMod(routers=two, keep=0.01, dense=(0,))],
            "0.01 of 12 visual tokens is none",
        ),
        (
            model(2),
            [gamma, FastV(layer=2)],
            "layer 1: 6 of 12 visual rows run it, so what it reads of",
        ),
        (
            model(2),
            [Mod(routers=one, keep=0.5), FastV(layer=1)],
            "of each tile, and tiles have another",
        ),
        (
            model(2),
            [GammaMod(routers=two, dense=(0, 1)), FastV(layer=1)],
            "layer 2: 6 of 12 visual rows run it, and some have left by then",
        ),
        (sized, [Mod(routers=one)], "pictures of made-up have grids of their own"),
    ):
        with pytest.raises(PlanError, match=problem):
            make_plan(facts_, DIGEST, methods)
    plan = make_plan(model(2), DIGEST, [Mod(routers=one), VisualExit(layer=2)])
    assert tuple(plan.runs()) == (1,)
    note = "compress[0].mod: chooses nothing in layer 3: visual tokens are gone from layer 2 on"
    assert plan.notes == (note,)


def test_a_plan_with_windows_or_the_masked_semantics_is_refused() -> None:
    for other in ({"window": 3}, {"masked": True, "groups": (1,)}):
        layers = (cut(0, **other), cut(1, run=GAMMA), cut(2), dead(3))
        with pytest.raises(ValueError, match="excludes windows and the masked semantics"):
            Plan(model=model(2), model_digest=DIGEST, layers=layers)
