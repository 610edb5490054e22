"""Optimization profiles: what engines are built for, and that every call of the runtime fits one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import BackendError
from compressor.plan.plan import Plan
from compressor.schema.sections import ProfilesSection
from export.artifact.artifact import PLAN_FILE, Artifact
from export.backends.onnxruntime import OnnxSession
from export.checks import bench, fidelity
from export.graphs.limits import Limits, limits_of
from export.graphs.profiles import ShapeProfile, profile_for, profiles_of, rooms_of, sizes_of
from export.graphs.spec import GraphSpec, TensorSpec, decoder_graphs, embed_graph, vision_graph
from export.runtime.runtime import Runtime
from tests.decoders import plan_of
from tests.facts import facts
from tests.models import make_picture
from tests.runtimes import Spy

LIMITS = Limits(max_batch=4, max_images=2, max_text=64, max_context=256, visual_tokens=12)


def test_vision_takes_the_pictures_of_a_whole_batch_and_embedding_every_text() -> None:
    plan = plan_of("identity")
    (vision,) = profiles_of(vision_graph(plan.model, "float16"), LIMITS)
    assert (vision.least, vision.most) == ({"images": 1}, {"images": 8})
    (embed,) = profiles_of(embed_graph(plan.model, "float16"), LIMITS)
    assert embed.least == {"batch": 1, "text": 1}
    assert embed.most == {"batch": 4, "text": 64}


def test_pictures_of_their_own_sizes_may_be_twice_as_long_as_a_square_of_most_tokens() -> None:
    model = facts(plan_of("identity").model.decoder).model_copy(
        update={"visual_tokens": 50, "cell": 8, "token_grid": None}
    )
    limits = limits_of(ProfilesSection(max_batch=2), model)
    spec = vision_graph(model, "float16")
    (found,) = profiles_of(spec, limits)
    assert found.least == {"images": 1, "height": 8, "width": 8}
    assert found.typical == {"images": 1, "height": 56, "width": 56}
    assert found.most == {"images": 2 * limits.max_images, "height": 112, "width": 112}
    with pytest.raises(
        BackendError, match=r"width is 120 .* built for 8 to 112: give a picture that"
    ):
        profile_for([found], {"images": 1, "height": 16, "width": 120}, limits)


def test_a_decoder_has_a_prefill_profile_for_every_call_and_a_narrow_one_for_decode() -> None:
    (spec,) = decoder_graphs(plan_of("exit"), "float16", "last")
    prefill, decode = profiles_of(spec, LIMITS)
    assert prefill.least == {"batch": 1, "visual": 0, "text": 1, "past": 0, "past_text": 0}
    assert prefill.typical == {"batch": 1, "visual": 12, "text": 64, "past": 0, "past_text": 0}
    # Caches of text alone hold the context less one image.
    assert prefill.most == {"batch": 4, "visual": 24, "text": 64, "past": 256, "past_text": 244}
    assert decode.least == {"batch": 1, "visual": 0, "text": 1, "past": 1, "past_text": 1}
    assert decode.typical == {"batch": 1, "visual": 0, "text": 1, "past": 76, "past_text": 64}
    assert decode.most == {"batch": 4, "visual": 0, "text": 2, "past": 256, "past_text": 244}


def test_every_stage_behind_a_gate_has_ranges_of_its_own_past_and_batch_one() -> None:
    stages = decoder_graphs(plan_of("staged"), "float16", "last")
    axes = [set(profiles_of(spec, LIMITS)[0].most) for spec in stages]
    assert axes == [
        {"visual", "text", "past"},
        {"visual", "text", "past_1"},
        {"visual", "text", "past_2"},
    ]
    assert profiles_of(stages[1], LIMITS)[1].most["past_1"] == 256


def test_a_window_s_visual_rows_stay_multiples_of_its_grid() -> None:
    (spec,) = decoder_graphs(plan_of("window"), "float16", "last")
    assert spec.visual_multiple == 12
    for profile in profiles_of(spec, LIMITS):
        ranges = (profile.least, profile.typical, profile.most)
        assert all(sizes["visual"] % 12 == 0 for sizes in ranges)


def test_axes_that_are_numbers_are_taken_as_they_are() -> None:
    """An engine of a static shape, beside small inputs that tell lengths."""
    (plain,) = decoder_graphs(plan_of("identity"), "float16", "last")
    inputs = (
        *plain.inputs[:4],
        TensorSpec(name="past_key_values.0.key", dtype="float16", axes=("batch", 2, 256, 16)),
        TensorSpec(name="past_length", dtype="int64", axes=("batch",)),
    )
    prefill, decode = profiles_of(plain.model_copy(update={"inputs": inputs}), LIMITS)
    assert prefill.most == {"batch": 4, "visual": 24, "text": 64}
    assert decode.most == {"batch": 4, "visual": 0, "text": 2}
    assert prefill.shapes(inputs[4]) == ((1, 2, 256, 16), (1, 2, 256, 16), (4, 2, 256, 16))


def test_buffers_of_fixed_caches_have_one_size_in_every_profile_that_of_the_limits() -> None:
    """Whatever the artifact would allow: here 256 rows, and the engine is for 128."""
    (spec,) = decoder_graphs(plan_of("exit"), "float16", "last", LIMITS)
    smaller = LIMITS.model_copy(update={"max_context": 128})
    profiles = profiles_of(spec, smaller)
    assert [profile.name for profile in profiles] == ["prefill", "decode"]
    for profile in profiles:
        for sizes in (profile.least, profile.typical, profile.most):
            assert sizes.keys() == {"batch", "visual", "text", "room", "room_text"}
            assert (sizes["room"], sizes["room_text"]) == (128, 128 - 12)
    assert rooms_of(profiles) == {"room": 128, "room_text": 116}
    stages = decoder_graphs(plan_of("staged"), "float16", "last", LIMITS)
    assert [rooms_of(profiles_of(s, LIMITS)) for s in stages] == [
        {"room": 256},
        {"room_1": 256},
        {"room_2": 256},
    ]


@pytest.mark.parametrize("context", [30, 64, 256])
def test_a_typical_prompt_fits_into_fixed_caches_however_small_the_context_is(context: int) -> None:
    # TensorRT-RTX refuses to build where it does not.
    limits = Limits(max_batch=1, max_images=2, max_text=30, max_context=context, visual_tokens=12)
    for spec in decoder_graphs(plan_of("heads+frozen+exit"), "float16", "last", limits):
        for profile in profiles_of(spec, limits):
            rows = profile.typical["visual"] + profile.typical["text"]
            assert rows <= profile.typical["room"]
            assert profile.typical["text"] <= profile.typical["room_text"]


def test_typical_sizes_lie_in_their_range_however_small_the_limits_are() -> None:
    small = Limits(max_batch=1, max_images=1, max_text=3, max_context=16, visual_tokens=12)
    plan = plan_of("heads+frozen+exit")
    specs = (
        vision_graph(plan.model, "float16"),
        embed_graph(plan.model, "float16"),
        *decoder_graphs(plan, "float16", "last"),
    )
    for spec in specs:
        for profile in profiles_of(spec, small):
            assert not profile.outside(profile.typical)


DECODER = (
    ShapeProfile(
        name="prefill",
        least={"batch": 1, "visual": 0, "text": 1, "past": 0, "past_text": 0},
        typical={"batch": 1, "visual": 12, "text": 9, "past": 0, "past_text": 0},
        most={"batch": 1, "visual": 24, "text": 64, "past": 256, "past_text": 244},
    ),
    ShapeProfile(
        name="decode",
        least={"batch": 1, "visual": 0, "text": 1, "past": 1, "past_text": 1},
        typical={"batch": 1, "visual": 0, "text": 1, "past": 76, "past_text": 64},
        most={"batch": 1, "visual": 0, "text": 2, "past": 256, "past_text": 244},
    ),
)


def call(**sizes: int) -> dict[str, int]:
    return {"batch": 1, "visual": 0, "text": 1, "past": 9, "past_text": 9} | sizes


@pytest.mark.parametrize(
    ("sizes", "place"),
    [
        (call(), 1),
        (call(text=2), 1),
        (call(text=3), 0),
        (call(visual=12), 0),
        (call(past=0, past_text=0), 0),
        (call(past=256, past_text=244), 1),
    ],
)
def test_a_call_runs_in_the_narrowest_profile_that_holds_it(
    sizes: dict[str, int], place: int
) -> None:
    assert profile_for(DECODER, sizes, LIMITS) == place


@pytest.mark.parametrize(
    ("sizes", "found", "remedy"),
    [
        (
            {"text": 65},
            "text is 65 in this call, the engine was built for 1 to 64",
            "--max-text 65",
        ),
        ({"visual": 36}, "visual is 36 in this call, .* 0 to 24", "--max-images 3"),
        ({"batch": 5}, "batch is 5 in this call, .* 1 to 1", "--max-batch 5"),
        ({"past": 257}, "past is 257 in this call, .* to 256", "--max-context 258"),
        ({"past": 245, "past_text": 245}, "past_text is 245 .* to 244", "--max-context 258"),
        ({"text": 300, "visual": 12}, "text is 300", "--max-text 300 --max-context 321"),
    ],
)
def test_a_call_that_fits_nowhere_names_the_axis_the_range_and_the_remedy(
    sizes: dict[str, int], found: str, remedy: str
) -> None:
    wanted = f"{found}.*build ARTIFACT --target tensorrt {remedy} --overwrite"
    with pytest.raises(BackendError, match=wanted):
        profile_for(DECODER, call(**sizes), LIMITS, "tensorrt")


def test_sizes_of_a_call_are_read_from_its_shapes_and_must_agree() -> None:
    inputs = (
        TensorSpec(name="a", dtype="float16", axes=("batch", "text", 8)),
        TensorSpec(name="b", dtype="int64", axes=("batch", "text")),
    )
    assert sizes_of(inputs, ((1, 5, 8), (1, 5))) == {"batch": 1, "text": 5}
    for shapes in (((1, 5, 8), (1, 6)), ((1, 5, 9), (1, 5)), ((1, 5), (1, 5))):
        with pytest.raises(ValueError, match="has shape"):
            sizes_of(inputs, shapes)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"max_context": 12}, r"max_context: 12 has no room for 1 image\(s\) of 12 rows"),
        ({"max_context": 30, "max_images": 3}, r"give 37 or more"),
        ({"max_context": 40, "max_text": 41}, r"max_text: 41 is more than max_context, 40"),
        ({"max_context": 513}, r"513 is more than the model's 512 positions"),
    ],
)
def test_limits_that_make_no_sense_together_are_told(section: dict[str, Any], problem: str) -> None:
    limits = limits_of(ProfilesSection(**section), facts())
    assert len(limits.problems(512)) == 1
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(limits.problems(512)[0])
    assert limits_of(ProfilesSection(), facts()).problems(512) == ()


@dataclass
class Recorder:
    """The sizes of every call of every graph of a session."""

    calls: list[tuple[GraphSpec, dict[str, int]]] = field(default_factory=list)

    def on(self, session: OnnxSession) -> OnnxSession:
        real: Callable[[GraphSpec], Any] = session._open_graph

        def open_graph(spec: GraphSpec) -> Any:
            graph = real(spec)

            def run(feeds: Sequence[Any]) -> list[Any]:
                shapes = session.past_shapes(feeds)
                self.calls.append((spec, sizes_of(spec.inputs, shapes)))
                return graph(feeds)

            run.spec = spec  # type: ignore[attr-defined]
            return run

        session._open_graph = open_graph  # type: ignore[method-assign, assignment]
        return session

    def outside(self, limits: Limits) -> list[str]:
        """Return what no profile holds, in words."""
        lines = []
        for spec, sizes in self.calls:
            try:
                profile_for(profiles_of(spec, limits), sizes, limits)
            except BackendError as error:
                lines.append(f"{spec.name}: {error}")
        return lines


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [make_picture(folder / f"{i}.png", seed=i) for i in range(3)]


@pytest.fixture(scope="module")
def artifact(plain_exit: Path) -> Artifact:
    """With an exit: its caches have two lengths."""
    return Artifact.open(plain_exit, verify=False)


def test_every_call_that_the_runtime_makes_fits_a_profile(
    artifact: Artifact, pictures: list[Path]
) -> None:
    """With limits of exactly what is asked: two pictures in a call, the batches, the longest text."""
    recorder, manifest = Recorder(), artifact.manifest
    session = recorder.on(OnnxSession(artifact.folder, manifest.graphs, threads=1))
    runtime = Runtime.on_session(session, artifact.folder, manifest.model, manifest.picture_form)
    for images in ([], pictures[:1], pictures[:2]):
        list(runtime.generate("what is this", images, max_new_tokens=4))
    asked = [("what is it", pictures[i : i + 1]) for i in range(3)] + [("what is this it", ())]
    list(runtime.answers(asked, max_new_tokens=3))
    prefix = runtime.prefill_image(pictures[:1])
    for question in ("what is it", "is this red"):
        list(prefix.generate(question, max_new_tokens=3))
        prefix.answer(question, max_new_tokens=3)
    chat = runtime.chat()
    for question, images in (("what is this", pictures[:1]), ("red", ()), ("it", pictures[1:2])):
        list(chat.ask(question, images, max_new_tokens=4))
    fidelity.record(session, Plan.load(artifact.folder / PLAN_FILE))
    decoder = [sizes for spec, sizes in recorder.calls if spec.name == "decoder"]
    assert {"prefill", "later turn with a picture", "decode"} == {
        "decode"
        if not sizes["visual"] and sizes["text"] == 1
        else "prefill"
        if not sizes["past"]
        else "later turn with a picture"
        for sizes in decoder
        if sizes["visual"] or sizes["text"] == 1 or not sizes["past"]
    }
    exact = Limits(
        max_batch=max(sizes["batch"] for sizes in decoder),
        max_images=2,
        max_text=max(28, *(sizes["text"] for sizes in decoder)),  # fidelity embeds 28 at once
        max_context=max(sum(sizes[a] for a in ("past", "visual", "text")) for sizes in decoder),
        visual_tokens=manifest.model.visual_tokens,
    )
    assert exact.max_batch == 3
    assert recorder.outside(exact) == []
    # Every decode step is in the narrow profile.
    (spec,) = [spec for spec in manifest.graphs if spec.name == "decoder"]
    steps = [s for s in decoder if s["text"] == 1 and not s["visual"] and s["past"]]
    assert {profile_for(profiles_of(spec, exact), sizes, exact) for sizes in steps} == {1}


def test_the_default_limits_hold_one_question_about_one_picture_and_its_timing(
    artifact: Artifact, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, manifest = Recorder(), artifact.manifest
    monkeypatch.setattr(bench, "OnnxSession", lambda *a, **k: recorder.on(OnnxSession(*a, **k)))
    text = manifest.predicted.text
    bench.bench(artifact.folder, manifest.graphs, manifest.model, text=text, rounds=1)
    assert {spec.name for spec, _ in recorder.calls} >= {"decoder", "baseline_decoder", "vision"}
    session = recorder.on(OnnxSession(artifact.folder, manifest.graphs, threads=1))
    runtime = Runtime.on_session(session, artifact.folder, manifest.model, manifest.picture_form)
    runtime.answer("what is this", pictures[:1], max_new_tokens=4)
    usual = limits_of(ProfilesSection(), manifest.model)
    assert recorder.outside(usual) == []


def test_every_call_runs_once_to_warm_up_and_then_once_a_round(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    spies: dict[str, Spy] = {}

    def opened(*given: Any, decoder: str, **more: Any) -> Spy:
        spies[decoder] = Spy(OnnxSession(*given, decoder=decoder, **more))
        return spies[decoder]

    monkeypatch.setattr(bench, "OnnxSession", opened)
    manifest, rounds = artifact.manifest, 3
    found = bench.bench(artifact.folder, manifest.graphs, manifest.model, text=5, rounds=rounds)
    assert found.rounds == rounds
    assert set(spies) == {"decoder", "baseline_decoder"}
    for spy in spies.values():
        steps = spy.rows.count((0, 1))
        assert steps == 1 + rounds
        # A first token is a reading of the prompt and a prefill, so that one of each warms up.
        assert spy.pictures == 1 + rounds
        assert len(spy.rows) - steps == 1 + 2 * rounds


def test_two_pictures_in_a_call_need_a_limit_of_two(
    artifact: Artifact,
) -> None:
    """Fidelity's calls have two pictures: they run in torch and in ONNX Runtime, which have no limits."""
    recorder, manifest = Recorder(), artifact.manifest
    session = recorder.on(OnnxSession(artifact.folder, manifest.graphs, threads=1))
    fidelity.record(session, Plan.load(artifact.folder / PLAN_FILE))
    usual = limits_of(ProfilesSection(), manifest.model)
    found = recorder.outside(usual)
    assert found
    assert all("--max-images 2" in line for line in found)
    assert recorder.outside(limits_of(ProfilesSection(max_images=2), manifest.model)) == []
