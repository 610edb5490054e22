"""Backends: the same answers from each, and a clear word from one that cannot run."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.errors import ArtifactError, BackendError, MissingExtraError
from export.artifact.artifact import Artifact
from export.backends.backend import Options
from export.backends.gpus import read_probe
from export.backends.onnxruntime import OnnxGraph, OnnxRuntime, OnnxSession
from export.backends.onnxruntime_cuda import CudaSession, check_active
from export.backends.openvino import OpenVinoSession, check_precision, shared_core
from export.backends.registry import BACKENDS, open_session
from export.checks.fidelity import check_declared
from export.graphs.spec import GraphSpec, TensorSpec
from export.runtime.prompter import Prompter
from export.runtime.runtime import Runtime
from export.session.arrays import Array
from export.session.feeds import CallRows
from tests.models import WORDS, make_picture
from vtcompress.cli.main import run_command

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [make_picture(folder / f"{i}.png", seed=200 + i) for i in range(3)]


@pytest.fixture(scope="module")
def artifact(plain_artifact: Path) -> Path:
    return plain_artifact


@pytest.fixture
def openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("openvino", reason="openvino is not installed: extra openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return module


def test_an_unknown_backend_or_precision_is_refused_with_those_that_there_are(
    artifact: Path,
) -> None:
    opened = Artifact.open(artifact)
    with pytest.raises(BackendError, match="onnxruntime, onnxruntime-cuda, openvino"):
        open_session(opened, "tensorflow")
    with pytest.raises(BackendError, match="f32, bf16"):
        open_session(opened, "openvino", "f8")
    with pytest.raises(BackendError, match="use the backend openvino"):
        open_session(opened, "onnxruntime", "bf16")


@pytest.mark.parametrize(
    ("backend", "package", "extra"),
    [
        ("onnxruntime", "onnxruntime", "cpu"),
        ("onnxruntime-cuda", "onnxruntime", "gpu"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_a_backend_that_is_not_installed_names_its_extra(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, backend: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"pip install '\.\[{extra}\]'"):
        open_session(Artifact.open(artifact), backend)


def test_every_backend_can_be_chosen_on_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(["generate", "--help"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "|".join(BACKENDS) in shown


def test_the_cpu_build_of_onnxruntime_is_told_from_the_cuda_build(artifact: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this is the build with CUDA")
    with pytest.raises(MissingExtraError, match="pip uninstall onnxruntime first"):
        open_session(Artifact.open(artifact), "onnxruntime-cuda")


def test_where_no_gpu_is_the_error_is_all_that_is_said(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither notes on answers that will not come, nor what ONNX Runtime says of each graph."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("export.backends.gpus.find_gpus", lambda: read_probe(1, ""))
    given = ["generate", str(artifact), "--prompt", "it", "--backend", "onnxruntime-cuda"]
    assert run_command(given) == 1
    said = capfd.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: no GPU to run on: ")


def test_a_session_that_fell_back_to_the_cpu_is_refused_with_the_remedy(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime-gpu lists CUDA and runs on the CPU where there is no GPU: here it is made to."""
    import onnxruntime

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPU"]
    )
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, **_: real(path, options, providers=["CPUExecutionProvider"]),
    )
    session = CudaSession(artifact, Artifact.open(artifact).manifest.graphs)
    with pytest.raises(BackendError, match=r"runs on CPUExecutionProvider.*nvidia-smi"):
        session.load()


def test_an_active_cuda_session_is_taken() -> None:
    check_active(["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(BackendError, match="runs on nothing"):
        check_active([])


def test_the_binding_of_the_cuda_session_works_on_the_cpu_device(
    artifact: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path but the device: every `cuda` is made `cpu`. Nothing here ran on a GPU."""
    import onnxruntime

    from export.backends import onnxruntime_cuda as cuda_session

    class OnCpu:
        """`OrtValue` and bindings that take `cuda` for `cpu`."""

        @staticmethod
        def ortvalue_from_numpy(array: np.ndarray, _device: str, place: int) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_numpy(array, "cpu", place)

    real_binding = onnxruntime.IOBinding.bind_output
    monkeypatch.setattr(
        onnxruntime.IOBinding,
        "bind_output",
        lambda self, name, _device, place: real_binding(self, name, "cpu", place),
    )
    monkeypatch.setattr(cuda_session, "PROVIDER", "CPUExecutionProvider")
    manifest = Artifact.open(artifact).manifest
    session = CudaSession(artifact, manifest.graphs, threads=1)
    for name in ("vision", "embed", "decoder"):
        session.graph(name)._values = OnCpu
    bound = Runtime.on_session(session, artifact, manifest.model, manifest.picture_form)
    plain = Runtime.load(artifact, threads=1)
    for images in ([], pictures[:1], pictures[:2]):
        found = bound.answer("what is this", images, max_new_tokens=6)
        wanted = plain.answer("what is this", images, max_new_tokens=6)
        assert found.token_ids == wanted.token_ids
        assert np.array_equal(found.first_logits, wanted.first_logits)


@pytest.mark.parametrize("name", ["vision.onnx", "weights.bin"])
def test_what_changed_since_it_was_checked_is_not_run(
    artifact: Path, pictures: list[Path], tmp_path: Path, name: str
) -> None:
    """Graphs are loaded when they are first used; by then another artifact may lie there."""
    folder = shutil.copytree(artifact, tmp_path / "artifact")
    runtime = Runtime.load(folder, threads=1)
    runtime.answer("what is this", max_new_tokens=1)
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} changed since it was checked"):
        runtime.answer("what is this", pictures[:1])
    assert Runtime.load(folder, threads=1).answer("what is this", pictures[:1]).token_ids


def test_weights_that_were_cut_off_since_they_were_checked_are_not_mapped(
    artifact: Path, tmp_path: Path
) -> None:
    """Reading behind the end of a mapped file is SIGBUS."""
    folder = shutil.copytree(artifact, tmp_path / "artifact")
    runtime = Runtime.load(folder, threads=1, mapped=True)
    os.truncate(folder / "weights.bin", 4096)
    with pytest.raises(ArtifactError, match=r"weights\.bin changed since it was checked"):
        runtime.answer("what is this")


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json", "vision.onnx"])
def test_what_changes_while_an_artifact_is_loaded_is_refused(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A file of another artifact, written in place behind the check; its time of writing is set back."""
    folder = shutil.copytree(artifact, tmp_path / "artifact")
    path, real = folder / name, Prompter.from_folder.__func__

    def changed(kind: Any, *given: Any) -> Prompter:
        before, content = path.stat(), path.read_bytes()
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return real(kind, *given)  # type: ignore[no-any-return]

    monkeypatch.setattr(Prompter, "from_folder", classmethod(changed))
    with pytest.raises(ArtifactError, match=rf"{name} changed since it was checked"):
        Runtime.load(folder, threads=1, preload=True)


def test_bf16_is_refused_where_the_processor_has_none() -> None:
    check_precision("bf16", ["FP32", "BF16"])
    check_precision("f32", ["FP32"])
    with pytest.raises(BackendError, match=r"FP32, INT8.*the precision f32"):
        check_precision("bf16", ["INT8", "FP32"])


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize("images", [0, 1, 2])
def test_openvino_in_f32_answers_as_onnx_runtime(
    artifact: Path, pictures: list[Path], images: int
) -> None:
    """V = 0, N and 2N in the prefill, V = 0 in every decode step: OpenVINO takes the empty axis."""
    onnx = Runtime.load(artifact, threads=1)
    found = Runtime.load(artifact, threads=1, backend="openvino")
    for seed in range(10):
        words = np.random.default_rng(seed).choice(WORDS[7:], 4)
        question, chosen = " ".join(words), pictures[:images]
        a = found.answer(question, chosen, max_new_tokens=8)
        b = onnx.answer(question, chosen, max_new_tokens=8)
        assert np.abs(a.first_logits - b.first_logits).max() <= TOLERANCE
        assert a.token_ids == b.token_ids


@pytest.mark.usefixtures("openvino")
def test_openvino_keeps_conversations_pictures_and_earlier_caches(
    artifact: Path, pictures: list[Path]
) -> None:
    runtime = Runtime.load(artifact, threads=1, backend="openvino")
    onnx = Runtime.load(artifact, threads=1)
    prefix = runtime.prefill_image(pictures[:1])
    for question in (
        "a",
        "what is",
        "red blue",
        "a",
    ):  # earlier answers must not spoil the kept rows
        found = prefix.answer(question, max_new_tokens=5)
        assert found.token_ids == onnx.answer(question, pictures[:1], max_new_tokens=5).token_ids
    one, other = runtime.chat(), onnx.chat()
    for question, new in (("what is", pictures[:1]), ("b", []), ("it", pictures[1:2])):
        found_text = "".join(one.ask(question, new, max_new_tokens=4))
        assert found_text == "".join(other.ask(question, new, max_new_tokens=4))


@pytest.mark.usefixtures("openvino")
def test_openvino_in_bf16_stays_near_f32(artifact: Path, pictures: list[Path]) -> None:
    if "BF16" not in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(BackendError, match="no bf16 instructions"):
            Runtime.load(artifact, backend="openvino", precision="bf16")
        pytest.skip("this processor has no bf16 instructions; it was refused")
    exact = Runtime.load(artifact, threads=1, backend="openvino")
    rounded = Runtime.load(artifact, threads=1, backend="openvino", precision="bf16")
    a = exact.answer("what is this", pictures[:1]).first_logits
    b = rounded.answer("what is this", pictures[:1]).first_logits
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert cosine > 0.99
    assert np.abs(a - b).max() > 1e-3, "bf16 was not used at all"


SIGNALLED = """
import signal, sys
from pathlib import Path
from compressor.telemetry import switch_off

switch_off()
from export.runtime.prompter import Prompter
from export.runtime.runtime import Runtime

one = Runtime.load(Path(sys.argv[1]), threads=1, backend="openvino", preload=True)
two = Runtime.load(Path(sys.argv[1]), threads=1, backend="openvino", preload=True)
del one, two  # not in the reverse order
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.usefixtures("openvino")
def test_a_signal_behind_two_openvino_sessions_is_heard(artifact: Path) -> None:
    """Two cores of OpenVINO's left a freed signal stack: the next Ctrl-C was a segmentation fault."""
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, artifact], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "heard\n")


@pytest.mark.usefixtures("openvino")
def test_openvino_names_a_graph_that_it_cannot_read(artifact: Path, tmp_path: Path) -> None:
    """Opening an artifact checks its graphs; what OpenVINO cannot read all the same is named."""
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    graphs = Artifact.open(copy).manifest.graphs
    (copy / "decoder.onnx").write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match=r"decoder\.onnx: OpenVINO cannot load it"):
        OpenVinoSession(copy, graphs).load()


PRIVATE_BYTES = """
import sys
from pathlib import Path
import numpy as np
from export.graphs.spec import GraphSpec
from export.backends.onnxruntime import OnnxGraph
def private():
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
folder, mapped, optimized = Path(sys.argv[1]), sys.argv[2] == "True", sys.argv[3] == "True"
spec = GraphSpec.model_validate_json((folder / "spec.json").read_text())
before = private()
graph = OnnxGraph(folder, spec, 1, mapped=mapped, optimized=optimized)
(found,) = graph([np.ones((1, 1024), spec.inputs[0].dtype)])
print(private() - before, float(found.numpy().sum()))
"""


def private_bytes(folder: Path, *, mapped: bool, optimized: bool) -> tuple[int, float]:
    """Return what a graph takes in a process of its own that runs it once, and the sum of its output."""
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE_BYTES, str(folder), str(mapped), str(optimized)],
        cwd=Path(__file__).resolve().parent.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    taken, total = done.stdout.split()
    return int(taken), float(total)


def save_products(folder: Path, nodes: list[Any], weights: dict[str, Array], width: int) -> None:
    """Write a graph from x [rows, 1024] to y [rows, width] with external weights, and its declaration."""
    import onnx
    from onnx import helper, numpy_helper

    dtype = next(iter(weights.values())).dtype
    kinds = [("x", ["rows", 1024]), ("y", ["rows", width])]
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    x, y = (helper.make_tensor_value_info(name, kind, shape) for name, shape in kinds)
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    file = folder / "g.onnx"
    onnx.save(proto, file, save_as_external_data=True, location="weights.bin")
    tensors = [TensorSpec(name=n, dtype=dtype.name, axes=tuple(axes)) for n, axes in kinds]
    spec = GraphSpec(name="g", file=file.name, inputs=tensors[:1], outputs=tensors[1:])
    (folder / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_mapped_weights_take_no_private_memory_and_change_no_result(tmp_path: Path) -> None:
    """One matrix product with 32 MiB of external weights, in a process of its own."""
    from onnx import helper

    weights = np.random.default_rng(0).standard_normal((1024, 8192)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    save_products(tmp_path, [node], {"w": weights}, 8192)
    taken, sums = {}, {}
    for mapped in (False, True):
        taken[mapped], sums[mapped] = private_bytes(tmp_path, mapped=mapped, optimized=True)
    assert taken[False] - taken[True] > 0.8 * weights.nbytes
    assert sums[True] == pytest.approx(sums[False], rel=1e-4)
    assert sums[True] == pytest.approx(float(weights.sum()), rel=1e-2)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_float16_weights_are_not_all_in_memory_in_float32(tmp_path: Path) -> None:
    """Eight products in turn, 64 MiB of weights in float32, in a process of its own."""
    from onnx import helper

    drawn = np.random.default_rng(0)
    weights = [(drawn.standard_normal((1024, 2048)) / 64).astype(np.float16) for _ in range(8)]
    nodes, last = [], "x"
    for i in range(0, 8, 2):
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"a{i}"]))
        nodes.append(helper.make_node("MatMul", [f"a{i}", f"w{i + 1}"], [f"b{i}"]))
        weights[i + 1] = np.ascontiguousarray(weights[i + 1].T)
        last = f"b{i}"
    nodes[-1].output[0] = "y"
    save_products(tmp_path, nodes, {f"w{i}": w for i, w in enumerate(weights)}, 1024)
    taken, sums = {}, {}
    for optimized in (True, False):
        taken[optimized], sums[optimized] = private_bytes(
            tmp_path, mapped=True, optimized=optimized
        )
    assert taken[False] < 0.5 * 2 * sum(w.nbytes for w in weights) < taken[True]
    assert sums[False] == pytest.approx(sums[True], rel=0.02)


@pytest.mark.parametrize(
    ("dtype", "mapped", "optimized"),
    [("float16", True, False), ("float16", False, True), ("float32", True, True)],
)
def test_mapped_float16_graphs_are_run_as_they_are(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, mapped: bool, optimized: bool
) -> None:
    opened = Artifact.open(artifact)
    opened = replace(opened, manifest=opened.manifest.model_copy(update={"dtype": dtype}))
    given: dict[str, Any] = {}
    monkeypatch.setattr("export.backends.onnxruntime.OnnxSession", lambda *_, **k: given.update(k))
    OnnxRuntime().open(opened, Options(mapped=mapped))
    assert given["optimized"] is optimized


def test_mapped_weights_are_refused_where_a_backend_packs_always(artifact: Path) -> None:
    with pytest.raises(BackendError, match="need onnxruntime"):
        open_session(Artifact.open(artifact), "openvino", mapped=True)


def test_mapped_weights_change_no_answer(artifact: Path, pictures: list[Path]) -> None:
    one, other = (Runtime.load(artifact, threads=1, mapped=mapped) for mapped in (False, True))
    found = one.answer("what", pictures[:1], max_new_tokens=5)
    assert found.token_ids == other.answer("what", pictures[:1], max_new_tokens=5).token_ids


def test_a_graph_that_a_session_does_not_run_is_looked_at_with_its_weights_left_in_their_file(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    opened, load = {}, OnnxGraph.__init__

    def noted(graph: OnnxGraph, folder: Path, spec: GraphSpec, *given: Any, **more: Any) -> None:
        opened[spec.name] = (more.get("mapped", False), more.get("optimized", True))
        load(graph, folder, spec, *given, **more)

    monkeypatch.setattr(OnnxGraph, "__init__", noted)
    graphs = Artifact.open(artifact).manifest.graphs
    session = OnnxSession(artifact, graphs)
    for spec in graphs:
        told = session.declared(spec)
        alone = onnxruntime.InferenceSession(str(artifact / spec.file))
        for side, wanted in zip(told, (alone.get_inputs(), alone.get_outputs()), strict=True):
            assert [(a.name, a.shape, a.type) for a in side] == [
                (a.name, a.shape, a.type) for a in wanted
            ]
        assert check_declared(spec, *told) == []
    run = dict.fromkeys(("vision", "embed", "decoder"), (False, True))
    assert opened == {**run, "baseline_decoder": (True, False)}


def test_sessions_tell_the_size_of_a_cache(artifact: Path) -> None:
    session: Any = Runtime.load(artifact, threads=1).session
    text = session.embed(np.array([[5, 6, 7]]))
    rows = CallRows(text[:, :0], text, np.zeros((1, 0), np.int64), np.array([[0, 1, 2]]))
    _, past = session.decode(rows, session.empty_past(1))
    assert session.past_bytes(session.empty_past(1)) == 0
    assert session.past_bytes(past) == sum(value.numpy().nbytes for value in past) > 0
