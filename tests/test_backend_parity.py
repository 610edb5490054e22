"""`vtcompress validate --backend`: another backend beside ONNX Runtime on the CPU, without torch."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.errors import ArtifactError, ArtifactWarning, BackendError
from export.artifact.artifact import Artifact
from export.artifact.manifest import Compared
from export.backends.compared import keep
from export.results.backend_parity import PARITY_FILE, BackendParity
from export.runtime.runtime import Runtime
from export.session.feeds import CallRows
from tests import facts
from vtcompress import validate_backend
from vtcompress.cli.main import EXIT_MISSED, EXIT_USAGE, run_command
from vtcompress.stages import validate_backend as backend_check


class Off:
    """A backend whose logits are a little wrong."""

    def __init__(self, inner: Any, by: float) -> None:
        self.inner, self.by = inner, by

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def decode(self, rows: CallRows, past: Any) -> tuple[Any, Any]:
        logits, past = self.inner.decode(rows, past)
        return logits + self.by * np.arange(logits.shape[-1], dtype=logits.dtype), past


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    """Return a copy: what a comparison finds is kept in it."""
    return Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))


def test_openvino_is_compared_with_onnx_runtime_and_with_the_originals_answers_without_torch(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: extra openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = ["--json", "validate", str(artifact), "--backend", "openvino", "--threads", "1"]
    code = (
        "import sys; from vtcompress.cli.main import run_command\n"
        f"code = run_command({asked!r})\n"
        "sys.exit(code or 'torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = BackendParity.model_validate_json(done.stdout)
    assert (found.backend, found.precision, found.passed) == ("openvino", "f32", True)
    # Three numbers of images, two lengths: vision of two, and embed, prefill, a later turn and 16 steps.
    assert found.outputs.calls == 2 + 3 * 2 * (1 + 1 + 1 + 16)
    assert 0 < found.outputs.worst_abs.max_abs < found.outputs.limits.max_abs
    assert found.loss is not None
    assert found.loss.overall.samples == 6
    # It is kept, the artifact is still whole, and nothing is said any more.
    kept = Artifact.open(artifact).manifest.compared
    assert kept == (Compared(backend="openvino", precision="f32", passed=True),)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Runtime.load(artifact, backend="openvino")


def test_a_backend_that_an_artifact_was_never_compared_on_says_so_once(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remedy = rf"`vtcompress validate {artifact} --backend openvino`"
    with pytest.warns(ArtifactWarning, match=rf"openvino \(f32\) was never compared.*{remedy}"):
        Runtime.load(artifact, backend="openvino")
    asked = ["generate", str(artifact), "--prompt", "what", "--max-new-tokens", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "vtcompress", "--json", *asked, "--backend", "openvino"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count("was never compared with ONNX Runtime on this artifact") == 1
    assert json.loads(done.stdout)["prompt"] == "what"
    opened = Artifact.open(artifact)
    keep(opened, Compared(backend="openvino", precision="f32", passed=False))
    with pytest.warns(ArtifactWarning, match="failed when it was compared"):
        Runtime.load(artifact, backend="openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Runtime.load(artifact)


def test_a_backend_that_is_wrong_misses_the_recipes_limits_and_ends_with_three(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from export.backends.onnxruntime import OnnxSession

    def wrong(artifact: Any, *_: Any, **_options: Any) -> Off:
        return Off(OnnxSession(artifact.folder, artifact.manifest.graphs, threads=1), 1e-2)

    monkeypatch.setattr(backend_check, "open_session", wrong)
    assert run_command(["validate", str(artifact), "--backend", "openvino"]) == EXIT_MISSED
    shown = capsys.readouterr()
    assert (
        "Backend parity (openvino, f32 against ONNX Runtime on the CPU, 116 outputs)" in shown.out
    )
    assert "FAILED" in shown.out
    assert "missed: 0 images, T=9: prefill: differs by" in shown.err


def test_the_data_that_is_given_gives_its_name(
    artifact: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.backends.onnxruntime import OnnxSession

    def right(artifact: Any, *_: Any, **_options: Any) -> OnnxSession:
        return OnnxSession(artifact.folder, artifact.manifest.graphs, threads=1)

    monkeypatch.setattr(backend_check, "open_session", right)
    data = Path(shutil.copyfile(questions, questions.with_name("the-same.jsonl")))
    found = validate_backend(artifact, "openvino", data=data)
    assert found.loss is not None
    assert found.loss.data == "the-same.jsonl"


def test_the_reference_is_no_backend_to_compare_and_the_original_is_not_needed(
    tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackendError, match=r"is what other backends are compared with.*openvino"):
        validate_backend(tiny_artifact, "onnxruntime")
    asked = ["validate", str(tiny_artifact), "--backend", "openvino", "--model", "x"]
    assert run_command(asked) == EXIT_USAGE
    assert "leave out --model, --gates" in capsys.readouterr().err


def test_a_parity_is_stored_beside_engines_and_read_again_and_a_broken_one_is_named(
    tmp_path: Path,
) -> None:
    assert BackendParity.load(tmp_path) is None
    wanted = BackendParity(
        backend="tensorrt-rtx",
        precision="f32",
        device="A GPU",
        outputs=facts.fidelity(["prefill: differs"]),
        loss=facts.loss(["mean KL"]),
    )
    assert wanted.failures == ("prefill: differs", "mean KL")
    assert wanted.verdict == "failed"
    unjudged = wanted.model_copy(update={"outputs": facts.fidelity(), "loss": facts.loss()})
    assert (unjudged.verdict, unjudged.failures) == ("not judged", ())
    path = wanted.save(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [PARITY_FILE]
    assert BackendParity.load(tmp_path) == wanted
    document = json.loads(path.read_text()) | {"backend": 3}
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"parity.json: backend: .*--backend BACKEND` anew"):
        BackendParity.load(tmp_path)
