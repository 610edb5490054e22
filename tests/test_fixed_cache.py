"""Caches of fixed size: they give what growing ones give, stay values, and take the planned memory."""

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import vtcompress
from compressor.compressed import CompressedModel
from compressor.decoder import Decoder, KeyValue, decoder_from
from compressor.decoder.weights import source_of
from compressor.errors import BackendError, DataError, RecipeError
from compressor.methods import layer_scores, run_rules
from compressor.plan.growth import Growth
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Gates, Plan, length_names
from export.artifact.artifact import Artifact
from export.backends.onnxruntime import OnnxSession
from export.backends.registry import open_session
from export.backends.torch_model import TorchSession
from export.graphs.limits import Limits, buffer_bytes, check_fixed
from export.graphs.spec import caches_of, decoder_graph, decoder_graphs
from export.runtime.runtime import Runtime
from export.session.feeds import CallRows
from export.session.fixed_cache import BLOCK as DEFAULT_BLOCK
from export.session.session import Session
from export.writer.weights import SharedWeights
from export.writer.write import save_graph
from tests.cuts import (
    GAMMA,
    GRID,
    HIDDEN,
    IMAGE,
    KEPT,
    MOD,
    NEURONS,
    cut,
    dead,
    decoder_of,
    frozen,
    gone,
    tensors_of,
)
from tests.facts import dims, facts
from tests.models import make_picture
from vtcompress.stages.exporting.torch_side import decoder_makers

TOLERANCE = 1e-5
TOKENS = 64
# Small, so that 64 tokens need more room several times.
BLOCK = 16
FIRST = "past_key_values.0.key"
CONTEXT = 4 * IMAGE + 100
LIMITS = Limits(max_batch=2, max_images=2, max_text=64, max_context=CONTEXT, visual_tokens=IMAGE)

PLANS: dict[str, Sequence[LayerPlan]] = {
    "identity": [cut(0), dead(1)],
    "exit": [cut(0), gone(1)],
    "split heads": [cut(0, groups=(1,)), cut(1, groups=()), dead(2, groups=(0,))],
    "window": [cut(0, window=3), cut(1, window=3, window_causal=True), dead(2)],
    "composed": [
        cut(0, window=3, groups=(1,), neurons=tuple(range(12))),
        frozen(1, groups=(0,)),
        gone(2),
    ],
    "masked": [
        cut(0, window=3, groups=(1,), masked=True),
        cut(1, masked=True, off=True),
        dead(2, masked=True, off=True, groups=(0,)),
    ],
    "leaving": [cut(0), cut(1, keep=KEPT[0]), cut(2, keep=KEPT[1]), dead(3)],
    "growing": [cut(0), cut(1, grow=Growth(count=30, of=IMAGE, by="wico_plus")), cut(2), gone(3)],
    "some run": [cut(0), cut(1, run=MOD), cut(2, run=MOD, groups=(1,)), dead(3)],
    "some run anew": [cut(0, run=GAMMA), cut(1), cut(2, keep=KEPT[0]), dead(3)],
    "staged": [cut(0), cut(1), cut(2)],
}


def plan_of(name: str) -> Plan:
    layers = tuple(PLANS[name])
    shape = dims(
        layers=len(layers),
        hidden=HIDDEN,
        heads=4,
        kv_heads=2,
        head_dim=8,
        intermediate=NEURONS,
        vocab=40,
    )
    gates = Gates(candidates=(0, 1), mode="staged", width=4, digest="")
    return Plan(
        model=facts(shape, visual_tokens=IMAGE, token_grid=GRID),
        model_digest="0" * 64,
        layers=layers,
        gates=gates if name == "staged" else None,
    )


def written(plan: Plan, folder: Path, limits: Limits | None) -> OnnxSession:
    folder.mkdir(parents=True, exist_ok=True)
    decoder = decoder_of(plan, weights_of(plan))
    specs = decoder_graphs(plan, "float32", "all", limits)
    with SharedWeights(folder) as weights:
        for spec, make in zip(specs, decoder_makers(decoder, plan), strict=True):
            save_graph(make(spec), folder / spec.file, weights)
    return OnnxSession(folder, specs, threads=1, block=BLOCK)


def weights_of(plan: Plan) -> dict[str, torch.Tensor]:
    tensors = tensors_of(plan)
    generator = torch.Generator().manual_seed(5)
    with torch.device("meta"):
        named = Decoder(plan, scores=layer_scores(plan), runs=run_rules(plan)).named_parameters()
        shapes = {n: p.shape for n, p in named if n.startswith("gates")}
    for name, shape in shapes.items():
        source, transposed = source_of(name)
        tensor = torch.randn(*shape, generator=generator)
        tensors[source] = tensor.T.contiguous() if transposed else tensor
    return tensors


# The reference of the others is torch, whose growing caches other tests hold equal to the graphs'.
GROWING_GRAPHS = ("identity", "composed")


class Both:
    """One plan's decoder with growing and with fixed caches."""

    def __init__(self, name: str, folder: Path) -> None:
        self.plan = plan_of(name)
        self.growing: Session
        if name in GROWING_GRAPHS:
            self.growing = written(self.plan, folder / "growing", None)
        else:
            decoder = decoder_of(self.plan, weights_of(self.plan))
            small = CompressedModel(self.plan, decoder, None, None, None, None)  # type: ignore[arg-type]
            self.growing = TorchSession(small)
        self.fixed = written(self.plan, folder / "fixed", LIMITS)
        self.folder = folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Both]:
    made: dict[str, Both] = {}

    def get(name: str) -> Both:
        if name not in made:
            made[name] = Both(name, tmp_path_factory.mktemp("caches"))
        return made[name]

    return get


def call(images: int, text: int, start: int, batch: int = 1) -> CallRows:
    """Rows of a call: a text row, the images, the other text rows."""
    rng = np.random.default_rng(start + 1000 * images)
    rows = images * IMAGE + text
    embeds = rng.standard_normal((batch, rows, HIDDEN)).astype(np.float32)
    visual = np.zeros(rows, bool)
    visual[1 : 1 + images * IMAGE] = True
    places = np.tile(np.arange(start, start + rows, dtype=np.int64), (batch, 1))
    return CallRows(embeds[:, visual], embeds[:, ~visual], places[:, visual], places[:, ~visual])


def sequence(turns: Sequence[tuple[int, int]], tokens: int, batch: int = 1) -> list[CallRows]:
    """Calls of several turns and of tokens decoded behind them."""
    calls, start = [], 0
    for images, text in (*turns, *[(0, 1)] * tokens):
        calls.append(call(images, text, start, batch))
        start += images * IMAGE + text
    return calls


TURNS = {
    "an image": [(1, 5)],
    "two images, a question, a later image": [(2, 6), (0, 3), (1, 4)],
    "text": [(0, 7)],
}


@pytest.mark.parametrize("turns", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("name", PLANS)
def test_64_tokens_are_decoded_as_with_growing_caches(
    name: str, turns: Sequence[tuple[int, int]], both: Callable[[str], Both]
) -> None:
    pair = both(name)
    past, fixed_past = pair.growing.empty_past(1), pair.fixed.empty_past(1)
    buffers, rooms = fixed_past.buffers, set()
    for number, rows in enumerate(sequence(turns, TOKENS)):
        wanted, past = pair.growing.decode(rows, past)
        found, fixed_past = pair.fixed.decode(rows, fixed_past)
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0, err_msg=str(number))
        assert pair.fixed.past_shapes(fixed_past) == pair.growing.past_shapes(past)
        if not number:
            first = weakref.ref(buffers.arrays[FIRST])
        rooms.add(buffers.arrays[FIRST].shape[2])
    assert first() is None, "a buffer that was replaced is still in memory"
    assert len(rooms) > TOKENS // BLOCK
    assert all(room % BLOCK == 0 for room in rooms)
    assert pair.fixed.past_bytes(fixed_past) == pair.growing.past_bytes(past)
    assert fixed_past.buffers is buffers, "a sequence that nobody shares was copied"


def test_a_past_stays_what_it_is_whatever_runs_behind_it(both: Callable[[str], Both]) -> None:
    """The beginning of an `ImagePrefix`, a copy where two sequences live at once, none where they do not."""
    pair = both("composed")
    prompt, *steps = sequence([(1, 5)], 3)
    other_steps = [rows._replace(text=-rows.text) for rows in steps]
    _, growing = pair.growing.decode(prompt, pair.growing.empty_past(1))
    _, fixed = pair.fixed.decode(prompt, pair.fixed.empty_past(1))

    def run(session: Session, past: object, calls: list[CallRows]) -> list[np.ndarray]:
        found = []
        for rows in calls:
            logits, past = session.decode(rows, past)
            found.append(logits)
        return [*found, past]

    *first, past_of_first = run(pair.fixed, fixed, steps)
    assert past_of_first.buffers is fixed.buffers
    *second, past_of_second = run(pair.fixed, fixed, other_steps)
    assert past_of_second.buffers is not fixed.buffers, "two sequences write into the same rows"
    again, _ = pair.fixed.decode(sequence([(1, 5)], 4)[-1], past_of_first)
    del _
    wanted_first = run(pair.growing, growing, sequence([(1, 5)], 4)[1:])[:-1]
    wanted_second = run(pair.growing, growing, other_steps)[:-1]
    np.testing.assert_allclose([*first, again], wanted_first, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(second, wanted_second, atol=TOLERANCE, rtol=0)
    del past_of_first, past_of_second
    *third, past_of_third = run(pair.fixed, fixed, steps)
    assert past_of_third.buffers is fixed.buffers, "nobody else is alive, and yet it was copied"
    np.testing.assert_allclose(third, wanted_first[:-1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["composed", "masked"])
def test_what_lies_in_rows_that_are_not_filled_changes_nothing(
    name: str, both: Callable[[str], Both]
) -> None:
    pair = both(name)
    clean, dirty, spoilt = pair.fixed.empty_past(2), pair.fixed.empty_past(2), 0
    for rows in sequence([(1, 5), (1, 3)], 2, batch=2):
        wanted, clean = pair.fixed.decode(rows, clean)
        found, dirty = pair.fixed.decode(rows, dirty)
        assert np.array_equal(found, wanted)
        arrays = dirty.buffers.arrays.values()
        for array, shape in zip(arrays, pair.fixed.past_shapes(dirty), strict=True):
            place = 2 if array.ndim == 4 else 1
            beyond = np.moveaxis(array, place, 0)[shape[place] :]
            spoilt += beyond.size
            beyond[...] = True if array.dtype == bool else 1e6
    assert spoilt


# What rows that grow need at most has a test of its own; of layers that some run, lengths alone are compared.
@pytest.mark.parametrize(
    "name", [n for n in PLANS if n not in ("staged", "growing", "some run", "some run anew")]
)
def test_buffers_take_at_most_what_the_plan_says_and_text_alone_takes_less(
    name: str, both: Callable[[str], Both]
) -> None:
    pair = both(name)
    assert pair.growing.buffer_bytes(pair.growing.empty_past(1)) is None
    # By hand: two key/value heads of eight numbers in float32, keys and values.
    row = 2 * 2 * 8 * 4

    def by_hand(whole: int, text: int, *left: int) -> int:
        """`left`: rows behind each choice of the plan that has some."""
        return row * {
            "leaving": whole + left[0] + 2 * left[1],
            "identity": 2 * whole,
            "exit": whole + text,
            "split heads": whole + 2 * text,
            "window": 3 * whole,
            "composed": whole + 2 * text,
            "masked": 3 * whole,
        }[name]  # fmt: skip

    text = CONTEXT - IMAGE
    assert buffer_bytes(pair.plan, LIMITS, 4) == by_hand(CONTEXT, text, text + 7, text + 4)
    past = pair.fixed.empty_past(1)
    assert pair.fixed.buffer_bytes(past) == 0
    _, past = pair.fixed.decode(call(1, 5, 0), past)
    whole = -(-(IMAGE + 5) // BLOCK) * BLOCK
    assert pair.fixed.buffer_bytes(past) == by_hand(whole, BLOCK, BLOCK, BLOCK)
    # To the last row: the last block is cut off there.
    _, past = pair.fixed.decode(call(0, CONTEXT - IMAGE - 5, IMAGE + 5), past)
    assert pair.fixed.buffer_bytes(past) == buffer_bytes(pair.plan, LIMITS, 4)


def test_only_graphs_with_fixed_caches_declare_opset_24(both: Callable[[str], Both]) -> None:
    """And only theirs have rooms."""
    pair = both("composed")
    for kind, opset in (("growing", 23), ("fixed", 24)):
        path = pair.folder / kind / "decoder.onnx"
        onnx.checker.check_model(path, full_check=True)
        graph = onnx.load(path, load_external_data=False)
        assert [(o.domain, o.version) for o in graph.opset_import] == [("", opset)]
        assert any(n.op_type == "TensorScatter" for n in graph.graph.node) == (kind == "fixed")
        values = (*graph.graph.input, *graph.graph.output)
        axes = {d.dim_param for v in values for d in v.type.tensor_type.shape.dim}
        rooms = {"room", "room_text"}
        assert axes & rooms == (rooms if kind == "fixed" else set())
        assert ("past" in axes) == ("total_text" in axes) == (kind == "growing")


def test_the_declaration_of_fixed_caches_tells_sizes_and_lengths() -> None:
    plan = plan_of("composed")
    spec = decoder_graph(plan, "float32", "last", limits=LIMITS)
    shapes = {t.name: t.axes for t in (*spec.inputs, *spec.outputs)}
    assert shapes["past_key_values.0.key"] == shapes["present.0.key"] == ("batch", 1, "room", 8)
    assert shapes["past_key_values.0.text_key"] == ("batch", 1, "room_text", 8)
    assert shapes["past_key_values.2.value"] == ("batch", 2, "room_text", 8)
    assert shapes["past_visual"] == shapes["present_visual"] == ("batch", "room")
    most = {t.axes[-2 if len(t.axes) == 4 else 1]: t.rows for t in spec.cached}
    assert most == {"room": CONTEXT, "room_text": CONTEXT - IMAGE}
    assert shapes["past_length"] == shapes["past_text_length"] == ("batch",)
    assert spec.lengths == ("past", "past_text")
    growing = decoder_graph(plan, "float32", "last")
    assert caches_of(spec.inputs) == caches_of(growing.inputs) == plan.caches()
    assert spec.fixed
    assert not growing.fixed
    told = growing.model_dump_json()
    assert "filled" not in told
    assert '"rows"' not in told
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec
    # As artifacts had it before buffers could grow.
    document = spec.model_dump(mode="json")
    del document["inputs"][4]["rows"]
    with pytest.raises(ValueError, match=r"needs both `filled` and `rows`; export it anew"):
        type(spec).model_validate(document)


def test_rows_that_do_not_fit_are_refused_before_anything_runs(both: Callable[[str], Both]) -> None:
    pair = both("exit")
    _, past = pair.fixed.decode(call(1, 5, 0), pair.fixed.empty_past(1))
    before = {n: a.copy() for n, a in past.buffers.arrays.items()}
    room = CONTEXT - IMAGE - 5
    pair.fixed.check_room(past, 0, room)
    with pytest.raises(
        DataError, match=rf"{CONTEXT + 1} rows .*{CONTEXT} \(export.profiles.max_context"
    ):
        pair.fixed.decode(call(0, room + 1, IMAGE + 5), past)
    with pytest.raises(DataError, match=r"text rows .*less one image"):
        pair.fixed.check_room(None, 0, CONTEXT - IMAGE + 1)
    assert all(np.array_equal(a, before[n]) for n, a in past.buffers.arrays.items())


@pytest.mark.parametrize("name", ["composed", "masked"])
def test_torch_writes_fixed_caches_as_it_extends_growing_ones(name: str) -> None:
    plan = plan_of(name)
    decoder = decoder_from(plan, tensors_of(plan), logits="all")
    caches, size = plan.caches(), plan.model.decoder.head_dim
    names = length_names(caches, tells_rows=True)

    def buffer(groups: int, length: str) -> torch.Tensor:
        return torch.full((1, groups, LIMITS.cached_rows(length, {}), size), 9.0)

    fixed = [KeyValue(*(buffer(c.groups, c.length) for _ in "kv")) for c in caches]
    fixed.append(torch.ones(1, CONTEXT, dtype=torch.bool))
    past, filled = decoder.empty_past(1), dict.fromkeys(names, 0)
    for rows in sequence([(2, 5), (1, 3)], 2):
        tensors = [torch.from_numpy(array) for array in rows[:4]]
        lengths = [torch.tensor([filled[n]]) for n in names]
        kept = [t.clone() for pair in fixed for t in (pair if isinstance(pair, tuple) else [pair])]
        with torch.inference_mode():
            wanted, past = decoder(*tensors, past)
            found, present = decoder(*tensors, [*fixed, *lengths])
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)
        given = [t for pair in fixed for t in (pair if isinstance(pair, tuple) else [pair])]
        assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))
        fixed = present
        visual, text = rows[0].shape[1], rows[1].shape[1]
        filled = {n: v + text + (visual if n == "past" else 0) for n, v in filled.items()}


@pytest.mark.parametrize("context", [IMAGE, 513])
def test_a_context_that_holds_no_image_or_exceeds_the_model_is_refused(context: int) -> None:
    recipe = vtcompress.load_recipe("identity").override(
        {"export.kv_cache": "fixed", "export.profiles.max_context": context}
    )
    with pytest.raises(RecipeError, match=rf"max_context: {context} is outside {IMAGE + 1}\.\.512"):
        check_fixed(recipe.export, plan_of("exit").model, None)


def test_gates_that_decide_inside_one_graph_are_refused_with_the_remedy() -> None:
    recipe = vtcompress.load_recipe("identity").override({"export.kv_cache": "fixed"})
    with pytest.raises(RecipeError, match=r"exit: staged, or export\.kv_cache: growing"):
        check_fixed(recipe.export, plan_of("exit").model, "dynamic")
    check_fixed(recipe.export, plan_of("exit").model, "staged")


def test_an_artifact_with_fixed_caches_answers_as_one_whose_caches_grow(
    tiny_model: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    recipe = vtcompress.load_recipe("identity").override(
        {
            "model.id": str(tiny_model),
            "export.kv_cache": "fixed",
            "export.profiles.max_context": 128,
        }
    )
    folders = {"growing": tiny_artifact, "fixed": tmp_path / "fixed"}
    vtcompress.export(recipe, folders["fixed"], bench_rounds=1)
    picture = make_picture(tmp_path / "a.png")
    runtimes = [Runtime.load(folder) for folder in folders.values()]
    wanted, found = (r.answer("what is this?", [picture], max_new_tokens=8) for r in runtimes)
    assert found.token_ids == wanted.token_ids
    prefixes = [r.prefill_image([picture]) for r in runtimes]
    for question in ("is it red?", "what is this?"):
        wanted, found = (p.answer(question, max_new_tokens=8) for p in prefixes)
        assert found.token_ids == wanted.token_ids
    with pytest.raises(DataError, match=r"export\.profiles\.max_context"):
        runtimes[1].answer("what is this?", [picture], max_new_tokens=200)
    artifact = Artifact.open(folders["fixed"])
    manifest = artifact.manifest
    assert manifest.fidelity is not None
    assert manifest.fidelity.passed
    assert manifest.measured is not None
    predicted, measured = manifest.predicted, manifest.measured
    # Of the prompt that was timed: whole blocks, up to the limit.
    rows = measured.visual + measured.text + 1
    room = min(-(-rows // DEFAULT_BLOCK) * DEFAULT_BLOCK, 128)
    assert measured.kv_buffer_bytes == predicted.kv_buffer_bytes * room // 128
    assert measured.kv_buffer_bytes_original == measured.kv_buffer_bytes
    report = (folders["fixed"] / "report.md").read_text()
    assert (
        f"| KV buffers of fixed size, at most, bytes (float32) | {predicted.kv_buffer_bytes:,} "
        in report
    )
    assert f"| buffers of fixed size, occupied | {measured.kv_buffer_bytes:,} |" in report
    assert "buffers of fixed size" not in (folders["growing"] / "report.md").read_text()
    for backend in ("openvino", "onnxruntime-cuda", "tensorrt-rtx", "tensorrt"):
        with pytest.raises(BackendError, match=r"the backend onnxruntime does.*kv_cache: growing"):
            open_session(artifact, backend)
