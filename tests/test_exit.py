"""Visual exits: fixed or by gates, in torch and ONNX Runtime; what calibration measures of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from compressor.decoder import Decoder, decoder_from
from compressor.decoder.full_pass import full_pass, kl_divergence
from compressor.decoder.gates import gate_selection
from compressor.methods.dyvte import gate_margins
from compressor.methods.visual_exit import exit_kl
from compressor.plan.cost import predict
from compressor.plan.edits import freeze, identity_plan, leave
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Gates, Plan
from export.backends.onnxruntime import OnnxSession
from export.graphs.spec import decoder_graphs
from export.session.feeds import CallRows
from export.writer.weights import SharedWeights
from export.writer.write import save_graph
from tests.cuts import drawn
from tests.facts import dims, facts
from vtcompress.stages.exporting.torch_side import decoder_makers

TOLERANCE = 1e-4
LAYERS, HIDDEN, VOCAB, WIDTH = 5, 32, 40, 4
CANDIDATES = tuple(range(LAYERS - 1))


def identity() -> Plan:
    shape = dims(layers=LAYERS, hidden=HIDDEN, heads=4, kv_heads=2, head_dim=8, vocab=VOCAB)
    return identity_plan(facts(shape), "0" * 64)


def gated(mode: str = "dynamic", candidates: Sequence[int] = CANDIDATES) -> Plan:
    gates = Gates(candidates=tuple(candidates), mode=mode, width=WIDTH, digest="")
    return Plan.model_validate({**dict(identity()), "gates": gates})


WEIGHTS = drawn(gated())


def rows(images: int = 1, text: int = 6, start: int = 0, seed: int = 0) -> list[torch.Tensor]:
    """A call's rows: one text row, the images, the other text rows."""
    generator = torch.Generator().manual_seed(seed)
    visual = images * identity().model.visual_tokens
    embeds = torch.randn(1, visual + text, HIDDEN, generator=generator)
    places = torch.arange(start, start + visual + text)[None]
    is_text = torch.ones(visual + text, dtype=torch.bool)
    is_text[1 : 1 + visual] = False
    return [embeds[:, ~is_text], embeds[:, is_text], places[:, ~is_text], places[:, is_text]]


def step(place: int) -> list[torch.Tensor]:
    visual, text, visual_index, _ = rows(images=0, text=1, seed=place)
    return [visual, text, visual_index, torch.tensor([[place]])]


def run_torch(decoder: Decoder, calls: Sequence[list[torch.Tensor]]) -> list[np.ndarray]:
    past, found = decoder.empty_past(1), []
    with torch.inference_mode():
        for call in calls:
            logits, past = decoder(*call, past)
            found.append(logits.numpy())
    return found


def run_onnx(session: OnnxSession, calls: Sequence[list[torch.Tensor]]) -> list[np.ndarray]:
    past, found = session.empty_past(1), []
    for call in calls:
        logits, past = session.decode(CallRows(*(t.contiguous().numpy() for t in call)), past)
        found.append(logits)
    return found


def session_of(
    plan: Plan, folder: Path, weights_of: Mapping[str, torch.Tensor] = WEIGHTS
) -> OnnxSession:
    decoder = decoder_from(plan, weights_of, logits="all")
    specs = decoder_graphs(plan, "float32", "all")
    with SharedWeights(folder) as weights:
        for spec, make in zip(specs, decoder_makers(decoder, plan), strict=True):
            save_graph(make(spec), folder / spec.file, weights)
    return OnnxSession(folder, specs, threads=1)


def always(fires: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of a gate that answers the same whatever it sees: GELU(z) + GELU(-z) is positive."""
    direction = torch.randn(WIDTH // 2, 2 * HIDDEN, generator=torch.Generator().manual_seed(7))
    w1 = torch.cat([direction, -direction])
    w2 = torch.zeros(2, WIDTH)
    w2[1] = 1.0 if fires else -1.0
    return w1, w2


def gates_firing_first_at(layer: int | None) -> dict[str, torch.Tensor]:
    """Gates before `layer` never fire; it and those behind do, as do gates that are never asked."""
    tensors = {}
    for candidate in CANDIDATES:
        w1, w2 = always(layer is not None and candidate >= layer)
        tensors[f"visual_gates_router.{candidate}.w1.weight"] = w1
        tensors[f"visual_gates_router.{candidate}.w2.weight"] = w2
    return tensors


def exits(layer: int | None) -> Plan:
    """The fixed exit that equals gates firing first at `layer`."""
    return identity() if layer is None else leave(identity(), layer + 1, "visual_exit")


PROMPT = [rows(images=2), step(30), step(31)]
WITH_LATER_IMAGE = [rows(), rows(images=1, start=18, seed=5), step(36)]
TEXT_ONLY = [rows(images=0), step(6)]
ENDS = [*CANDIDATES, None]


@pytest.mark.parametrize("calls", [PROMPT, WITH_LATER_IMAGE, TEXT_ONLY])
@pytest.mark.parametrize("layer", ENDS)
def test_gates_that_fire_first_at_a_layer_equal_the_fixed_exit_behind_it_in_torch(
    layer: int | None, calls: list[list[torch.Tensor]]
) -> None:
    fixed = run_torch(decoder_from(exits(layer), WEIGHTS, logits="all"), calls)
    by_gates = decoder_from(gated(), WEIGHTS | gates_firing_first_at(layer), logits="all")
    for wanted, found in zip(fixed, run_torch(by_gates, calls), strict=True):
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("mode", ["dynamic", "staged"])
def test_gates_go_with_pruned_heads(mode: str, tmp_path: Path) -> None:
    """Heads without visual tokens keep a text cache of one length, whichever gate fires."""
    layers = tuple(
        layer.model_copy(update={"groups": (1,) if layer.index != 2 else ()})
        for layer in identity().layers
    )
    base = identity().model_copy(update={"layers": layers})
    plan = Plan.model_validate({**dict(base), "gates": gated(mode).gates})
    weights = WEIGHTS | gates_firing_first_at(1)
    fixed = decoder_from(leave(base, 2, "visual_exit"), WEIGHTS, logits="all")
    session = session_of(plan, tmp_path, weights)
    for calls in (PROMPT, WITH_LATER_IMAGE):
        wanted = run_torch(fixed, calls)
        if mode == "dynamic":
            found = run_torch(decoder_from(plan, weights, logits="all"), calls)
            for one, other in zip(wanted, found, strict=True):
                np.testing.assert_allclose(other, one, atol=TOLERANCE, rtol=0)
        for one, other in zip(wanted, run_onnx(session, calls), strict=True):
            np.testing.assert_allclose(other, one, atol=TOLERANCE, rtol=0)


def test_every_exit_gives_other_logits() -> None:
    """Guards the tests around it: an exit that changed nothing would pass them."""
    found = [
        run_torch(decoder_from(exits(layer), WEIGHTS, logits="all"), PROMPT)[0] for layer in ENDS
    ]
    for one in range(len(found)):
        for other in range(one):
            assert np.abs(found[one] - found[other]).max() > 100 * TOLERANCE


def patched(folder: Path, layer: int | None) -> None:
    """Write other gates into exported graphs; their second matrices are small enough to lie inside."""
    gates = gates_firing_first_at(layer)
    first = {f"gates.{c}.w1.weight": always(True)[0].T.numpy() for c in CANDIDATES}
    second = {
        f"gates.{c}.w2.weight": gates[f"visual_gates_router.{c}.w2.weight"].T.numpy()
        for c in CANDIDATES
    }
    done = 0
    for path in folder.glob("decoder*.onnx"):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            name = tensor.name.removeprefix("decoder.")
            if name in second or name in first:
                array = second[name] if name in second else first[name]
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
                done += 1
        onnx.save(model, path)
    assert done == 2 * len(CANDIDATES)


@pytest.fixture(scope="module", params=["dynamic", "staged"])
def gated_session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int | None], OnnxSession]:
    folder = tmp_path_factory.mktemp(request.param)
    plan = gated(request.param)
    session_of(plan, folder)

    def firing(layer: int | None) -> OnnxSession:
        patched(folder, layer)
        return OnnxSession(folder, decoder_graphs(plan, "float32", "all"), threads=1)

    return firing


@pytest.mark.parametrize("layer", ENDS)
def test_gates_that_fire_first_at_a_layer_equal_the_fixed_exit_behind_it_in_onnx_runtime(
    layer: int | None, gated_session: Callable[[int | None], OnnxSession], tmp_path: Path
) -> None:
    fixed, by_gates = session_of(exits(layer), tmp_path), gated_session(layer)
    assert by_gates.reads_question
    assert not fixed.reads_question
    for calls in (PROMPT, WITH_LATER_IMAGE, TEXT_ONLY):
        for wanted, found in zip(run_onnx(fixed, calls), run_onnx(by_gates, calls), strict=True):
            np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "plan",
    [
        leave(identity(), 1, "visual_exit"),
        leave(identity(), 3, "visual_exit"),
        leave(freeze(identity(), (0, 2), "shortv"), 4, "visual_exit"),
    ],
    ids=["exit at 1", "exit at 3", "frozen, then exit"],
)
def test_a_later_call_with_a_new_image_equals_one_call_with_everything(
    plan: Plan, tmp_path: Path
) -> None:
    first, second = rows(), rows(images=1, start=18, seed=5)
    together = [torch.cat(pair, dim=1) for pair in zip(first, second, strict=True)]
    session = session_of(plan, tmp_path)
    for run, side in ((run_torch, decoder_from(plan, WEIGHTS, logits="all")), (run_onnx, session)):
        whole = run(side, [together])[0]  # type: ignore[operator]
        parts = run(side, [first, second])  # type: ignore[operator]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=TOLERANCE, rtol=0)


def test_freezing_the_rows_before_an_exit_is_exact() -> None:
    """Visual rows of layer K - 1 are dead: nobody reads what the layer makes of them."""
    plan = leave(identity(), 3, "visual_exit")
    assert [layer.reason for layer in plan.layers] == ["", "", "dead", "visual_exit", "visual_exit"]
    layers = tuple(LayerPlan(index=2) if layer.reason == "dead" else layer for layer in plan.layers)
    naive = plan.model_copy(update={"layers": layers})
    for one, other in zip(
        run_torch(decoder_from(plan, WEIGHTS, logits="all"), PROMPT),
        run_torch(decoder_from(naive, WEIGHTS, logits="all"), PROMPT),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)


def test_caches_behind_an_exit_hold_text_alone_and_their_bytes_are_as_predicted(
    tmp_path: Path,
) -> None:
    plan = leave(identity(), 2, "visual_exit")
    call = rows(text=plan.workload.text)
    session = session_of(plan, tmp_path)
    _, past = session.decode(
        CallRows(*(t.contiguous().numpy() for t in call)), session.empty_past(1)
    )
    lengths = [shape[2] for shape in session.past_shapes(past)[::2]]
    visual, text = plan.visual, plan.workload.text
    assert lengths == [visual + text] * 2 + [text] * 3
    assert session.past_bytes(past) == predict(plan).kv_bytes("float32")


@pytest.mark.parametrize(
    ("text_index", "averaged"),
    [
        ([0, 13, 14, 15], [1, 2]),
        ([0, 13, 14], [1]),
        # One row behind the image stands for the mean too.
        ([0, 13], [1]),
    ],
)
def test_a_gate_reads_the_text_behind_the_last_image(
    text_index: list[int], averaged: list[int]
) -> None:
    visual_index = torch.arange(1, 13)[None]
    selection = gate_selection(visual_index, torch.tensor([text_index]), torch.float32)
    wanted = torch.zeros(1, 2, len(text_index))
    wanted[0, 0, averaged] = 1 / len(averaged)
    wanted[0, 1, -1] = 1.0
    torch.testing.assert_close(selection, wanted)


def test_between_two_images_no_row_is_read_and_without_an_image_no_gate_is_asked() -> None:
    between = torch.tensor([[1, 2, 3, 5, 6, 7]]), torch.tensor([[0, 4, 8, 9]])
    selection = gate_selection(*between, torch.float32)
    assert selection[0, 0].tolist() == [0.0, 0.0, 1.0, 0.0]
    none = gate_selection(
        torch.zeros(1, 0, dtype=torch.int64), torch.tensor([[0, 1]]), torch.float32
    )
    assert none.shape == (0, 2, 2)


def test_the_sweep_gives_the_kl_of_every_exit_by_its_definition() -> None:
    decoder = decoder_from(identity(), WEIGHTS)
    prompt = rows(images=2)
    found = exit_kl(full_pass(decoder, *prompt)).numpy()
    original = run_torch(decoder, [prompt])[0][0, -1]
    for layer in range(1, LAYERS):
        exited = run_torch(
            decoder_from(leave(identity(), layer, "visual_exit"), WEIGHTS), [prompt]
        )[0][0, -1]
        wanted = kl_divergence(torch.from_numpy(exited), torch.from_numpy(original)).item()
        assert found[layer] == pytest.approx(wanted, rel=1e-4)
        assert wanted > 1e-4
    blind = run_torch(decoder, [[prompt[0][:, :0], prompt[1], prompt[2][:, :0], prompt[3]]])[0][
        0, -1
    ]
    wanted = kl_divergence(torch.from_numpy(blind), torch.from_numpy(original)).item()
    assert found[0] == pytest.approx(wanted, rel=1e-4)


def test_the_sweep_costs_one_full_pass_and_a_text_only_tail_for_each_exit() -> None:
    decoder = decoder_from(identity(), WEIGHTS)
    prompt = rows()
    counted: list[int] = []

    def count(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        counted.append(inputs[0].shape[0] * inputs[0].shape[1])

    for layer in decoder.layers:
        layer.mlp.register_forward_pre_hook(count)
    exit_kl(full_pass(decoder, *prompt))
    visual, text = prompt[0].shape[1], prompt[1].shape[1]
    full = LAYERS * text + (LAYERS - 1) * visual  # visual rows of the last layer are dead
    tails = sum(LAYERS - k for k in range(LAYERS)) * text
    assert sum(counted) == full + tails


def test_margins_say_where_gates_of_the_decoder_fire_first() -> None:
    decoder = decoder_from(gated(), WEIGHTS)
    by_layer = {}
    for seed in range(12):
        prompt = rows(seed=seed)
        margins = gate_margins(full_pass(decoder, *prompt)).tolist()
        wanted = next((c for c, m in zip(CANDIDATES, margins, strict=True) if m > 0), None)
        with torch.inference_mode():
            _, past = decoder(*prompt, decoder.empty_past(1))
        lengths = [pair.key.shape[2] for pair in past]
        longest = lengths.count(lengths[0]) - 1
        assert (None if longest == LAYERS - 1 else longest) == wanted
        by_layer[wanted] = True
    assert len(by_layer) > 1, "all prompts exit alike: the test would say little"
