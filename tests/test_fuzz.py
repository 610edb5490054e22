"""Damaged input of every kind: the outcome is success or one of our errors, in time; nothing is written."""

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

from compressor.errors import VtcompressError
from compressor.families.pictures.processors import saved_steps
from compressor.families.pictures.text import PictureForm
from compressor.plan.plan import Plan
from compressor.profile import Profile
from compressor.recipe import dump_recipe, load_recipe
from compressor.samples.pictures import load_image
from compressor.samples.questions import read_samples
from export.artifact.artifact import Artifact, write_manifest
from export.artifact.onnx_header import check_graph
from export.checks import stored
from export.runtime.images import ImageProcessor
from export.runtime.prompter import Prompter
from tests import facts
from tests.mutations import TooLongError, Watch, edited, edits, mutants, outcome
from tests.test_onnx_header import external, model

ROOT = Path(__file__).parent.parent
Count = Callable[[str, int], None]
CASES = "fuzz cases"


def examples(count: int) -> Any:
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=quiet,
    )  # fmt: skip


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Path]:
    """A folder beside which nothing may appear; in it, only what the test puts there."""
    folder = tmp_path / "case"
    folder.mkdir()
    yield folder
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def run_bytes(
    watch: Watch, path: Path, cases: Iterator[bytes], read: Callable[[], object], counted: Count
) -> None:
    """Put every case at `path` and read it; some must be accepted and most refused."""
    accepted = number = 0
    before = sorted(path.parent.rglob("*"))
    for content in cases:
        path.write_bytes(content)
        accepted += outcome(watch, read, content)
        number += 1
    assert accepted < number
    assert sorted({*path.parent.rglob("*"), *before} ^ {*before, path}) == []
    counted(CASES, number)


# The files of the stages


def recipes() -> list[bytes]:
    shipped = [path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    full = load_recipe(ROOT / "recipes" / "shortv.yaml")
    return [*shipped, dump_recipe(full).encode()]


def recipe_text() -> str:
    return load_recipe(ROOT / "recipes" / "shortv.yaml").model_dump_json(by_alias=True)


def plan_bytes() -> bytes:
    return facts.plan(frozen=(1,), dead=(5,)).model_dump_json(indent=1).encode()


def profile_bytes() -> bytes:
    return facts.profile([[0.5, 0.25, 1e-7], [1.0, 2.0, 3e-9]]).model_dump_json(indent=1).encode()


def test_damaged_recipes(watch, case, counted):
    path = case / "recipe.yaml"
    run_bytes(watch, path, mutants(recipes(), 1500, 1), lambda: load_recipe(path), counted)


def test_damaged_plans(watch, case, counted):
    path = case / "plan.json"
    run_bytes(watch, path, mutants([plan_bytes()], 1000, 2), lambda: Plan.load(path), counted)


def test_damaged_profiles(watch, case, counted):
    path = case / "profile.json"

    def read() -> None:
        profile = Profile.load(path)
        if profile.samples:
            profile.mean("layer_contribution")
            profile.typical_text_rows()

    run_bytes(watch, path, mutants([profile_bytes()], 1000, 3), read, counted)


@pytest.mark.parametrize("kind", ["recipe", "plan", "profile"])
def test_documents_with_other_values_in_them(watch, case, counted, kind):
    """Well-formed documents whose values, keys or lists are not what they should be."""
    whole, read = {
        "recipe": (json.loads(recipe_text()), load_recipe),
        "plan": (json.loads(plan_bytes()), Plan.load),
        "profile": (json.loads(profile_bytes()), Profile.load),
    }[kind]  # fmt: skip
    path, number = case / f"{kind}.json", 0

    @examples(300)
    @given(edits)
    def check(changes) -> None:
        nonlocal number
        path.write_text(json.dumps(edited(whole, changes)), encoding="utf-8")
        outcome(watch, lambda: read(path), changes)
        number += 1

    check()
    counted(CASES, number)


# Data


@pytest.fixture
def data(case: Path) -> Path:
    (case / "a.png").write_bytes(b"picture")
    rows = [
        {"image": "a.png", "question": "what?", "answer": "b", "kind": "letter"},
        {"image": ["a.png", "a.png"], "question": "\u2028 und ä?", "answer": None},
        {"question": "text only"},
    ]
    path = case / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def test_damaged_questions(watch, data, counted):
    cases = mutants([data.read_bytes()], 1000, 4)
    run_bytes(watch, data, cases, lambda: read_samples(data), counted)


def test_questions_with_other_values_in_them(watch, data, counted):
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines() if line]
    number = 0

    @examples(300)
    @given(edits)
    def check(changes) -> None:
        nonlocal number
        changed = edited(rows, changes)
        lines = map(json.dumps, changed if isinstance(changed, list) else [changed])
        data.write_text("\n".join(lines), encoding="utf-8")
        outcome(watch, lambda: read_samples(data), changes)
        number += 1

    check()
    counted(CASES, number)


# Images


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds almost nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    found = []
    for kind in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"):
        for image in (noise, noise.convert("L"), noise.convert("P"), Image.new("1", (1, 1))):
            stream = io.BytesIO()
            mode = {"JPEG": "L", "PPM": "RGB", "WEBP": "RGB"}.get(kind, image.mode)
            image.convert(mode).save(stream, kind)
            found.append(stream.getvalue())
    for mode, size in (("RGBA", (5, 4)), ("I;16", (5, 4)), ("L", (20_000, 3)), ("L", (1, 20_000))):
        stream = io.BytesIO()
        Image.new(mode, size).save(stream, "PNG")
        found.append(stream.getvalue())
    return found


def image_processor() -> ImageProcessor:
    config = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16},
              "crop_size": {"height": 16, "width": 16}}  # fmt: skip
    return ImageProcessor(saved_steps(config, "test"))


def test_damaged_images(watch, case, counted):
    path, process = case / "image", image_processor()
    run_bytes(watch, path, mutants(pictures(), 1500, 5), lambda: process(path), counted)


BOMBS = {
    "png": png_header(60_000, 60_000),
    "png, sides at their limit": png_header(2**31 - 1, 2**31 - 1),
    "png, one row": png_header(2**31 - 1, 1),
    "ppm": b"P6 60000 60000 255\n",
    "ppm, more digits than sense": b"P6 " + b"9" * 50 + b" 9 255\n",
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 70, 0, 0, 54, 40, 60000, 60000, 1, 24, *[0] * 6)
           + bytes(16),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
           + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\x00;",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_decompression_bombs_are_refused_by_their_header(watch, case, counted, name):
    path = case / "bomb"
    path.write_bytes(BOMBS[name])
    assert not outcome(watch, lambda: load_image(path), BOMBS[name])
    counted(CASES, 1)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (20_000, 7)])
def test_images_of_extreme_shape_are_prepared(watch, case, counted, size):
    path, process = case / "image.png", image_processor()
    Image.new("RGB", size, (9, 8, 7)).save(path)
    assert outcome(watch, lambda: process(path), size)
    assert process(path).pixels.shape == (1, 3, 16, 16)
    counted(CASES, 1)


def test_every_truncation_of_an_image_is_refused_or_read(watch, case, counted):
    path, process = case / "image", image_processor()
    whole = pictures()[12]
    cases = (whole[:end] for end in range(len(whole)))
    run_bytes(watch, path, cases, lambda: process(path), counted)


# Artifacts


@pytest.fixture
def small_artifact(case: Path) -> Path:
    folder = case / "artifact"
    folder.mkdir()
    for name in ("vision", "embed", "decoder"):
        (folder / f"{name}.onnx").write_bytes(model(external()).SerializeToString())
    (folder / "weights.bin").write_bytes(bytes(4096))
    write_manifest(folder, **facts.manifest_fields(fidelity=facts.fidelity(), loss=facts.loss()))
    Artifact.open(folder)
    return folder


def test_damaged_manifests(watch, small_artifact, counted):
    path = small_artifact / "manifest.json"

    def read() -> None:
        Artifact.open(small_artifact, verify=False)
        Artifact.open(small_artifact)

    run_bytes(watch, path, mutants([path.read_bytes()], 800, 6), read, counted)


def test_manifests_with_other_values_in_them(watch, small_artifact, counted):
    path, number = small_artifact / "manifest.json", 0
    whole = json.loads(path.read_text(encoding="utf-8"))
    # The parts that decide which files are opened, beside all the others.
    names = {key: whole[key] for key in ("files", "manifest_format")}

    @examples(400)
    @given(edits)
    def check(changes) -> None:
        nonlocal number
        for document in (edited(whole, changes), {**whole, **_object(edited(names, changes))}):
            path.write_text(json.dumps(document), encoding="utf-8")
            outcome(watch, lambda: Artifact.open(small_artifact, verify=False), changes)
            number += 1

    check()
    counted(CASES, number)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"files": value}


def test_damaged_graphs(watch, case, counted, tiny_artifact):
    from onnx.helper import make_tensor

    small = model(external(), make_tensor("i", 7, (3,), [1, 2, 3])).SerializeToString()
    seeds = [small] * 8 + [(tiny_artifact / "embed.onnx").read_bytes()] * 4
    seeds += [(tiny_artifact / "vision.onnx").read_bytes()]
    path, sizes = case / "g.onnx", {"weights.bin": 1 << 20}

    def read() -> None:
        if problems := check_graph(case, "g.onnx", sizes):
            raise VtcompressError("\n".join(problems))

    run_bytes(watch, path, mutants(seeds, 2000, 7), read, counted)


@pytest.mark.parametrize("name", ["original.json", "samples.jsonl", "original_logits.npy"])
def test_damaged_stored_answers(watch, case, counted, tiny_artifact, name):
    shutil.copytree(tiny_artifact / "validation", case / "validation")
    path = case / "validation" / name
    cases = mutants([path.read_bytes()], 300, 8)
    run_bytes(watch, path, cases, lambda: stored.stored_original(case), counted)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "processor_config.json"]
)
def test_damaged_tokenizers_and_processors(watch, case, counted, tiny_artifact, name):
    for other in tiny_artifact.iterdir():
        if other.suffix in (".json", ".jinja") and other.name != "manifest.json":
            shutil.copyfile(other, case / other.name)

    def read() -> None:
        prompter = Prompter.from_folder(case, "<image>", eos_ids=(2,))
        prompter.encode([{"role": "user", "content": [{"type": "text", "text": "what is it"}]}])
        ImageProcessor.of_artifact(PictureForm(token="<image>"), case, 16)

    path = case / name
    run_bytes(watch, path, mutants([path.read_bytes()], 200, 9), read, counted)


# Weights


def test_damaged_weights_of_a_compressed_model(watch, case, counted, tiny_model):
    from compressor.compressed import load_compressed, save_compressed
    from compressor.families import load
    from compressor.plan.edits import identity_plan

    loaded = load(str(tiny_model))
    save_compressed(loaded, identity_plan(loaded.facts, loaded.digest), case)
    load_compressed(case)
    path = case / "compressed.safetensors"
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    # The header is what is parsed; the values behind it may be anything.
    cases = (header + whole[end:] for header in mutants([whole[:end]], 120, 10))
    run_bytes(watch, path, cases, lambda: load_compressed(case), counted)


# The watch itself


def test_the_watch_sees_writing_and_endless_reading(watch, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.mutations.SECONDS", 0.05)
    with pytest.raises(AssertionError, match="a writer"):
        outcome(watch, lambda: (tmp_path / "stray").write_text("x"), "a writer")
    assert "stray" in watch.seen[0]
    watch.seen.clear()

    def endless() -> None:
        while True:
            pass

    with pytest.raises(AssertionError, match="TooLongError"):
        outcome(watch, endless, "an endless reader")
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        outcome(watch, lambda: 1 / 0, "a fault of ours")
    assert not issubclass(TooLongError, Exception)
