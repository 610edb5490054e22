"""`vtcompress build`, and engines at the end of an export: built ahead of time by TensorRT-RTX."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vtcompress
from compressor.errors import ArtifactError, RecipeError, VtcompressError
from compressor.plan.plan import Plan
from export.artifact.artifact import PLAN_FILE, Artifact
from export.artifact.engine_set import engine_sets
from export.backends.tensorrt.build import build_engines, plan_engines
from export.backends.tensorrt.find import open_set
from export.backends.tensorrt.targets import TARGETS
from export.backends.tensorrt.trtexec import build_command, command_line
from export.graphs.limits import Limits
from export.graphs.profiles import profiles_of
from export.graphs.spec import decoder_graph, vision_graph
from tests.decoders import plan_of
from vtcompress.cli.main import run_command
from vtcompress.stages import export as exporting
from vtcompress.stages.build import check_targets

NAMES = ("vision.engine", "embed.engine", "decoder.engine")


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float16 artifact that came with engines for two kinds of GPU. Not to be changed."""
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    recipe = vtcompress.load_recipe("identity").override(
        {
            "model.id": str(tiny_model),
            "export.dtype": "float16",
            "export.targets": ["onnx", "tensorrt-rtx"],
            "export.profiles": {"compute_capabilities": ["SM86", "SM120"], "max_text": 48},
        }
    )
    output = tmp_path_factory.mktemp("built") / "artifact"
    vtcompress.export(recipe, output, bench_rounds=0)
    return output


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Path:
    """A copy without engines."""
    folder = tmp_path / "artifact"
    shutil.copytree(exported, folder, ignore=shutil.ignore_patterns("engines"))
    return folder


def test_an_export_brings_the_engines_that_its_recipe_asks_for(exported: Path) -> None:
    (found,) = engine_sets(exported)
    assert found.folder == exported / "engines" / "tensorrt-rtx-SM86-SM120"
    assert tuple(entry.file for entry in found.facts.engines) == NAMES
    assert found.facts.limits.max_text == 48
    assert TARGETS[found.facts.target].proof(found.facts.device) == (
        "TensorRT-RTX engine built ahead of time; nothing has run on a GPU"
    )
    assert all(entry.seconds > 0 and entry.size > 10_000 for entry in found.facts.engines)
    decoder = found.facts.engines[-1]
    assert [profile.name for profile in decoder.profiles] == ["prefill", "decode"]


def test_engines_are_files_of_the_artifact_and_what_lies_beside_them_is_not(
    exported: Path, artifact: Path
) -> None:
    shutil.copytree(exported / "engines", artifact / "engines")
    # What a build that runs now writes is not yet a part of it.
    hidden = artifact / "engines" / ".tensorrt-rtx-SM89.vtcompress-staging-1"
    hidden.mkdir()
    (hidden / "vision.engine").write_bytes(b"half")
    Artifact.open(artifact)
    strays = [
        artifact / "engines" / "x.bin",
        artifact / "engines" / "other" / "decoder.engine",
        artifact / "engines" / "tensorrt-rtx-SM86-SM120" / "more.engine",
        artifact / "engines" / "tensorrt-rtx-SM86-SM120" / "deep" / "vision.engine",
    ]
    for stray in strays:
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(b"x")
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(artifact)
    assert len(caught.value.problems) == len(strays)
    assert all(any(str(s) in line for line in caught.value.problems) for s in strays)


PROGRAM = """
import sys
for name in ("torch", "transformers", "onnx", "onnxruntime", "optimum"):
    sys.modules[name] = None
from vtcompress.cli.main import run_command
sys.exit(run_command(sys.argv[1:]))
"""


def test_build_needs_the_artifact_alone_neither_torch_nor_onnx(artifact: Path) -> None:
    arguments = ["--json", "build", str(artifact), "--target", "tensorrt-rtx"]
    arguments += ["--compute-capability", "SM89", "--max-text", "32", "--with-baseline"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["plan"]["limits"]["max_text"] == 32
    assert document["engines"]["compute_capabilities"] == ["SM89"]
    assert "building decoder.engine for tensorrt-rtx-SM89" in done.stderr
    folder = artifact / "engines" / "tensorrt-rtx-SM89"
    written = sorted(path.name for path in folder.iterdir())
    assert written == sorted([*NAMES, "baseline_decoder.engine", "engines.json"])
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    Artifact.open(artifact)


def test_a_dry_run_prints_sizes_and_the_vendors_commands_and_builds_nothing(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["build", str(artifact), "--target", "tensorrt-rtx", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "nothing was built" in said
    assert said.count("tensorrt_rtx --onnx=") == 3
    assert "--computeCapabilities=86,120" in said
    assert "prefill" in said
    assert not (artifact / "engines").exists()


@pytest.mark.parametrize(("flags", "lines"), [((), 0), (("-v",), 3), (("-q",), 0)])
def test_a_build_shows_the_vendors_commands_to_whoever_asks_for_more(
    flags: tuple[str, ...],
    lines: int,
    exported: Path,
    artifact: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (built,) = engine_sets(exported)
    place = "export.backends.tensorrt.build.build_engines"
    monkeypatch.setattr(place, lambda *_, **__: built)
    assert run_command([*flags, "build", str(artifact), "--target", "tensorrt-rtx"]) == 0
    said = capsys.readouterr().out
    assert said.count("tensorrt_rtx --onnx=") == lines
    assert said.splitlines()[-1] == f"written: {built.folder}"
    assert (len(said.splitlines()) == 1) == (flags == ("-q",))


def test_a_dry_run_for_another_machine_needs_neither_the_package_nor_a_gpu(
    artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert run_command(["build", str(artifact), "--target", "tensorrt", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("trtexec --onnx=") == 3
    assert "--saveEngine=tensorrt-GPU-decoder.engine" in said
    assert "computeCapabilities" not in said
    assert run_command(["build", str(artifact), "--target", "tensorrt"]) == 1
    assert "'.[tensorrt]'" in capsys.readouterr().err
    chosen = ["--compute-capability", "SM86", "--dry-run"]
    assert run_command(["build", str(artifact), "--target", "tensorrt", *chosen]) == 1


def refuse(artifact: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert run_command(["build", str(artifact), "--target", "tensorrt-rtx", *more]) == 1
    assert not list((artifact / "engines").glob(".*"))
    return capsys.readouterr().err


def test_what_cannot_be_built_is_refused_before_anything_is_written(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "'SM87' is unknown" in refuse(artifact, capsys, "--compute-capability", "SM87")
    assert "has no room for 1 image(s)" in refuse(artifact, capsys, "--max-context", "9")
    assert "max_text: 600 is more" in refuse(artifact, capsys, "--max-text", "600")
    manifest = artifact / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"float16"', '"float32"'))
    assert "`export.dtype: float16`" in refuse(artifact, capsys)
    assert not (artifact / "engines").exists()


def test_engines_that_are_there_are_replaced_only_when_asked(
    exported: Path, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported / "engines", artifact / "engines")
    assert "exists; add --overwrite" in refuse(artifact, capsys)


class InterruptedAtTheDecoder:
    def say(self, line: str) -> None:
        if "decoder" in line:
            raise KeyboardInterrupt

    def track(self, items: Any, label: str, total: int) -> Any:  # noqa: ARG002
        yield from items


def test_an_interrupted_build_leaves_the_artifact_as_it_was(artifact: Path) -> None:
    plan = plan_engines(artifact, "tensorrt-rtx", progress=InterruptedAtTheDecoder())
    before = sorted(artifact.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        build_engines(plan)
    assert sorted(artifact.rglob("*")) == before


def test_an_artifact_that_changed_is_told_from_the_one_the_engines_were_built_from(
    exported: Path, artifact: Path
) -> None:
    from export.artifact.engine_set import Machine

    (found,) = engine_sets(exported)
    here = Machine(found.facts.version, "SM120", "a GPU")
    assert open_set(found.folder, Artifact.open(exported), here)
    shutil.copytree(exported / "engines", artifact / "engines")
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["files"]["weights.bin"]["sha256"] = "0" * 64
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    (copied,) = engine_sets(artifact)
    with pytest.raises(ArtifactError, match="the artifact changed since"):
        open_set(copied.folder, Artifact.open(artifact, verify=False), here)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"export.dtype": "float32"}, r"export\.dtype: float32; tensorrt-rtx has no float32"),
        ({"export.profiles.compute_capabilities": ["SM87"]}, r"'SM87' is unknown.*known: SM75"),
        ({"export.profiles.max_context": 12}, r"export\.profiles\.max_context: 12 has no room"),
        ({"export.profiles.max_text": 999}, r"export\.profiles\.max_text: 999 is more than"),
    ],
)
def test_a_recipe_s_targets_are_refused_before_weights_are_loaded(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    problem: str,
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    monkeypatch.setattr(exporting, "load_model", lambda *_: pytest.fail("weights were loaded"))
    values = {
        "model.id": str(tiny_model),
        "export.targets": ["tensorrt-rtx"],
        "export.dtype": "float16",
    }
    recipe = vtcompress.load_recipe("identity").override(values | changes)
    with pytest.raises(RecipeError, match=problem):
        vtcompress.export(recipe, tmp_path / "out", bench_rounds=0)
    assert not (tmp_path / "out").exists()


def test_a_target_that_is_not_installed_and_gates_that_compute_a_size_are_refused_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    recipe = vtcompress.load_recipe("dyvte").override(
        {"export.targets": ["tensorrt-rtx", "tensorrt"], "export.dtype": "float16"}
    )
    with pytest.raises(RecipeError) as caught:
        check_targets(recipe, plan_of("identity").model)
    gates, *missing = caught.value.problems
    assert "compress.dyvte.exit: dynamic" in gates
    assert [("'.[rtx]'" in m, "'.[tensorrt]'" in m) for m in missing] == [
        (True, False),
        (False, True),
    ]


def test_an_unknown_target_is_refused_with_those_that_there_are(artifact: Path) -> None:
    with pytest.raises(VtcompressError, match="no such target; there are tensorrt-rtx, tensorrt"):
        plan_engines(artifact, "openvino")


def test_the_vendors_command_has_the_shapes_of_every_profile() -> None:
    spec = vision_graph(plan_of("identity").model, "float16")
    limits = Limits(max_batch=1, max_images=2, max_text=8, max_context=64, visual_tokens=12)
    profiles = profiles_of(spec, limits)
    files = (Path("a b/vision.onnx"), spec, profiles, Path("v.engine"), Path("t.cache"))
    rtx = build_command(TARGETS["tensorrt-rtx"], *files, ("SM86", "SM120"))
    assert rtx == (
        "tensorrt_rtx",
        "--onnx=a b/vision.onnx",
        "--minShapes=pixel_values:1x3x4x4",
        "--optShapes=pixel_values:1x3x4x4",
        "--maxShapes=pixel_values:2x3x4x4",
        "--computeCapabilities=86,120",
        "--saveEngine=v.engine",
        "--skipInference",
    )
    full = build_command(TARGETS["tensorrt"], files[0], spec, (*profiles, *profiles), *files[3:])
    assert full[:2] == ("trtexec", "--onnx=a b/vision.onnx")
    assert [w for w in full if w.startswith("--profile")] == ["--profile=0", "--profile=1"]
    assert full[-4:] == (
        "--stronglyTyped",
        "--timingCacheFile=t.cache",
        "--saveEngine=v.engine",
        "--skipInference",
    )
    assert "'--onnx=a b/vision.onnx'" in command_line(rtx)


def test_engines_of_fixed_caches_have_buffers_of_the_context_that_is_asked_for(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to that of the artifact; the vendor's own tool does not take such a graph."""
    plan = Plan.load(artifact / PLAN_FILE)
    visual = plan.model.visual_tokens
    limits = Limits(max_batch=1, max_images=1, max_text=48, max_context=64, visual_tokens=visual)
    fixed = {
        name: decoder_graph(made, "float16", "last", name=name, limits=limits)
        for name, made in (("decoder", plan), ("baseline_decoder", plan.naive()))
    }
    manifest = json.loads((artifact / "manifest.json").read_text())
    graphs = [
        fixed[g["name"]].model_dump(mode="json") if g["name"] in fixed else g
        for g in manifest["graphs"]
    ]
    (artifact / "manifest.json").write_text(json.dumps(manifest | {"graphs": graphs}))
    refused = refuse(artifact, capsys, "--max-context", "65")
    assert "max_context: 65 is more than 64, for which the artifact's KV cache" in refused
    assert "give 64 or less, or export it with a larger" in refused
    arguments = ["build", str(artifact), "--target", "tensorrt-rtx", "--max-context", "60"]
    assert run_command([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("tensorrt_rtx --onnx=") == 2
    assert "decoder: none, because it names the room" in said
    assert run_command(["--json", *arguments, "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)["plan"]
    assert list(told["without_command"]) == ["decoder"]
    assert "decoder" not in told["commands"]
    settled = plan_engines(artifact, "tensorrt-rtx", limits={"max_context": 60})
    spec, profiles = settled.profiles[-1]
    assert spec.name == "decoder"
    assert [{p.least["room"], p.most["room"]} for p in profiles] == [{60}, {60}]
