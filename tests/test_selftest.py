"""`vtcompress selftest`: known answers travel in an artifact, and each planted fault is named by its part."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vtcompress
from compressor.errors import ArtifactError, MissingExtraError
from compressor.samples.layout import Places
from compressor.samples.made_pictures import MADE_PICTURES
from export.artifact.artifact import Artifact
from export.artifact.onnx_header import read_tensors
from export.checks.known.answers import KNOWN_FILE, KNOWN_FOLDER, KnownAnswers
from export.checks.known.made_calls import noise
from export.checks.known.report import PARTS, SelftestReport
from export.checks.known.sums import Sums
from export.results.verdict import Verdict
from export.runtime.images import ImageProcessor
from export.runtime.runtime import Runtime
from export.session.feeds import CallRows
from export.session.session import GraphSession
from vtcompress.stages.exporting.known_answers import (
    known_answers,
    known_without_decoder,
    write_known,
)
from vtcompress.stages.selftest import run as stage

CPU_BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture
def artifact(plain_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of an artifact of four layers, to plant faults in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(plain_artifact, tmp_path / "artifact"))


def examined(artifact: Path, backend: str = "onnxruntime", **options: Any) -> SelftestReport:
    pytest.importorskip(backend)
    return vtcompress.selftest(
        artifact, backend=backend, threads=1, verify=False, progress=False, **options
    )


def verdicts(report: SelftestReport) -> dict[str, str]:
    return {part.name: str(part.verdict) for part in report.parts}


def flip(artifact: Path, graph: str, name: str, place: int = 17) -> None:
    """Turn the highest byte of one stored number around; digests and sizes of files are not told."""
    tensors = read_tensors((artifact / graph).read_bytes())
    found = next(t for t in tensors if t.name == name)
    assert found.location
    file = artifact / found.location
    content = bytearray(file.read_bytes())
    content[found.offset + 4 * place + 3] ^= 0xFF
    file.write_bytes(content)


def test_an_export_leaves_small_known_answers_that_the_manifest_lists_and_inspect_names(
    plain_artifact: Path,
) -> None:
    manifest = Artifact.open(plain_artifact).manifest
    names = {f"{KNOWN_FOLDER}/{made.name}.png" for made in MADE_PICTURES} | {KNOWN_FILE}
    assert {name for name in manifest.files if name.startswith(KNOWN_FOLDER)} == names
    assert sum(manifest.files[name].size for name in names) < 300_000
    assert manifest.selftest is not None
    assert manifest.selftest.model_dump() == {
        "selftest_format": 1,
        "pictures": 4,
        "parts": PARTS,
        "layers": 4,
        "left_out": (),
    }
    told = vtcompress.inspect(plain_artifact)
    assert told["selftest"]["pictures"] == 4
    assert told["fidelity"]["by_layer"] is False


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_device_that_computes_what_is_known_is_right_in_every_part(
    artifact: Path, backend: str
) -> None:
    report = examined(artifact, backend, locate=True)
    assert verdicts(report) == dict.fromkeys(PARTS, "passed")
    assert [part.compared for part in report.parts] == [4, 4, 5, 11, 22]
    assert report.verdict is Verdict.PASSED
    assert report.located is not None
    assert report.located.line.startswith("states part nowhere: of made-up rows those behind all 4")


def test_the_command_says_a_line_for_each_part_without_torch(artifact: Path) -> None:
    code = (
        "import sys; from vtcompress.cli.main import run_command\n"
        f"code = run_command(['selftest', {str(artifact)!r}])\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnx_ir'} & set(sys.modules)\n"
        "sys.exit(code or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [*PARTS, "selftest"]
    assert lines[-1] == "selftest: right, as known from ONNX Runtime"


def test_a_wrong_resize_filter_is_a_fault_of_preprocessing(
    artifact: Path, vt: Callable[..., tuple[int, str, str]]
) -> None:
    path = artifact / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    steps = document["picture_steps"]
    resize = next(step for step in steps if "resample" in step)
    assert resize["resample"] != "bilinear"
    resize["resample"] = "bilinear"
    path.write_text(json.dumps(document), encoding="utf-8")
    # The steps must be those of the processor's file, too.
    file = artifact / "processor_config.json"
    content = file.read_text(encoding="utf-8")
    assert content.count('"resample": 3') == 1
    file.write_text(content.replace('"resample": 3', '"resample": 2'), encoding="utf-8")
    code, shown, said = vt("--json", "selftest", artifact, "--no-verify", "--threads", 1)
    assert code == 3, said
    found = json.loads(shown)
    assert (code, found["first_wrong"]) == (3, "preprocessing")
    # What reads no picture is judged all the same.
    assert {part["name"]: part["verdict"] for part in found["parts"]} == {
        "preprocessing": "failed",
        "prompt": "passed",
        "vision": "passed",
        "decoder": "passed",
        "cache": "not judged",
    }
    code, shown, _ = vt("selftest", artifact, "--no-verify", "--threads", 1)
    assert code == 3
    assert "preprocessing: WRONG: wide.png: pixel values differ: " in shown
    assert shown.endswith("selftest: WRONG, and first of all in the preprocessing\n")


def test_swapped_channels_are_a_fault_of_preprocessing(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ImageProcessor.__call__

    def swapped(self: ImageProcessor, image: Any) -> Any:
        seen = right(self, image)
        return dataclasses.replace(seen, pixels=np.ascontiguousarray(seen.pixels[:, ::-1]))

    monkeypatch.setattr(ImageProcessor, "__call__", swapped)
    report = examined(artifact)
    assert report.first_wrong == "preprocessing"
    assert len(report.parts[0].failures) == len(MADE_PICTURES)


def test_another_prompt_is_a_fault_of_the_prompt(artifact: Path) -> None:
    template = artifact / "chat_template.jinja"
    if not template.exists():
        template = artifact / "tokenizer_config.json"
    content = template.read_text(encoding="utf-8")
    assert "USER" in content
    template.write_text(content.replace("USER", "what", 1), encoding="utf-8")
    report = examined(artifact)
    assert report.first_wrong == "prompt"
    assert "wide.png: other tokens from place" in report.parts[1].failures[0]


@pytest.mark.parametrize("command", [("selftest",), ("generate", "--prompt", "it")])
def test_a_chat_template_that_cannot_be_rendered_is_a_fault_of_its_file(
    artifact: Path, vt: Callable[..., tuple[int, str, str]], command: tuple[str, ...]
) -> None:
    """And no other prompt than the known one, with a remedy for those who write conversations."""
    template = artifact / "chat_template.jinja"
    size = template.stat().st_size
    template.write_bytes(b"{{ messages[0].nothing.more }}".ljust(size))
    code, shown, said = vt(*command, artifact, "--no-verify")
    assert (code, shown) == (1, "")
    (line,) = [line for line in said.splitlines() if "rror" in line]
    assert line.startswith(f"error: {template}: the chat template cannot ask even one question: ")
    assert line.endswith("put the template of the model's authors here")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(
    ("name", "layer"),
    [("layers.0.key.weight", 0), ("layers.2.mlp.down.weight", 2), ("head.weight", None)],
)
def test_a_flipped_byte_of_the_decoder_is_told_with_its_layer(
    artifact: Path, name: str, layer: int | None, backend: str
) -> None:
    flip(artifact, "decoder.onnx", name)
    report = examined(artifact, backend, locate=True)
    assert report.first_wrong == "decoder"
    assert verdicts(report)["vision"] == "passed"
    assert report.located is not None
    assert report.located.layer == layer


def test_a_flipped_byte_of_the_vision_tower_is_a_fault_of_vision(artifact: Path) -> None:
    tensors = read_tensors((artifact / "vision.onnx").read_bytes())
    largest = max((t for t in tensors if t.location), key=lambda t: t.nbytes)
    flip(artifact, "vision.onnx", largest.name)
    report = examined(artifact, locate=True)
    assert report.first_wrong == "vision"
    # With made-up rows in place of what the tower gives.
    assert verdicts(report)["decoder"] == "passed"
    assert report.located is not None
    assert report.located.layer is None


def test_a_flipped_byte_is_refused_before_where_digests_are_compared(artifact: Path) -> None:
    flip(artifact, "decoder.onnx", "layers.2.mlp.down.weight")
    with pytest.raises(ArtifactError, match=r"weights\.bin: sha256 is not the manifest's"):
        vtcompress.selftest(artifact, progress=False)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_other_rotations_in_the_graph_are_a_fault_of_the_decoder_from_the_first_layer_on(
    artifact: Path, backend: str
) -> None:
    path = artifact / "decoder.onnx"
    content = path.read_bytes()
    frequencies = Artifact.open(artifact).manifest.model.decoder.rope_inv_freq
    right = np.array(frequencies, "<f4")
    assert content.count(right.tobytes()) == 1
    wrong = right * np.float32(1.1)
    path.write_bytes(content.replace(right.tobytes(), wrong.tobytes()))
    report = examined(artifact, backend, locate=True)
    assert report.first_wrong == "decoder"
    assert report.located is not None
    assert report.located.layer == 0


def test_positions_that_are_shifted_in_a_prompt_are_told_with_the_prompt(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.runtime import core

    right = core.layout_of

    def shifted(*given: Any, **named: Any) -> Any:
        layout = right(*given, **named)
        moved = np.where(layout.text_index > 3, layout.text_index + 2, layout.text_index)
        return dataclasses.replace(layout, text_index=moved)

    monkeypatch.setattr(core, "layout_of", shifted)
    report = examined(artifact)
    assert report.first_wrong == "prompt"
    assert "wide.png: rows stand at other places, or at other positions" in report.parts[1].failures


def test_positions_that_are_shifted_behind_the_prompt_are_a_fault_of_the_cache(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Places.behind
    monkeypatch.setattr(Places, "behind", lambda s, number, count=1: right(s, number + 3, count))
    report = examined(artifact)
    assert report.first_wrong == "cache"


def test_a_stale_cache_is_told(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, kept = GraphSession.decode, []

    def stale(self: Any, rows: CallRows, past: Any) -> Any:
        if kept and not rows.visual_index.shape[1]:
            past = kept[0]  # of the first picture, whatever the answer is about
        logits, present = right(self, rows, past)
        if rows.visual_index.shape[1]:
            kept.append(present)
        return logits, present

    monkeypatch.setattr(GraphSession, "decode", stale)
    report = examined(artifact)
    assert verdicts(report) == dict.fromkeys(PARTS, "passed") | {"cache": "failed"}


def test_a_kept_picture_that_is_another_is_a_fault_of_the_cache(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.checks.known import observe

    right, other = observe.prefill_images, MADE_PICTURES[2].image()

    monkeypatch.setattr(observe, "prefill_images", lambda runtime, _: right(runtime, other))
    (failure,) = examined(artifact).parts[-1].failures
    assert failure.startswith("wide.png, a second question behind the kept picture: differs by")


def test_a_graph_that_fails_is_named_by_its_part(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ArtifactError(["vision.onnx: cannot run"])

    monkeypatch.setattr(GraphSession, "vision", broken)
    report = examined(artifact)
    assert report.first_wrong == "vision"
    assert "wide.png: vision.onnx: cannot run" in report.parts[2].failures
    assert verdicts(report)["preprocessing"] == "passed"


class Off:
    """A session whose logits are a little off."""

    def __init__(self, inner: Any, by: float) -> None:
        self.inner, self.by = inner, by

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def decode(self, rows: CallRows, past: Any) -> Any:
        logits, past = self.inner.decode(rows, past)
        return logits + self.by * noise(logits.shape, 5), past


@pytest.mark.parametrize(("by", "wrong"), [(1e-4, None), (3e-3, "decoder")])
def test_what_parity_allows_is_not_called_wrong_and_what_it_does_not_is(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, by: float, wrong: str | None
) -> None:
    right = stage.open_session
    monkeypatch.setattr(stage, "open_session", lambda *g, **k: Off(right(*g, **k), by))
    assert examined(artifact).first_wrong == wrong
    limits = {"validate.fidelity.max_abs": 0.1, "validate.fidelity.max_relative": 0.1}
    limits |= {"validate.fidelity.min_cosine": 0.9}
    assert examined(artifact, limits=limits).first_wrong is None


@pytest.mark.parametrize(("margin", "wrong"), [(5e-4, None), (0.5, "decoder")])
def test_another_likeliest_token_is_a_fault_unless_two_are_as_likely(
    artifact: Path, margin: float, wrong: str | None
) -> None:
    known = KnownAnswers.load(artifact)
    first, *others = known.pictures
    (step, *_), (token, *_) = first.steps, first.answer
    another = first.model_copy(
        update={
            "answer": (token - 1 if token else 1,),
            "steps": (step.model_copy(update={"margin": margin}),),
        }
    )
    written = known.model_copy(update={"pictures": (another, *others)})
    changed(artifact, lambda d: d.update(json.loads(written.model_dump_json(exclude_none=True))))
    report = examined(artifact)
    assert report.first_wrong == wrong
    assert bool(report.parts[3].notes) == (wrong is None)


def test_no_known_answers_is_one_line_and_not_passed(
    artifact: Path, vt: Callable[..., tuple[int, str, str]]
) -> None:
    (artifact / KNOWN_FILE).unlink()
    path = artifact / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["files"][KNOWN_FILE]
    path.write_text(json.dumps(document), encoding="utf-8")
    code, shown, said = vt("selftest", artifact, "--no-verify")
    assert (code, shown) == (1, "")
    last = said.splitlines()[-1]
    assert last.startswith(f"error: {artifact}: holds no known answers, so that nothing can be")


def test_whole_numbers_say_how_far_they_round_and_a_real_fault_is_more(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = vtcompress.load_recipe("identity").override(
        {"model.id": str(tiny_model), "export.weights": "int4"}
    )
    vtcompress.export(recipe, tmp_path / "int4", bench_rounds=0)
    known = KnownAnswers.load(tmp_path / "int4")
    # As users have it, inputs are rounded to 8 bits: more than the limits of graphs allow.
    assert known.rounding is not None
    assert known.rounding.max_abs > 1e-3
    for backend in CPU_BACKENDS:
        assert examined(tmp_path / "int4", backend, locate=True).verdict is Verdict.PASSED
    for place in range(500):  # of so few bits each
        flip(tmp_path / "int4", "decoder.onnx", "layers.1.mlp.down.weight.codes", place)
    report = examined(tmp_path / "int4", locate=True)
    assert report.first_wrong == "decoder"
    assert report.located is not None
    assert report.located.layer == 1


def changed(artifact: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the known answers of an artifact."""
    document = json.loads((artifact / KNOWN_FILE).read_text(encoding="utf-8"))
    change(document)
    (artifact / KNOWN_FILE).write_text(json.dumps(document), encoding="utf-8")
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["files"][KNOWN_FILE]["size"] = (artifact / KNOWN_FILE).stat().st_size
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(selftest_format=2), "selftest_format: written for a newer vtcompress"),
        (lambda d: d["pictures"][0].update(image="../x.png"), "String should match pattern"),
        (lambda d: d["pictures"][0]["answer"].pop(), "answer and steps differ in number"),
        (lambda d: d["pictures"][0]["pixels"]["sums"].pop(), "at least 4 items"),
        (lambda d: d["graphs"]["sizes"].append(1.0), "vision and sizes differ in number"),
        (lambda d: d["pictures"][1]["steps"][0]["values"].pop(), "ids and values differ in number"),
    ],
)
def test_damaged_known_answers_are_refused_in_a_line(
    artifact: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    changed(artifact, change)
    with pytest.raises(ArtifactError) as caught:
        examined(artifact)
    assert said in str(caught.value)


def test_known_answers_of_something_else_end_in_no_trace(artifact: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["pictures"][0]["runs"][0][1] = 10**15
        document["pictures"][1]["steps"][0]["ids"][3] = 10**9
        document["graphs"]["layers"][1]["text"] = "nothing"

    changed(artifact, change)
    report = examined(artifact, locate=True)
    assert report.parts[1].failures[0].startswith("wide.png: other tokens from place 1 on")
    assert report.parts[3].failures == (
        "high.png: the known answers name the token 1000000000, and there are 48",
    )
    assert "nothing" in report.not_located


def test_a_recipe_can_leave_known_answers_out(tmp_path: Path) -> None:
    recipe = vtcompress.load_recipe("identity").override({"export.selftest": False})
    job: Any = SimpleNamespace(recipe=recipe)
    nothing: Any = None
    known = known_answers(job, nothing, tmp_path, nothing)
    assert known is None
    assert known_without_decoder(job, nothing, tmp_path) is None
    assert write_known(job, nothing, tmp_path, known) is None
    assert not any(tmp_path.iterdir())


def test_a_warmed_up_runtime_answers_as_another_and_has_loaded_its_graphs(
    plain_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    right = GraphSession.decode

    def counted(self: Any, rows: CallRows, past: Any) -> Any:
        ran.append("decode")
        return right(self, rows, past)

    monkeypatch.setattr(GraphSession, "decode", counted)
    runtime = Runtime.load(plain_artifact, threads=1, warm_up=True)
    assert ran
    picture = Image.new("RGB", (50, 40), "red")
    warm = runtime.answer("what is it?", picture, max_new_tokens=3)
    cold = Runtime.load(plain_artifact, threads=1).answer("what is it?", picture, max_new_tokens=3)
    assert warm.token_ids == cold.token_ids


def test_made_pictures_and_numbers_are_the_same_everywhere() -> None:
    sums = [int(np.asarray(made.image()).astype(np.int64).sum()) for made in MADE_PICTURES]
    assert sums == [4671656, 3849835, 62806224, 97430]
    assert noise((3,), 1).tolist() == pytest.approx([-0.7843474, 1.4072651, 0.3508555])
    assert abs(float(np.square(noise((100, 100), 2)).mean()) - 1) < 0.02


def test_one_number_of_many_that_is_wrong_is_in_the_sums() -> None:
    rows = noise((50, 300), 3)
    wrong = rows.copy()
    wrong[31, 207] += 1
    found = Sums.of(rows).against(Sums.of(wrong), "rows")
    assert not isinstance(found, str)
    assert found.max_abs == pytest.approx(1, rel=1e-4)
    assert (
        Sums.of(rows).against(Sums.of(rows[:49]), "rows")
        == "rows: is [49, 300], known is [50, 300]"
    )


def test_a_backend_that_cannot_start_is_an_error_and_no_fault_of_the_artifact(
    artifact: Path, vt: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: object, **__: object) -> object:
        raise MissingExtraError("running an artifact", "cpu")

    monkeypatch.setattr(GraphSession, "graph", lacking)
    code, shown, said = vt("selftest", artifact)
    assert (code, shown) == (1, "")
    assert said.splitlines()[-1].startswith("error: running an artifact needs packages")
