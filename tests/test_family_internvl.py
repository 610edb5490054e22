"""InternVL goes through the cases of every family: with Qwen2's decoder, and as 3.5 with Qwen3's."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import vtcompress
from compressor.compressed import plain
from compressor.errors import ModelError
from compressor.families import describe, load
from compressor.families.folder import WEIGHTS
from compressor.families.internvl.family import InternVlFamily
from compressor.families.registry import read_processor
from compressor.schema.sections import ImageSection
from export.backends.tensorrt.maker import Maker
from export.backends.tensorrt.targets import TARGETS
from export.graphs.limits import limits_of
from export.graphs.profiles import profiles_of
from export.graphs.spec import vision_graph
from export.writer.weights import SharedWeights
from export.writer.write import export_vision, save_graph
from tests.facts import dims, facts
from tests.family_cases import FamilyCases, Made, random_picture, read_by
from tests.tiny_families import (
    TinyFamily,
    byte_tokenizer,
    changed_model,
    template_of,
    text_section,
    write_model,
)
from vtcompress.stages.checks.processor import read_back
from vtcompress.stages.checks.rewrite import rewrite_prompt

SIDE, PATCH, GRID = 48, 8, 3  # 6 x 6 patches, four of them a visual token
CONTEXT = "<IMG_CONTEXT>"
NAMES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": CONTEXT,
    "video_token": "<video>",
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "attention_bias": True,
}
TILE = {
    "size": {"height": SIDE, "width": SIDE},
    "max_patches": 4,
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
}


def processor_of(side: int = SIDE) -> Any:
    """Return InternVL's processor, without the part for videos that asks for torchvision."""
    from transformers import InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    class Processor(InternVLProcessor):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    Processor.__name__ = "InternVLProcessor"
    return Processor(
        image_processor=GotOcr2ImageProcessorPil(
            **TILE | {"size": {"height": side, "width": side}}
        ),
        tokenizer=byte_tokenizer(names=NAMES),
        image_seq_length=(side // PATCH // 2) ** 2,
        chat_template=template_of(CONTEXT),
    )


def make(folder: Path, text: str = "qwen2", side: int = SIDE, **changes: Any) -> None:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    processor = processor_of(side)
    config = InternVLConfig(
        vision_config=VISION | {"image_size": side},
        text_config={"model_type": text, "tie_word_embeddings": False, **text_section(**changes)},
        image_token_id=processor.tokenizer.convert_tokens_to_ids(CONTEXT),
        image_seq_length=processor.image_seq_length,
        tie_word_embeddings=False,
    )
    write_model(InternVLForConditionalGeneration, config, processor, folder)


class TestInternVl(FamilyCases):
    family = TinyFamily("internvl", make, grid=(GRID, GRID))

    def test_the_class_of_the_processor_cuts_tiles_whatever_the_file_says(self, made: Made) -> None:
        saved = json.loads((made.folder / "processor_config.json").read_text())
        assert saved["image_processor"]["crop_to_patches"] is False
        facts = made.loaded.facts
        assert (facts.most_tiles, facts.tile_rows, facts.picture_rows) == (5, 9, 45)
        runtime, _ = made.runtime("identity", "torch")
        counts = [len(seen.pixels) for seen in runtime.look(made.pictures)]
        assert counts == [1, 3]  # the first is too small for two tiles, which would be as near
        assert [seen.grid for seen in runtime.look(made.pictures)] == [(1, 1), (2, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("internvl") / "model"
    make(made, num_hidden_layers=2)
    return made


@pytest.mark.parametrize("text", ["qwen3", "llama"])
def test_other_decoders_are_the_original_within_rounding(text: str, tmp_path: Path) -> None:
    head = {"head_dim": 24} if text == "qwen3" else {}
    make(tmp_path, text, num_hidden_layers=2, **head)
    model = load(str(tmp_path))
    assert model.facts.decoder.qk_norm == (text == "qwen3")
    with rewrite_prompt() as prompt:
        report = prompt.compare(prompt.read(model), plain(model))
    assert report.passed, report.failures
    assert report.pixels == 0.0
    assert max(report.embeds, report.logits, report.runtime) < 5e-6
    assert (
        report.visual == 9 * 3
    )  # the built-in picture of 320 to 210 is cut into two, and the whole


def test_a_budget_of_tiles_is_kept_by_the_original_and_by_the_runtime(folder: Path) -> None:
    for most, tiles in ((1, 1), (2, 3), (4, 5)):
        read = read_processor(str(folder), budget=ImageSection(max_tiles=most))
        assert read.facts.most_tiles == tiles
        assert read.facts.budget == ImageSection(max_tiles=most)
        assert read.native_facts == read.facts
        picture = random_picture((100, 90), 0)
        wanted = read_by(read.native, picture)
        seen = read_back(read.processor, folder, read.facts).images(picture)
        assert np.array_equal(seen.pixels, wanted["pixel_values"])
        assert len(seen.pixels) <= tiles
    for image, words in (
        ({"max_pixels": 9}, "image.max_pixels: is nothing for pictures of the family 'internvl'; it "
         "takes image.max_tiles"),
        ({"max_tiles": 257}, "image.max_tiles: 257 is too many; 256 are allowed"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=re.escape(words)):
            describe(str(folder), budget=ImageSection(**image))
    with pytest.raises(
        ModelError, match=r"export\.image_size: 96 is nothing .* take image\.max_tiles"
    ):
        describe(str(folder), image_size=96)


def test_what_a_picture_becomes_is_told_with_its_tiles(folder: Path, tmp_path: Path) -> None:
    random_picture((100, 40), 0).save(tmp_path / "a.png")
    found = vtcompress.inspect(folder, tmp_path / "a.png")["picture"]
    assert found == {
        "visual_tokens": 36,
        "tiles": 4,
        "tile_grid": [1, 3],
        "tile_tokens": 9,
        "order": "3 x 1 tiles row by row, then the whole picture",
        "text": "<img><IMG_CONTEXT> x 36</img>",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_feature_layer": -2}, "vision_feature_layer: -2 is not supported; only -1 is, the states"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy: 'full' is not suppo"),
        ({"vision_config": {"use_qk_norm": True}}, "vision_config.use_qk_norm: True is not supported; only"),
        ({"vision_config": {"norm_type": "rms_norm"}}, "vision_config.norm_type: 'rms_norm' is not suppo"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "vision_config.model_type: 'clip_vision_"),
        ({"vision_config": {"image_size": [48, 40]}}, "vision_config.image_size: [48, 40] is not allowed"),
        ({"vision_config": {"num_hidden_layers": 4}}, "vision_config.num_hidden_layers: 4, but the weights "
         "are those of 3 layers"),
        ({"vision_config": {"hidden_act": "none"}}, "vision_config.hidden_act: 'none' is no activation"),
        ({"downsample_ratio": 0.25}, "downsample_ratio: 0.25 does not divide the tower's 6 x 6 patches"),
        ({"text_config": {"model_type": "gemma"}}, "text_config.model_type: 'gemma' is not supported"),
        ({"architectures": ["InternVLModel"]}, "architectures: ['InternVLModel'] is not supported; only"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_its_key_before_weights_are(
    changes: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    other = changed_model(folder, tmp_path / "m", **changes)
    with pytest.raises(ModelError) as caught:
        describe(str(other))
    assert caught.value.problems[0].startswith(f"{other / 'config.json'}: {words}"), caught.value


@pytest.mark.parametrize("asked", [True, False])
def test_the_embedding_is_the_head_where_the_tensors_say_so(
    asked: bool, folder: Path, tmp_path: Path
) -> None:
    """3.5 has the flag at the top and not in the text section; names on disk are not those in memory."""
    other = changed_model(folder, tmp_path / "m", tie_word_embeddings=asked)
    tensors = load_file(other / WEIGHTS)
    assert "language_model.lm_head.weight" in tensors
    assert not describe(str(other)).decoder.tied_embeddings  # two tensors, whatever is asked for
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, other / WEIGHTS, metadata={"format": "pt"})
    if not asked:
        with pytest.raises(ModelError, match=r"lm_head\.weight"):
            describe(str(other))
        return
    model = load(str(other))
    assert describe(str(other)) == model.facts
    assert model.facts.decoder.tied_embeddings
    head, table = model.tensors["lm_head.weight"], model.embedding
    assert torch.equal(head, table)


@pytest.mark.matrix
def test_the_tower_of_real_width_builds_for_tensorrt_rtx(tmp_path: Path) -> None:
    """Two layers of the tower of 300M parameters, float16, 1 to 13 tiles of 448 pixels."""
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    from transformers import InternVLConfig

    config = InternVLConfig(
        vision_config={"num_hidden_layers": 2, "attention_bias": True},
        text_config={"model_type": "qwen2", "hidden_size": 896, "num_attention_heads": 14},
    )
    family = InternVlFamily()
    size, tokens, grid = family.visual_grid(config, None)
    assert (size, tokens, grid) == (448, 256, (16, 16))
    model = facts(dims(hidden=896), visual_tokens=tokens, image_size=size, most_tiles=13)
    torch.manual_seed(0)
    vision = family.vision(config, image_size=size).half()
    spec = vision_graph(model, "float16")
    with SharedWeights(tmp_path) as weights:
        graph = export_vision(SimpleNamespace(vision=vision), spec)
        save_graph(graph, tmp_path / spec.file, weights)
    limits = limits_of(vtcompress.load_recipe("identity").export.profiles, model)
    (profile,) = profiles_of(spec, limits)
    assert (profile.least["images"], profile.most["images"]) == (1, 13)
    engine = tmp_path / "vision.engine"
    maker = Maker.of(TARGETS["tensorrt-rtx"], ["SM86"])
    maker.build_engine(tmp_path / spec.file, [profile], spec, engine, b"")
    assert engine.stat().st_size > (tmp_path / "weights.bin").stat().st_size
