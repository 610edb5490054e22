"""Export fidelity: equal models pass, and each way to differ fails with a line that names the call."""

from types import SimpleNamespace

import numpy as np
import pytest

from compressor.samples.layout import VisualRows
from compressor.schema.sections import ProfilesSection
from export.checks.fidelity import Recording, check_declared, compare, record
from export.graphs.limits import limits_of
from export.graphs.spec import decoder_graph, embed_graph, vision_graph
from export.results.fidelity import FidelityLimits
from tests import facts

MODEL = facts.facts(facts.dims(layers=2))
PLAN = facts.plan((0,), dead=(1,), model=MODEL)
GRAPHS = (
    vision_graph(MODEL, "float32"),
    embed_graph(MODEL, "float32"),
    decoder_graph(PLAN, "float32", "last"),
)
LIMITS = FidelityLimits(max_abs=1e-4, max_relative=1e-4, min_cosine=0.99999)


class ToyDecoder:
    """A session in numpy: one attention a layer under the causal mask of the indices, seeded weights."""

    rows_kept = None

    def __init__(self):
        rng = np.random.default_rng(5)
        d = MODEL.decoder
        pixels = 3 * MODEL.image_size**2
        self.see = rng.normal(size=(pixels, MODEL.visual_tokens * d.hidden)) / pixels**0.5
        self.table = rng.normal(size=(d.vocab, d.hidden))
        self.head = rng.normal(size=(d.hidden, d.vocab))
        self.q = rng.normal(size=(d.layers, d.kv_heads, d.hidden, d.head_dim)) / 4
        self.k, self.v = (rng.normal(size=self.q.shape) / 4 for _ in "kv")
        self.o = rng.normal(size=(d.layers, d.kv_heads * d.head_dim, d.hidden)) / 4
        self.calls = []

    def vision(self, pixel_values, arrangement=None):
        assert arrangement is None
        assert pixel_values.shape[1:] == (3, MODEL.image_size, MODEL.image_size)
        assert pixel_values.dtype == np.float32
        flat = pixel_values.reshape(len(pixel_values), -1)
        features = (flat @ self.see).astype(np.float32)
        return VisualRows((features.reshape(len(flat), MODEL.visual_tokens, -1),))

    def embed(self, input_ids):
        return self.table[input_ids].astype(np.float32)

    def empty_past(self, batch):
        d = MODEL.decoder
        return [np.zeros((batch, d.kv_heads, 0, d.head_dim), np.float32)] * (2 * d.layers)

    def past_shapes(self, past):
        return tuple(p.shape for p in past)

    def decode(self, given, past):
        visual, text, visual_index, text_index, *_ = given
        self.calls.append((visual, text, visual_index, text_index, past))
        rows = np.concatenate([visual, text], axis=1)
        index = np.concatenate([visual_index, text_index], axis=1)
        length = past[0].shape[2]
        seen = index[:, None, None, :] <= index[:, None, :, None]  # [B, 1, rows, rows]
        seen = np.concatenate([np.ones((*seen.shape[:3], length), bool), seen], axis=-1)
        present = []
        for i in range(MODEL.decoder.layers):
            q, k, v = (rows[:, None] @ w[i] for w in (self.q, self.k, self.v))
            k, v = (np.concatenate(p, axis=2) for p in ((past[2 * i], k), (past[2 * i + 1], v)))
            present += [k, v]
            weight = np.where(seen, np.exp(q @ k.swapaxes(2, 3)), 0.0)
            mixed = (weight / weight.sum(-1, keepdims=True)) @ v
            rows = rows + mixed.swapaxes(1, 2).reshape(*rows.shape[:2], -1) @ self.o[i]
        return (rows[:, -1:] @ self.head).astype(np.float32), present


class Changed(ToyDecoder):
    """The toy, with a change applied to the logits or the cache shapes of one decoder call."""

    def __init__(self, call=7, logits=lambda x: x, shapes=lambda s: s):
        super().__init__()
        self.call, self.change_logits, self.change_shapes = call, logits, shapes

    def decode(self, *feeds):
        logits, past = super().decode(*feeds)
        return (self.change_logits(logits) if len(self.calls) == self.call else logits), past

    def past_shapes(self, past):
        shapes = super().past_shapes(past)
        return self.change_shapes(shapes) if len(self.calls) == self.call else shapes


REFERENCE = record(ToyDecoder(), PLAN)
# The seventh decoder call: a prefill, a later turn, then the fifth step.
SEVENTH = "0 images, T=9: decode step 5"


def judged(session, declared=(), limits=LIMITS):
    return compare(REFERENCE, record(session, PLAN), GRAPHS, declared, limits)


def conversations(session):
    """Split the recorded decoder calls where a new, empty cache begins."""
    parts = []
    for call in session.calls:
        if call[4][0].shape[2] == 0:
            parts.append([])
        parts[-1].append(call)
    return parts


def test_two_equal_sessions_pass_with_no_difference():
    report = judged(ToyDecoder())
    assert report.passed
    assert report.failures == ()
    assert report.worst_abs.max_abs == report.worst_relative.max_relative == 0.0
    assert report.worst_cosine.cosine == pytest.approx(1.0)
    # 2 vision calls; 3 image counts x 2 prompts x (embedding, prefill, later turn, 16 steps).
    assert report.calls == 2 + 3 * 2 * (1 + 1 + 1 + 16)
    assert report.limits == LIMITS


def test_the_calls_cover_no_image_one_and_two_with_two_text_lengths_and_sixteen_steps():
    session = ToyDecoder()
    record(session, PLAN)
    shapes = [[(c[0].shape[1], c[1].shape[1]) for c in part] for part in conversations(session)]
    tail = [(0, 3), *[(0, 1)] * 16]
    n = MODEL.visual_tokens
    assert shapes == [[(v, t), *tail] for v in (0, n, 2 * n) for t in (9, 5)]


def test_the_rows_of_a_conversation_take_every_place_once_with_text_before_and_after_the_images():
    session = ToyDecoder()
    record(session, PLAN)
    for part in conversations(session):
        visual, text = (np.concatenate([c[i][0] for c in part]) for i in (2, 3))
        places = np.concatenate([visual, text])
        assert sorted(places.tolist()) == list(range(len(places)))
        assert text[0] == 0
        if len(visual):
            assert visual.tolist() == list(range(1, 1 + len(visual)))
        # What went before is in the cache: its length is the least place of each call.
        for call in part:
            assert call[4][0].shape[2] == min(np.concatenate([call[2][0], call[3][0]]))


OWN_SIZES = facts.facts(facts.dims(layers=2), visual_tokens=9, cell=2, image_size=6)


class Placed(ToyDecoder):
    """The toy with pictures of any size: a visual token is the mean of its cell, and its row in the grid."""

    columns = -1  # of the grid, the axis that tells how many

    def vision(self, pixel_values, arrangement=None):
        assert arrangement is None
        count, channels, height, width = pixel_values.shape
        high, wide = height // 2, width // 2
        shown = pixel_values.reshape(count, channels, high, 2, wide, 2).mean((1, 3, 5))
        rows = np.arange(high * wide) // (high, wide)[self.columns]
        return VisualRows(((shown.reshape(count, -1)[..., None] + rows[:, None]) * self.table[0],))


class Transposed(Placed):
    """Mistakes columns for rows, which no square shows."""

    columns = 0


def test_a_vision_graph_is_judged_on_more_than_one_size_where_pictures_have_their_own():
    plan = facts.plan(model=OWN_SIZES)
    wanted, wrong = record(Placed(), plan), record(Transposed(), plan)
    assert record(Placed(), plan, images=(0,)).outputs.keys().isdisjoint({"vision, 1 images"})
    found = [call for call in wanted.outputs if call.startswith("vision")]
    assert found == [
        "vision, 1 images",
        "vision, 2 images",
        "vision, 1 image of 1 x 6 tokens",
    ]
    report = compare(wanted, wrong, GRAPHS, (), LIMITS)
    assert not report.passed
    assert {line.split(":")[0] for line in report.failures if "vision" in line} == {found[-1]}
    assert any("1 image of 1 x 6 tokens, T=5: prefill" in line for line in report.failures)


def test_the_other_size_is_within_what_engines_take_and_no_more_tokens():
    for tokens in range(1, 300):
        model = OWN_SIZES.model_copy(update={"visual_tokens": tokens})
        if (grid := model.oblong_grid) is None:
            assert tokens < 3
            continue
        least, _, most = limits_of(ProfilesSection(), model).sides
        assert all(least <= side <= most for side in model.picture_on(grid))
        assert grid[0] < grid[1]
        assert grid[0] * grid[1] <= tokens
    one_size = OWN_SIZES.model_copy(update={"token_grid": (3, 3)})
    assert one_size.oblong_grid is MODEL.oblong_grid is None


def test_another_seed_gives_other_pictures_and_other_words_and_the_same_one_the_same():
    other, same = record(ToyDecoder(), PLAN, seed=1), record(ToyDecoder(), PLAN, seed=0)
    for call, values in REFERENCE.outputs.items():
        np.testing.assert_array_equal(same.outputs[call], values)
        assert not np.array_equal(other.outputs[call], values)


def test_a_wrong_logit_fails_with_its_call_its_size_and_the_limit():
    def bump(logits):
        logits = logits.copy()
        logits[0, 0, 3] += 0.5
        return logits

    report = judged(Changed(logits=bump))
    assert not report.passed
    assert report.worst_abs.call == SEVENTH
    assert report.worst_abs.max_abs == pytest.approx(0.5, abs=1e-5)
    largest = np.abs(REFERENCE.outputs[SEVENTH]).max()
    assert report.worst_relative.max_relative == pytest.approx(0.5 / largest, rel=1e-4)
    assert report.failures[0] == f"{SEVENTH}: differs by 0.5, allowed max_abs 0.0001"
    assert all(line.startswith(f"{SEVENTH}: ") for line in report.failures)


def test_a_difference_within_the_limits_is_reported_but_passes():
    report = judged(Changed(logits=lambda x: x + np.float32(5e-5)))
    assert report.passed
    assert report.worst_abs.max_abs == pytest.approx(5e-5, rel=0.05)
    assert report.worst_abs.call == SEVENTH


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (FidelityLimits(max_abs=0.1, max_relative=9, min_cosine=-1), "allowed max_abs 0.1"),
        (
            FidelityLimits(max_abs=99, max_relative=0.001, min_cosine=-1),
            "allowed max_relative 0.001",
        ),
        (FidelityLimits(max_abs=99, max_relative=9, min_cosine=0.9999), "wanted min_cosine 0.9999"),
    ],
)
def test_each_of_the_three_limits_is_judged_alone(limits, words):
    report = judged(Changed(logits=lambda x: x[..., ::-1]), limits=limits)
    (line,) = report.failures
    assert line.startswith(f"{SEVENTH}: ")
    assert line.endswith(words)


def test_the_cosine_is_the_one_of_the_worst_row():
    wanted = Recording(outputs={"call": np.array([[[1.0, 0.0], [1.0, 0.0]]])})
    found = Recording(outputs={"call": np.array([[[1.0, 0.0], [1.0, 1.0]]])})
    report = compare(
        wanted, found, GRAPHS, (), FidelityLimits(max_abs=9, max_relative=9, min_cosine=-1)
    )
    assert report.worst_cosine.cosine == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_fails(value):
    def spoil(logits):
        logits = logits.copy()
        logits[0, 0, 0] = value
        return logits

    report = judged(Changed(logits=spoil))
    assert report.failures[0] == f"{SEVENTH}: differs by inf, allowed max_abs 0.0001"
    assert report.worst_cosine.call == SEVENTH


def test_a_wrong_shape_fails():
    report = judged(Changed(logits=lambda x: x[:, :, :-1]))
    assert report.failures == (f"{SEVENTH}: shape (1, 1, 39), torch gives (1, 1, 40)",)
    assert report.calls == 2 + 3 * 2 * 19 - 1


def test_a_wrong_cache_shape_fails():
    def shorter(shapes):
        batch, heads, length, width = shapes[2]
        return (*shapes[:2], (batch, heads, length - 1, width), *shapes[3:])

    report = judged(Changed(shapes=shorter))
    right = ((1, 2, 17, 4),) * 4
    wrong = (right[0], right[0], (1, 2, 16, 4), right[0])
    assert report.failures == (f"{SEVENTH}: cache shapes {wrong}, torch gives {right}",)


def test_the_whole_of_a_session_that_forgets_its_past_fails_but_for_the_prefills():
    class Forgetful(ToyDecoder):
        def decode(self, rows, past):
            _, present = super().decode(rows, past)
            alone = super().decode(rows, self.empty_past(1))
            return alone[0], present

    failed = {line.rsplit(":", 1)[0] for line in judged(Forgetful()).failures}
    expected = {c for c in REFERENCE.outputs if "decode step" in c or "later turn" in c}
    assert failed == expected


def test_a_session_that_places_visual_rows_wrongly_fails_where_there_are_images():
    class Misplaced(ToyDecoder):
        def decode(self, rows, past):
            return super().decode(rows._replace(visual_index=rows.visual_index + 3), past)

    failed = {line.split(":")[0] for line in judged(Misplaced()).failures}
    assert failed == {f"{n} images, T={t}" for n in (1, 2) for t in (9, 5)}


def test_a_failing_vision_graph_and_a_failing_embedding_are_named():
    class Blind(ToyDecoder):
        def vision(self, pixel_values, arrangement=None):
            seen = super().vision(pixel_values, arrangement)
            return VisualRows(tuple(rows * np.float32(1.1) for rows in seen.features))

        def embed(self, input_ids):
            return -super().embed(input_ids)

    failed = {line.rsplit(":", 1)[0] for line in judged(Blind()).failures}
    assert {"vision, 1 images", "vision, 2 images", "0 images, T=5: embed"} <= failed


def test_all_failures_are_collected_not_only_the_first():
    class Bad(Changed):
        def decode(self, *feeds):
            logits, past = super().decode(*feeds)
            call = len(self.calls)
            if call == 20:
                logits = logits + 1
            if call == 30:
                logits = logits[..., :1]
            return logits, past

    report = judged(
        Bad(call=40, shapes=lambda s: s[1:]), declared=["decoder.onnx: input past: missing"]
    )
    assert report.failures[0] == "decoder.onnx: input past: missing"
    said = "\n".join(report.failures)
    for words in (
        "0 images, T=5: later turn: differs by 1, allowed max_abs",
        "0 images, T=5: decode step 10: shape (1, 1, 1), torch gives (1, 1, 40)",
        "1 images, T=9: decode step 2: cache shapes",
    ):
        assert words in said


def test_failures_of_the_declaration_alone_fail_the_check():
    report = judged(ToyDecoder(), declared=["embed.onnx: output x: missing"])
    assert report.failures == ("embed.onnx: output x: missing",)
    assert not report.passed


def test_nothing_to_compare_is_no_pass():
    report = compare(Recording(), Recording(), GRAPHS, (), LIMITS)
    assert not report.passed
    assert "nothing could be compared" in report.failures[-1]


def test_outputs_that_are_missing_or_all_of_another_shape_are_failures_not_faults():
    wanted = Recording(outputs={"a": np.ones((1, 2)), "b": np.ones((1, 2))}, shapes={"b": ((1,),)})
    found = Recording(outputs={"a": np.ones((1, 3))})
    report = compare(wanted, found, GRAPHS, (), LIMITS)
    assert report.failures[:3] == (
        "a: shape (1, 3), torch gives (1, 2)",
        "b: missing",
        "b: cache shapes None, torch gives ((1,),)",
    )


def test_rows_that_are_zero_on_both_sides_are_equal():
    zero = Recording(outputs={"embed": np.zeros((1, 2, 4), np.float32)})
    report = compare(zero, zero, GRAPHS, (), LIMITS)
    assert report.passed
    assert report.worst_cosine.cosine == 1.0


def nodes(specs, **changes):
    """Return a loaded graph's arguments as ONNX Runtime tells them; changed by name."""
    types = {"float32": "tensor(float)", "float16": "tensor(float16)", "int64": "tensor(int64)"}
    return [
        SimpleNamespace(
            **(
                {"name": s.name, "shape": list(s.axes), "type": types[s.dtype]}
                | changes.get(s.name, {})
            )
        )
        for s in specs
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_graph_that_is_as_declared_has_no_failures(dtype):
    for spec in (vision_graph(MODEL, dtype), decoder_graph(PLAN, dtype, "all")):
        assert check_declared(spec, nodes(spec.inputs), nodes(spec.outputs)) == []


def test_a_renamed_input_is_missing_and_not_declared():
    spec = GRAPHS[2]
    found = nodes(spec.inputs, visual_embeds={"name": "image_embeds"})
    assert check_declared(spec, found, nodes(spec.outputs)) == [
        "decoder.onnx: input image_embeds: not declared",
        "decoder.onnx: input visual_embeds: missing",
    ]


def test_other_axes_and_another_dtype_are_named_on_both_sides_at_once():
    spec = GRAPHS[1]
    found = nodes(spec.inputs, input_ids={"shape": ["batch", 7]})
    outputs = nodes(spec.outputs, inputs_embeds={"type": "tensor(double)"})
    assert check_declared(spec, found, outputs) == [
        "embed.onnx: input input_ids: is (('batch', 7), 'tensor(int64)'), declared "
        "(('batch', 'text'), 'tensor(int64)')",
        "embed.onnx: output inputs_embeds: is (('batch', 'text', 16), 'tensor(double)'), declared "
        "(('batch', 'text', 16), 'tensor(float)')",
    ]


def test_an_output_too_many_is_not_declared():
    spec = GRAPHS[0]
    extra = SimpleNamespace(name="debug", shape=[1], type="tensor(float)")
    assert check_declared(spec, nodes(spec.inputs), [*nodes(spec.outputs), extra]) == [
        "vision.onnx: output debug: not declared"
    ]
