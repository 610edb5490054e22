"""Engines behind the session call, on a device made of numpy and ONNX Runtime; nothing ran on a GPU."""

import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.errors import ArtifactError, BackendError, MissingExtraError
from compressor.schema.sections import ProfilesSection
from export.artifact.artifact import Artifact
from export.artifact.engine_set import EngineEntry, EngineSet, Machine, OpenedSet, artifact_digest
from export.backends import gpus
from export.backends import registry as backends
from export.backends.gpus import Gpu, find_gpu, read_probe
from export.backends.onnxruntime import OnnxSession
from export.backends.tensorrt import backend as tensorrt
from export.backends.tensorrt.find import open_set
from export.backends.tensorrt.session import EngineGraph, EngineSession, Pool, Shape
from export.backends.tensorrt.targets import TARGETS
from export.graphs.limits import limits_of
from export.graphs.profiles import profiles_of
from export.graphs.spec import vision_graph
from export.runtime.runtime import Runtime
from export.session.arrays import Array
from export.session.feeds import CallRows
from tests.decoders import plan_of
from tests.facts import facts
from tests.models import make_picture

ADDRESSES = 4096


class NumpyDevice:
    """Memory as arrays of bytes, engines as ONNX Runtime's graphs; new memory holds garbage."""

    def __init__(self, artifact: Artifact) -> None:
        self.inner = OnnxSession(artifact.folder, artifact.manifest.graphs, threads=1)
        self.specs = {spec.name: spec for spec in artifact.manifest.graphs}
        self.memory: list[Array] = []
        self.profiles: list[tuple[str, int]] = []

    def allocate(self, size: int) -> int:
        self.memory.append(np.full(size, 0x7F, np.uint8))
        return ADDRESSES * len(self.memory)

    def write(self, address: int, array: Array) -> None:
        assert array.flags.c_contiguous
        self._at(address)[: array.nbytes] = array.reshape(-1).view(np.uint8)

    def read(self, address: int, array: Array) -> None:
        array.reshape(-1).view(np.uint8)[:] = self._at(address)[: array.nbytes]

    def run(
        self,
        graph: str,
        profile: int,
        inputs: Mapping[str, tuple[int, Shape]],
        outputs: Mapping[str, int],
    ) -> Mapping[str, Shape]:
        self.profiles.append((graph, profile))
        spec, feeds = self.specs[graph], []
        assert len({*outputs.values()} | {a for a, _ in inputs.values()}) == len(outputs) + len(
            inputs
        )
        for tensor in spec.inputs:
            address, shape = inputs[tensor.name]
            feed = np.empty(shape, tensor.numpy)
            self.read(address, feed)
            feeds.append(feed)
        found = [value.numpy() for value in self.inner.graph(graph)(feeds)]
        for tensor, value in zip(spec.outputs, found, strict=True):
            assert value.nbytes <= self._at(outputs[tensor.name]).nbytes
            self.write(outputs[tensor.name], np.ascontiguousarray(value))
        return {t.name: v.shape for t, v in zip(spec.outputs, found, strict=True)}

    def _at(self, address: int) -> Array:
        assert address % ADDRESSES == 0
        return self.memory[address // ADDRESSES - 1]


def engine_set(of: Artifact, folder: Path, **changes: Any) -> OpenedSet:
    """Write a set whose engines are a few bytes each."""
    limits = limits_of(ProfilesSection(max_images=2, max_text=40), of.manifest.model)
    entries = []
    for spec in of.manifest.graphs:
        path = folder / f"{spec.name}.engine"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(spec.name.encode())
        entries.append(
            EngineEntry(
                graph=spec.name,
                file=path.name,
                sha256=hashlib.sha256(spec.name.encode()).hexdigest(),
                size=path.stat().st_size,
                seconds=1.0,
                profiles=profiles_of(spec, limits),
            )
        )
    values: dict[str, Any] = {
        "target": "tensorrt-rtx",
        "version": "1.7.1",
        "compute_capabilities": ("SM86",),
        "platform": "Linux x86_64",
        "limits": limits,
        "artifact": artifact_digest(of.manifest),
        "engines": tuple(entries),
    } | changes
    facts = EngineSet(**values)
    (folder / "engines.json").write_text(facts.model_dump_json(), encoding="utf-8")
    return OpenedSet.read(folder)


@pytest.fixture(scope="module")
def opened(tiny_artifact: Path) -> Artifact:
    return Artifact.open(tiny_artifact, verify=False)


@pytest.fixture
def device(opened: Artifact) -> NumpyDevice:
    return NumpyDevice(opened)


@pytest.fixture
def runtime(opened: Artifact, device: NumpyDevice, tmp_path: Path) -> Runtime:
    manifest = opened.manifest
    session = EngineSession(manifest.graphs, engine_set(opened, tmp_path / "set"), device)
    return Runtime.on_session(session, opened.folder, manifest.model, manifest.picture_form)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return [make_picture(tmp_path / f"{i}.png", seed=70 + i) for i in range(2)]


HERE = Machine("1.7.1", "SM86", "a GPU")


def test_answers_through_device_memory_are_those_of_onnx_runtime(
    runtime: Runtime, opened: Artifact, device: NumpyDevice, pictures: list[Path]
) -> None:
    plain = Runtime.load(opened.folder, threads=1, verify=False)
    for images in ([], pictures[:1], pictures):
        found = runtime.answer("what is this", images, max_new_tokens=6)
        wanted = plain.answer("what is this", images, max_new_tokens=6)
        assert found.token_ids == wanted.token_ids
        np.testing.assert_array_equal(found.first_logits, wanted.first_logits)
    decoder = [place for graph, place in device.profiles if graph == "decoder"]
    assert set(decoder) == {0, 1}
    one, other = runtime.chat(), plain.chat()
    for question, images in (("what is this", pictures[:1]), ("red", []), ("it", pictures[1:])):
        first = list(one.ask(question, images, max_new_tokens=4))
        assert first == list(other.ask(question, images, max_new_tokens=4))


def test_a_cache_that_is_kept_is_not_overwritten_by_later_calls(
    runtime: Runtime, pictures: list[Path]
) -> None:
    prefix = runtime.prefill_image(pictures[:1])
    kept = [value.numpy() for value in prefix._cached.past]
    first = prefix.answer("what is it", max_new_tokens=6)
    prefix.answer("is this red", max_new_tokens=6)
    for before, value in zip(kept, prefix._cached.past, strict=True):
        np.testing.assert_array_equal(before, value.numpy())
    assert prefix.answer("what is it", max_new_tokens=6).token_ids == first.token_ids


def test_memory_is_allocated_once_and_used_again(runtime: Runtime, device: NumpyDevice) -> None:
    session = runtime.session
    text = session.embed(np.array([[5]]))
    none, index = text[:, :0], np.zeros((1, 0), np.int64)
    past = session.empty_past(1)
    counts = []
    for place in range(12):
        _, past = session.decode(CallRows(none, text, index, np.array([[place]])), past)
        counts.append(len(device.memory))
    assert counts[3] == counts[-1]


def test_rows_of_pictures_with_sizes_of_their_own_have_room_for_the_largest(
    device: NumpyDevice,
) -> None:
    model = facts(plan_of("identity").model.decoder).model_copy(
        update={"visual_tokens": 50, "cell": 8, "token_grid": None}
    )
    limits = limits_of(ProfilesSection(max_batch=1, max_images=1), model)
    spec = vision_graph(model, "float16")
    profiles = profiles_of(spec, limits)
    entry = EngineEntry(
        graph="vision", file="v.engine", sha256="0" * 64, size=1, seconds=0, profiles=profiles
    )
    graph = EngineGraph(Pool(device), spec, entry, limits, "tensorrt-rtx")
    assert graph._bytes["pixel_values"] == 3 * 112 * 112 * 2
    assert graph._bytes["image_features"] == 14 * 14 * model.decoder.hidden * 2


def test_a_prompt_beyond_the_engine_s_profiles_is_refused_with_the_remedy(
    runtime: Runtime, device: NumpyDevice
) -> None:
    device.profiles.clear()
    with pytest.raises(BackendError, match=r"text is \d+ in this call.*1 to 40.*--max-text \d+"):
        runtime.answer(" ".join(["red"] * 60), max_new_tokens=2)
    assert device.profiles == []


def test_a_batch_is_not_larger_than_the_engines_were_built_for(
    runtime: Runtime, pictures: list[Path]
) -> None:
    asked = [("what is this", [picture]) for picture in pictures]
    assert runtime.session.max_batch == 1
    assert len(list(runtime.answers(asked, max_new_tokens=2))) == 2


def altered(folder: Path) -> None:
    (folder / "decoder.engine").write_bytes(b"decodeR")


@pytest.mark.parametrize(
    ("changes", "spoil", "reason"),
    [
        (
            {"artifact": "0" * 64},
            None,
            "the artifact changed since the engines were built: build it",
        ),
        ({"version": "1.6.0"}, None, r"built by tensorrt-rtx 1\.6\.0, installed is 1\.7\.1: build"),
        (
            {"compute_capabilities": ("SM89", "SM120")},
            None,
            r"SM89, SM120, this GPU \(a GPU\) is SM86",
        ),
        ({"engines": ()}, None, "has no engine of vision; build the engines anew"),
        ({}, altered, r"decoder\.engine: its sha256 is not that of the engine that was built"),
        ({}, lambda f: (f / "embed.engine").unlink(), r"embed\.engine: missing, or a link; build"),
    ],
    ids=["artifact", "version", "capability", "incomplete", "altered", "missing"],
)
def test_engines_that_must_not_be_loaded_are_refused_before_any_library_sees_them(
    opened: Artifact,
    tmp_path: Path,
    changes: dict[str, Any],
    spoil: Callable[[Path], object] | None,
    reason: str,
) -> None:
    folder = engine_set(opened, tmp_path / "set", **changes).folder
    if spoil is not None:
        spoil(folder)
    with pytest.raises(ArtifactError, match=reason):
        open_set(folder, opened, HERE)


def test_engines_that_fit_are_opened_and_a_broken_manifest_is_not(
    opened: Artifact, tmp_path: Path
) -> None:
    folder = engine_set(opened, tmp_path / "set").folder
    assert open_set(folder, opened, HERE).facts.version == "1.7.1"
    (folder / "engines.json").write_text('{"target": "tensorrt-rtx"}', encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"engines\.json: .*build the engines anew"):
        OpenedSet.read(folder)


def test_a_timing_cache_is_used_by_the_same_builder_alone(opened: Artifact, tmp_path: Path) -> None:
    timing = {"sha256": hashlib.sha256(b"times").hexdigest(), "size": 5}
    found = engine_set(opened, tmp_path / "set", timing=timing)
    (found.folder / "timing.cache").write_bytes(b"times")
    assert found.timing("1.7.1") == b"times"
    assert found.timing("1.7.2") == b""
    (found.folder / "timing.cache").write_bytes(b"other")
    assert found.timing("1.7.1") == b""


@pytest.mark.parametrize(
    ("code", "said", "reason"),
    [
        (0, '{"error": "no driver: libcuda.so.1"}', r"no driver: libcuda\.so\.1; install NVIDIA"),
        (-11, "", "asking it ended with status -11; install"),
        (0, "", "asking it gave no answer"),
    ],
)
def test_a_machine_without_a_gpu_or_with_a_driver_that_crashes_is_told_apart(
    code: int, said: str, reason: str
) -> None:
    with pytest.raises(BackendError, match=f"{reason}.*the backend onnxruntime, which needs none"):
        read_probe(code, said)


def test_gpus_are_read_from_the_probe_and_chosen_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_probe(0, '{"gpus": [["One", "SM86"], ["Two", "SM120"]], "cuda": "13.0"}')
    assert found == (Gpu(name="One", capability="SM86"), Gpu(name="Two", capability="SM120"))
    monkeypatch.setattr(gpus, "find_gpus", lambda: found)
    assert find_gpu(1).name == "Two"
    with pytest.raises(BackendError, match=r"`gpu`: 2: .*0 \(One\), 1 \(Two\)"):
        find_gpu(2)


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "tensorrt"])
def test_a_backend_opens_engines_of_this_gpu_and_says_how_to_make_them_where_there_are_none(
    backend: str, opened: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Package:
        __version__ = "1.7.1"

    loaded = []
    monkeypatch.setattr(tensorrt, "load_package", lambda *_: Package)
    monkeypatch.setattr(tensorrt, "find_gpu", lambda _: Gpu(name="a GPU", capability="SM86"))
    monkeypatch.setattr(tensorrt, "CudaEngines", lambda _, *given: loaded.append(given))
    mine = Artifact(tmp_path, opened.manifest)
    with pytest.raises(ArtifactError, match=f"has no engines for {backend}; make them with"):
        backends.open_session(mine, backend)
    folder = engine_set(opened, tmp_path / "engines" / "mine", target=backend).folder
    session = backends.open_session(mine, backend, gpu=1)
    assert isinstance(session, EngineSession)
    assert loaded[0][1] == 1
    assert loaded[0][0]["decoder"] == (
        folder / "decoder.engine",
        hashlib.sha256(b"decoder").hexdigest(),
    )
    altered(folder)
    with pytest.raises(ArtifactError, match="sha256"):
        backends.open_session(mine, backend)
    assert len(loaded) == 1


def test_without_a_driver_the_backend_says_so(opened: Artifact) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    try:
        gpus.find_gpus()
    except BackendError:
        with pytest.raises(BackendError, match=r"no GPU to run on.*nvidia-smi"):
            backends.open_session(opened, "tensorrt-rtx")
    else:
        pytest.skip("this machine has a GPU")


def test_a_device_is_refused_where_nothing_runs_on_one(opened: Artifact) -> None:
    with pytest.raises(BackendError, match="openvino: runs on no GPU"):
        backends.open_session(opened, "openvino", gpu=1)


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "tensorrt"])
def test_a_tensorrt_that_is_not_installed_names_its_extra(
    backend: str, opened: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TARGETS[backend]
    monkeypatch.setitem(sys.modules, target.module, None)
    with pytest.raises(MissingExtraError, match=rf"running .*'\.\[{target.extra}\]' in a clone"):
        backends.open_session(opened, backend)
