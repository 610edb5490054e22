"""Results, guards and comparisons in the cases between: told in a line, and nothing that is whole is lost."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jinja2 import TemplateError

import vtcompress
from compressor.errors import DataError, ModelError, VtcompressError
from compressor.families import checkpoint, describe
from compressor.samples import prompts
from compressor.samples.questions import Sample
from export.artifact import moving, staging
from export.artifact.artifact import Artifact
from export.artifact.manifest import Compared
from export.backends.compared import keep, uncompared
from export.backends.tensorrt.session import EngineSession
from export.checks.original import read_original
from export.results.backend_parity import BackendParity
from tests import facts
from tests.artifacts import write_result
from vtcompress.cli.main import EXIT_USAGE, run_command


def test_a_result_in_its_place_counts_though_the_old_one_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, remove = write_result(tmp_path / "out", a="old"), shutil.rmtree

    def refusing(path: Path, ignore_errors: bool = False, **more: Any) -> None:
        if str(path).endswith(moving.OLD_MARK) and not ignore_errors:
            raise PermissionError(13, os.strerror(13))
        remove(path, ignore_errors=ignore_errors, **more)

    monkeypatch.setattr(shutil, "rmtree", refusing)
    with staging.staged(old, overwrite=True) as folder:
        (folder / "a").write_text("new")
    assert (old / "a").read_text() == "new"


def test_a_result_that_somebody_removed_is_said_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(folder: Path, _place: object) -> None:
        shutil.rmtree(folder)
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(staging, "move_in", gone)
    with (
        pytest.raises(VtcompressError, match=r"cannot be put in place: .*was removed meanwhile"),
        staging.staged(tmp_path / "out"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_engines_that_failed_their_comparison_say_so(tiny_artifact: Path, tmp_path: Path) -> None:
    artifact = Artifact.open(tiny_artifact, verify=False)
    session = object.__new__(EngineSession)
    session.engines = SimpleNamespace(folder=tmp_path)  # type: ignore[assignment]

    def said() -> str | None:
        return uncompared(artifact, session, "tensorrt", "f32")

    assert "were never compared" in str(said())
    for problems, wanted in ((["prefill: differs"], "engines failed when"), ([], "None")):
        BackendParity(backend="tensorrt", precision="f32", outputs=facts.fidelity(problems)).save(
            tmp_path
        )
        assert wanted in str(said())
    (tmp_path / "parity.json").write_text("{")
    assert "parity.json" in str(said())


def test_a_comparison_keeps_what_another_one_noted_meanwhile_and_raises_the_format(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"manifest_format": 2', '"manifest_format": 1'))
    opened = Artifact.open(folder, verify=False)
    for name in ("one", "two"):  # both from the manifest that was read before either was done
        keep(opened, Compared(backend=name, precision="f32", passed=True))
    manifest = Artifact.open(folder).manifest
    assert [c.backend for c in manifest.compared] == ["one", "two"]
    assert json.loads(path.read_text())["manifest_format"] == 2
    other = opened.manifest.model_copy(update={"files": {}})
    with pytest.raises(VtcompressError, match="written anew while it was compared"):
        keep(Artifact(folder, other), Compared(backend="x", precision="f32", passed=True))
    with (
        staging.exclusively(folder),
        pytest.raises(VtcompressError, match="being written by another run"),
    ):
        keep(opened, Compared(backend="x", precision="f32", passed=True))


@pytest.mark.parametrize("name", ["x" * 5000, "owner/" + "y" * 300, "a\0b"])
def test_a_name_that_no_folder_can_have_is_one_line(name: str) -> None:
    with pytest.raises(VtcompressError):
        vtcompress.inspect("/" + name)
    with pytest.raises(VtcompressError):
        vtcompress.plan(vtcompress.load_recipe("identity").override({"model.id": "/" + name}))


@pytest.mark.parametrize("failure", [TemplateError(), ValueError(), AttributeError("no such part")])
def test_whatever_a_processor_raises_is_one_line_with_its_place(failure: Exception) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise failure

    processor = SimpleNamespace(apply_chat_template=fails)
    with pytest.raises(DataError, match=r"^here: the model's processor fails: ."):
        prompts.encode(processor, Sample((), "what", where="here"), facts.facts())


def test_whatever_the_original_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> None:
        raise AttributeError

    fails.dtype, fails.device = torch.float32, "cpu"  # type: ignore[attr-defined]
    encoded = prompts.EncodedPrompt({"input_ids": torch.ones(1, 2)}, (torch.ones(1),), (1,), "here")
    monkeypatch.setattr("export.checks.original.encode", lambda *_: encoded)
    model: Any = SimpleNamespace(
        original=fails,
        processor=1,
        native_processor=1,
        facts=facts.facts(name="model", family="llava"),
    )
    with pytest.raises(ModelError, match="itself fails on a prompt with a picture: AttributeError"):
        read_original(model, Sample((), "what", where="here"))


def test_a_backend_runs_no_code_of_the_original(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["validate", str(tmp_path), "--backend", "openvino", "--trust-remote-code"]
    assert run_command(asked) == EXIT_USAGE
    assert "--trust-remote-code" in capsys.readouterr().err


def test_embedding_and_head_are_compared_once_for_unchanged_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    def write(value: float) -> None:
        save_file({"a": torch.ones(2, 2), "b": torch.full((2, 2), value)}, path)

    path, reads, opened = tmp_path / "model.safetensors", [], checkpoint.opened_weights
    monkeypatch.setattr(checkpoint, "opened_weights", lambda f: reads.append(f) or opened(f))
    write(1)
    assert [checkpoint.equal(tmp_path, "a", "b") for _ in range(3)] == [True] * 3
    assert len(reads) == 1
    write(2)
    os.utime(path, ns=(1, 1))
    assert not checkpoint.equal(tmp_path, "a", "b")


def test_reading_a_compressed_folders_processor_warns_of_nothing(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from compressor.compressed import read_compressed_processor

    folder = Path(shutil.copytree(tiny_model, tmp_path / "small"))
    (folder / "config.json").rename(folder / "original_config.json")
    (folder / "config.json").write_text(json.dumps({"model_type": "vtcompress"}))
    plan: Any = SimpleNamespace(model=describe(str(tiny_model)))
    from transformers.utils import logging

    logging.set_verbosity_warning()
    read_compressed_processor(folder, plan)
    assert "instantiate" not in capfd.readouterr().err
