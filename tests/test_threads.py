"""Threads share a runtime, kept pictures and graphs that nobody loaded yet: answers are one thread's."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vtcompress
from export.runtime.runtime import Runtime
from tests.models import make_picture
from tests.test_fuzz import Count
from tests.threads import THREADS, Answers, wrong_of

ANSWERS = 24
AT_ONCE = "answers of 8 threads at once"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [make_picture(folder / f"{i}.png", seed=70 + i) for i in range(2)]


@pytest.fixture(scope="module")
def fixed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = vtcompress.load_recipe("identity").override(
        {
            "model.id": str(tiny_model),
            "export.kv_cache": "fixed",
            "export.profiles.max_context": 64,
        }
    )
    folder = tmp_path_factory.mktemp("threads") / "fixed"
    vtcompress.export(recipe, folder, bench_rounds=0)
    return folder


@pytest.mark.filterwarnings("ignore::compressor.errors.ArtifactWarning")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_threads_get_the_answers_of_one(
    tiny_artifact: Path, pictures: list[Path], backend: str, counted: Count
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    runtime = Runtime.load(tiny_artifact, threads=1, backend=backend)
    assert wrong_of(Answers(runtime, pictures), THREADS, ANSWERS) == 0
    counted(AT_ONCE, THREADS * ANSWERS)


@pytest.mark.filterwarnings("ignore::compressor.errors.ArtifactWarning")
def test_threads_that_share_buffers_get_the_answers_of_one(
    fixed: Path, pictures: list[Path], counted: Count
) -> None:
    runtime = Runtime.load(fixed, threads=1)
    assert wrong_of(Answers(runtime, pictures), THREADS, ANSWERS) == 0
    counted(AT_ONCE, THREADS * ANSWERS)


@pytest.mark.filterwarnings("ignore::compressor.errors.ArtifactWarning")
def test_a_graph_that_threads_need_at_once_is_loaded_once(
    tiny_artifact: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime.load(tiny_artifact, threads=1)
    opened: list[str] = []
    session: Any = runtime.session
    real = session._open_graph

    def slow(spec: Any) -> Any:
        opened.append(spec.name)
        time.sleep(0.05)
        return real(spec)

    monkeypatch.setattr(session, "_open_graph", slow)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: runtime.answer("look", pictures[0]), range(THREADS)))
    assert sorted(opened) == ["decoder", "embed", "vision"]


@pytest.mark.filterwarnings("ignore::compressor.errors.ArtifactWarning")
def test_threads_that_run_one_after_the_other_share_a_request(tiny_artifact: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    runtime = Runtime.load(tiny_artifact, threads=1, backend="openvino")
    session: Any = runtime.session
    embed = session.graph("embed")
    for _ in range(3):
        thread = threading.Thread(target=lambda: session.embed(np.zeros((1, 2), np.int64)))
        thread.start()
        thread.join()
    assert len(embed._free) == 1
