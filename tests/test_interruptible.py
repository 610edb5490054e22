"""Ctrl-C while a graph runs ends the call, in every backend that runs here, and leaves the graph usable."""

import os
import signal
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.backends.onnxruntime import OnnxGraph
from export.graphs.spec import GraphSpec, TensorSpec
from export.session.interruptible import (
    EndedError,
    Ending,
    Interruptible,
    check_ending,
    ended_by,
    interruptible,
    rows_run,
)

WIDTH, ROWS, STEPS = 512, 512, 600


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GraphSpec]:
    """Return a graph that takes many seconds for many rows: products one after the other."""
    folder = tmp_path_factory.mktemp("slow")
    names = [f"x{i}" for i in range(STEPS + 1)]
    nodes = [helper.make_node("MatMul", [one, "w"], [other]) for one, other in pairwise(names)]
    axes = ["batch", "text", WIDTH]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, axes)],
        [numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, folder / "decoder.onnx")
    spec = GraphSpec(
        name="decoder",
        file="decoder.onnx",
        inputs=(TensorSpec(name="x0", dtype="float32", axes=tuple(axes)),),
        outputs=(TensorSpec(name=names[-1], dtype="float32", axes=tuple(axes)),),
    )
    return folder, spec


def openvino_graph(folder: Path, spec: GraphSpec) -> Any:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    from export.backends.openvino import OpenVinoGraph, shared_core

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return OpenVinoGraph(shared_core(), folder / spec.file, spec, options)


@pytest.mark.parametrize("open_graph", [lambda f, s: OnnxGraph(f, s, 1), openvino_graph])
def test_ctrl_c_ends_a_call_and_the_graph_runs_again(
    slow: tuple[Path, GraphSpec], open_graph: Callable[[Path, GraphSpec], Any]
) -> None:
    graph = open_graph(*slow)
    graph([np.ones((1, 1, WIDTH), np.float32)])  # ready
    rows = np.ones((1, ROWS * 8, WIDTH), np.float32)
    # Where tests run in several processes these ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    started = time.perf_counter()
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            graph([rows])
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.perf_counter() - started < 4  # of some ten seconds
    assert threading.active_count() == 1 or "vtcompress-call" not in {
        t.name for t in threading.enumerate()
    }
    (found,) = graph([np.ones((1, 2, WIDTH), np.float32)])
    assert np.asarray(found if isinstance(found, np.ndarray) else found.numpy()).max() == 1


@pytest.mark.parametrize("open_graph", [lambda f, s: OnnxGraph(f, s, 1), openvino_graph])
def test_another_thread_ends_a_call_and_the_graph_runs_again(
    slow: tuple[Path, GraphSpec], open_graph: Callable[[Path, GraphSpec], Any]
) -> None:
    graph, ending = open_graph(*slow), Ending()
    rows, raised = np.ones((1, ROWS * 8, WIDTH), np.float32), []

    def work() -> None:
        with ended_by(ending):
            try:
                graph([rows])
            except Exception as failure:  # noqa: BLE001 - whatever the library makes of it
                raised.append(failure)

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.3)
    started = time.perf_counter()
    ending.ask()
    worker.join()
    assert time.perf_counter() - started < 4  # of some ten seconds
    assert len(raised) == 1
    (found,) = graph([np.ones((1, 2, WIDTH), np.float32)])
    assert np.asarray(found if isinstance(found, np.ndarray) else found.numpy()).max() == 1


def test_work_that_is_to_end_runs_nothing_more() -> None:
    ending, ran = Ending(), []
    check_ending()
    with ended_by(ending):
        check_ending()
        assert ending.run(lambda: 7, lambda: ran.append("stopped")) == 7
        ending.ask()
        assert ran == [], "nothing ran that had to be stopped"
        with pytest.raises(EndedError):
            check_ending()
        with pytest.raises(EndedError):
            ending.run(lambda: ran.append("ran"), lambda: None)
    check_ending()
    assert ran == []


def test_what_a_call_raises_is_raised_and_what_it_returns_is_returned() -> None:
    stopped: list[bool] = []

    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        interruptible(fails, lambda: stopped.append(True))
    assert interruptible(lambda: 7, lambda: stopped.append(True)) == 7
    assert not stopped


def test_only_calls_that_may_be_long_have_a_thread_of_their_own() -> None:
    calls, seen = Interruptible(), []

    def run(rows: int, seconds: float) -> None:
        def call() -> None:
            seen.append(threading.current_thread() is threading.main_thread())
            time.sleep(seconds)

        calls.run(rows, call, lambda: None)

    run(1, 0)  # a decode step
    run(10, 0.01)  # nobody knows yet
    run(20, 0.02)
    run(400, 0)  # 1 ms a row
    run(1, 0)
    assert seen == [True, False, True, False, True]


def test_rows_are_those_of_text_or_pictures() -> None:
    spec = GraphSpec(
        name="decoder",
        file="decoder.onnx",
        inputs=(
            TensorSpec(name="visual_embeds", dtype="float32", axes=("batch", "visual", 4)),
            TensorSpec(name="inputs_embeds", dtype="float32", axes=("batch", "text", 4)),
            TensorSpec(name="past", dtype="float32", axes=("batch", 2, "past", 4)),
        ),
        outputs=(TensorSpec(name="logits", dtype="float32", axes=("batch", 4)),),
    )
    seen = GraphSpec(
        name="vision",
        file="vision.onnx",
        inputs=(TensorSpec(name="pixel_values", dtype="float32", axes=("images", 3, 8, 8)),),
        outputs=(TensorSpec(name="visual_embeds", dtype="float32", axes=("images", 4)),),
    )
    # One picture is no decode step: it may take long.
    assert 1 < rows_run(seen, [np.zeros((1, 3, 8, 8))]) < rows_run(seen, [np.zeros((2, 3, 8, 8))])
    past = np.zeros((1, 2, 50, 4))
    assert rows_run(spec, [np.zeros((1, 0, 4)), np.zeros((1, 1, 4)), past]) == 1
    assert rows_run(spec, [np.zeros((1, 9, 4)), np.zeros((1, 3, 4)), past]) == 9
