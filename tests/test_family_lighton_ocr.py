"""LightOnOCR goes through the cases of every family: pictures of their own sizes, one run of tokens each."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.errors import DataError, ModelError
from compressor.families import describe
from compressor.families.documents.lighton_ocr import LightOnOcrFamily
from compressor.families.registry import read_processor
from compressor.schema.sections import ImageSection
from tests.built import build_vision
from tests.family_cases import FamilyCases, Made, random_picture, read_by
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

PATCH, MERGE = 4, 2
CELL = PATCH * MERGE
FRAME = 88
LEAST = 3  # of the edges of pictures of up to 200 pixels, of which something is left in the frame
NAMES = {"image_token": IMAGE, "image_break_token": "<break>", "image_end_token": "<end>"}


def processor_of(size: dict[str, int] | None = None) -> Any:
    from transformers import LightOnOcrProcessor
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    return LightOnOcrProcessor(
        image_processor=PixtralImageProcessorPil(
            patch_size={"height": CELL, "width": CELL}, size=size or {"longest_edge": FRAME}
        ),
        tokenizer=byte_tokenizer(names=NAMES),
        patch_size=PATCH,
        spatial_merge_size=MERGE,
        chat_template=template_of(IMAGE),
    )


def make(folder: Path) -> None:
    from transformers import LightOnOcrConfig, LightOnOcrForConditionalGeneration

    processor = processor_of()
    config = LightOnOcrConfig(
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": FRAME,
            "patch_size": PATCH,
        },
        text_config={"model_type": "qwen3", "head_dim": 24, **text_section()},
        spatial_merge_size=MERGE,
        image_token_id=processor.image_token_id,
    )
    write_model(LightOnOcrForConditionalGeneration, config, processor, folder)


class TestLightOnOcr(FamilyCases):
    family = TinyFamily("lighton_ocr", make, grid=None, least=LEAST)

    def test_its_pictures_are_on_grids_of_their_own(self, made: Made) -> None:
        known = made.loaded.facts
        assert (known.cell, known.sizes_differ, known.picture_rows) == (CELL, True, 11 * 11)
        runtime, _ = made.runtime("identity", "torch")
        first, second = made.pictures
        assert [seen.cells for seen in runtime.look([first, second])] == [(4, 6), (8, 4)]
        assert runtime.look([random_picture((1, 1), 0)])[0].cells == (1, 1)
        with pytest.raises(
            DataError, match="1 x 200 pixels: made to fit into 88 x 88, as this mod"
        ):
            runtime.look([random_picture((1, 200), 0)])

    def test_a_frame_is_kept_by_the_original_and_by_the_runtime(self, made: Made) -> None:
        folder, budget = str(made.folder), ImageSection(height=40, width=24)
        read = read_processor(folder, budget=budget)
        assert read.facts.visual_tokens == 5 * 3
        picture = random_picture((100, 90), 0)
        wanted = read_by(read.processor, picture)
        seen = read_back(read.processor, made.folder, read.facts).images(picture)
        assert np.array_equal(seen.pixels, wanted["pixel_values"])
        assert (wanted["input_ids"] == read.facts.image_token_id).sum() == seen.rows == 3 * 3
        with pytest.raises(
            ModelError, match=r"image\.max_pixels: is nothing for .* takes image\.height"
        ):
            describe(folder, budget=ImageSection(max_pixels=9))
        with pytest.raises(ModelError, match=r"size: .* in 1\.\.4096 pixels are supported"):
            describe(folder, budget=ImageSection(height=5000, width=40))
        with pytest.raises(
            ModelError, match=r"take image\.height and image\.width, or leave it out"
        ):
            describe(folder, image_size=96)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"vision_config": {"model_type": "clip_vision_model"}}, "vision_config.model_type: 'clip_vi"),
            ({"vision_config": {"num_channels": 1}}, "vision_config.num_channels: 1 is not supported"),
            ({"vision_config": {"patch_size": [4, 4]}}, "vision_config.patch_size: [4, 4] is not allowed"),
            ({"vision_config": {"num_attention_heads": 16}}, "vision_config.num_attention_heads: 16 heads "
             "of a width of 32: a head's width must be a multiple of 4"),
            ({"vision_config": {"num_hidden_layers": 4}}, "vision_config.num_hidden_layers: 4, but the wei"),
            ({"vision_config": {"hidden_act": "none"}}, "vision_config.hidden_act: 'none' is no activation"),
            ({"spatial_merge_size": 0}, "spatial_merge_size: 0 is not allowed; one number, 1 or more"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_read_is_refused_by_its_key(
        self, made: Made, changes: dict[str, Any], words: str, tmp_path: Path
    ) -> None:
        other = changed_model(made.folder, tmp_path / "m", **changes)
        with pytest.raises(ModelError) as caught:
            describe(str(other))
        assert caught.value.problems[0].startswith(f"{other / 'config.json'}: {words}"), (
            caught.value
        )

    def test_pictures_of_half_a_visual_token_are_refused(self, made: Made, tmp_path: Path) -> None:
        other = changed_model(made.folder, tmp_path / "m")
        file = other / "processor_config.json"
        file.write_text(re.sub(r'("(?:height|width)": )8', r"\g<1>4", file.read_text()))
        with pytest.raises(ModelError, match="a visual token shows 8 x 8 pixels"):
            read_processor(str(other))


@pytest.mark.matrix
def test_the_tower_of_real_width_builds_for_tensorrt_rtx(tmp_path: Path) -> None:
    """Two of 24 layers, float16, at any size within the published frame of 1,540 pixels."""
    from transformers import LightOnOcrConfig

    config = LightOnOcrConfig()
    config.vision_config.num_hidden_layers = 2
    family = LightOnOcrFamily()
    assert family.cell(config) == 28
    build_vision(family, config, (1540 // 28) ** 2, tmp_path)
