"""Pixel values against transformers' own Pillow processors, and files that are no decent image."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from compressor.errors import ArtifactError, DataError, ModelError, VtcompressError
from compressor.families.pictures.processors import saved_steps, steps_in
from compressor.families.pictures.sizes import output_size
from compressor.families.pictures.steps import (
    Crop,
    Normalise,
    PadToSquare,
    PictureSteps,
    Rescale,
    Resize,
    ResizeShorter,
)
from compressor.families.pictures.text import PictureForm
from compressor.samples.pictures import load_image
from export.artifact.artifact import Artifact
from export.runtime import images as preprocess
from export.runtime.images import ImageProcessor
from export.runtime.runtime import Runtime

STEPS: TypeAdapter[PictureSteps] = TypeAdapter(PictureSteps)
OLDER = PictureForm(token="<image>")
PILLOWS_LIMIT = Image.MAX_IMAGE_PIXELS  # as it is before any test has run
SIZES = [(1, 1), (3, 1000), (1000, 3), (337, 335), (64, 64), (801, 603)]  # (width, height)

SMALL_CLIP = {
    "size": {"shortest_edge": 48},
    "crop_size": {"height": 48, "width": 48},
}
PROCESSORS = {
    "clip": lambda: CLIPImageProcessorPil(**SMALL_CLIP),
    "clip, 336 pixels": lambda: CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    ),
    "clip, crop beyond the image": lambda: CLIPImageProcessorPil(
        size={"shortest_edge": 41}, crop_size={"height": 60, "width": 53}
    ),
    "clip, no resize": lambda: CLIPImageProcessorPil(do_resize=False, crop_size=70),
    "clip, bilinear, nothing normalised": lambda: CLIPImageProcessorPil(
        **SMALL_CLIP, resample=2, do_normalize=False
    ),
    "clip, raw levels": lambda: CLIPImageProcessorPil(
        **SMALL_CLIP, do_rescale=False, do_normalize=False
    ),
    "siglip": lambda: SiglipImageProcessorPil(size={"height": 48, "width": 64}),
    "siglip, lanczos, other factor": lambda: SiglipImageProcessorPil(
        size=[56, 56], resample=1, rescale_factor=1 / 127.5, image_mean=1.0, image_std=1.0
    ),
    "llava": lambda: LlavaImageProcessorPil(**SMALL_CLIP),
    "llava, padded": lambda: LlavaImageProcessorPil(**SMALL_CLIP, do_pad=True),
    "llava, padded, no crop": lambda: LlavaImageProcessorPil(
        size={"shortest_edge": 48}, do_center_crop=False, do_pad=True
    ),
}


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise on a gradient: every filter, crop and channel shows in it."""
    random = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = random.integers(0, 120, (height, width, bands))
    slope = np.linspace(0, 135, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    levels = (noise + slope).astype(np.uint8)
    return Image.fromarray(levels[..., 0] if bands == 1 else levels, mode)


def ours(reference: Any, folder: Path) -> ImageProcessor:
    """What an artifact of today does: its manifest holds the steps as JSON."""
    reference.save_pretrained(folder)
    text = STEPS.dump_json(steps_in(folder))
    return ImageProcessor(STEPS.validate_json(text))


def of_config(config: dict[str, Any], where: str = "x") -> ImageProcessor:
    return ImageProcessor(saved_steps(config, where))


def theirs(reference: Any, image: Image.Image) -> np.ndarray:
    return reference(image, return_tensors="np")["pixel_values"][0]


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rgb_pixels_equal_transformers_bit_for_bit(name, size, tmp_path):
    reference = PROCESSORS[name]()
    processor = ours(reference, tmp_path)
    image = picture(*size)
    pixels = processor(image).pixels[0]
    expected = theirs(reference, image)
    assert pixels.dtype == np.float32
    assert pixels.flags["C_CONTIGUOUS"]
    assert pixels.shape == expected.shape == (3, *processor.size)
    np.testing.assert_array_equal(pixels, expected.astype(np.float32))


def with_transparent_palette() -> Image.Image:
    image = picture(37, 29, "L").quantize(16)
    image.info["transparency"] = 3
    return image


MODES = {
    **{mode: (lambda mode=mode: picture(37, 29, mode)) for mode in ("L", "LA", "RGBA", "CMYK")},
    "1": lambda: picture(37, 29, "L").convert("1"),
    "P": lambda: picture(37, 29).quantize(64),
    "P, transparent": with_transparent_palette,
    "YCbCr": lambda: picture(37, 29).convert("YCbCr"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_every_mode_equals_transformers(mode, name, tmp_path):
    reference = PROCESSORS[name]()
    image = MODES[mode]()
    np.testing.assert_array_equal(
        ours(reference, tmp_path)(image).pixels[0], theirs(reference, image)
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "P, transparent"])
def test_a_png_file_gives_what_its_opened_image_gives(mode, tmp_path):
    image = picture(37, 29) if mode == "RGB" else MODES[mode]()
    image.save(tmp_path / "x.png")
    loaded = load_image(tmp_path / "x.png")
    assert loaded.mode == "RGB"
    reference = CLIPImageProcessorPil(**SMALL_CLIP)
    with Image.open(tmp_path / "x.png") as opened:
        expected = theirs(reference, opened)
    np.testing.assert_array_equal(ours(reference, tmp_path)(tmp_path / "x.png").pixels[0], expected)


def test_transparent_pixels_lie_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "x.png")
    assert load_image(tmp_path / "x.png").getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    levels = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    expected = np.round(levels / 257).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "x.png")
    Image.fromarray(levels).save(tmp_path / "x.tiff")
    (tmp_path / "x.pgm").write_bytes(b"P5 64 48 65535\n" + levels.astype(">u2").tobytes())
    for name in ("x.png", "x.tiff", "x.pgm"):
        loaded = np.asarray(load_image(tmp_path / name))
        assert loaded.shape == (48, 64, 3)
        np.testing.assert_array_equal(loaded, np.repeat(expected[..., None], 3, axis=2))


def test_a_transparent_level_of_sixteen_bit_grey_is_white(tmp_path):
    levels = np.array([[0, 30000, 40000]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "x.png", transparency=30000)
    assert [load_image(tmp_path / "x.png").getpixel((x, 0))[0] for x in range(3)] == [0, 255, 156]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image_upright(orientation, tmp_path):
    # Where the four corners of the stored picture belong, by the EXIF standard's definition.
    turned = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }[orientation]
    stored = picture(20, 12)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(
        np.asarray(load_image(tmp_path / "x.png")), turned(np.asarray(stored))
    )


def test_a_path_is_read_by_load_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(40, 24).save(tmp_path / "x.png", exif=exif)
    processor = ours(CLIPImageProcessorPil(**SMALL_CLIP), tmp_path)
    upright = processor(picture(40, 24).rotate(-90, expand=True)).pixels
    np.testing.assert_array_equal(processor(tmp_path / "x.png").pixels, upright)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_of_an_animation_is_taken(suffix, tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"x.{suffix}"
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)
    assert np.asarray(load_image(path)).reshape(-1, 3).tolist() == [[255, 0, 0]] * 48


def test_an_image_that_would_be_resized_beyond_the_limit_is_within_one_step(tmp_path, monkeypatch):
    reference = CLIPImageProcessorPil(**SMALL_CLIP, do_rescale=False, do_normalize=False)
    processor = ours(reference, tmp_path)
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 48 * 48 + 1)
    for size in [(1, 1999), (3, 700), (701, 3), (48, 45), (45, 49)]:
        image = picture(*size)
        difference = processor(image).pixels[0] - theirs(reference, image)
        assert np.abs(difference).max() <= 1, size


def test_a_line_of_twenty_thousand_pixels_is_never_held_at_full_size(tmp_path, monkeypatch):
    whole = Image.Image.resize

    def bounded(self: Image.Image, size: tuple[int, int], *args: Any, **kwargs: Any) -> Image.Image:
        assert size[0] * size[1] <= preprocess.MAX_PIXELS  # 336 x 6,720,000 without a limit
        return whole(self, size, *args, **kwargs)

    picture(20_000, 1).save(tmp_path / "x.png")
    processor = ours(CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336), tmp_path)
    monkeypatch.setattr(Image.Image, "resize", bounded)
    assert processor(tmp_path / "x.png").pixels.shape == (1, 3, 336, 336)


def png_of(width: int, height: int) -> bytes:
    """A PNG header that claims a size, with next to no pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    picture(40, 30).save(buffer, kind)
    return buffer.getvalue()


BAD_FILES = {
    "empty": (b"", "no image of a format"),
    "text": (b"hello, I am a picture", "no image of a format"),
    "truncated png": (encoded("PNG")[:1500], "damaged or incomplete"),
    "truncated jpeg": (encoded("JPEG")[:700], "damaged or incomplete"),
    "bomb": (png_of(60_000, 60_000), "pixels"),
    "just over the limit": (png_of(10_001, 10_000), "10001 x 10000 pixels are more than"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n", "no image of a"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.filterwarnings("error")
def test_a_file_that_is_no_decent_image_is_refused_by_name(name, tmp_path):
    content, expected = BAD_FILES[name]
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert "\n" not in message


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(DataError, match=r"no such file|is a folder; name a picture") as caught:
            load_image(path)
        assert str(path) in str(caught.value)


def test_a_name_that_no_file_can_have_is_refused_in_a_short_line(tmp_path):
    with pytest.raises(DataError, match="a name of 300 bytes, and a file system takes 255"):
        load_image(tmp_path / ("x" * 300))


def test_floating_point_pixels_are_refused_with_the_remedy():
    with pytest.raises(DataError, match="save the image with 8 bits"):
        of_config({"image_processor_type": "CLIPImageProcessor"}, "x")(Image.new("F", (4, 4), 0.5))


def test_padding_a_very_long_image_to_a_square_is_refused():
    processor = of_config({"image_processor_type": "LlavaImageProcessor", "do_pad": True}, "x")
    with pytest.raises(DataError, match="padded to a square"):
        processor(Image.new("RGB", (10_001, 1)))


def test_pillows_global_state_is_left_alone(tmp_path):
    (tmp_path / "x.png").write_bytes(png_of(10_000, 9_500))  # Pillow would warn of this one
    with pytest.raises(DataError):
        load_image(tmp_path / "x.png")
    assert PILLOWS_LIMIT == Image.MAX_IMAGE_PIXELS


SEEDS = tuple(encoded(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"))


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.one_of(st.binary(max_size=60), st.sampled_from(SEEDS)),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6),
    length=st.integers(0, 4000),
)
def test_fuzzed_bytes_give_an_image_or_our_error(seed, edits, length, tmp_path):
    content = bytearray(seed)
    for position, value in edits:
        if content:
            content[position % len(content)] = value
    path = tmp_path / "fuzzed"
    path.write_bytes(bytes(content[:length]))
    try:
        image = load_image(path)
    except VtcompressError:
        return
    assert image.mode == "RGB"


def saved(folder: Path, name: str, content: Any) -> Path:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


LLAVA_1_5 = {  # as the processor of LLaVA-1.5 was saved before transformers 5
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}


def test_old_and_new_folders_give_the_same_processor(tmp_path):
    for name in ("old", "new", "both"):
        (tmp_path / name).mkdir()
    nested = {"image_processor": LLAVA_1_5, "patch_size": 14}
    old = ImageProcessor.of_artifact(
        OLDER, saved(tmp_path / "old", "preprocessor_config.json", LLAVA_1_5), 1
    )
    new = ImageProcessor.of_artifact(
        OLDER, saved(tmp_path / "new", "processor_config.json", nested), 1
    )
    saved(tmp_path / "both", "processor_config.json", {"patch_size": 14})
    both = saved(tmp_path / "both", "preprocessor_config.json", LLAVA_1_5)
    assert old == new == ImageProcessor.of_artifact(OLDER, both, 1)
    assert old.size == (336, 336)
    np.testing.assert_array_equal(
        old(picture(50, 40)).pixels[0], theirs(CLIPImageProcessorPil(**LLAVA_1_5), picture(50, 40))
    )


@pytest.mark.parametrize("kind", ["CLIPFeatureExtractor", "CLIPImageProcessorFast"])
def test_older_names_of_a_processor_mean_the_same(kind):
    old = {"feature_extractor_type": kind, "size": 224, "crop_size": 224}
    assert of_config(old, "x") == of_config({"image_processor_type": "CLIPImageProcessor"}, "x")


UNSUPPORTED = {
    "size": {"shortest_edge": 336, "longest_edge": 672},
    "crop_size": {"height": 0, "width": 336},
    "resample": 9,
    "image_mean": [0.5, 0.5],
    "image_std": [0.5, 0.0, 0.5],
    "rescale_factor": "tiny",
    "do_normalize": "yes",
    "data_format": "channels_last",
    "use_square_size": True,
}


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_an_unsupported_option_is_named(key):
    with pytest.raises(ModelError) as caught:
        of_config({**LLAVA_1_5, key: UNSUPPORTED[key]}, "folder/file.json")
    assert any(line.startswith(f"folder/file.json: {key}: ") for line in caught.value.problems)


def test_all_unsupported_options_are_named_at_once():
    with pytest.raises(ModelError) as caught:
        of_config({**LLAVA_1_5, **UNSUPPORTED}, "x")
    assert len(caught.value.problems) >= len(UNSUPPORTED)


def test_a_fixed_pad_size_is_refused_and_llavas_padding_is_not():
    padded = {**LLAVA_1_5, "do_pad": True, "pad_size": {"height": 400, "width": 400}}
    with pytest.raises(ModelError, match="pad_size"):
        of_config(padded, "x")
    llava = {**padded, "image_processor_type": "LlavaImageProcessor"}
    assert of_config(llava, "x").steps[0] == PadToSquare(colour=(122, 116, 104))


def test_a_processor_without_one_output_size_is_refused():
    with pytest.raises(ModelError, match="different sizes"):
        of_config({**LLAVA_1_5, "do_center_crop": False}, "x")


@pytest.mark.parametrize("kind", ["ViTImageProcessor", "Ovis2ImageProcessor"])
def test_an_unknown_processor_is_named_with_those_supported(kind):
    with pytest.raises(ModelError, match=f"{kind} is not supported; CLIPImageProcessor, Siglip"):
        of_config({"image_processor_type": kind}, "x")


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, '{"size": 3}', "\ud800"])
def test_a_broken_configuration_is_refused(content, tmp_path):
    (tmp_path / "preprocessor_config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelError, match="preprocessor_config"):
        ImageProcessor.of_artifact(OLDER, tmp_path, 1)


def test_a_folder_without_a_processor_says_what_is_missing(tmp_path):
    with pytest.raises(ModelError, match="no image processor found"):
        ImageProcessor.of_artifact(OLDER, tmp_path, 1)


def test_an_artifact_from_before_steps_makes_the_same_pixels(tiny_artifact: Path, tmp_path: Path):
    older = Path(shutil.copytree(tiny_artifact, tmp_path / "older"))
    written = json.loads((older / "manifest.json").read_text())
    # What a manifest has gained since then.
    assert written.pop("picture_steps")
    assert written.pop("picture_text")
    assert written["model"].pop("family_package") is None
    assert (written["model"].pop("most_tiles"), written["model"].pop("budget")) == (1, None)
    saved(older, "manifest.json", written)
    picture(97, 64).save(tmp_path / "x.png")
    now, before = (Runtime.load(folder) for folder in (tiny_artifact, older))
    assert before.images.steps == now.images.steps
    expected = CLIPImageProcessorPil.from_pretrained(older)
    np.testing.assert_array_equal(
        before.images(tmp_path / "x.png").pixels[0],
        theirs(expected, load_image(tmp_path / "x.png")),
    )
    answers = [r.answer("what is this", tmp_path / "x.png").first_logits for r in (now, before)]
    np.testing.assert_array_equal(*answers)


def test_the_manifests_steps_are_run_not_the_processors(tiny_artifact: Path):
    manifest = Artifact.open(tiny_artifact).manifest
    form, rows = manifest.picture_form, manifest.model.tile_rows
    first, *more = form.steps
    steps = (first.model_copy(update={"resample": "nearest"}), *more)
    changed = form.model_copy(update={"steps": steps})
    image = picture(97, 64)
    now, other = (
        ImageProcessor.of_artifact(given, tiny_artifact, rows)(image).pixels
        for given in (form, changed)
    )
    assert now.shape == other.shape
    assert not np.array_equal(now, other)


def test_a_step_of_a_newer_version_is_refused_by_name(tiny_artifact: Path, tmp_path: Path):
    newer = Path(shutil.copytree(tiny_artifact, tmp_path / "newer"))
    written = json.loads((newer / "manifest.json").read_text())
    written["picture_steps"].insert(1, {"step": "tile", "size": [8, 8]})
    saved(newer, "manifest.json", written)
    with pytest.raises(ArtifactError, match=r"manifest.json: picture_steps.1: .*'tile'") as caught:
        Runtime.load(newer)
    assert "upgrade vtcompress" in str(caught.value)


SQUARE = PadToSquare(colour=(1, 2, 3))
SHORTER = ResizeShorter(edge=40, resample="bicubic")
CROP = Crop(size=(24, 32))


@pytest.mark.parametrize(
    ("steps", "size"),
    [
        ((SHORTER, CROP), (24, 32)),
        ((SQUARE, SHORTER), (40, 40)),
        ((SQUARE, SHORTER, CROP, Rescale(factor=0.5)), (24, 32)),
        ((Resize(size=(24, 32), resample="box"), SQUARE), (32, 32)),
        ((Resize(size=(30, 30), resample="box"), SHORTER), (40, 40)),
    ],
)
def test_the_size_that_steps_give_is_that_of_their_pixels(
    steps: PictureSteps, size: tuple[int, int]
):
    assert output_size(steps) == size
    for picture_size in SIZES:
        assert ImageProcessor(steps)(picture(*picture_size)).pixels.shape == (1, 3, *size)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((), "different sizes"),
        ((SQUARE,), "different sizes"),
        ((SHORTER,), "different sizes"),
        ((SHORTER, SQUARE, CROP), "different sizes"),  # a line of 20,000 pixels would fill memory
        ((Rescale(factor=0.5), CROP), "crop: stands behind the steps on values"),
    ],
)
def test_steps_that_cannot_be_run_are_refused(steps: PictureSteps, words: str):
    with pytest.raises(ModelError, match=words):
        ImageProcessor(steps)


@pytest.mark.parametrize(
    "step",
    [
        {"step": "tile", "size": [8, 8]},
        {"step": "crop", "size": [0, 8]},
        {"step": "crop", "size": [8, 5000]},
        {"step": "resize", "size": [8, 8], "resample": "sharpest"},
        {"step": "pad_to_square", "colour": [0, 0, 256]},
        {"step": "rescale", "factor": float("inf")},
        {"step": "normalise", "mean": [0, 0, 0], "std": [1, 0, 1]},
        {"step": "normalise", "mean": [0, 0, 0], "std": [1, 1, 1], "eps": 1},
    ],
)
def test_what_is_no_step_is_refused(step: dict[str, Any]):
    with pytest.raises(ValidationError):
        STEPS.validate_python([step])


def test_values_go_through_each_step_in_its_own_precision():
    steps = (CROP, Normalise(mean=(1, 2, 3), std=(4, 5, 6)), Rescale(factor=1 / 3))
    image = picture(32, 24)
    levels = np.asarray(image).transpose(2, 0, 1).astype(np.float32)
    column = (slice(None), None, None)
    normal = (levels - np.float32([1, 2, 3])[column]) / np.float32([4, 5, 6])[column]
    expected = (normal.astype(np.float64) * (1 / 3)).astype(np.float32)
    np.testing.assert_array_equal(ImageProcessor(steps)(image).pixels[0], expected)
