"""Visual rows that leave at a layer, and operators they go without, against the unmodified model with hooks.

Three families of different kinds: one picture of one size, tiles, pictures of their own sizes on three axes.
"""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from compressor.contract.front import FrontMethod
from compressor.contract.measure import Measured
from compressor.contract.method import CannotError, Evidence
from compressor.decoder import decoder_from
from compressor.decoder.full_pass import full_pass, kl_divergence
from compressor.decoder.one_prompt import layer_states
from compressor.errors import PlanError, RecipeError
from compressor.methods import METHODS, layer_scores
from compressor.methods.fastv import FastV
from compressor.methods.random_choice import RandomChoice
from compressor.methods.skip import OPERATOR_KL, OPERATORS, Skip, operator_kl
from compressor.methods.visual_exit import VisualExit
from compressor.plan.cost import predict, predicted_speedup
from compressor.plan.edits import identity_plan, keep_at, leave_out
from compressor.plan.kept import Kept
from compressor.plan.plan import Plan, Workload
from compressor.planner import check_methods, make_plan
from compressor.recipe import load_recipe
from export.graphs.spec import decoder_graphs
from tests.conftest import shared
from tests.cuts import HIDDEN, LAYERS, conversation, decoder_of, model, tensors_of
from tests.decoders import write_decoder
from tests.family_cases import BACKENDS, Entries, FamilyCases, Made
from tests.flops import flops_by_layer, ran
from tests.test_family_internvl import TestInternVl as InternVl
from tests.test_family_llava import TestLlava as Llava
from tests.test_family_qwen2_vl import TestQwen2Vl as Qwen2Vl
from vtcompress.stages.checks.recipe import check_plan_rules

LEAVING: dict[str, Entries] = {
    "fastv": [{"fastv": {"layer": 2, "keep": 0.5}}],
    "skip": [{"skip": {"operators": {"attention": [0, 2], "mlp": [1, 2, 4]}}}],
    "together": [
        {"fastv": {"layer": 1, "keep": 0.7}},
        {"skip": {"operators": {"attention": [0, 2], "mlp": [3]}}},
        {"shortv": {"layers": [1]}},
        {"yopo": {"mlp_ratio": 2}},
        {"visual_exit": {"layer": 5}},
    ],
}
PROMPTS = ("one picture", "two apart", "two adjacent", "text alone")


class MadeToLeave(Made):
    """The same folder and models, with these cuts."""

    def entries(self, cut: str) -> Entries:
        return LEAVING[cut] if cut in LEAVING else super().entries(cut)


@pytest.fixture(scope="class")
def made(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> MadeToLeave:
    return MadeToLeave(request.cls.cases.family, shared(pytestconfig) / "families")


class LeavingCases:
    """The cases of one family."""

    cases: ClassVar[type[FamilyCases]]

    @pytest.mark.parametrize("cut", LEAVING)
    @pytest.mark.parametrize("name", PROMPTS)
    def test_it_is_the_unmodified_model_with_hooks(
        self, made: MadeToLeave, name: str, cut: str
    ) -> None:
        self.cases().compare(made, name, cut, "torch")

    @pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "torch"])
    @pytest.mark.parametrize("name", PROMPTS)
    def test_all_together_is_in_the_graphs(
        self, made: MadeToLeave, name: str, backend: str
    ) -> None:
        self.cases().compare(made, name, "together", backend)


class TestLlavaLeaving(LeavingCases):
    cases = Llava


class TestInternVlLeaving(LeavingCases):
    cases = InternVl


class TestQwen2VlLeaving(LeavingCases):
    cases = Qwen2Vl


def test_states_are_put_in_order_by_the_places_of_the_rows_that_went_on() -> None:
    plan = keep_at(identity_plan(model(2), "0" * 64), 2, Kept(count=5, of=12, by="fastv"))
    is_visual = torch.tensor([*[True] * 12, False, False, *[True] * 12, *[False] * 4])
    places = torch.arange(len(is_visual))[None]
    visual_index, text_index = places[:, is_visual], places[:, ~is_visual]
    # Each row holds its own place, and no layer adds anything.
    visual, text = (
        index[..., None].float().expand(-1, -1, HIDDEN) for index in (visual_index, text_index)
    )
    silent = {name: tensor * ("norm" in name) for name, tensor in tensors_of(plan).items()}
    # The last rows go on: those that are there from the start would be the first.
    decoder = decoder_from(plan, silent, scores={2: lambda rows: rows.visual[..., 0]})
    rows = SimpleNamespace(
        visual_index=visual_index,
        text_index=text_index,
        call=(visual, text, visual_index, text_index, None, ()),
    )
    states = layer_states(decoder, rows, None)  # type: ignore[arg-type]
    assert [part.shape[1] for part in states.visual] == [24, 24, 10, 10, 10]
    for entry in range(LAYERS):
        found = states.in_order(entry)[0, :, 0]
        assert (found.diff() > 0).all(), entry
        assert set(states.visual_places[entry][0].tolist()) == set(
            states.visual[entry][0, :, 0].tolist()
        )


def test_an_operators_contribution_is_the_kl_of_the_plan_without_it() -> None:
    plan = identity_plan(model(2), "0" * 64)
    tensors, (_, (call, *_)) = tensors_of(plan), conversation()
    full = full_pass(decoder_of(plan, tensors), *call)
    measured = operator_kl(full)
    assert measured.shape == (LAYERS, 2)
    assert not measured[-1].any()  # dead rows: nobody reads what they become
    for layer in range(LAYERS - 1):
        for number, operator in enumerate(OPERATORS):
            decoder = decoder_of(leave_out(plan, {layer: (operator,)}, "skip"), tensors)
            with torch.inference_mode():
                logits, _ = decoder(*call, decoder.empty_past(1))
            wanted = kl_divergence(logits[0, -1], full.logits).item()
            assert measured[layer, number].item() == pytest.approx(wanted, rel=1e-3)
            assert wanted > 1e-5


def test_the_operators_that_contribute_least_are_left_out_and_both_of_a_layer_freeze_it() -> None:
    plan = identity_plan(model(2), "0" * 64)
    kl = ((0.5, 0.1), (0.3, 0.9), (0.2, 0.15), (0.0, 0.0))
    evidence = Evidence("compress[0].skip", measured={OPERATOR_KL.name: Measured(mean=kl)})
    made = Skip(share=0.5).apply(plan, evidence)
    assert [layer.without for layer in made.layers] == ["mlp", None, None, None]
    assert [layer.visual for layer in made.layers] == ["update", "update", "frozen", "frozen"]
    assert [layer.reason for layer in made.layers] == ["", "", "skip", "dead"]
    assert predicted_speedup(Skip(speedup=1.1).apply(plan, evidence)) >= 1.1
    with pytest.raises(CannotError, match="leaving out all 6 operators gives"):
        Skip(speedup=50).apply(plan, evidence)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (
            "fastv: {keep: 1}",
            "compress[0].fastv.keep: 1 is not allowed; a number above 0 and below 1",
        ),
        (
            "fastv: {}}, {yopo: {window: 3}",
            "yopo.window cannot go with fastv: rows that leave take their neighbours with them; leave one of "
            "them out",
        ),
        (
            "fastv: {}}, {dyvte: {gates: g.safetensors}",
            "fastv cannot go with gates that decide for each prompt; take dyvte.exit: baked, or leave one of "
            "them out",
        ),
        ("skip: {share: 0.2, speedup: 2}", "share and speedup are given together"),
    ],
)
def test_what_cannot_be_is_refused_in_the_recipe(
    tmp_path: Path, entries: str, problem: str
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"vtcompress: 2\ncompress: [{{{entries}}}]\n")
    with pytest.raises(RecipeError, match=re.escape(problem)):
        load_recipe(file)


def test_a_layer_that_does_not_exist_and_a_share_that_is_no_row_are_refused() -> None:
    facts = model(2)
    with pytest.raises(PlanError, match=r"fastv.layer: 4 is outside 1\.\.3; the model has 4"):
        make_plan(facts, "0" * 64, [FastV(layer=4)])
    with pytest.raises(PlanError, match=r"fastv.keep: 0.01 of 12 visual tokens is none"):
        make_plan(facts, "0" * 64, [FastV(layer=1, keep=0.01)])


@pytest.mark.parametrize("entries", [[0, 1], [1, 0]])
def test_a_choice_behind_another_takes_its_share_of_what_that_left(entries: list[int]) -> None:
    """The order of the list decides nothing, and a share that is no row is told before weights are read."""
    facts = model(2)
    both = [FastV(layer=1, keep=0.5), RandomChoice(keep=0.42)]
    plan = make_plan(facts, "0" * 64, [both[i] for i in entries])
    assert plan.visual == 5
    assert plan.keeps() == {1: Kept(count=2, of=5, by="fastv", asked=both[0].asked())}
    assert plan.rows_of_layers(plan.visual) == (5, 2, 2, 2)
    none = [FastV(layer=1, keep=0.5), RandomChoice(keep=0.1)]
    with pytest.raises(PlanError, match=r"fastv.keep: 0.5 of 1 visual tokens is none; give more"):
        check_methods(facts, [none[i] for i in entries])


@pytest.mark.parametrize("share", [0.3, 0.77])
def test_at_odd_shares_work_and_caches_are_those_of_the_graph(share: float, tmp_path: Path) -> None:
    """Each method alone; choices in front are one plan: the decoder gets as many rows as there are."""
    facts = model(2)
    kl = Evidence("", measured={OPERATOR_KL.name: Measured(mean=((0.5, 0.1), (0.3, 0.9)) * 2)})
    whole = identity_plan(facts, "0" * 64, Workload(images=2, text=16))
    plans = {
        "fastv": FastV(layer=1, keep=share).apply(whole, kl),
        "skip": Skip(share=share).apply(whole, kl),
    } | {
        method.name: method.model_validate({"keep": share}).apply(whole, kl)
        for method in METHODS
        if issubclass(method, FrontMethod)
    }
    assert len(plans) == 7
    graphs: dict[str, Path] = {}
    for name, plan in plans.items():
        decoder = plan.model_copy(update={"front": None})
        folder = graphs.setdefault(decoder.model_dump_json(), tmp_path / name)
        specs = decoder_graphs(decoder, "float16", "last")
        if not folder.exists():
            folder.mkdir()
            assert write_decoder(folder, decoder) == specs
        (spec,) = specs
        sizes = {"batch": 1, "visual": plan.visual, "text": 16, "past": 0}
        counted, cost = flops_by_layer(folder, spec, sizes), predict(plan)
        for layer, predicted in enumerate(cost.layer_flops):
            assert counted[layer] == pytest.approx(predicted, rel=0.02), name
        _, values = ran(folder, spec, sizes)
        present = sum(values[t.name].nbytes for t in spec.outputs if t.name.startswith("present"))
        assert present == cost.kv_bytes("float16"), name
        assert plan.visual == 2 * (plan.rows_kept or 12)


def test_of_a_picture_with_fewer_rows_than_tiles_have_one_goes_on() -> None:
    kept = Kept(count=3, of=12, by="fastv")
    assert [kept.rows(visual) for visual in (0, 1, 4, 5, 12, 24)] == [0, 1, 1, 2, 3, 6]


@pytest.mark.parametrize(
    ("kept", "problem"),
    [
        (
            {2: ("fastv", 6, 1000)},
            "layer 2: keep: chooses among 1000 visual rows; of a tile 12 get",
        ),
        (
            {1: ("fastv", 6, 12), 2: ("fastv", 12, 12)},
            "among 12 visual rows; of a tile 6 get there",
        ),
        (
            {2: ("random", 6, 12)},
            "layer 2: keep: random does not choose which visual rows go on at",
        ),
        ({2: ("shortv", 6, 12)}, "visual rows are kept by shortv: keep: unknown key"),
        ({0: ("fastv", 6, 12)}, "front: fastv does not choose which visual rows enter; name a"),
    ],
)
def test_a_choice_that_was_written_by_hand_is_refused_where_it_makes_no_sense(
    kept: dict[int, tuple[str, int, int]], problem: str
) -> None:
    plan = identity_plan(model(2), "0" * 64)
    for layer, (by, count, of) in kept.items():
        choice = Kept(count=count, of=of, by=by, asked={"keep": 0.5})
        put = {"front": choice} if not layer else {"layers": keep_at(plan, layer, choice).layers}
        plan = plan.model_copy(update=put)
    with pytest.raises(PlanError, match=re.escape(problem)):
        check_plan_rules(plan)


def test_operators_of_one_kind_alone_can_be_named_and_changed(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("vtcompress: 2\ncompress: [{skip: {operators: {attention: [1]}}}]\n")
    recipe = load_recipe(file).override({"validate.samples": 3})
    (skip,) = recipe.methods
    assert skip.asked() == {"operators": {"attention": (1,)}}
    changed = recipe.override({"compress.skip.operators.mlp": [0]}).methods[0]
    assert changed.asked() == {"operators": {"attention": (1,), "mlp": (0,)}}
    with pytest.raises(RecipeError, match=r"skip.operators: nothing is given; give layers of"):
        recipe.override({"compress": [{"skip": {"operators": {}}}]})


def test_an_exit_in_front_of_the_choice_leaves_nothing_to_choose() -> None:
    plan = make_plan(model(2), "0" * 64, [FastV(layer=3), VisualExit(layer=2)])
    assert not plan.keeps()
    note = "compress[0].fastv: visual tokens have left by layer 3: none are chosen there"
    assert plan.notes == (note,)


def test_a_plan_says_what_it_keeps_and_is_read_back(tmp_path: Path) -> None:
    plan = make_plan(model(2), "0" * 64, [FastV(layer=1, keep=0.5)])
    plan.save(file := tmp_path / "plan.json")
    assert Plan.load(file) == plan
    assert plan.rows_of_layers(24) == (24, 12, 12, 12)
    assert plan.methods == ("fastv",)
    with pytest.raises(PlanError, match="'nothing', a method that is not installed"):
        layer_scores(keep_at(plan, 2, Kept(count=1, of=2, by="nothing")))
