"""SmolVLM goes through the cases of every family; what it shares with Idefics3 is tested here."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vtcompress
from compressor.errors import ModelError
from compressor.families import describe, load
from compressor.families.folder import WEIGHTS
from compressor.families.pictures.processors import saved_steps
from compressor.families.pictures.sizes import most_tiles
from compressor.families.pictures.steps import CutTiles, Resize, ResizeLonger
from compressor.families.pictures.text import PictureForm, TileRows
from compressor.families.registry import read_processor
from compressor.families.smolvlm.family import SmolVlmFamily, position_ids
from compressor.plan.edits import identity_plan
from compressor.schema.sections import ImageSection
from export.backends.tensorrt.maker import Maker
from export.backends.tensorrt.targets import TARGETS
from export.graphs.limits import limits_of
from export.graphs.profiles import profiles_of
from export.graphs.spec import vision_graph
from export.runtime.images import ImageProcessor
from export.writer.weights import SharedWeights
from export.writer.write import export_vision, save_graph
from tests.decoders import write_decoder
from tests.facts import dims, facts
from tests.family_cases import FamilyCases, Made, odd_sizes, random_picture, read_by
from tests.tiny_families import (
    IMAGE,
    TinyFamily,
    byte_tokenizer,
    changed_model,
    template_of,
    text_section,
    write_model,
)
from vtcompress.stages.checks.processor import read_back

SIDE, PATCH, SCALE = 48, 8, 2
GRID = SIDE // PATCH // SCALE
LONGEST = 3 * SIDE - 16  # no multiple of a tile, so that rounding up shows
FAKE, WHOLE = "<fake_token_around_image>", "<global-img>"


def images_of(kind: Any, **changes: Any) -> Any:
    """Return an image processor of tiny tiles."""
    sizes = {"size": {"longest_edge": LONGEST}, "max_image_size": {"longest_edge": SIDE}}
    return kind(**sizes | {"resample": 1} | changes)


def tokenizer() -> Any:
    rows = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    return byte_tokenizer(IMAGE, FAKE, WHOLE, "<end_of_utterance>", *rows)


def sections(side: int = SIDE, **text: Any) -> dict[str, Any]:
    """Return the configuration of a tiny model, the embedding its head too unless told."""
    return {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": side,
            "patch_size": PATCH,
        },
        "text_config": {"model_type": "llama", **text_section(**text)},
        "scale_factor": SCALE,
        "tie_word_embeddings": True,
    }


def make(folder: Path, side: int = SIDE, **images: Any) -> None:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    from compressor.families.smolvlm.processor import PictureProcessor

    class Processor(PictureProcessor):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    Processor.__name__ = "SmolVLMProcessor"
    if side != SIDE:
        images |= {
            "size": {"longest_edge": 3 * side - 16},
            "max_image_size": {"longest_edge": side},
        }
    processor = Processor(
        images_of(SmolVLMImageProcessorPil, **images),
        tokenizer(),
        image_seq_len=(side // PATCH // SCALE) ** 2,
        chat_template=template_of(IMAGE),
    )
    config = SmolVLMConfig(
        **sections(side), image_token_id=processor.tokenizer.convert_tokens_to_ids(IMAGE)
    )
    write_model(SmolVLMForConditionalGeneration, config, processor, folder)


class TestSmolVlm(FamilyCases):
    family = TinyFamily("smolvlm", make, grid=(GRID, GRID), layers="model.text_model.layers")

    def test_what_a_picture_becomes(self, made: Made) -> None:
        known = made.loaded.facts
        assert (known.most_tiles, known.tile_rows, known.picture_rows) == (10, 9, 90)
        assert known.token_grid == (GRID, GRID)
        runtime, _ = made.runtime("identity", "torch")
        seen = runtime.look(made.pictures)
        assert [(one.grid, len(one.pixels)) for one in seen] == [((2, 3), 7), ((3, 2), 7)]
        run = IMAGE * GRID**2
        lines = [
            "".join(f"{FAKE}<row_{row}_col_{column}>{run}" for column in (1, 2, 3))
            for row in (1, 2)
        ]
        assert seen[0].text == f"{lines[0]}\n{lines[1]}\n\n{FAKE}{WHOLE}{run}{FAKE}"

    def test_text_between_tiles_is_text(self, made: Made) -> None:
        """So a frozen layer updates it, and behind an exit it stays."""
        runtime, _ = made.runtime("identity", "torch")
        prompt = runtime.prepare("x", made.pictures[:1])
        layout = prompt.layout
        assert len(layout.visual_index) == 7 * GRID**2
        between = (layout.text_index > layout.visual_index[0]) & (
            layout.text_index < layout.visual_index[-1]
        )
        # "<fake><row_1_col_2>" and its like, a line's end, and in front of the whole two.
        special = {f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)}
        spelled = [
            2 if f"<row_{row}_col_{column}>" in special else 14
            for row in (1, 2)
            for column in (1, 2, 3)
        ]
        assert between.sum() == sum(spelled[1:]) + 1 + 2 + 2

    def test_the_text_is_the_processors_own(self, made: Made) -> None:
        runtime, _ = made.runtime("identity", "torch")
        processor = made.loaded.processor
        for width, height in odd_sizes(200, seed=4, most=1500):
            blank = Image.new("RGB", (width, height))
            told = processor.image_processor([blank], return_row_col_info=True)
            wanted = processor.replace_image_token(told, 0)
            assert runtime.images.text(height, width) == wanted, (width, height)

    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
    def test_pixels_of_other_modes_are_the_processors(self, made: Made, mode: str) -> None:
        runtime, _ = made.runtime("identity", "torch")
        for seed, size in enumerate([(1, 1), (90, 31), (40, 130)]):
            picture = random_picture(size, seed)
            if mode.endswith("A"):
                picture.putalpha(picture.convert("L"))
            picture = picture.convert(mode)
            (seen,) = runtime.look([picture])
            wanted = read_by(made.loaded.processor, picture)["pixel_values"]
            assert np.array_equal(seen.pixels, wanted[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("smolvlm") / "model"
    make(made)
    return made


OPTIONS: dict[str, dict[str, Any]] = {
    "as made": {},
    "a number of tiles": {"size": {"longest_edge": 3 * SIDE}},
    "odd": {"size": {"longest_edge": 127}, "max_image_size": {"longest_edge": 31}},
    "odd, a number of tiles": {
        "size": {"longest_edge": 93},
        "max_image_size": {"longest_edge": 31},
    },
    "one tile": {"size": {"longest_edge": SIDE}},
    "smaller than a tile": {"size": {"longest_edge": SIDE - 7}},
    "not cut": {"do_image_splitting": False},
    "not cut, not resized": {"do_image_splitting": False, "do_resize": False},
    "another filter": {"resample": 3, "image_mean": [0.1, 0.2, 0.3]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_both_classes_of_image_processors_are_read(options: dict[str, Any]) -> None:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    most = 1
    for kind in (Idefics3ImageProcessorPil, SmolVLMImageProcessorPil):
        theirs = images_of(kind, **options)
        steps = saved_steps(json.loads(theirs.to_json_string()), "x")
        form = PictureForm(token=IMAGE, steps=steps, text=TileRows(tile=FAKE, whole=WHOLE))
        ours = ImageProcessor(steps, form, 4)
        for seed, size in enumerate([(800, 800), (130, 131), *odd_sizes(50, seed=5)]):
            picture = random_picture(size, seed)
            told = theirs([picture], return_row_col_info=True, return_tensors="np")
            seen = ours(picture)
            assert np.array_equal(seen.pixels, told["pixel_values"][0]), size
            rows, columns = told["rows"][0][0], told["cols"][0][0]
            assert seen.grid == (rows or 1, columns or 1), size
            assert seen.rows == 4 * len(seen.pixels)
            assert seen.text == get_image_prompt_string(rows, columns, 4, FAKE, IMAGE, WHOLE)
            most = max(most, len(seen.pixels))
    assert most == most_tiles(steps)  # the limit is met, by a square


def test_a_line_of_one_pixel_stays_in_memory() -> None:
    steps = (ResizeLonger(edge=4096, resample="lanczos"), CutTiles(edge=512, resample="lanczos"))
    seen = ImageProcessor(steps)(Image.new("RGB", (60_000, 1)))
    assert (seen.grid, seen.pixels.shape) == ((1, 8), (9, 3, 512, 512))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((CutTiles(edge=8, resample="box"),), "cut_tiles: does not stand second, behind resize_longer"),
        ((Resize(size=(9, 9), resample="box"), CutTiles(edge=8, resample="box")), "cut_tiles: does not"),
        ((ResizeLonger(edge=9, resample="box"),), "give pictures of different sizes"),
        ((ResizeLonger(edge=4096, resample="box"), CutTiles(edge=240, resample="box")), "up to 325 tiles"),
    ],
)  # fmt: skip
def test_steps_that_no_memory_or_graph_holds_are_refused(steps: Any, words: str) -> None:
    with pytest.raises(ModelError, match=f"picture steps: {words}"):
        ImageProcessor(steps)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"do_resize": False}, "do_resize: False: a large picture would become any number of tiles"),
        ({"size": {"height": 96, "width": 96}}, "size: {'height': 96, 'width': 96}: only longest_edge in"),
        ({"size": {"longest_edge": 5000}}, "size: {'longest_edge': 5000}: only longest_edge in 1..4096"),
        ({"max_image_size": {"longest_edge": 0}}, "max_image_size: {'longest_edge': 0}: only longest_edge"),
        ({"do_image_splitting": "yes"}, "do_image_splitting: 'yes': must be true or false"),
    ],
)  # fmt: skip
def test_what_no_step_does_is_refused_by_its_key(options: dict[str, Any], words: str) -> None:
    saved = {"image_processor_type": "SmolVLMImageProcessor", **options}
    with pytest.raises(ModelError) as caught:
        saved_steps(saved, "p.json")
    assert caught.value.problems[0].startswith(f"p.json: {words}"), caught.value


def test_positions_are_those_of_the_unmodified_tower_with_its_rounding() -> None:
    """At 25 patches a side transformers' fractions fall into the bucket beside their own."""
    from transformers import SmolVLMConfig, SmolVLMModel

    side, patch = 25, 2
    vision = {"num_hidden_layers": 1, "image_size": side * patch, "patch_size": patch}
    made = sections()
    config = SmolVLMConfig(
        **made | {"vision_config": {**made["vision_config"], **vision}, "scale_factor": 5}
    )
    torch.manual_seed(0)
    model = SmolVLMModel(config).eval()
    with torch.no_grad():
        for parameter in model.vision_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    ids = position_ids(model.vision_model)
    assert (ids[0] != torch.arange(side**2)).any()
    pixels = torch.randn(2, 3, side * patch, side * patch)
    vision = SmolVlmFamily().vision(
        config, image_size=side * patch, source=SimpleNamespace(model=model)
    )
    with torch.inference_mode():
        wanted = torch.cat(model.get_image_features(pixels[None]).pooler_output)
        assert (vision(pixels).flatten(0, 1) - wanted).abs().max() < 1e-5
        vision.positions = torch.arange(side**2)[None]
        assert (vision(pixels).flatten(0, 1) - wanted).abs().max() > 1e-2


def test_a_budget_of_tiles_is_kept_by_the_original_and_by_the_runtime(folder: Path) -> None:
    for most, tiles in ((1, 1), (4, 5), (9, 10), (16, 17)):
        read = read_processor(str(folder), budget=ImageSection(max_tiles=most))
        assert read.facts.most_tiles == tiles
        assert read.facts.budget == ImageSection(max_tiles=most)
        ours = read_back(read.processor, folder, read.facts).images
        for seed, size in enumerate([(100, 100), (70, 31)]):
            picture = random_picture(size, seed)
            wanted = read_by(read.native, picture)["pixel_values"][0]
            assert np.array_equal(ours(picture).pixels, wanted)
            assert len(wanted) == tiles or seed
    for image, words in (
        ({"max_pixels": 9}, "image.max_pixels: is nothing for pictures of the family 'smolvlm'; it "
         "takes image.max_tiles"),
        ({"max_tiles": 6}, "image.max_tiles: 6 cannot be kept exactly: a picture's longer edge is a number "
         "of tiles, and a square has as many rows; take 4 or 9"),
        ({"max_tiles": 10_000}, f"image.max_tiles: 10000 tiles of {SIDE} pixels are too large: 7225 are"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=re.escape(words)):
            describe(str(folder), budget=ImageSection(**image))
    with pytest.raises(
        ModelError, match=r"export\.image_size: 96 is nothing .* take image\.max_tiles"
    ):
        describe(str(folder), image_size=96)


def test_a_budget_of_odd_tiles_is_met_by_no_picture_beyond_it() -> None:
    odd = {"image_processor_type": "SmolVLMImageProcessor", "max_image_size": {"longest_edge": 31}}
    family = SmolVlmFamily()
    for most in (1, 9, 25):
        changed = family.within(ImageSection(max_tiles=most), odd)
        assert family.most_tiles({**odd, **changed}) == most + (most > 1)


def test_pictures_that_are_not_cut_are_one_tile(tmp_path: Path) -> None:
    make(tmp_path / "m", do_image_splitting=False)
    read = read_processor(str(tmp_path / "m"))
    assert read.facts.most_tiles == 1
    seen = read_back(read.processor, tmp_path / "m", read.facts).images(random_picture((70, 31), 0))
    assert seen.text == f"{FAKE}{WHOLE}{IMAGE * GRID**2}{FAKE}"
    with pytest.raises(
        ModelError, match=r"image\.max_tiles: is nothing for pictures that are not cut"
    ):
        describe(str(tmp_path / "m"), budget=ImageSection(max_tiles=4))


def test_what_a_picture_becomes_is_told_with_its_tiles(folder: Path, tmp_path: Path) -> None:
    random_picture((100, 20), 0).save(tmp_path / "a.png")
    found = vtcompress.inspect(folder, tmp_path / "a.png")["picture"]
    runs = "".join(f"{FAKE}<row_1_col_{column}>{IMAGE} x 9" for column in (1, 2, 3))
    assert found == {
        "visual_tokens": 36,
        "tiles": 4,
        "tile_grid": [1, 3],
        "tile_tokens": 9,
        "order": "3 x 1 tiles row by row, then the whole picture",
        "text": f"{runs}\n\n{FAKE}{WHOLE}{IMAGE} x 9{FAKE}",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale_factor": 4}, "scale_factor: 4 does not divide the tower's 6 x 6 patches"),
        ({"scale_factor": 0}, "scale_factor: 0 is not allowed; one number, 1 or more"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "vision_config.model_type: 'siglip_visi"),
        ({"vision_config": {"image_size": [48, 40]}}, "vision_config.image_size: [48, 40] is not allowed"),
        ({"vision_config": {"num_channels": 4}}, "vision_config.num_channels: 4 is not supported; picture"),
        ({"vision_config": {"num_attention_heads": 3}}, "vision_config.num_attention_heads: 3 do not divi"),
        ({"vision_config": {"num_hidden_layers": 4}}, "vision_config.num_hidden_layers: 4, but the weights "
         "are those of 3 layers"),
        ({"text_config": {"num_hidden_layers": 7}}, "text_config.num_hidden_layers: 7, but the weights are "
         "those of 6 layers"),
        ({"vision_config": {"hidden_act": "none"}}, "vision_config.hidden_act: 'none' is no activation"),
        ({"text_config": {"model_type": "gemma"}}, "text_config.model_type: 'gemma' is not supported"),
        ({"architectures": ["SmolVLMModel"]}, "architectures: ['SmolVLMModel'] is not supported; only"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_its_key_before_weights_are(
    changes: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    other = changed_model(folder, tmp_path / "m", **changes)
    with pytest.raises(ModelError) as caught:
        describe(str(other))
    assert caught.value.problems[0].startswith(f"{other / 'config.json'}: {words}"), caught.value


def test_the_older_name_of_the_tower_is_read(folder: Path, tmp_path: Path) -> None:
    other = changed_model(folder, tmp_path / "m", vision_config={"model_type": "smolvlm"})
    assert describe(str(other)).model_dump(exclude={"name", "architecture"}) == describe(
        str(folder)
    ).model_dump(exclude={"name", "architecture"})


@pytest.mark.parametrize("lost", ["connector.modality_projection.proj.weight",
                                  "vision_model.post_layernorm.bias"])  # fmt: skip
def test_a_missing_tensor_is_refused_before_weights_are_read(
    lost: str, folder: Path, tmp_path: Path
) -> None:
    other = changed_model(folder, tmp_path / "m")
    tensors = load_file(other / WEIGHTS)
    del tensors[f"model.{lost}"]  # names on disk are those in memory
    save_file(tensors, other / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=re.escape(lost)):
        describe(str(other))


def test_the_embedding_is_the_head_where_the_tensors_say_so(folder: Path, tmp_path: Path) -> None:
    """A tied head is not in the file; flags at the top and in the text section may differ."""
    tensors = load_file(folder / WEIGHTS)
    assert "lm_head.weight" not in tensors
    model = load(str(folder))
    assert describe(str(folder)) == model.facts
    assert model.facts.decoder.tied_embeddings
    assert torch.equal(model.tensors["lm_head.weight"], model.embedding)
    other = changed_model(
        folder,
        tmp_path / "untied",
        tie_word_embeddings=False,
        text_config={"tie_word_embeddings": True},
    )
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        describe(str(other))
    tensors["lm_head.weight"] = tensors["model.text_model.embed_tokens.weight"] * 2
    save_file(tensors, other / WEIGHTS, metadata={"format": "pt"})
    model = load(str(other))
    assert describe(str(other)) == model.facts
    assert not model.facts.decoder.tied_embeddings
    assert torch.equal(model.tensors["lm_head.weight"], tensors["lm_head.weight"])


@pytest.mark.matrix
def test_tower_and_decoder_of_real_width_build_for_tensorrt_rtx(tmp_path: Path) -> None:
    """Two layers each, float16: the tower of 1152 with 1 to 17 tiles of 384 pixels, the decoder of 256M."""
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    from transformers import SmolVLMConfig

    config = SmolVLMConfig(
        vision_config={
            "num_hidden_layers": 2,
            "image_size": 384,
            "patch_size": 14,
            "intermediate_size": 4304,
        },
        text_config={"model_type": "llama", "hidden_size": 576},
        scale_factor=3,
    )
    family = SmolVlmFamily()
    size, tokens, grid = family.visual_grid(config, None)
    assert (size, tokens, grid) == (384, 81, (9, 9))
    decoder = dims(
        hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=49280, layers=2,
        max_positions=8192, tied_embeddings=True,
    )  # fmt: skip
    model = facts(
        decoder,
        visual_tokens=tokens,
        token_grid=grid,
        image_size=size,
        most_tiles=17,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    vision = family.vision(config, image_size=size).half()
    spec = vision_graph(model, "float16")
    with SharedWeights(tmp_path) as weights:
        graph = export_vision(SimpleNamespace(vision=vision), spec)
        save_graph(graph, tmp_path / spec.file, weights)
    written = onnx.load(tmp_path / spec.file, load_external_data=False).graph
    kinds = {node.op_type for node in written.node}
    assert not kinds & {"NonZero", "GatherND", "ScatterElements", "Where", "Range"}
    limits = limits_of(vtcompress.load_recipe("identity").export.profiles, model)
    (profile,) = profiles_of(spec, limits)
    assert (profile.least["images"], profile.most["images"]) == (1, 17)
    maker, engine = Maker.of(TARGETS["tensorrt-rtx"], ["SM86"]), tmp_path / "vision.engine"
    maker.build_engine(tmp_path / spec.file, [profile], spec, engine, b"")
    assert engine.stat().st_size > (tmp_path / "weights.bin").stat().st_size
    (tmp_path / "decoder").mkdir()
    (spec,) = write_decoder(tmp_path / "decoder", identity_plan(model, "0" * 64))
    profiles = profiles_of(spec, limits)
    assert max(profile.most["visual"] for profile in profiles) == 17 * 81
    maker.build_engine(tmp_path / "decoder" / spec.file, profiles, spec, engine, b"")
    assert engine.stat().st_size > (tmp_path / "decoder" / "weights.bin").stat().st_size
