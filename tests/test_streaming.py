"""Streamed exports: the bytes of one in memory, without the model there; what was not run has not passed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

import vtcompress
from compressor.errors import ModelError, RecipeError, VtcompressError
from compressor.families import load
from compressor.families.base import Family
from compressor.families.folder import WEIGHTS, WEIGHTS_INDEX
from compressor.families.llava.family import LlavaFamily
from compressor.families.model_class import outline
from compressor.families.model_class.stored import InMemory
from compressor.plan.edits import freeze
from compressor.progress import Megabytes
from export.artifact.artifact import Artifact
from export.artifact.manifest import Manifest, shortcoming
from export.results.verdict import Verdict
from export.writer.weights import SharedWeights
from tests import facts
from tests.family_cases import HEAD_MASK, cuts
from tests.llava_7b import make_llava_7b
from tests.test_family_smolvlm import make as make_smolvlm
from tests.test_model_folders import shard

Vt = Callable[..., tuple[int, str, str]]
REPOSITORY = Path(__file__).resolve().parent.parent
DIGITS = REPOSITORY / "examples" / "digits-llava" / "model"
HELD_OUT = DIGITS.parent / "heldout.jsonl"
FROZEN = [{"shortv": {"layers": [1]}}]


def recipe_of(model: Path, compress: Any = (), dtype: str = "float32") -> vtcompress.Recipe:
    values = {"model.id": str(model), "compress": list(compress), "export.dtype": dtype}
    return vtcompress.load_recipe("identity").override(values)


def first_layers(folder: Path, count: int) -> Path:
    """Write the bundled model with its first layers alone."""
    shutil.copytree(DIGITS, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["num_hidden_layers"] = count
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    later = tuple(f".model.layers.{i}." for i in range(count, 100))
    tensors = load_file(folder / WEIGHTS)
    kept = {n: t for n, t in tensors.items() if not any(part in n for part in later)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def both(recipe: vtcompress.Recipe, folder: Path) -> tuple[Path, Path, Manifest]:
    """Export in memory and streamed."""
    vtcompress.export(recipe, folder / "whole", bench_rounds=0)
    manifest = vtcompress.export(recipe, folder / "streamed", stream=True)
    return folder / "whole", folder / "streamed", manifest


def assert_same_bytes(whole: Path, streamed: Path) -> None:
    names = [p.name for p in whole.iterdir() if p.suffix in (".onnx", ".bin")]
    assert len(names) > 4
    for name in names:
        assert (streamed / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_bundled_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = first_layers(tmp_path / "model", 3)
    whole, streamed, manifest = both(recipe_of(model, FROZEN, "bfloat16"), tmp_path)
    assert_same_bytes(whole, streamed)
    Artifact.open(streamed)  # its files are those of the manifest
    assert manifest.streamed
    assert manifest.fidelity is not None
    assert manifest.fidelity.passed
    assert not Artifact.open(whole).manifest.streamed


@pytest.mark.parametrize(("weights", "dtype"), [("int4", "float16"), ("int8", "float32")])
def test_whole_numbers_have_the_same_bytes_and_are_checked_by_layer(
    weights: str, dtype: str, tmp_path: Path
) -> None:
    model = first_layers(tmp_path / "model", 2)
    recipe = recipe_of(model, FROZEN, dtype).override(
        {"export.weights": weights, "export.block": 32}
    )
    whole, streamed, manifest = both(recipe, tmp_path)
    assert_same_bytes(whole, streamed)
    assert manifest.fidelity is not None
    assert manifest.fidelity.failures == ()
    found, wanted = manifest.quantization, Artifact.open(whole).manifest.quantization
    assert found is not None
    assert wanted is not None
    assert found.loss is None
    assert wanted == found.model_copy(update={"loss": wanted.loss})
    text = (streamed / "report.md").read_text(encoding="utf-8")
    assert f"What {weights} weights alone lose was not measured" in text


def test_shards_of_a_tied_model_in_another_dtype_with_all_cuts_give_the_same_bytes(
    tmp_path: Path,
) -> None:
    """Heads and neurons lie apart: weights are read in parts, and the baseline joins them."""
    model, mask = tmp_path / "model", tmp_path / "mask.npy"
    make_smolvlm(model)
    tensors = load_file(model / WEIGHTS)
    save_file({n: t.bfloat16() for n, t in tensors.items()}, model / WEIGHTS, {"format": "pt"})
    shard(model)
    np.save(mask, HEAD_MASK)
    whole, streamed, manifest = both(recipe_of(model, cuts(mask, grid=False)["all"]), tmp_path)
    assert manifest.model.decoder.tied_embeddings
    assert_same_bytes(whole, streamed)


def test_nothing_that_was_not_run_is_said_to_have_passed(
    tiny_model: Path, tmp_path: Path, vt: Vt
) -> None:
    output = tmp_path / "out"
    given = ("--recipe", "identity", "--model", tiny_model, "--dtype", "float16")
    code, out, err = vt("export", *given, "--output", output, "--stream")
    assert code == 0, err
    said = "the model is not in memory, so the rewritten model is not compared with the original"
    assert f"streaming: {said}" in err
    manifest = Artifact.open(output).manifest
    found = (manifest.rewrite, manifest.loss, manifest.ranges, manifest.measured)
    assert found == (None,) * 4
    assert manifest.fidelity is not None
    assert manifest.fidelity.layers
    assert vt("inspect", output)[1].count("fidelity.by_layer") == 1
    assert vtcompress.inspect(output)["fidelity"]["by_layer"] is True
    assert manifest.verdict is Verdict.NOT_RUN
    assert "not known: compression loss: not run" in (shortcoming(manifest) or "")
    report = (output / "report.md").read_text(encoding="utf-8")
    for text in (out, report):
        assert "Streamed: weights were copied one at a time" in text
        assert "Values that float16 cannot hold were not looked for: not run" in text
        assert "by layer, 52 outputs" in text
    # Of the decoder nothing is known, which is no pass.
    assert manifest.selftest is not None
    assert manifest.selftest.parts == ("preprocessing", "prompt", "vision")
    code, out, err = vt("selftest", output, "--threads", 1)
    assert code == 0, err
    assert "decoder: not judged: the weights were never in memory" in out
    assert out.endswith("selftest: nothing is wrong; not judged: decoder, cache\n")


def test_checks_can_follow_where_the_model_fits(tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    vtcompress.export(recipe_of(tiny_model, FROZEN), output, stream=True)
    found = vtcompress.validate(output, model=str(tiny_model))
    assert found.fidelity is not None
    assert found.fidelity.verdict is Verdict.PASSED
    assert found.rewrite is not None
    assert found.rewrite.passed


def test_a_saved_plan_and_a_profile_stand_in_for_calibration(
    tiny_model: Path, tmp_path: Path
) -> None:
    recipe = vtcompress.load_recipe("shortv").override({"model.id": str(tiny_model)})
    plan = freeze(vtcompress.plan(recipe_of(tiny_model)), [0], "shortv")
    manifest = vtcompress.export(recipe, tmp_path / "planned", plan=plan, stream=True)
    assert manifest.predicted.flops < manifest.predicted.flops_original
    measured = facts.profile([[0.1, 0.2]] * 3)
    profile = measured.model_copy(update={"model_digest": plan.model_digest})
    vtcompress.export(recipe, tmp_path / "chosen", profile=profile, stream=True)
    chosen = vtcompress.Plan.load(tmp_path / "chosen" / "plan.json")
    assert "shortv" in chosen.methods


@pytest.mark.parametrize(
    ("values", "given", "words"),
    [
        ({"compress": [{"shortv": {"frozen": 0.5}}]}, {}, "choose by calibration .*: give a `profile`"),
        ({}, {"bench_rounds": 3}, "bench_rounds: 3: timing runs the model: .*`vtcompress bench`"),
        ({}, {"compressed": "folder"}, "folder: weights are streamed from the original's own files"),
        ({"export.targets": ["tensorrt-rtx"]}, {}, "export.targets: .*`vtcompress build`"),
    ],
)  # fmt: skip
def test_what_needs_the_model_in_memory_is_refused_in_one_line(
    values: dict[str, Any],
    given: dict[str, Any],
    words: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compressor.families.load", lambda *_, **__: pytest.fail("loaded"))
    recipe = recipe_of(tiny_model).override(values)
    with pytest.raises(RecipeError, match=words) as refused:
        vtcompress.export(recipe, tmp_path / "out", stream=True, **given)
    assert len(refused.value.problems) == 1
    assert not list(tmp_path.iterdir())


def elsewhere(folder: Path) -> None:
    """Let the index name a file outside the folder."""
    index = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "../b.safetensors"
    (folder / WEIGHTS_INDEX).write_text(json.dumps(index), encoding="utf-8")


def test_a_disk_that_is_too_small_is_refused_before_work(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(VtcompressError, match="free"):
        vtcompress.export(recipe_of(tiny_model), tmp_path / "out", stream=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "NaN or infinite values in .*q_proj.weight"),
        (1e5, "q_proj.weight has values that float16 cannot hold; set export.dtype"),
    ],
)
def test_numbers_that_cannot_be_written_are_named_and_nothing_stays(
    value: float, words: str, tiny_model: Path, tmp_path: Path
) -> None:
    model, made = tmp_path / "model", tmp_path / "made"
    shutil.copytree(tiny_model, model)
    made.mkdir()
    tensors = load_file(model / WEIGHTS)
    name = next(n for n in tensors if n.endswith("layers.1.self_attn.q_proj.weight"))
    tensors[name][0, 0] = value
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=words):
        vtcompress.export(recipe_of(model, dtype="float16"), made / "out", stream=True)
    assert not list(made.iterdir())


def test_weights_that_transformers_rearranges_are_refused_by_name(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = outline.names_in_memory

    def names(*given: Any) -> Any:
        shapes, read = own(*given)
        turned = next(name for name in read if name.endswith("layers.0.self_attn.k_proj.weight"))
        return shapes, read | {turned: InMemory(read[turned].names, converted=True)}

    monkeypatch.setattr(outline, "names_in_memory", names)
    words = r"layers\.0\.self_attn\.k_proj\.weight: stored in another form"
    with pytest.raises(ModelError, match=words):
        vtcompress.export(recipe_of(tiny_model), tmp_path / "out", stream=True)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_made_of_others_are_refused_by_name(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = LlavaFamily.tensors

    def tensors(self: LlavaFamily, original: Any) -> Any:
        found = dict(own(self, original))
        name = "layers.0.mlp.up_proj.weight"
        return found | {name: found[name] + 1}

    monkeypatch.setattr(LlavaFamily, "tensors", tensors)
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.up_proj\.weight.*leave `stream` out"):
        load(str(tiny_model), outline=True)


def test_a_family_that_does_not_tell_how_weights_are_stored_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlavaFamily, "outline", Family.outline)
    words = "the family 'llava' tells nothing of how its weights are stored"
    with pytest.raises(ModelError, match=words):
        load(str(tiny_model), outline=True)


def test_a_constant_that_was_computed_from_absent_weights_is_never_written(
    tiny_model: Path, tmp_path: Path
) -> None:
    stored = load(str(tiny_model), outline=True).stored
    value = ir.Value(name="folded", const_value=ir.tensor(np.full(600, np.nan, np.float32)))
    graph = ir.Graph([], [], nodes=[], initializers=[value], name="g")
    with (
        SharedWeights(tmp_path, stored) as weights,
        pytest.raises(
            RuntimeError, match="folded was computed from weights that are not in memory"
        ),
    ):
        weights.take(ir.Model(graph, ir_version=10))


def test_a_plan_for_a_model_in_memory_is_as_ever(tiny_model: Path) -> None:
    assert not load(str(tiny_model)).stored
    model = load(str(tiny_model), outline=True)
    assert {name for name, tensor in model.tensors.items() if tensor.ndim > 1} == {*model.stored}
    name, place = next(iter(model.stored.items()))
    assert torch.equal(place.read(), load(str(tiny_model)).tensors[name])


def test_progress_goes_by_bytes_and_ends() -> None:
    seen: list[tuple[str, int, int]] = []

    class Bar:
        def track(self, items: Any, label: str, total: int) -> Any:
            for done, item in enumerate(items, start=1):
                seen.append((label, done, total))
                yield item

        def say(self, line: str) -> None:
            pytest.fail(line)

    bar = Megabytes(Bar(), "writing weights, MB")
    with bar.of(3_500_000):
        bar.add(900_000)
        assert not seen
        bar.add(1_200_000)
        assert seen[-1] == ("writing weights, MB", 2, 4)
        bar.add(1_400_000)
    assert seen[-1] == ("writing weights, MB", 4, 4)
    with bar.of(0):
        pass
    assert len(seen) == 4


# Pages of mapped files are left out: how many are counted is the system's choice, which may drop them.
CHILD = """
import sys, threading, time, vtcompress
most = 0
def watch():
    global most
    while True:
        line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
        most = max(most, 1024 * int(line.split()[1]))
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
recipe = vtcompress.load_recipe("identity").override(
    {"model.id": sys.argv[1], "export.dtype": "float16", "compress": [{"shortv": {"layers": [1]}}]}
)
vtcompress.export(recipe, sys.argv[2], stream=True)
print(most)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_layers(tmp_path: Path) -> None:
    """Four more layers of width 1024 are 101 MB in float16 and 201 MB in float32."""
    children, weights = {}, {}
    for layers in (4, 8):
        model = make_llava_7b(
            tmp_path / f"model{layers}",
            text={
                "hidden_size": 1024,
                "intermediate_size": 2816,
                "num_attention_heads": 8,
                "num_hidden_layers": layers,
            },
            vision={"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2},
        )
        command = [sys.executable, "-c", CHILD, str(model), str(tmp_path / f"out{layers}")]
        # Else glibc learns to keep what large arrays leave, and which holes stay is chance.
        environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
        children[layers] = subprocess.Popen(
            command, cwd=REPOSITORY, env=environ, stdout=subprocess.PIPE
        )
    peaks = {}
    for layers, child in children.items():
        out, _ = child.communicate(timeout=600)
        assert child.returncode == 0
        peaks[layers] = int(out)
        weights[layers] = (tmp_path / f"out{layers}" / "weights.bin").stat().st_size
    assert weights[8] - weights[4] > 100e6
    assert peaks[8] - peaks[4] < 30e6, peaks
