"""Artifacts on disk: what was written is read again, and every alteration is found when opened."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from compressor.errors import ArtifactError
from export.artifact.artifact import (
    Artifact,
    list_files,
    peak_memory_bytes,
    write_manifest,
)
from export.artifact.manifest import Manifest, tool_versions
from tests import facts

# The least that is an ONNX graph: a version, and an empty graph (its name pads it to 250 bytes).
GRAPH = b"\x08\x0a" + b"\x3a\xf5\x01" + b"\x12\xf2\x01" + b"n" * 242
FILES = {
    "decoder.onnx": GRAPH,
    "embed.onnx": GRAPH[:2] + b"\x3a\x00",
    "vision.onnx": GRAPH[:2] + b"\x3a\x03\x12\x01v",
    "weights.bin": bytes(range(256)) * 8,
    "validation/images/1.png": b"picture",
    "recipe.yaml": b"vtcompress: 1\n",
}


def fill(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def artifact(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    fill(folder)
    write_manifest(folder, **facts.manifest_fields(fidelity=facts.fidelity(), loss=facts.loss()))
    return folder


def edit(folder: Path, change) -> None:
    """Apply a function to the manifest's JSON."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def problems(folder: Path, *, verify: bool = True) -> tuple[str, ...]:
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(folder, verify=verify)
    return caught.value.problems


# What was written


def test_the_manifest_of_a_folder_is_written_and_opened_again(artifact):
    opened = Artifact.open(artifact)
    assert opened.folder == artifact
    expected = {
        name: (hashlib.sha256(content).hexdigest(), len(content)) for name, content in FILES.items()
    }
    found = {name: (e.sha256, e.size) for name, e in opened.manifest.files.items()}
    assert found == expected
    assert opened.manifest.model == facts.facts()
    assert [g.file for g in opened.manifest.graphs] == ["vision.onnx", "embed.onnx", "decoder.onnx"]
    assert opened.manifest.fidelity == facts.fidelity()
    assert opened.manifest.loss == facts.loss()


def test_the_manifest_holds_no_absolute_path_and_an_artifact_opens_where_it_was_moved(
    artifact, tmp_path
):
    text = (artifact / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert not any(Path(name).is_absolute() for name in json.loads(text)["files"])
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    artifact.rename(moved)
    assert Artifact.open(moved).folder == moved


def test_names_of_files_are_in_order_and_the_manifest_is_not_its_own_file(artifact):
    assert list(list_files(artifact)) == sorted(FILES)


def test_peak_memory_is_at_least_what_is_held_now():
    page = os.sysconf("SC_PAGE_SIZE")
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
    assert 0.5 * resident <= peak_memory_bytes() < 2**50


@pytest.mark.parametrize(
    ("fidelity", "loss", "limits", "verdict"),
    [
        ((), (), {"max_kl": 1}, "passed"),
        ((), (), {}, "not judged"),
        ((), None, {}, "not run"),
        (None, (), {"max_kl": 1}, "not run"),
        (None, None, {}, "not run"),
        (("x",), (), {"max_kl": 1}, "failed"),
        ((), ("x",), {"max_kl": 1}, "failed"),
        (None, ("x",), {"max_kl": 1}, "failed"),
    ],
)
def test_an_artifact_passed_only_if_both_checks_ran_were_judged_and_missed_nothing(
    fidelity, loss, limits, verdict
):
    manifest = Manifest(
        files={},
        **facts.manifest_fields(
            fidelity=None if fidelity is None else facts.fidelity(fidelity),
            loss=None if loss is None else facts.loss(loss, **limits),
        ),
    )
    assert manifest.verdict == verdict
    assert manifest.passed is (verdict == "passed")
    stored = json.loads(manifest.model_dump_json())
    assert (stored["verdict"], stored["manifest_format"]) == (verdict, 2)
    assert Manifest.model_validate(stored) == manifest


def test_versions_of_what_is_installed_are_told_and_of_what_is_not_left_out(monkeypatch):
    import numpy as np

    monkeypatch.setattr("export.artifact.manifest.TOOLS", ("numpy", "no-such-package"))
    versions = tool_versions()
    assert set(versions) == {"vtcompress", "python", "numpy"}
    assert versions["numpy"] == np.__version__


# What was altered


def test_a_folder_without_manifest_is_no_artifact(tmp_path):
    assert problems(tmp_path) == (f"{tmp_path}: no artifact; it has no manifest.json",)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_byte_is_found_in_any_file(artifact, name, place):
    content = bytearray(FILES[name])
    content[place] ^= 1
    (artifact / name).write_bytes(content)
    assert problems(artifact) == (
        f"{artifact / name}: sha256 is not the manifest's; copy the artifact anew",
    )


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_file_is_found_also_without_verifying(artifact, verify):
    (artifact / "weights.bin").write_bytes(FILES["weights.bin"][:-1])
    assert problems(artifact, verify=verify) == (
        f"{artifact / 'weights.bin'}: not as many bytes as the manifest says; copy the artifact anew",
    )


@pytest.mark.parametrize("verify", [True, False])
def test_missing_files_are_told_in_one_line_with_the_remedy_also_without_verifying(
    artifact, verify
):
    said = "missing, or a link out of the artifact; copy the artifact anew"
    (artifact / "weights.bin").unlink()
    assert problems(artifact, verify=verify) == (f"{artifact / 'weights.bin'}: {said}",)
    shutil.rmtree(artifact / "validation")
    named = "validation/images/1.png, weights.bin"
    assert problems(artifact, verify=verify) == (f"{artifact}: {named}: {said}",)
    for name in FILES:
        (artifact / name).unlink(missing_ok=True)
    first, more = ", ".join(sorted(FILES)[:3]), len(FILES) - 3
    assert problems(artifact, verify=verify) == (f"{artifact}: {first} and {more} more: {said}",)


def test_files_that_were_all_altered_in_one_way_are_told_in_one_line(artifact):
    for name, content in FILES.items():
        (artifact / name).write_bytes(bytes(len(content)))
    (line,) = problems(artifact)
    assert line.endswith(" more: sha256 is not the manifest's; copy the artifact anew")
    for name, content in FILES.items():
        (artifact / name).write_bytes(content[:-1])  # as a disk leaves it that was full
    (line,) = problems(artifact)
    assert line.endswith(" more: not as many bytes as the manifest says; copy the artifact anew")


def test_without_verifying_only_names_and_sizes_are_compared(artifact):
    (artifact / "weights.bin").write_bytes(bytes(2048))
    assert Artifact.open(artifact, verify=False).manifest.files["weights.bin"].size == 2048
    assert len(problems(artifact)) == 1


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("of", ["file", "folder"])
def test_a_link_out_of_the_artifact_is_refused_even_to_equal_bytes(artifact, tmp_path, of, verify):
    outside = tmp_path / "outside"
    shutil.copytree(artifact, outside)
    if of == "file":
        (artifact / "weights.bin").unlink()
        (artifact / "weights.bin").symlink_to(outside / "weights.bin")
    else:
        shutil.rmtree(artifact / "validation")
        (artifact / "validation").symlink_to(outside / "validation")
    (line,) = problems(artifact, verify=verify)
    assert "missing, or a link out of the artifact" in line


def test_an_artifact_may_itself_be_reached_by_a_link(artifact, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(artifact)
    assert Artifact.open(link).folder == link


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "..\\secret", "{absolute}"])
def test_a_manifest_that_names_files_outside_is_refused(artifact, tmp_path, name, verify):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    name = name.format(absolute=secret)
    entry = {"sha256": hashlib.sha256(b"secret").hexdigest(), "size": 6}
    edit(artifact, lambda m: m["files"].update({name: entry}))
    assert problems(artifact, verify=verify) == (
        f"{artifact}: the manifest names {name!r}, which leaves the folder; do not use this artifact",
    )


@pytest.mark.parametrize("name", ["", ".", "validation", "a\0b"])
def test_a_manifest_that_names_no_file_is_refused(artifact, name):
    entry = {"sha256": "0" * 64, "size": 0}
    edit(artifact, lambda m: m["files"].update({name: entry}))
    assert len(problems(artifact)) == 1


def test_files_that_the_manifest_does_not_name_are_refused(artifact):
    (artifact / "chat_template.json").write_text("{}")
    (artifact / "validation").mkdir(exist_ok=True)
    (artifact / "validation" / "manifest.json").write_text("{}")
    assert problems(artifact) == tuple(
        f"{artifact / name}: not named in the manifest; remove it, or copy the artifact anew"
        for name in ("chat_template.json", "validation/manifest.json")
    )
    Artifact.open(artifact, verify=False)


def test_a_name_that_no_file_system_takes_is_missing(artifact):
    entry = {"sha256": "0" * 64, "size": 1}
    edit(artifact, lambda manifest: manifest["files"].update({"x" * 300: entry}))
    assert any("missing" in line for line in problems(artifact))


def test_all_alterations_are_named_at_once(artifact):
    (artifact / "decoder.onnx").write_bytes(b"x" * 250)
    (artifact / "weights.bin").unlink()
    (artifact / "recipe.yaml").write_bytes(b"")
    assert len(problems(artifact)) == 3


def test_a_newer_format_is_refused_in_one_line_whatever_else_is_in_it(artifact):
    edit(artifact, lambda m: m.update(manifest_format=3, brand_new={"x": 1}, tools=5))
    assert problems(artifact) == (
        f"{artifact / 'manifest.json'}: artifact format 3; this vtcompress reads up to 2: upgrade "
        "vtcompress or export the model anew",
    )


def test_every_broken_field_of_a_manifest_is_named_at_once(artifact):
    def break_it(document):
        document["files"]["recipe.yaml"]["sha256"] = "short"
        document["dtype"] = "int3"
        document["colour"] = "red"
        del document["model_digest"]

    edit(artifact, break_it)
    prefix = f"{artifact / 'manifest.json'}: "
    named = {line.removeprefix(prefix).split(":")[0] for line in problems(artifact)}
    assert named == {"files.recipe.yaml.sha256", "dtype", "colour", "model_digest"}


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_manifest_that_is_no_json_object_is_refused(artifact, text):
    (artifact / "manifest.json").write_text(text)
    (line,) = problems(artifact)
    assert line.startswith(f"{artifact / 'manifest.json'}: manifest: ")


def test_a_graph_whose_file_is_not_among_the_files_is_refused(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    fill(folder)
    fields = facts.manifest_fields()
    write_manifest(folder, **fields)
    edit(folder, lambda m: m["graphs"][0].update(file="../outside.onnx"))
    with pytest.raises(ArtifactError, match=r"outside\.onnx"):
        Artifact.open(folder)


def test_a_graph_in_a_file_that_runtimes_take_for_another_format_is_refused(artifact):
    name = json.loads((artifact / "manifest.json").read_text())["graphs"][0]["file"]
    (artifact / name).rename(artifact / "graph.ort")

    def renamed(manifest):
        manifest["graphs"][0]["file"] = "graph.ort"
        manifest["files"]["graph.ort"] = manifest["files"].pop(name)

    edit(artifact, renamed)
    assert any("does not end with .onnx" in line for line in problems(artifact))


def test_an_artifact_whose_check_found_values_that_are_no_numbers_opens_again(tmp_path):
    fields = facts.manifest_fields(
        fidelity=facts.fidelity(["1 images, T=9: prefill: differs by inf, allowed max_abs 0.001"])
    )
    broken = fields["fidelity"].worst_abs.model_copy(update={"max_abs": float("inf")})
    fields["fidelity"] = fields["fidelity"].model_copy(update={"worst_abs": broken})
    fill(tmp_path)
    write_manifest(tmp_path, **fields)
    assert Artifact.open(tmp_path).manifest.fidelity.worst_abs.max_abs == float("inf")


# What the graphs declare


def test_a_tensors_shape_follows_the_named_axes():
    decoder = facts.manifest_fields()["graphs"][2]
    shapes = {
        t.name: t.shape({"batch": 2, "visual": 24, "text": 5, "past": 7, "total": 36})
        for t in (*decoder.inputs, *decoder.outputs)
    }
    assert shapes["visual_embeds"] == (2, 24, 16)
    assert shapes["inputs_embeds"] == (2, 5, 16)
    assert shapes["past_key_values.5.key"] == (2, 2, 7, 4)
    assert shapes["present.0.value"] == (2, 2, 36, 4)
    assert shapes["logits"] == (2, 1, 40)
    assert len(decoder.inputs) == 4 + 2 * 6
    assert len(decoder.outputs) == 1 + 2 * 6


def test_logits_of_all_rows_have_the_text_axis():
    from export.graphs.spec import decoder_graph

    graph = decoder_graph(facts.plan(), "float16", "all", name="baseline_decoder")
    assert graph.outputs[0].axes == ("batch", "text", 40)
    assert graph.outputs[0].dtype == "float32"
    assert graph.file == "baseline_decoder.onnx"
    assert {t.numpy.name for t in graph.inputs} == {"float16", "int64"}


def test_a_graph_that_uses_a_name_twice_is_refused():
    graph = facts.manifest_fields()["graphs"][0]
    with pytest.raises(ValueError, match="a name is used twice"):
        type(graph)(name="vision", file="v.onnx", inputs=graph.inputs, outputs=graph.inputs)
