"""Visual exits: fixed or by gates, in torch and ONNX Runtime; what calibration measures of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

import vtcompress
from compressor.calibration.data import Sample, read_samples
from compressor.calibration.exit import exit_kl, gate_margins
from compressor.calibration.full_pass import full_pass, kl_divergence
from compressor.calibration.run import Asked, calibrate
from compressor.cost import predict
from compressor.decoder import Decoder, decoder_from
from compressor.decoder.gates import gate_selection
from compressor.decoder.weights import load_gates, source_of
from compressor.errors import DataError, GatesError, PlanError, ProfileError
from compressor.families import load
from compressor.gate_file import GateFile
from compressor.plan import Gates, Plan
from compressor.planner import freeze, identity_plan, leave
from export.artifact import Artifact
from export.graphs import decoder_graphs
from export.onnx_graph import save_graph
from export.runtime import Runtime
from export.sessions import OnnxSession
from export.weights import SharedWeights
from tests.facts import dims, facts
from tests.runtimes import exported
from vtcompress.exporting import decoder_makers

TOLERANCE = 1e-4
LAYERS, HIDDEN, VOCAB, WIDTH = 5, 32, 40, 4
CANDIDATES = tuple(range(LAYERS - 1))


def identity() -> Plan:
    shape = dims(layers=LAYERS, hidden=HIDDEN, heads=4, kv_heads=2, head_dim=8, vocab=VOCAB)
    return identity_plan(facts(shape), "0" * 64)


def gated(mode: str = "dynamic", candidates: Sequence[int] = CANDIDATES) -> Plan:
    gates = Gates(candidates=tuple(candidates), mode=mode, width=WIDTH, digest="")
    return Plan.model_validate({**dict(identity()), "gates": gates})


def tensors_of(plan: Plan) -> dict[str, torch.Tensor]:
    """Random weights of a plan's decoder, large enough for what a method does to show."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Decoder(plan).named_parameters()}
    tensors = {}
    for name, shape in sorted(shapes.items()):
        source, transposed = source_of(name)
        tensor = torch.randn(*shape, generator=generator) * 0.3
        tensors[source] = tensor.T.contiguous() if transposed else tensor
    return tensors


WEIGHTS = tensors_of(gated())


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
        logits, past = session.decode(*(t.contiguous().numpy() for t in call), past)
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
    return identity() if layer is None else leave(identity(), layer + 1, "vtw")


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
    fixed = decoder_from(leave(base, 2, "vtw"), WEIGHTS, logits="all")
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
    assert by_gates.gated
    assert not fixed.gated
    for calls in (PROMPT, WITH_LATER_IMAGE, TEXT_ONLY):
        for wanted, found in zip(run_onnx(fixed, calls), run_onnx(by_gates, calls), strict=True):
            np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "plan",
    [
        leave(identity(), 1, "vtw"),
        leave(identity(), 3, "vtw"),
        leave(freeze(identity(), (0, 2), "shortv"), 4, "vtw"),
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
    plan = leave(identity(), 3, "vtw")
    assert [layer.reason for layer in plan.layers] == ["", "", "dead", "vtw", "vtw"]
    layers = tuple(
        layer.because(2, "") if layer.reason == "dead" else layer for layer in plan.layers
    )
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
    plan = leave(identity(), 2, "vtw")
    call = rows(text=plan.workload.text)
    session = session_of(plan, tmp_path)
    _, past = session.decode(*(t.contiguous().numpy() for t in call), session.empty_past(1))
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


@pytest.fixture(scope="module")
def model_folder(llava: Callable[[str], Path]) -> Path:
    return llava("clip+llama")


@pytest.fixture(scope="module")
def samples(questions: Path) -> tuple[Sample, ...]:
    return read_samples(questions)


def test_the_sweep_gives_the_kl_of_every_exit_by_its_definition() -> None:
    decoder = decoder_from(identity(), WEIGHTS)
    prompt = rows(images=2)
    found = exit_kl(full_pass(decoder, *prompt)).numpy()
    original = run_torch(decoder, [prompt])[0][0, -1]
    for layer in range(1, LAYERS):
        exited = run_torch(decoder_from(leave(identity(), layer, "vtw"), WEIGHTS), [prompt])[0][
            0, -1
        ]
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


@pytest.fixture(scope="module")
def gate_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gates for the tiny model, as the authors' code names them; drawn, not trained."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in range(3):
        name = f"model.visual_gates_router.{layer}"
        tensors[f"{name}.w1.weight"] = torch.randn(8, 128, generator=generator)
        tensors[f"{name}.w2.weight"] = torch.randn(2, 8, generator=generator)
    path = tmp_path_factory.mktemp("gates") / "gates.safetensors"
    save_file(tensors, path)
    return path


def dyvte(path: Path | None, **more: Any) -> list[dict[str, Any]]:
    given = {} if path is None else {"gates": str(path)}
    return [{"dyvte": {**given, **more}}]


@pytest.fixture(scope="module")
def artifacts(
    model_folder: Path, gate_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gated")
    return {
        mode: exported(model_folder, folder / mode, compress=dyvte(gate_path, exit=mode))
        for mode in ("dynamic", "staged")
    }


def test_artifacts_with_gates_are_faithful_and_staged_ones_answer_as_dynamic_ones(
    artifacts: dict[str, Path], samples: tuple[Sample, ...]
) -> None:
    asked = [(s.question, s.images) for s in samples] + [("what is this", ())]
    answers = {}
    for mode, folder in artifacts.items():
        fidelity = Artifact.open(folder).manifest.fidelity
        assert fidelity is not None
        assert fidelity.passed
        runtime = Runtime.load(folder, threads=1)
        answers[mode] = {
            place: reply.token_ids for place, reply in runtime.answers(asked, max_new_tokens=6)
        }
    assert answers["dynamic"] == answers["staged"]
    assert len(answers["dynamic"]) == len(asked)


@pytest.mark.parametrize("mode", ["dynamic", "staged"])
def test_openvino_answers_as_onnx_runtime_does(
    mode: str, artifacts: dict[str, Path], samples: tuple[Sample, ...]
) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    sides = [
        Runtime.load(artifacts[mode], threads=1, backend=backend)
        for backend in ("onnxruntime", "openvino")
    ]
    for sample in samples:
        one, other = (
            side.answer(sample.question, sample.images, max_new_tokens=6) for side in sides
        )
        assert one.token_ids == other.token_ids


def test_stages_store_weights_once(artifacts: dict[str, Path]) -> None:
    sizes = {mode: (folder / "weights.bin").stat().st_size for mode, folder in artifacts.items()}
    assert sizes["dynamic"] == sizes["staged"]
    assert len(list(artifacts["staged"].glob("decoder_stage_*.onnx"))) == 4


def test_gated_runtimes_keep_no_picture_and_converse(
    artifacts: dict[str, Path], samples: tuple[Sample, ...]
) -> None:
    runtime = Runtime.load(artifacts["staged"], threads=1)
    pictures = samples[0].images
    prefix = runtime.prefill_image(pictures)
    assert prefix.rows == 0
    asked = "what is this"
    assert prefix.answer(asked).token_ids == runtime.answer(asked, pictures).token_ids
    conversation = runtime.chat()
    assert "".join(conversation.ask(asked, pictures, max_new_tokens=3)) is not None
    assert "".join(conversation.ask("is it red", pictures, max_new_tokens=3)) is not None


def test_a_baked_exit_is_the_quantile_of_where_gates_fire(
    model_folder: Path,
    gate_path: Path,
    samples: tuple[Sample, ...],
    tmp_path: Path,
    questions: Path,
) -> None:
    model = load(str(model_folder))
    gates = load_gates(GateFile.read(gate_path), (0, 1, 2))
    asked = Asked(("gate_margin",), gates)
    profile = calibrate(model, samples, tmp_path / "p.json", data_name="q", asked=asked)
    firsts = sorted(
        next((i for i, m in enumerate(s.gate_margin) if m > 0), 3) for s in profile.samples
    )
    assert firsts[-1] < 3, "no gate fires in some prompts: choose other gates for this test"
    values = {"model.id": str(model_folder), "calibrate.data": questions}
    for quantile in (0.5, 1.0):
        recipe = vtcompress.load_recipe("identity").override(
            values | {"compress": dyvte(gate_path, exit="baked", quantile=quantile)}
        )
        plan = vtcompress.plan(recipe, profile)
        wanted = firsts[int(np.ceil(quantile * len(firsts))) - 1]
        assert plan.exit_layer == wanted + 1
        assert plan.gates is None
    dynamic = vtcompress.load_recipe("identity").override(values | {"compress": dyvte(gate_path)})
    counted = vtcompress.plan(dynamic, profile).gates
    assert counted is not None
    assert sum(counted.fired) == len(samples)


def refused(recipe: dict[str, Any], error: type[Exception]) -> Iterator[str]:
    with pytest.raises(error) as found:
        vtcompress.plan(vtcompress.load_recipe("identity").override(recipe))
    yield from str(found.value).splitlines()


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (
            {"visual_exit": {"layer": 4}},
            "compress[0].visual_exit.layer: 4 is outside 1..3; the model has 4 layers",
        ),
        (
            {"visual_exit": {"max_kl": 0.1, "first_layer": 9}},
            "compress[0].visual_exit.first_layer: 9 is outside 1..3; the model has 4 layers",
        ),
        (
            {"visual_exit": {"max_kl": 0.1}},
            "compress[0].visual_exit: chooses the exit by its KL, but there is no profile; run "
            "`vtcompress calibrate` first, or give the layer",
        ),
        (
            {"dyvte": {"gates": "x.safetensors", "candidates": [1, 3]}},
            "compress[0].dyvte.candidates: 3 is outside 0..2; the model has 4 layers",
        ),
    ],
)
def test_layers_that_the_model_does_not_have_are_refused(
    model_folder: Path, method: dict[str, Any], line: str
) -> None:
    lines = list(refused({"model.id": str(model_folder), "compress": [method]}, PlanError))
    assert lines == [line]


def test_gates_that_do_not_fit_are_refused_before_weights_are_loaded(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("compressor.families.load", never)
    cases: dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]] = {
        "layer 2 out of candidates": ({}, {}),
        "trained on another model": ({}, {"model_digest": "f" * 64}),
        "shape [8, 64], this model (hidden 64)": ({}, {}),
    }
    good = {f"visual_gates_router.{i}.{p}.weight": t for i in range(3)
            for p, t in (("w1", torch.ones(8, 128)), ("w2", torch.ones(2, 8)))}  # fmt: skip
    cases["layer 2 out of candidates"][0].update(
        {k: v for k, v in good.items() if ".2.w1." not in k}
    )
    cases["trained on another model"][0].update(good)
    cases["shape [8, 64], this model (hidden 64)"][0].update(
        good | {"visual_gates_router.1.w1.weight": torch.ones(8, 64)}
    )
    for number, (words, (tensors, metadata)) in enumerate(cases.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path, metadata)
        recipe = vtcompress.load_recipe("identity").override(
            {"model.id": str(model_folder), "compress": dyvte(path)}
        )
        with pytest.raises(GatesError) as found:
            vtcompress.export(recipe, tmp_path / "out")
        assert words in str(found.value)
        assert str(path) in str(found.value)
    for path, words in (
        (None, "names no gates; give --gates FILE"),
        (tmp_path / "absent.safetensors", "no such file"),
        (tmp_path / ("x" * 300), "no such file"),
        (model_folder / "config.json", "no readable safetensors file"),
        (model_folder / "model.safetensors", "no gate in it"),
    ):
        recipe = vtcompress.load_recipe("identity").override(
            {"model.id": str(model_folder), "compress": dyvte(path)}
        )
        with pytest.raises(GatesError, match=words):
            vtcompress.export(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_calibration_data_without_images_is_refused_before_weights_are_loaded(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.families.load", lambda *_, **__: pytest.fail("loaded"))
    data = tmp_path / "blind.jsonl"
    data.write_text('{"question": "what is it"}\n', encoding="utf-8")
    recipe = vtcompress.load_recipe("identity").override(
        {
            "model.id": str(model_folder),
            "calibrate.data": data,
            "compress": [{"visual_exit": {"max_kl": 0.1, "first_layer": 1}}],
        }
    )
    for run in (vtcompress.export, vtcompress.calibrate):
        with pytest.raises(DataError, match="has no image; calibration needs one"):
            run(recipe, tmp_path / "out")


def test_a_search_finds_the_smallest_layer_within_the_bound_or_names_the_best(
    model_folder: Path, questions: Path, tmp_path: Path
) -> None:
    def recipe(**exit_at: Any) -> vtcompress.Recipe:
        return vtcompress.load_recipe("identity").override(
            {
                "model.id": str(model_folder),
                "calibrate.data": questions,
                "compress": [{"visual_exit": exit_at}],
            }
        )

    profile = vtcompress.calibrate(recipe(max_kl=1e9, first_layer=1), tmp_path / "p.json")
    assert profile.measures == ("exit_kl",)
    scores = profile.exit_kl()
    assert vtcompress.plan(recipe(max_kl=1e9, first_layer=1), profile).exit_layer == 1
    assert vtcompress.plan(recipe(max_kl=1e9, first_layer=3), profile).exit_layer == 3
    bound = sorted(scores[1:])[1]
    wanted = next(k for k in (1, 2, 3) if scores[k] <= bound)
    assert vtcompress.plan(recipe(max_kl=bound, first_layer=1), profile).exit_layer == wanted
    best = min((1, 2, 3), key=lambda k: scores[k])
    with pytest.raises(PlanError, match=rf"the best is layer {best} with a mean KL of"):
        vtcompress.plan(recipe(max_kl=0.0, first_layer=1), profile)
    with pytest.raises(PlanError, match=r"first_layer: 5 is outside 1\.\.3"):
        vtcompress.plan(recipe(max_kl=1e9), profile)
    slow = vtcompress.plan(recipe(speedup=1.05), profile)
    assert slow.exit_layer == 3
    with pytest.raises(PlanError, match="is out of reach; leaving before layer 1 gives"):
        vtcompress.plan(recipe(speedup=50.0), profile)
    with pytest.raises(ProfileError, match="has no layer_contribution"):
        vtcompress.calibrate(
            vtcompress.load_recipe("shortv").override(
                {"model.id": str(model_folder), "calibrate.data": questions}
            ),
            tmp_path / "p.json",
        )
