"""Decoders that turn rows on three axes: their graphs, turn by turn, against the whole conversation at once.

Pictures are not square, so that a row is no column, and text behind them has positions that are no places.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

import vtcompress
from compressor.compressed import CompressedModel
from compressor.decoder import Decoder, decoder_from
from compressor.decoder.full_pass import full_pass, kl_divergence
from compressor.facts import ModelFacts
from compressor.families import known
from compressor.methods.shortv import layer_contribution
from compressor.plan.dead_rows import deepstack_layers
from compressor.plan.edits import freeze, leave
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Gates, Plan
from compressor.samples.layout import Grid, Layout, layout_of
from export.backends.onnxruntime import OnnxSession
from export.backends.torch_model import TorchSession
from export.graphs.limits import Limits
from export.graphs.spec import decoder_graphs
from export.session.feeds import CallRows, text_rows
from export.session.session import Session
from export.writer.weights import SharedWeights
from export.writer.write import save_graph
from tests.cuts import FIRST, HIDDEN, cut, dead, drawn, frozen, gone, model
from tests.flops import layer_nodes
from tests.reference import Conversation, text_logits
from tests.test_toy_family import ToyFamily, make_toy
from vtcompress.stages.exporting.torch_side import decoder_makers

TOLERANCE = 1e-4
MOST_NODES = 45
GRID = (3, 4)
# Tokens, and grids of pictures: a prompt, a later turn of text, one with a picture; steps behind each.
TURNS: tuple[list[int | Grid], ...] = ([(3, 4), 7, 8, (2, 5), 9], [7, 5], [6, (4, 2), 5, 8])
# Of the graphs whose windows need all pictures on one grid.
ON_ONE_GRID: tuple[list[int | Grid], ...] = ([5, (3, 4), 8, (3, 4), 9], [7, 5], [6, (3, 4), 5, 8])
STEPS = 3

# Frequencies that a step of a row or a column shows in.
TURNED = {"rope_inv_freq": (1.0, 0.7, 0.4, 0.3)}
SECTIONS: dict[str, Any] = {"qkv_bias": True, "rope_axes": (0, 1, 1, 2), **TURNED}
BY_TURNS: dict[str, Any] = {"qk_norm": True, "rope_axes": (0, 1, 2, 0), "deepstack": 3, **TURNED}
PLANS: dict[str, tuple[dict[str, Any], Sequence[LayerPlan]]] = {
    "identity": (SECTIONS, [cut(i) for i in range(4)]),
    "identity, head norms": (BY_TURNS, [cut(i) for i in range(4)]),
    "frozen": (BY_TURNS, [frozen(0), cut(1), frozen(2), dead(3)]),
    "exit": (BY_TURNS, [cut(0), cut(1), gone(2), gone(3)]),
    "heads": (BY_TURNS, [cut(0), cut(1, groups=(1,)), cut(2, groups=()), dead(3, groups=(0,))]),
    "masked": (
        BY_TURNS,
        [cut(0, groups=(1,), masked=True), frozen(1, groups=(), masked=True),
         cut(2, off=True, masked=True), dead(3, off=True, masked=True)],
    ),
    "window, everything": (
        BY_TURNS,
        [cut(0, window=3, groups=(1,), neurons=FIRST), frozen(1, groups=(0,)), gone(2), gone(3)],
    ),
}  # fmt: skip
GATED = {f"gates, {mode}": mode for mode in ("dynamic", "staged")}
FIXED = ("fixed caches, exit",)
# The gates' graphs have its layers.
ALSO_GATED = "identity, head norms"
LIMITS = Limits(max_batch=2, max_images=2, max_text=32, max_context=80, visual_tokens=12)


def plan_of(name: str) -> Plan:
    options, layers = PLANS.get(name.replace("fixed caches, ", ""), PLANS[ALSO_GATED])
    plan = Plan(model=model(2, GRID, **options), model_digest="0" * 64, layers=tuple(layers))
    if name not in GATED:
        return plan
    gates = Gates(candidates=(0, 1, 2), mode=GATED[name], width=16, digest="")
    return plan.model_copy(update={"gates": gates})


def weights_of(plan: Plan) -> dict[str, torch.Tensor]:
    """Random weights; the gate behind layer 1 is the first that fires, whatever it reads."""
    tensors = drawn(plan if plan.gates else plan.naive())
    for name in (name for name in tensors if name.endswith("norm.weight")):
        tensors[name] = tensors[name] + 1.0  # rows that read each other well
    half = torch.randn(8, 2 * HIDDEN, generator=torch.Generator().manual_seed(7))
    for layer in plan.gates.candidates if plan.gates else ():
        answer = torch.zeros(2, 16)
        answer[1] = 1.0 if layer >= 1 else -1.0  # times GELU(z) + GELU(-z), which is positive
        tensors[f"visual_gates_router.{layer}.w1.weight"] = torch.cat([half, -half])
        tensors[f"visual_gates_router.{layer}.w2.weight"] = answer
    return tensors


def positions_of(parts: Sequence[int | Grid]) -> list[tuple[int, int, int]]:
    """Return the position of every token, by the rule's words."""
    found: list[tuple[int, int, int]] = []
    following = 0
    for part in parts:
        if isinstance(part, int):
            found.append((following,) * 3)
        else:
            rows, columns = part
            found += [(following, following + r, following + c)
                      for r in range(rows) for c in range(columns)]  # fmt: skip
        following = max(map(max, found)) + 1
    return found


class Asked:
    """A conversation: its calls, and all its rows at once."""

    def __init__(self, plan: Plan, turns: Sequence[list[int | Grid]], batch: int) -> None:
        self.parts = [part for turn in turns for part in (*turn, *[9] * STEPS)]
        visual = np.array(
            [
                is_visual
                for part in self.parts
                for is_visual in (
                    [False] if isinstance(part, int) else [True] * (part[0] * part[1])
                )
            ]
        )
        self.embeds = np.random.default_rng(1).standard_normal((batch, len(visual), HIDDEN))
        image, cell = np.zeros(len(visual), np.int64), np.zeros(len(visual), np.int64)
        grids = [part for part in self.parts if isinstance(part, tuple)]
        sizes = [rows * columns for rows, columns in grids]
        image[visual] = np.repeat(np.arange(len(grids)), sizes)
        cell[visual] = np.concatenate([np.arange(size) for size in sizes])
        positions = np.array(positions_of(self.parts))
        dims = plan.model.decoder
        stack = np.random.default_rng(2).standard_normal(
            (batch, dims.deepstack, *self.embeds.shape[1:])
        )
        self.deepstack = stack * visual[:, None]
        self.whole = [
            Conversation(rows, visual, image, cell, positions, added)
            for rows, added in zip(self.embeds, self.deepstack, strict=True)
        ]
        self.calls = list(self._calls(plan, turns))

    def _calls(self, plan: Plan, turns: Sequence[list[int | Grid]]) -> Any:
        earlier: list[Grid] = []
        start, token = 0, plan.model.image_token_id
        for turn in turns:
            grids = [part for part in turn if isinstance(part, tuple)]
            sizes = [rows * columns for rows, columns in grids]
            ids = [i for part in turn
                   for i in ([part] if isinstance(part, int) else [token] * (part[0] * part[1]))]  # fmt: skip
            layout = layout_of(ids, plan.model, sizes, start=start, grids=grids, earlier=earlier)
            yield self._rows(layout)
            for number in range(STEPS):
                step = layout.behind(number)
                yield text_rows(step, self._at(step.text_index))
            start, earlier = layout.end + STEPS, earlier + grids

    def _rows(self, layout: Layout) -> CallRows:
        rows = text_rows(layout, self._at(layout.text_index))
        places = np.tile(layout.visual_index, (len(self.embeds), 1))
        if not layout.images:
            return rows
        added = self.deepstack[:, :, layout.visual_index].astype(np.float32)
        deepstack = tuple(added.transpose(1, 0, 2, 3))
        visual = self._at(layout.visual_index)
        return rows._replace(visual=visual, visual_index=places, deepstack=deepstack)

    def _at(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.embeds[:, places].astype(np.float32)

    def wanted(self, plan: Plan, tensors: dict[str, torch.Tensor]) -> NDArray[np.float64]:
        """Return the logits [B, text rows, vocab]; an exit that gates chose is planned there."""
        if plan.gates is not None:
            plan = leave(plan.model_copy(update={"gates": None}), 2, "visual_exit")
        return np.stack([text_logits(plan, tensors, rows) for rows in self.whole])


def asked_of(name: str, plan: Plan) -> Asked:
    return Asked(plan, ON_ONE_GRID if "window" in name else TURNS, 1 if plan.gates else 2)


def in_torch(plan: Plan, tensors: dict[str, torch.Tensor]) -> TorchSession:
    decoder = decoder_from(plan, tensors, logits="all")
    return TorchSession(CompressedModel(plan, decoder, None, None, None, None))  # type: ignore[arg-type]


def logits_of(session: Session, calls: Sequence[CallRows]) -> NDArray[Any]:
    past, found = session.empty_past(len(calls[0].text)), []
    for rows in calls:
        logits, past = session.decode(rows, past)
        found.append(logits)
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("name", [*(n for n in PLANS if n != ALSO_GATED), *GATED, *FIXED])
def test_graphs_give_turn_by_turn_what_the_whole_conversation_at_once_does(
    name: str, tmp_path: Path
) -> None:
    plan = plan_of(name)
    tensors, asked = weights_of(plan), asked_of(name, plan)
    wanted = asked.wanted(plan, tensors)
    if "fixed" not in name:
        found = logits_of(in_torch(plan, tensors), asked.calls)
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)
    decoder = decoder_from(plan, tensors, logits="all")
    specs = decoder_graphs(plan, "float32", "all", LIMITS if "fixed" in name else None)
    with SharedWeights(tmp_path) as weights:
        for spec, make in zip(specs, decoder_makers(decoder, plan), strict=True):
            save_graph(make(spec), tmp_path / spec.file, weights)
    session = OnnxSession(tmp_path, specs, threads=1, block=16)
    found = logits_of(session, asked.calls)
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)
    for spec in specs:
        onnx.checker.check_model(tmp_path / spec.file, full_check=True)
    if spec.name == "decoder" and not any(y.cuts for y in plan.layers):
        assert 0 < max(layer_nodes(tmp_path / spec.file).values()) <= MOST_NODES
    if "fixed" in name:  # OpenVINO does not read them
        return
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    from export.backends.openvino import OpenVinoSession

    found = logits_of(OpenVinoSession(tmp_path, specs, threads=1), asked.calls)
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["identity", "identity, head norms", "exit"])
@pytest.mark.parametrize("fault", ["rows and columns", "time and rows", "places", "text at places"])
def test_a_position_that_is_not_its_own_is_loud(name: str, fault: str) -> None:
    """Guards the test above, at the prompt and at the steps behind it."""
    plan = plan_of(name)
    tensors, asked = weights_of(plan), asked_of(name, plan)

    def wrong(rows: CallRows) -> CallRows:
        positions = rows.positions
        assert positions is not None
        places = np.concatenate([rows.visual_index, rows.text_index], axis=1)[..., None]
        visual = rows.visual_index.shape[1]
        changed = {
            "rows and columns": positions[..., [0, 2, 1]],
            "time and rows": positions[..., [1, 0, 2]],
            "places": np.tile(places, (1, 1, 3)),
            "text at places": np.concatenate(
                [positions[:, :visual], np.tile(places[:, visual:], (1, 1, 3))], axis=1
            ),
        }[fault]
        return rows._replace(positions=changed)

    session = in_torch(plan, tensors)
    right, found = (
        logits_of(session, calls) for calls in (asked.calls, [wrong(rows) for rows in asked.calls])
    )
    prompt = asked.calls[0].text_index.shape[1]
    for part in (slice(2, prompt), slice(prompt, prompt + STEPS)):
        assert np.abs(found[:, part] - right[:, part]).max() > 500 * TOLERANCE


def test_the_contribution_of_a_layer_keeps_what_is_added_behind_it() -> None:
    """KL between the decoder, and the decoder whose layer leaves visual rows as they come to it."""
    plan = plan_of("identity, head norms")
    tensors, asked = weights_of(plan), Asked(plan, ([5, (3, 4), 7, 8],), 1)
    rows = asked.calls[0]
    *arrays, further = rows
    decoder = decoder_from(plan, tensors)
    assert decoder.deepstack == (0, 1, 2)
    whole = full_pass(decoder, *map(torch.from_numpy, arrays), [*map(torch.from_numpy, further)])
    text = rows.text_index.shape[1]

    def last(plan: Plan) -> torch.Tensor:
        return torch.from_numpy(asked.wanted(plan, tensors)[0, text - 1])

    layers = range(len(plan.layers))
    wanted = [kl_divergence(last(freeze(plan, (i,), "shortv")), last(plan)) for i in layers]
    np.testing.assert_allclose(layer_contribution(whole), wanted, atol=1e-5)
    assert min(wanted[:-1]) > 1e-3
    frozen = freeze(plan, (0, 1, 2), "shortv")
    assert deepstack_layers(frozen) == (0, 1, 2)
    assert deepstack_layers(leave(plan, 2, "visual_exit")) == (0,)
    with pytest.raises(ValueError, match=r"0 tensors of deepstack rows, layers \[0, 1, 2\] need"):
        in_torch(plan, tensors).decode(rows._replace(deepstack=()), decoder.empty_past(1))


def test_a_stage_takes_positions_as_the_whole_decoder_does() -> None:
    plan = plan_of("gates, staged")
    decoder = Decoder(plan)
    names = [t.name for spec in decoder_graphs(plan, "float32", "last") for t in spec.inputs]
    assert names.count("visual_positions") == names.count("text_positions") == len(decoder.segments)
    assert [name for name in names if name.startswith("deepstack")] == [
        "deepstack.0",
        "deepstack.1",
        "deepstack.2",
    ]


# From a model folder to an artifact: a family whose original turns rows on three axes, defined here alone.


class Turned(torch.nn.Module):
    """A model's rotary embedding: turns rows by the positions of the prompt that was begun last."""

    def __init__(self, inv_freq: torch.Tensor, axes: Sequence[int], image: int, grid: Grid) -> None:
        super().__init__()
        self.inv_freq, self.axes, self.image, self.grid = inv_freq, list(axes), image, grid
        self.positions = torch.zeros(1, 0, 3)

    def begin(self, _: Any, __: Any, asked: dict[str, Any]) -> None:
        """Look at a prompt as it comes; steps behind it go on from its last token."""
        if asked.get("past_key_values") is None:
            self.positions = torch.tensor([self._of(row) for row in asked["input_ids"].tolist()])

    def _of(self, ids: Sequence[int]) -> list[tuple[int, int, int]]:
        parts: list[int | Grid] = []
        cells = 0
        for token in ids:
            if token != self.image:
                parts.append(token)
            elif not cells:
                parts, cells = [*parts, self.grid], self.grid[0] * self.grid[1] - 1
            else:
                cells -= 1
        return positions_of(parts)

    def forward(self, states: torch.Tensor, position_ids: torch.Tensor) -> Any:
        places = position_ids.expand(len(self.positions), -1)
        last = places.clamp(max=self.positions.shape[1] - 1)
        own = self.positions.gather(1, last[..., None].expand(-1, -1, 3))
        own = own + (places - last)[..., None]
        angle = own[..., self.axes] * self.inv_freq
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().to(states.dtype), angle.sin().to(states.dtype)


class TurnedFamily(ToyFamily):
    """VipLLaVA as it would be with M-RoPE."""

    name = "turned"
    axes = (0, 1, 2, 0, 1, 2, 0, 1)

    def facts(self, config: Any, name: str, **options: Any) -> ModelFacts:
        facts = super().facts(config, name, **options)
        decoder = facts.decoder.model_copy(update={"rope_axes": self.axes})
        return facts.model_copy(update={"family": self.name, "decoder": decoder})

    def original(self, folder: Path, config: Any, dtype: Any) -> Any:
        model = super().original(folder, config, dtype)
        facts, language = self.facts(config, ""), model.model.language_model
        assert facts.token_grid is not None
        turned = Turned(
            language.rotary_emb.inv_freq, self.axes, facts.image_token_id, facts.token_grid
        )
        language.rotary_emb = turned
        model.register_forward_pre_hook(turned.begin, with_kwargs=True)
        return model


def test_a_model_that_turns_rows_on_three_axes_passes_every_check_of_an_export(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rewrite beside the original, fidelity, answers of some tokens, times and memory."""
    monkeypatch.setattr(known, "BUILT_IN", (f"{__name__}:{TurnedFamily.__name__}",))
    known.families.cache_clear()
    try:
        folder = make_toy(tmp_path / "turned-model")
        recipe = vtcompress.load_recipe("identity").override(
            {
                "model.id": str(folder),
                "validate.data": questions,
                "validate.max_new_tokens": 4,
            }
        )
        manifest = vtcompress.export(recipe, tmp_path / "out", bench_rounds=1)
        assert manifest.verdict.value == "passed"
        assert manifest.rewrite is not None
        assert manifest.rewrite.passed
        assert manifest.loss is not None
        # Nothing is cut, so that both answer alike.
        assert manifest.loss.overall.kl < 1e-6
        names = {t.name for g in manifest.graphs if "decoder" in g.name for t in g.inputs}
        assert {"visual_positions", "text_positions"} <= names
    finally:
        known.families.cache_clear()
