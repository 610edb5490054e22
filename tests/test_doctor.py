"""`vtcompress doctor`: every way in which a package can fail has words of its own, and none takes us along.

Packages that are not installed here are faked: folders in front of the child's search path.
"""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from compressor.errors import BackendError
from export.backends.backend import Ability
from export.backends.gpus import Gpu, nvidia_smi
from export.backends.onnxruntime import IDENTITY
from export.backends.probing import Probed, ask
from export.backends.registry import BACKENDS
from export.backends.tensorrt import backend as tensorrt
from export.machine import doctor
from export.machine.diagnosis import Diagnosis
from export.machine.doctor import examine
from tests.test_import_rules import HEAVY
from vtcompress.cli.main import run_command

Fake = Callable[..., None]

WORKING_TRT = """
__version__ = "10.13.0"
class Logger:
    ERROR = 1
    def __init__(self, level): pass
class Builder:
    def __init__(self, log): pass
class Runtime(Builder): pass
"""
WORKING_ORT = """
__version__ = "1.31.0"
OFFERED = {offered}
def get_available_providers(): return OFFERED
def preload_dlls(): print("Failed to load")
class SessionOptions: pass
class InferenceSession:
    def __init__(self, graph, options, providers): self.asked = providers
    def get_providers(self): return [p for p in self.asked if p in {real}] + ["CPUExecutionProvider"]
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Return a function that puts a package in front of all others, for children and for metadata."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def make(name: str, code: str | None = None, *, version: str = "9.9", **parts: str) -> None:
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        for module, text in {"__init__": code, **parts}.items():
            if text is not None:
                path = folder / name.replace("-", "_") / f"{module.replace('.', '/')}.py"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    return make


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes an nvidia-smi which says something."""

    def make(said: str, code: int = 0) -> None:
        path = tmp_path / "bin" / "nvidia-smi"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\nexit {code}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    return make


def fake_ort(fake: Fake, offered: list[str], real: list[str]) -> None:
    build = 'package_name = "onnxruntime-gpu"\n'
    fake(
        "onnxruntime",
        WORKING_ORT.format(offered=offered, real=real),
        **{"capi.build_and_package_info": build, "capi.__init__": ""},
    )


def probe(name: str, seconds: float = 30) -> Probed:
    return ask(BACKENDS[name].probe, seconds)


def judged(name: str, probed: Probed, *gpus: Gpu) -> Ability:
    return BACKENDS[name].ability(probed, gpus)


FAILURES = {
    "not there": (
        "raise ModuleNotFoundError('No module', name='tensorrt')",
        "not installed",
        "pip install '.[tensorrt]'",
    ),
    "a part is missing": (
        "import tensorrt_bindings",
        "TensorRT is installed without a part of it: no module tensorrt_bindings",
        "pip install --force-reinstall tensorrt",
    ),
    "libraries are missing": (
        "raise ImportError('libnvinfer.so.10: cannot open shared object file: No such file')",
        "TensorRT's Python bindings are installed without its libraries, or they do not fit: libnv",
        "LD_LIBRARY_PATH",
    ),
    "the driver is missing": (
        "raise ImportError('libcuda.so.1: cannot open shared object file: No such file')",
        "TensorRT is installed, NVIDIA's driver is not: no libcuda.so.1",
        "nvidia-smi",
    ),
    "something else": (
        "raise RuntimeError('only Tuesdays\\nand more')",
        "TensorRT is installed and cannot be imported: only Tuesdays",
        "pip install --force-reinstall tensorrt",
    ),
    "segmentation fault": (
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "TensorRT is installed and crashed (SIGSEGV) while importing tensorrt",
        "pip install --force-reinstall tensorrt",
    ),
    "leaves": (
        "import os; os._exit(7)",
        "TensorRT is installed and ended with status 7 while importing tensorrt",
        "pip install --force-reinstall tensorrt",
    ),
    "hangs": (
        "import time; time.sleep(60)",
        "TensorRT is installed and gave no answer for 3 s while importing tensorrt",
        "pip install --force-reinstall tensorrt",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_way_in_which_an_import_fails_has_its_words_and_its_remedy(
    fake: Fake, name: str
) -> None:
    code, words, remedy = FAILURES[name]
    fake("tensorrt", code)
    found = judged("tensorrt", probe("tensorrt", 3 if name == "hangs" else 30))
    assert found.words.startswith(words)
    assert remedy in found.remedy
    assert not found.runs
    assert not found.builds


def test_what_was_said_before_a_crash_is_kept_and_the_step_is_named(fake: Fake) -> None:
    fake("tensorrt", WORKING_TRT.replace("class Runtime(Builder): pass", "import os") + (
        "def Runtime(log): os.abort()\n"
    ))  # fmt: skip
    probed = probe("tensorrt")
    assert probed.facts["version"] == "10.13.0"
    assert probed.facts["builder"] == ""
    found = judged("tensorrt", probed, Gpu(name="A GPU", capability="SM86"))
    assert "crashed (SIGABRT) while creating its runtime" in found.words
    assert not found.runs


def test_a_builder_that_finds_no_gpu_says_so(fake: Fake) -> None:
    broken = (
        "class Builder:\n    def __init__(self, log): raise TypeError('factory returned nullptr')"
    )
    working = "class Builder:\n    def __init__(self, log): pass"
    fake("tensorrt", WORKING_TRT.replace(working, broken))
    found = judged("tensorrt", probe("tensorrt"))
    assert found.words == "10.13.0 is installed; factory returned nullptr"
    assert "driver" in found.remedy


@pytest.fixture
def cuda_for_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tensorrt,
        "installed_version",
        lambda name: "13.0" if name == "cuda-bindings" else None,
    )


def test_engines_build_and_do_not_run_without_cuda_for_python(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "installed_version", lambda _: None)
    fake("tensorrt", WORKING_TRT)
    found = judged("tensorrt", probe("tensorrt"), Gpu(name="Orin", capability="SM87"))
    assert (found.builds, found.runs, found.remedy) == (True, False, "pip install cuda-bindings")


@pytest.mark.usefixtures("cuda_for_python")
def test_tensorrt_with_a_gpu_builds_and_runs_and_without_one_does_neither(fake: Fake) -> None:
    fake("tensorrt", WORKING_TRT)
    probed = probe("tensorrt")
    with_gpu = judged("tensorrt", probed, Gpu(name="Orin", capability="SM87"))
    assert (with_gpu.builds, with_gpu.runs, with_gpu.remedy) == (True, True, "")
    without = judged("tensorrt", probed)
    assert (without.builds, without.runs) == (False, False)
    assert "no GPU was found" in without.words


@pytest.mark.usefixtures("cuda_for_python")
def test_rtx_builds_without_a_gpu_and_sends_gpus_that_it_does_not_know_to_full_tensorrt(
    fake: Fake,
) -> None:
    names = "class ComputeCapability:\n    __members__ = {'NONE': 0, 'SM86': 1, 'SM120': 2}\n"
    fake("tensorrt-rtx", WORKING_TRT + names)
    probed = probe("tensorrt-rtx")
    alone = judged("tensorrt-rtx", probed)
    assert (alone.builds, alone.runs) == (True, False)
    known = judged("tensorrt-rtx", probed, Gpu(name="A card", capability="SM120"))
    assert (known.builds, known.runs, known.remedy) == (True, True, "")
    jetson = judged("tensorrt-rtx", probed, Gpu(name="Orin", capability="SM87"))
    assert "knows SM86, SM120; this GPU is SM87" in jetson.words
    assert "--target tensorrt" in jetson.remedy
    assert not jetson.runs


def test_a_provider_that_is_listed_and_not_given_is_not_believed(fake: Fake) -> None:
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    fake_ort(fake, [cuda, cpu], [])
    found = judged("onnxruntime-cuda", probe("onnxruntime-cuda"))
    assert not found.runs
    assert f"CUDA is listed, and a session that asks for it runs on {cpu}" in found.words
    assert judged("onnxruntime", probe("onnxruntime")).runs


def test_a_provider_that_a_session_gets_is_believed(fake: Fake) -> None:
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    fake_ort(fake, [cuda, cpu], [cuda])
    found = judged("onnxruntime-cuda", probe("onnxruntime-cuda"))
    assert found.runs
    assert found.words == "onnxruntime-gpu 1.31.0, a session runs on CUDA"


def test_a_crash_of_cuda_leaves_what_is_known_of_the_cpu(fake: Fake) -> None:
    crashing = WORKING_ORT.format(offered=["CUDAExecutionProvider"], real=[]).replace(
        "self.asked = providers",
        "self.asked = providers; 'CUDA' in providers[0] and __import__('os').abort()",
    )
    build = 'package_name = "onnxruntime-gpu"\n'
    fake("onnxruntime", crashing, **{"capi.build_and_package_info": build, "capi.__init__": ""})
    assert judged("onnxruntime", probe("onnxruntime")).runs
    found = judged("onnxruntime-cuda", probe("onnxruntime-cuda"))
    assert found.words == "crashed (SIGABRT) while creating a session on CUDA"
    assert not found.runs


def test_two_builds_of_onnx_runtime_are_a_conflict_with_the_active_one_named(fake: Fake) -> None:
    fake("onnxruntime", None, version="1.31.1")
    fake("onnxruntime-gpu", None, version="1.31.0")
    gaps = list(BACKENDS["onnxruntime"].gaps(probe("onnxruntime")))
    assert gaps[0].problem == (
        "onnxruntime and onnxruntime-gpu are installed and overwrite each other; active is onnxruntime"
    )
    assert gaps[0].remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu, then install")


def test_nvidia_smi_tells_driver_and_gpus_and_what_it_cannot_say_is_left_open(
    smi: Callable[[str], None],
) -> None:
    smi("580.65.06, 8.6, NVIDIA GeForce RTX 3060\n580.65.06, [N/A], Orin (nvgpu), small")
    driver, gpus = nvidia_smi()
    assert driver == "580.65.06"
    assert gpus == (
        Gpu(name="NVIDIA GeForce RTX 3060", capability="SM86"),
        Gpu(name="Orin (nvgpu), small", capability=""),
    )


@pytest.mark.parametrize("code", [0, 9])
def test_an_nvidia_smi_that_fails_is_no_gpu(smi: Callable[..., None], code: int) -> None:
    smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver", code=code)
    assert nvidia_smi() == (None, ())


def test_without_nvidia_smi_the_driver_is_asked_as_build_asks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thor = Gpu(name="Thor", capability="SM110")
    monkeypatch.setattr(doctor, "nvidia_smi", lambda: (None, ()))
    monkeypatch.setattr(doctor, "find_gpus", lambda: (thor,))
    assert examine(30).gpus == (Gpu(name="Thor", capability="SM110"),)


@pytest.fixture(scope="module")
def here() -> Diagnosis:
    return examine()


def test_the_backends_that_the_tests_use_are_found(here: Diagnosis) -> None:
    assert here.ability("onnxruntime").runs
    assert "CPUExecutionProvider" in here.active
    assert {ability.backend for ability in here.abilities} == set(BACKENDS)
    torch = next(package for package in here.packages if package.name == "torch")
    assert torch.version is not None
    assert torch.words.endswith(" build")


def test_what_is_needed_and_cannot_run_is_refused_with_its_remedy(here: Diagnosis) -> None:
    for ability in here.abilities:
        if ability.runs:
            here.require(ability.backend)
            continue
        with pytest.raises(BackendError) as caught:
            here.require(ability.backend)
        assert ability.remedy
        assert str(caught.value) == f"{ability.backend}: {ability.words}; {ability.remedy}"


def test_the_command_shows_everything_and_fails_only_for_what_is_asked_for(
    here: Diagnosis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _: here)
    assert run_command(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*BACKENDS, "torch", "cuda-bindings", "GPU: "))
    assert run_command(["--json", "doctor"]) == 0
    assert Diagnosis.model_validate_json(capsys.readouterr().out) == here
    assert run_command(["doctor", "--need", "onnxruntime"]) == 0
    lacking = here.model_copy(
        update={"abilities": tuple(a.model_copy(update={"runs": False}) for a in here.abilities)}
    )
    monkeypatch.setattr(doctor, "examine", lambda _: lacking)
    capsys.readouterr()
    assert run_command(["doctor", "--need", "openvino"]) == 1
    assert capsys.readouterr().err.startswith("error: openvino: ")


def test_the_doctor_imports_no_package_that_could_crash_it() -> None:
    code = (
        "import sys, json; from export.machine.doctor import examine; examine(); "
        f"print(json.dumps([n for n in {(*HEAVY, 'tensorrt', 'tensorrt_rtx')!r} if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_graph_that_sessions_are_tried_with_is_one() -> None:
    onnx.checker.check_model(onnx.load_model_from_string(IDENTITY), full_check=True)
