"""LightOnOCR goes through the cases of every family: pictures of their own sizes, one run of tokens each."""

from pathlib import Path
from typing import Any

from tests.family_cases import FamilyCases
from tests.tiny_families import (
    IMAGE,
    TinyFamily,
    byte_tokenizer,
    template_of,
    text_section,
    write_model,
)

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
