"""A backend that stands in this file alone is chosen, compared and diagnosed as those of the tool are."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.errors import BackendError
from export.artifact.artifact import Artifact
from export.artifact.manifest import Compared
from export.backends import registry
from export.backends.backend import Backend, Options
from export.backends.onnxruntime import OnnxGraph
from export.backends.probing import ProbeFacts
from export.graphs.spec import GraphSpec
from export.report.data import report_data
from export.report.pages.model_card import Origin, model_card
from export.session.session import GraphSession
from tests.conftest import Run
from vtcompress import validate_backend
from vtcompress.cli.main import EXIT_USAGE

calls: list[str] = []


class ToyGraph:
    """One graph: its work is borrowed; it hands on plain arrays, rounded where that is asked for."""

    def __init__(self, folder: Path, spec: GraphSpec, options: Options) -> None:
        self.spec, self.rounds = spec, options.precision == "f4"
        self._inner = OnnxGraph(folder, spec, options.threads)

    def __call__(self, feeds: Any) -> list[Any]:
        calls.append(self.spec.name)
        found = [value.numpy() for value in self._inner(feeds)]
        return [np.round(value, 1) for value in found] if self.rounds else found


class Toy(Backend):
    name = "toy"
    title = "The Toy"
    package = "toy-backend"
    extra = "toys"
    distributions = ("numpy",)
    precisions = ("f32", "f4")

    def open(self, artifact: Artifact, options: Options) -> GraphSession[ToyGraph]:
        folder, graphs = artifact.folder, artifact.manifest.graphs
        return GraphSession(graphs, lambda spec: ToyGraph(folder, spec, options))

    @staticmethod
    def probe() -> Iterator[ProbeFacts]:
        yield {"step": "opening the box"}
        yield {"version": "3.1 of wood"}


class BrokenToy(Toy):
    name = "broken-toy"
    title = "The Broken Toy"

    @staticmethod
    def probe() -> Iterator[ProbeFacts]:
        yield {"step": "opening the box"}
        raise OSError("no key")


@pytest.fixture
def toy() -> Iterator[Toy]:
    backend = Toy()
    registry.register(backend)
    calls.clear()
    yield backend
    del registry.BACKENDS[backend.name]


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))


def test_without_it_there_is_no_such_backend(vt: Run, tiny_artifact: Path) -> None:
    code, _, said = vt("generate", tiny_artifact, "--prompt", "what", "--backend", "toy")
    assert code == EXIT_USAGE
    assert "'toy' is not one of 'onnxruntime'" in said


@pytest.mark.usefixtures("toy")
def test_it_is_chosen_and_answers_with_its_own_graphs(vt: Run, artifact: Path) -> None:
    asked = ("generate", artifact, "--prompt", "what", "--max-new-tokens", 3)
    code, found, said = vt(*asked, "--backend", "toy")
    assert code == 0
    assert found == vt(*asked)[1]
    assert calls == ["embed", "decoder"] * 3
    assert "toy (f32) was never compared with ONNX Runtime on this artifact" in said
    assert f"run `vtcompress validate {artifact} --backend toy`" in said
    shown = "".join(vt("generate", "--help")[1].split())
    assert "|tensorrt|toy]" in shown
    assert "[f32|bf16|f4]" in shown


def test_it_is_compared_and_what_came_of_it_is_kept(vt: Run, toy: Toy, artifact: Path) -> None:
    found = validate_backend(artifact, toy.name, threads=1)
    assert found.passed
    assert found.loss is not None
    assert found.outputs.worst_abs.max_abs == 0
    code, out, _ = vt("validate", artifact, "--backend", "toy", "--precision", "f4")
    assert code == 3, "rounding to a tenth is seen"
    assert "Backend parity (toy, f4 against ONNX Runtime on the CPU" in out
    kept = Artifact.open(artifact).manifest.compared
    assert tuple(one for one in kept if one.backend == toy.name) == (
        Compared(backend="toy", precision="f32", passed=True),
        Compared(backend="toy", precision="f4", passed=False),
    )
    asked = ("generate", artifact, "--prompt", "what", "--max-new-tokens", 1, "--backend", "toy")
    assert "never compared" not in vt(*asked)[2]


@pytest.mark.usefixtures("toy")
def test_what_it_cannot_do_is_refused_in_words_that_name_who_can(tiny_artifact: Path) -> None:
    opened = Artifact.open(tiny_artifact)
    for backend, precision, mapped, said in (
        ("openvino", "f4", False, "openvino: has no f4; use the backend toy"),
        ("toy", "bf16", False, "toy: has no bf16; use the backend openvino"),
        ("toy", "f8", False, "f8: no such precision; there are f32, bf16, f4"),
        ("toy", "f32", True, "toy: always packs weights; mapped weights need onnxruntime"),
    ):
        with pytest.raises(BackendError) as caught:
            registry.open_session(opened, backend, precision, mapped=mapped)
        assert str(caught.value) == said
    with pytest.raises(BackendError, match="toy: runs on no GPU; leave out `gpu`"):
        registry.open_session(opened, "toy", gpu=1)


def test_the_doctor_asks_it_in_a_child_and_shows_what_it_said(vt: Run, toy: Toy) -> None:
    broken = BrokenToy()
    registry.register(broken)
    try:
        code, out, said = vt("--json", "doctor", "--need", "broken-toy")
    finally:
        del registry.BACKENDS[broken.name]
    assert code == 1
    assert said.strip() == (
        "error: broken-toy: The Broken Toy is installed and cannot be imported: no key; "
        "pip install --force-reinstall toy-backend"
    )
    found = json.loads(out)
    abilities = {ability["backend"]: ability for ability in found["abilities"]}
    assert list(abilities)[-2:] == [toy.name, broken.name]
    assert (abilities["toy"]["words"], abilities["toy"]["runs"]) == ("3.1 of wood", True)
    assert found["packages"][-1] == {"name": "numpy", "version": np.__version__, "words": ""}


@pytest.mark.usefixtures("toy")
def test_the_model_card_names_it_among_those_that_run_the_artifact(artifact: Path) -> None:
    card = model_card(report_data(artifact, Artifact.open(artifact).manifest), Origin())
    assert "as ONNX graphs (float32) for ONNX Runtime, OpenVINO and The Toy, made by" in card


def test_two_backends_of_one_name_are_refused(toy: Toy) -> None:
    with pytest.raises(BackendError, match="toy: there is a backend of this name already"):
        registry.register(toy)
