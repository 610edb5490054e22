"""Graphs with operators that are allowed and sums that are right, and that compute something else."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto
from onnx.helper import make_node, make_tensor

from compressor.errors import ArtifactError
from export.runtime.runtime import Runtime

pytestmark = pytest.mark.filterwarnings("ignore::compressor.errors.ArtifactWarning")
BACKENDS = ("onnxruntime", "openvino")


def with_last(*nodes: str) -> Callable[[ModelProto], None]:
    """Return what puts nodes between a graph's first output and what computed it."""

    def change(model: ModelProto) -> None:
        graph, name = model.graph, model.graph.output[0].name
        (last,) = (node for node in graph.node if name in node.output)
        last.output[list(last.output).index(name)] = "before"
        graph.initializer.append(make_tensor("seven", onnx.TensorProto.INT64, [1], [7]))
        inputs = {"Flatten": ["before"], "Reshape": ["before", "seven"], "Concat": ["before"] * 2}
        options = {"Concat": {"axis": 0}}
        graph.node.extend(
            make_node(kind, inputs[kind], [name], **options.get(kind, {})) for kind in nodes
        )
        # Else the file would contradict itself, which ONNX Runtime sees.
        del graph.output[0].type.tensor_type.shape.dim[:]
        graph.output[0].type.tensor_type.ClearField("shape")

    return change


def changed(artifact: Path, folder: Path, file: str, change: Callable[[ModelProto], None]) -> Path:
    """Return a copy of an artifact with a graph changed, and the sums that the manifest then has."""
    shutil.copytree(artifact, folder)
    path, manifest = folder / file, folder / "manifest.json"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(content := model.SerializeToString())
    whole = json.loads(manifest.read_text())
    whole["files"][file] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(json.dumps(whole))
    return folder


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip(request.param, reason=f"the extra {request.param} is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(request.param)


@pytest.mark.parametrize("file", ["embed.onnx", "decoder.onnx"])
def test_a_graph_that_fails_when_it_runs_is_named_in_one_line(
    tiny_artifact: Path, tmp_path: Path, backend: str, file: str
) -> None:
    folder = changed(tiny_artifact, tmp_path / "artifact", file, with_last("Reshape"))
    with pytest.raises(ArtifactError, match=rf"{file}: .* cannot (run|load) it: ") as caught:
        Runtime.load(folder, threads=1, backend=backend).answer("what is this")
    (line,) = caught.value.problems
    assert "\n" not in line


@pytest.mark.parametrize("file", ["embed.onnx", "decoder.onnx"])
@pytest.mark.parametrize("node", ["Flatten", "Concat"])
def test_a_graph_that_gives_other_shapes_than_it_declares_is_refused(
    tiny_artifact: Path, tmp_path: Path, backend: str, file: str, node: str
) -> None:
    folder = changed(tiny_artifact, tmp_path / "artifact", file, with_last(node))
    with pytest.raises(ArtifactError, match=rf"{file}: the graph \w+ gave \w+ as .* and declares"):
        Runtime.load(folder, threads=1, backend=backend).answer("what is this")


def test_a_graph_without_an_output_that_is_declared_is_refused(
    tiny_artifact: Path, tmp_path: Path, backend: str
) -> None:
    def renamed(model: ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["other" if n == "inputs_embeds" else n for n in node.output]
        model.graph.output[0].name = "other"

    folder = changed(tiny_artifact, tmp_path / "artifact", "embed.onnx", renamed)
    with pytest.raises(ArtifactError, match=r"embed\.onnx: .*output.*inputs_embeds"):
        Runtime.load(folder, threads=1, backend=backend).answer("what is this")
