"""Visual rows that become more at a layer, against the unmodified model, into whose layers hooks put them.

Three families of different kinds: one picture of one size, tiles, tiles with text between them.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch.nn.functional import interpolate

from compressor.arrangement import Unpadded
from compressor.decoder import decoder_from
from compressor.decoder.growing import Growing, interpolation
from compressor.decoder.one_prompt import layer_states
from compressor.errors import ArtifactError, PlanError, RecipeError
from compressor.methods.fastv import FastV
from compressor.methods.pool import Pooling
from compressor.methods.visual_exit import VisualExit
from compressor.methods.wico_plus import WicoPlus
from compressor.plan.cost import layer_flops, predict
from compressor.plan.edits import (
    freeze,
    grow_at,
    identity_plan,
    keep_in_front,
    numbered_anew,
)
from compressor.plan.growth import Growth
from compressor.plan.plan import Plan
from compressor.planner import check_methods, make_plan
from compressor.recipe import load_recipe
from export.artifact.artifact import Artifact, write_manifest
from export.backends.tensorrt.build import _short
from export.graphs.limits import Limits
from export.graphs.profiles import profiles_of
from export.graphs.spec import GraphSpec, decoder_graph
from tests import facts
from tests.chosen import Rule, Tile, Whole, means
from tests.conftest import shared
from tests.cuts import HIDDEN, LAYERS, model, tensors_of
from tests.family_cases import (
    BACKENDS,
    NEW_TOKENS,
    STEPS,
    TOLERANCE,
    Entries,
    FamilyCases,
    Made,
    ask,
)
from tests.test_artifact import FILES
from tests.test_family_internvl import TestInternVl as InternVl
from tests.test_family_llava import TestLlava as Llava
from tests.test_family_smolvlm import TestSmolVlm as SmolVlm
from tests.test_front import POOLED

LAYER, MORE = 3, 29
GROWING: dict[str, Entries] = {
    "pooled": [{"wico_plus": {"layer": LAYER}}, {"pool": {"keep": 0.5}}],
    "to more than there were": [{"wico_plus": {"layer": LAYER, "rows": MORE}}],
}
PROMPTS = ("one picture", "two apart", "text alone", "a second turn with a new picture")


class MadeToGrow(Made):
    """The same folder and models, with these cuts."""

    def entries(self, cut: str) -> Entries:
        return GROWING[cut] if cut in GROWING else super().entries(cut)


class WholeGrown(Whole):
    """The unmodified model, in whose layers from one on there are more visual rows.

    Args:
        made: the family.
        rule: which rows of a tile enter.
        rows: how many it has from the layer on.
    """

    def __init__(self, made: Made, rule: Rule, rows: int) -> None:
        super().__init__(made, rule)
        size = made.loaded.facts.tile_rows
        tile = Tile(np.zeros((size, 1)), torch.zeros(0), None)
        self.of, self.rows = len(rule(tile)[1]), rows

    def answered(
        self, messages: list[dict[str, Any]], starts: list[int]
    ) -> tuple[list[int], NDArray[np.float32]]:
        with ExitStack() as stack:
            for number, layer in enumerate(self.made.layers):
                if number >= LAYER:
                    stack.enter_context(self._growing(layer, first=number == LAYER))
            return super().answered(messages, starts[:1])

    @contextmanager
    def _growing(self, layer: Any, *, first: bool) -> Iterator[None]:
        held = 0

        def before(_: Any, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
            nonlocal held
            if self.entered is None:
                return None
            states = args[0] if args else kwargs["hidden_states"]
            if states.shape[1] == 1:
                held += 1
                return args, {**kwargs, "attention_mask": torch.zeros(1, 1, 1, held)}
            states = self._grown(states, self.entered) if first else states
            held = states.shape[1]
            ahead = torch.full((held, held), torch.finfo(states.dtype).min).triu(1)
            turned = self.language.rotary_emb(states, torch.arange(held)[None])
            new = {"attention_mask": ahead[None, None], "position_embeddings": turned}
            return (states,), {**{k: v for k, v in kwargs.items() if k != "hidden_states"}, **new}

        handle = layer.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _grown(self, states: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
        """Resize each tile's rows where they lie, by torch's own operator."""
        parts, row = [], 0
        while row < states.shape[1]:
            count = self.of if visual[row] else 1
            part = states[:, row : row + count]
            if visual[row]:
                turned = part.transpose(1, 2)
                found = interpolate(turned, size=self.rows, mode="linear", align_corners=True)
                part = found.transpose(1, 2)
            parts.append(part)
            row += count
        return torch.cat(parts, dim=1)


@pytest.fixture(scope="class")
def made(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> MadeToGrow:
    return MadeToGrow(request.cls.cases.family, shared(pytestconfig) / "families")


class GrowingCases:
    """The cases of one family."""

    cases: ClassVar[type[FamilyCases]]

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_all_tokens_again_are_the_unmodified_model_with_its_rows_resized(
        self, made: MadeToGrow, backend: str
    ) -> None:
        """One call or several: text stands at the places that it has in the prompt."""
        if backend == "openvino":
            pytest.importorskip("openvino", reason="the extra openvino is not installed")
        size = made.loaded.facts.tile_rows
        whole = WholeGrown(made, means(*POOLED[size]), size)
        runtime, spy = made.runtime("pooled", backend)
        for name in PROMPTS:
            self.compare(whole, *ask(made, runtime, spy, name), name)
        seen = runtime.prefill_image(made.pictures[0])
        identity, _ = made.runtime("identity", "torch")
        assert seen.rows == identity.prefill_image(made.pictures[0]).rows
        kept = seen.answer("what is this", max_new_tokens=NEW_TOKENS)
        spoken = runtime.answer("what is this", made.pictures[0], max_new_tokens=NEW_TOKENS)
        assert kept.token_ids == spoken.token_ids

    def test_more_tokens_than_there_were_move_text_behind_them_on(self, made: MadeToGrow) -> None:
        whole = WholeGrown(made, lambda tile: (tile.rows, np.arange(len(tile.rows))), MORE)
        runtime, spy = made.runtime("to more than there were", "torch")
        for name in PROMPTS[:3]:
            self.compare(whole, *ask(made, runtime, spy, name), name)
        # Behind a cache it would stand elsewhere, so nothing is kept.
        seen = runtime.prefill_image(made.pictures[0])
        assert seen.rows == 0
        kept = seen.answer("what is this", max_new_tokens=NEW_TOKENS)
        spoken = runtime.answer("what is this", made.pictures[0], max_new_tokens=NEW_TOKENS)
        assert kept.token_ids == spoken.token_ids

    def compare(
        self, whole: WholeGrown, tokens: list[int], logits: NDArray[Any], name: str
    ) -> None:
        wanted, wanted_logits = whole.answer(name)
        difference = np.abs(logits[:STEPS] - wanted_logits[:STEPS]).max()
        assert difference <= TOLERANCE, f"{name}: {difference}"
        assert tokens == wanted


class TestLlavaGrowing(GrowingCases):
    cases = Llava


class TestInternVlGrowing(GrowingCases):
    cases = InternVl


class TestSmolVlmGrowing(GrowingCases):
    cases = SmolVlm


@pytest.mark.parametrize(("count", "of"), [(576, 144), (29, 16), (9, 4), (2, 1), (3, 2)])
def test_rows_are_made_as_torch_resizes_with_aligned_ends(count: int, of: int) -> None:
    # In float32 torch's own places are off by more.
    rows = torch.randn(of, 5, generator=torch.Generator().manual_seed(0)).double()
    wanted = interpolate(rows.T[None], size=count, mode="linear", align_corners=True)[0].T
    matrix = interpolation(count, of)
    np.testing.assert_allclose(matrix.double() @ rows, wanted, atol=1e-6, rtol=0)
    assert torch.equal(matrix[-1], torch.eye(of)[-1])


@pytest.mark.parametrize(
    ("count", "visual", "text"),
    [
        (4, [20, 21, 22, 23, 25, 26, 27, 28, 30, 31, 32, 33], [24, 29, 34, 35]),
        (6, [20, 21, 22, 23, 24, 25, *range(27, 33), *range(34, 40)], [26, 33, 40, 41]),
        (3, [20, 21, 22, 24, 25, 26, 28, 29, 30], [23, 27, 31, 32]),
    ],
)
def test_rows_stand_as_if_every_tile_had_so_many_image_tokens(
    count: int, visual: list[int], text: list[int]
) -> None:
    """Two of the four tokens of each of three tiles entered, not the first of each, in a later turn."""
    growing = Growing(Growth(count=count, of=2, by="wico_plus"), tokens=4)
    entered = torch.tensor([[21, 23, 25, 28, 32, 33], [20, 22, 26, 27, 30, 31]])
    of_text = torch.tensor([[24, 29, 34, 35]] * 2)
    more = growing(torch.zeros(2, 6, HIDDEN), entered, of_text)
    assert more.visual.shape == (2, 3 * count, HIDDEN)
    assert more.visual_index.tolist() == [visual] * 2
    assert more.text_index.tolist() == [text] * 2
    none = growing(torch.zeros(2, 0, HIDDEN), entered[:, :0], of_text)
    assert (none.visual.shape[1], none.text_index.tolist()) == (0, of_text.tolist())


def grown(of: int = 12, count: int = 30) -> Growth:
    return Growth(count=count, of=of, by="wico_plus")


def test_rows_numbered_anew_grow_as_in_a_model_whose_tiles_have_so_few() -> None:
    """12 image tokens, of which 6 enter at places 0 to 5, against a model of 6 image tokens."""
    few = numbered_anew(keep_in_front(identity_plan(model(2), "0" * 64), 6, "wico", {}))
    plan = grow_at(few, 2, grown(of=6, count=12))
    own = grow_at(identity_plan(model(2, grid=(2, 3)), "0" * 64), 2, grown(of=6, count=12))
    assert plan.moves_text
    assert own.moves_text
    generator = torch.Generator().manual_seed(0)
    visual, text = (torch.randn(1, rows, HIDDEN, generator=generator) for rows in (12, 6))
    is_visual = torch.tensor([False, *[True] * 6, False, *[True] * 6, *[False] * 4])
    places = torch.arange(len(is_visual))[None]
    tensors = tensors_of(plan)
    found, wanted = (
        decoder(visual, text, places[:, is_visual], places[:, ~is_visual], decoder.empty_past(1))[0]
        for decoder in (decoder_from(made, tensors, logits="all") for made in (plan, own))
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_states_are_put_in_order_by_where_rows_stand_once_they_grew() -> None:
    plan = grow_at(identity_plan(model(2), "0" * 64), 2, grown())
    is_visual = torch.tensor([False, *[True] * 12, False, *[True] * 12, *[False] * 4])
    places = torch.arange(len(is_visual))[None]
    visual_index, text_index = places[:, is_visual], places[:, ~is_visual]
    # Each row holds its own place, and no layer adds anything.
    visual, text = (
        index[..., None].float().expand(-1, -1, HIDDEN) for index in (visual_index, text_index)
    )
    silent = {name: tensor * ("norm" in name) for name, tensor in tensors_of(plan).items()}
    rows = SimpleNamespace(
        visual_index=visual_index,
        text_index=text_index,
        call=(visual, text, visual_index, text_index, None, ()),
    )
    states = layer_states(decoder_from(plan, silent), rows, None)  # type: ignore[arg-type]
    assert [part.shape[1] for part in states.visual] == [24, 24, 60, 60, 60]
    for entry in range(LAYERS):
        found = states.in_order(entry)[0, :, 0]
        assert (found.diff() > 0).all(), entry
    assert states.text_places[0][0].tolist() == [0, 13, 26, 27, 28, 29]
    assert states.text_places[2][0].tolist() == [0, 31, 62, 63, 64, 65]
    assert states.visual_places[2][0].tolist() == [*range(1, 31), *range(32, 62)]


def test_costs_and_caches_are_of_the_rows_that_each_layer_has() -> None:
    plan = make_plan(model(2), "0" * 64, [WicoPlus(layer=2), Pooling(keep=0.34)])
    assert plan.methods == ("pool", "wico_plus")
    assert plan.rows_of_layers(plan.visual) == (4, 4, 12, 12)
    assert plan.segments() == (range(2), range(2, 4))
    assert [cache.length for cache in plan.caches()] == ["past"] * 2 + ["past_2"] * 2
    assert not plan.moves_text
    cost, text, dims = predict(plan), plan.workload.text, plan.model.decoder
    values = 2 * dims.kv_width
    assert cost.layer_kv_values == tuple(values * (v + text) for v in (4, 4, 12, 12))
    # Behind the input of layer 2: a product of [12, 4] and [4, D].
    alone = layer_flops(dims, plan.layers[2], 12, text)
    assert cost.layer_flops[2] == alone + 2 * 12 * 4 * HIDDEN
    frozen = freeze(plan, (2,), "shortv").layers[2]
    assert (frozen.visual, frozen.grow) == ("frozen", plan.layers[2].grow)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_the_published_layer_is_a_share_of_the_depth_and_rows_are_those_of_the_prompt() -> None:
    of_32 = facts.facts(facts.dims(layers=32), token_grid=(3, 4))
    plan = make_plan(of_32, "0" * 64, [Pooling(keep=0.34), WicoPlus()])
    assert {i: (g.of, g.count) for i, g in plan.grows().items()} == {30: (4, 12)}


def test_an_exit_in_front_of_it_leaves_nothing_to_grow() -> None:
    plan = make_plan(model(2), "0" * 64, [WicoPlus(layer=3, rows=30), VisualExit(layer=2)])
    assert not plan.grows()
    note = "compress[0].wico_plus: visual tokens have left by its layer: nothing grows there"
    assert plan.notes == (note,)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (
            "yopo: {window: 3}",
            "wico_plus cannot go with yopo.window: it tells tokens by the prompt, which has none of those "
            "that are new; leave one of them out",
        ),
        (
            "fastv: {}",
            "wico_plus cannot go with fastv: of those that go on, each tile has another number; leave one of "
            "them out",
        ),
        (
            "dyvte: {gates: g.safetensors}",
            "wico_plus cannot go with gates that decide for each prompt; take dyvte.exit: baked, or leave "
            "one of them out",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_the_recipe(
    tmp_path: Path, entries: str, problem: str
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"vtcompress: 2\ncompress: [{{wico_plus: {{}}}}, {{{entries}}}]\n")
    with pytest.raises(RecipeError, match=re.escape(problem)):
        load_recipe(file)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cell": 2, "token_grid": None}, "have different numbers of visual tokens"),
        ({"arrangement": Unpadded(side=3), "most_rows": 40}, "have different numbers of visual"),
        (
            {"decoder": facts.dims(rope_axes=(0, 1))},
            "turns rows by a time, a row and a column: tokens between two others have no such place",
        ),
        (
            {"decoder": facts.dims(deepstack=3)},
            "behind layer 2 made-up adds further rows of its vision",
        ),
    ],
)
def test_a_model_that_rules_it_out_is_refused_before_weights_and_in_a_plan(
    changes: dict[str, Any], problem: str
) -> None:
    of_model = facts.facts().model_copy(update=changes)
    with pytest.raises(PlanError, match=problem) as caught:
        check_methods(of_model, [WicoPlus(layer=2, rows=30)])
    assert caught.value.problems[0].startswith("compress[0].wico_plus.layer: ")
    assert caught.value.problems[0].endswith("; leave wico_plus out")
    made = grow_at(identity_plan(of_model, "0" * 64), 2, grown())
    with pytest.raises(ValidationError, match=problem):
        Plan.model_validate(made.model_dump())


def test_rows_and_layers_that_do_not_fit_are_refused() -> None:
    def refused(*methods: Any) -> str:
        with pytest.raises(PlanError) as caught:
            make_plan(model(2), "0" * 64, methods)
        (line,) = caught.value.problems
        return line

    assert refused(WicoPlus(layer=2)) == (
        "compress[0].wico_plus.rows: a tile is to have 12 visual tokens from the layer on, and 12 of its 12 "
        "enter the decoder; let fewer in, or give more rows"
    )
    assert "4 of its 12 enter" in refused(WicoPlus(layer=2, rows=3), Pooling(keep=0.34))
    assert "wico_plus.layer: 4 is outside 1..3" in refused(WicoPlus(layer=4, rows=30))
    assert refused(WicoPlus(layer=2, rows=10**9)) == (
        "compress[0].wico_plus: what was made is no plan: layer 2: grow: a picture would have 1000000000 "
        "visual tokens, and the model has 512 positions"
    )
    assert "different numbers of each tile" in refused(
        WicoPlus(layer=2, rows=30), FastV(layer=1, keep=0.5)
    )


def test_a_plan_that_was_changed_by_hand_is_refused() -> None:
    plan = grow_at(identity_plan(model(2), "0" * 64), 2, grown())
    Plan.model_validate(plan.model_dump())
    gates = facts.gates((2,), candidates=(1,), width=4)
    for changed, line in (
        (grow_at(plan, 1, grown()), "grow once, at the input of a layer from 1 on"),
        (grow_at(plan, 2, grown(of=4)), "is made for 4 rows of a tile; 12 enter"),
        (keep_in_front(plan, 6, "random", {}), "is made for 12 rows of a tile; 6 enter"),
        (plan.model_copy(update={"gates": gates}), "gates exclude visual rows that grow"),
        (
            plan.model_copy(
                update={
                    "layers": (plan.layers[0].model_copy(update={"window": 3}), *plan.layers[1:])
                }
            ),
            "windows and the masked semantics number visual rows by the prompt",
        ),
    ):
        with pytest.raises(ValidationError, match=line):
            Plan.model_validate(changed.model_dump())
    with pytest.raises(ValidationError, match="12 visual rows of a tile do not grow to 12"):
        Growth(count=12, of=12, by="wico_plus")


LIMITS = Limits(max_batch=1, max_images=2, max_text=32, max_context=60, visual_tokens=12)


def test_engines_and_fixed_caches_have_room_for_every_tile_that_grows() -> None:
    plan = grow_at(identity_plan(model(2), "0" * 64), 2, grown())
    spec = decoder_graph(plan, "float16", "last")
    assert (spec.kept, spec.moves_text, spec.visual_multiple) == ({"past_2": ((30, 12),)}, True, 12)
    assert not spec.reads_question
    prefill, decode = profiles_of(spec, LIMITS)
    # Four images and eleven text rows, or what else of 59 and one: 4 x 18 rows more.
    assert (prefill.most["past"], prefill.most["past_2"]) == (60, 132)
    assert decode.typical["past_2"] - decode.typical["past"] == 18
    fixed = decoder_graph(plan, "float16", "last", limits=LIMITS)
    assert {t.filled: t.rows for t in fixed.cached} == {"past": 60, "past_2": 132}
    assert not _short([fixed], LIMITS)
    (line,) = _short([fixed], LIMITS.model_copy(update={"max_context": 75}))
    assert line.startswith("max_context: 75 is more than 60, ")
    assert GraphSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("key", "value"), [("kept", {"past_2": [[29, 12]]}), ("moves_text", False)]
)
def test_a_graph_that_says_other_than_the_plan_is_refused_when_opened(
    key: str, value: Any, tmp_path: Path
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    plan = grow_at(facts.plan(), 2, grown())
    plan.save(tmp_path / "plan.json")
    write_manifest(tmp_path, **facts.manifest_fields(plan))
    Artifact.open(tmp_path)
    document = json.loads((tmp_path / "manifest.json").read_text())
    (decoder,) = (graph for graph in document["graphs"] if graph["name"] == "decoder")
    decoder[key] = value
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=rf"graphs\.decoder\.{key}: .*, by the plan beside it"):
        Artifact.open(tmp_path, verify=False)
