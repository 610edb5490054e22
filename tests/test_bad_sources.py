"""Weights and settings that cannot be exported: one line from the command line, in memory as streamed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_model_folders import cut, shard
from tests.test_streaming import elsewhere

Vt = Callable[..., tuple[int, str, str]]
SHARD = "b.safetensors"


@pytest.mark.parametrize("how", [(), ("--stream",)], ids=["in memory", "streamed"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / SHARD).unlink(), f"{SHARD}: no such file, and"),
        (lambda folder: cut(folder / SHARD), f"{SHARD}: broken or cut off"),
        (elsewhere, "only *.safetensors files beside it are read"),
    ],
    ids=["missing", "truncated", "outside the folder"],
)
def test_shards_that_cannot_be_read_are_refused_in_one_line(
    spoil: Callable[[Path], None],
    words: str,
    how: tuple[str, ...],
    tiny_model: Path,
    tmp_path: Path,
    vt: Vt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compressor.families.load", lambda *_, **__: pytest.fail("loaded"))
    model, made = tmp_path / "model", tmp_path / "made"
    shutil.copytree(tiny_model, model)
    made.mkdir()
    shard(model)
    spoil(model)
    refused(vt, model, made / "out", words, *how)


@pytest.mark.parametrize("how", [(), ("--stream",)], ids=["in memory", "streamed"])
def test_a_block_that_does_not_divide_is_refused_in_one_line(
    how: tuple[str, ...], tiny_model: Path, tmp_path: Path, vt: Vt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.families.load", lambda *_, **__: pytest.fail("loaded"))
    options = ("--weights", "int4", "--block", "128", *how)
    kinds = 3  # of matrices, a line each
    words = "export.block: 128 does not divide"
    refused(vt, tiny_model, tmp_path / "out", words, *options, problems=kinds)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_that_is_absent_is_refused_in_one_line(
    device: str,
    tiny_model: Path,
    questions: Path,
    tmp_path: Path,
    vt: Vt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compressor.families.load", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    given = ("--recipe", "shortv", "--model", tiny_model, "--data", questions, "--device", device)
    code, out, err = vt("calibrate", *given, "--output", tmp_path / "profile.json")
    assert (code, out) == (1, "")
    assert sum(line.startswith("error:") for line in err.splitlines()) == 1
    assert device in err
    assert not list(tmp_path.iterdir())


def refused(
    vt: Vt, model: Path, output: Path, words: str, *options: object, problems: int = 1
) -> None:
    """Export, and see each problem refused in one line that has these words; nothing may be left."""
    given = ("--recipe", "identity", "--model", model, "--output", output)
    code, out, err = vt("export", *given, *options)
    assert (code, out) == (1, "")
    lines = err.splitlines()
    errors = [line for line in lines if line.startswith("error:")]
    assert errors == lines[-len(errors) :]
    assert all(words in line for line in errors)
    assert len(errors) == problems
    assert not [path for path in output.parent.iterdir() if path != model]
